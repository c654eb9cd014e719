"""Check that what the documents say exists: links, commands, names, and code that runs.

    python tools/check_docs.py             # the Markdown files of the root and of docs/
    python tools/check_docs.py README.md   # only these

- Relative links lead to files, and their anchors to headings.
- ``shoal verb --flag``, ``make target`` and ``python script.py --flag``, in fenced blocks and in
  code spans, are commands of this repository; so is a flag that stands alone in a span.
- Spans like ``test_something`` and ``shoal.something`` name a test and a part of shoal.
- A number before ``<!-- shoal.some.name -->`` is what that name holds in the code.
- Tables are tables: a head, a rule below it, and rows of as many cells.
- ``python`` blocks run, in order, in one namespace a file; ``pycon`` sessions answer as shown.

Every problem is one line, ``file:line: what``; with any, the exit status is 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import re
import shlex
import sys
import tempfile
import textwrap
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from shoal.core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("", "sh", "bash", "console")
HISTORY = ("LOG.md", "CHANGELOG.md")
_COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?((?:shoal|make|python3?)\b.*)$")
_SPAN = re.compile(r"`([^`]+)`")


class Block(typing.NamedTuple):
    """A fenced block: the line it begins after, its language, its text."""

    line: int
    language: str
    text: str


class Document(typing.NamedTuple):
    """A file, its lines with those in fences left empty, and its fenced blocks."""

    path: Path
    prose: list[str]
    blocks: list[Block]

    def problem(self, line: int, what: str) -> str:
        """One line that names the file and the line."""
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{name}:{line}: {what}"


def main() -> None:
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or documents()
    problems = [problem for path in chosen for problem in check(path)]
    print(*problems, sep="\n", file=sys.stderr, end="\n" if problems else "")
    print(f"{len(chosen)} documents, {len(problems)} problems")
    sys.exit(bool(problems))


def documents() -> list[Path]:
    """The Markdown files that this repository answers for."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def check(path: Path) -> Iterator[str]:
    """Every problem of one document."""
    document = read(path)
    yield from wrong_links(document)
    if not _of_its_day(path):
        yield from wrong_commands(document)
        yield from wrong_names(document)
        yield from wrong_facts(document)
    yield from wrong_tables(document)
    yield from wrong_code(document)


def _of_its_day(path: Path) -> bool:
    """Whether a document records what was run, by commands and names of that day."""
    return path.name in ("LOG.md", "CHANGELOG.md") or "results" in path.parts


def read(path: Path) -> Document:
    prose: list[str] = []
    blocks: list[Block] = []
    inside: list[str] | None = None
    language, begin = "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and inside is None:
            inside, language, begin = [], fence[1], number
        elif fence and inside is not None:
            blocks.append(Block(begin, language, textwrap.dedent("\n".join(inside)) + "\n"))
            inside = None
        elif inside is not None:
            inside.append(line)
        prose.append("" if fence or inside is not None else line)
    return Document(path, prose, blocks)


def spans(document: Document) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(document.prose, 1):
        yield from ((number, span) for span in _SPAN.findall(line))


# -- links ---------------------------------------------------------------------------------------


def wrong_links(document: Document) -> Iterator[str]:
    for number, line in enumerate(document.prose, 1):
        for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", _SPAN.sub("", line)):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            path = document.path.parent / target if target else document.path
            if not path.exists():
                yield document.problem(number, f"no file {target}")
            elif anchor and anchor not in headings(path):
                yield document.problem(number, f"no heading #{anchor} in {path.name}")


def headings(path: Path) -> set[str]:
    """Anchors of a file's headings, as GitHub makes them."""
    titles = [line.lstrip("#").strip() for line in read(path).prose if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# -- commands ------------------------------------------------------------------------------------


def wrong_commands(document: Document) -> Iterator[str]:
    if document.path.name in HISTORY or "results" in document.path.parts:
        return  # commands as they were when something was measured or changed
    for number, line in [*shell_lines(document), *spans(document)]:
        if line.startswith("--") and flag_name(line) not in every_flag():
            yield document.problem(number, f"no command has {flag_name(line)}")
        found = _COMMAND.match(line)
        for words in simple_commands(found[1]) if found else ():
            what = wrong_command(words)
            if what:
                yield document.problem(number, what)


def shell_lines(document: Document) -> Iterator[tuple[int, str]]:
    for block in document.blocks:
        if block.language in SHELL:
            joined = block.text.replace("\\\n", "  ")
            yield from ((block.line + i, x) for i, x in enumerate(joined.splitlines(), 1))


def simple_commands(line: str) -> list[list[str]]:
    """The commands between ``|``, ``&&``, ``;`` and ``>``, each as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts = groupby(lexer, key=lambda word: set(word) <= set("|&;<>()"))
    return [list(words) for is_operator, words in parts if not is_operator]


def wrong_command(words: list[str]) -> str | None:
    """What a command names that does not exist, or None."""
    program, rest = words[0], words[1:]
    flags = {flag_name(word) for word in rest if word.startswith("--")} - {"--help"}
    if program == "make":
        missing = {x for x in rest if not x.startswith("-") and "=" not in x} - targets()
        return f"make has no target {min(missing)}" if missing else None
    if program == "shoal" and rest and not rest[0].startswith("-"):
        return wrong_subcommand(rest, flags)
    if program == "shoal":
        missing = flags - {"--version"}
        return f"shoal has no {min(missing)}" if missing else None
    if rest and rest[0].endswith(".py"):
        script = ROOT / rest[0]
        missing = flags - script_flags(script)
        if not script.is_file():
            return f"no script {rest[0]}"
        return f"{rest[0]} has no {min(missing)}" if missing else None
    return None


def flag_name(word: str) -> str:
    return re.split(r"[= ]", word)[0]


def wrong_subcommand(words: list[str], flags: set[str]) -> str | None:
    """What ``shoal VERB`` or ``shoal train TASK`` names that does not exist, or None."""
    verb = words[0]
    if verb == "train":
        task = words[1] if len(words) > 1 else ""
        of_file = not task or task.startswith("-") or ":" in task  # --config names the task
        verb = "train labels" if of_file else f"train {task}"
    elif " ".join(words[:2]) in verbs():  # of a model: plan labels
        verb = " ".join(words[:2])
    if verb in ("help", "version") or (verb in verbs() and not flags - verbs()[verb]):
        return None
    if verb not in verbs():
        return f"shoal has no command {verb}"
    return f"shoal {verb} has no {min(flags - verbs()[verb])}"


@cache
def verbs() -> dict[str, set[str]]:
    """The flags of each subcommand and task, from its settings; needs no torch."""
    import tyro

    from shoal.cli import main, train

    def flags(settings: Any) -> Iterator[str]:
        hints = typing.get_type_hints(settings, include_extras=True)
        for field in dataclasses.fields(settings):
            marks = getattr(hints[field.name], "__metadata__", ())
            kind = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
            name = f"--{field.name.strip('_').replace('_', '-')}"
            if dataclasses.is_dataclass(kind):
                yield from flags(kind)
            elif tyro.conf.Positional not in marks:
                pair = kind is bool and tyro.conf.FlagCreatePairsOff not in marks
                yield from (name, f"--no-{name[2:]}") if pair else (name,)

    of = {name: settings for name, (settings, _) in main.VERBS.items() if name != "train"}
    of |= {f"train {name}": task.settings for name, task in train.tasks().items()}
    of |= {f"plan {name}": settings for name, (settings, _) in main.PLANS.items()}
    return {name: set(flags(settings)) for name, settings in of.items()}


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def script_flags(script: Path) -> set[str]:
    return set(re.findall(r'"(--[\w-]+)"', script.read_text())) if script.is_file() else set()


@cache
def every_flag() -> set[str]:
    scripts = [path for folder in ("benchmarks", "examples", "tools") for path in files(folder)]
    known = [*verbs().values(), *(script_flags(path) for path in scripts)]
    return set().union({"--help", "--version"}, *known)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


# -- names ---------------------------------------------------------------------------------------


def wrong_names(document: Document) -> Iterator[str]:
    for number, span in spans(document):
        if re.fullmatch(r"test_\w+", span) and span not in names_of_tests():
            yield document.problem(number, f"no test {span}")
        name = re.fullmatch(r"(shoal(?:\.\w+)+)(?:\(.*\))?", span)
        if name and not exists(name[1]):
            yield document.problem(number, f"no {name[1]}")


@cache
def names_of_tests() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in files("tests")]
    modules = {path.stem for path in files("tests")}
    return modules.union(*(re.findall(r"def (test_\w+)", source) for source in sources))


@cache
def exists(name: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    home, _, last = name.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        import_module(name)
        return True
    if not home or not exists(home):
        return False
    with contextlib.suppress(ModuleNotFoundError):
        module = import_module(home)
        try:
            return hasattr(module, last)
        except InputError:  # made when it is asked for, from a package that is not installed
            return last in Path(str(module.__file__)).read_text(encoding="utf-8")
    owner, _, middle = home.rpartition(".")
    return hasattr(getattr(import_module(owner), middle), last)


def wrong_facts(document: Document) -> Iterator[str]:
    """Numbers that are not what the code says, each marked by a comment that readers do not see."""
    for number, line in enumerate(document.prose, 1):
        for said, name in re.findall(r"([\d.,]+)[*`]*<!-- (shoal\.[\w.]+) -->", line):
            held = value(name)
            if held is None or float(said.replace(",", "")) != float(held):
                yield document.problem(number, f"{said} said, but {name} is {held}")


def value(name: str) -> Any:
    """What a dotted name of shoal holds: a number of a module, or a field's default; else None."""
    if not exists(name):
        return None
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found: Any = import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part)
            return found
    return None


# -- tables --------------------------------------------------------------------------------------


def wrong_tables(document: Document) -> Iterator[str]:
    """Rows without a head, as after an empty line, and rows with more or fewer cells than it."""
    head = 0
    for number, line in enumerate(document.prose, 1):
        if not (line.startswith("|") and line.rstrip().endswith("|")):
            head = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", _SPAN.sub("", line)))
        if head == 0:
            below = document.prose[number] if number < len(document.prose) else ""
            if not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", below):
                yield document.problem(number, "a row of a table without a head")
            head = cells
        elif cells != head:
            yield document.problem(number, f"a row of {cells - 1} cells below {head - 1}")


# -- code ----------------------------------------------------------------------------------------


def wrong_code(document: Document) -> Iterator[str]:
    """Run a document's Python; after the first failure the rest means nothing."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in document.blocks:
            run = {"python": run_block, "pycon": run_session}.get(block.language)
            what = run(block, namespace) if run else None
            if what:
                yield document.problem(block.line, what)
                return


def run_block(block: Block, namespace: dict[str, object]) -> str | None:
    try:
        exec(compile(block.text, "document", "exec"), namespace)
    except Exception as error:
        return f"python block: {type(error).__name__}: {error}"
    return None


def run_session(block: Block, namespace: dict[str, object]) -> str | None:
    session = doctest.DocTestParser().get_doctest(block.text, namespace, "session", None, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(session, out=said.append, clear_globs=False)
    namespace |= session.globs
    return f"pycon session: {' '.join(''.join(said).split())}" if said else None


if __name__ == "__main__":
    main()
