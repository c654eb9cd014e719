"""What the site shows besides docs/: the API, the command's help, and files that documents link to.

mkdocs calls these functions while it builds (``hooks`` in mkdocs.yml):

- **The API.** ``src/shoal/__init__.pyi`` lists the public names in groups, each below a comment. A
  group becomes a page; a name becomes a section there, with its signature and docstring.
- **The command.** ``shoal VERB --help`` of every subcommand.
- **Files outside docs/** that a document links to, such as a test or an example, become pages, so
  that every link works on the site as it does in the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Modules whose names are public, but not imported from shoal itself.
MODULES = {
    "metrics": ["shoal.core.metrics"],
    "curvature": ["shoal.curvature.lanczos", "shoal.curvature.batch_spectra"],
    "subgraphs": ["shoal.sample.subgraph"],
    "integrations": [
        "shoal.integrations.pyg",
        "shoal.integrations.sentence_transformers",
        "shoal.integrations.transformers",
        "shoal.integrations.lightning",
        "shoal.sklearn",
    ],
}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"


def api_pages() -> dict[str, str]:
    """The Markdown of each page of the API, by its path in docs/."""
    stub = (ROOT / "src/shoal/__init__.pyi").read_text(encoding="utf-8")
    pages = {}
    for group in re.split(r"^# ", stub, flags=re.MULTILINE)[1:]:
        title, _, body = group.partition("\n")
        names = re.findall(r"^from (\S+) import (\w+) as \w+$", body, re.MULTILINE)
        sections = (f"::: {home}.{name}\n" for home, name in names)
        path = "reference/api/" + re.sub(r"\W+", "-", title).strip("-") + ".md"
        pages[path] = f"# {_capital(title)}\n\n" + "\n".join(sections)
    for title, modules in MODULES.items():
        sections = (
            f"::: {module}\n    options: {{show_root_full_path: true}}\n" for module in modules
        )
        pages[f"reference/api/{title}.md"] = f"# {_capital(title)}\n\n" + "\n".join(sections)
    return pages


def command_page() -> str:
    """The help of the command and of each subcommand, 88 columns wide and without color."""
    overview = _help()
    verbs = re.findall(r"^  ([\w-]+)  ", overview, re.MULTILINE)
    tasks = [f"train {task}" for task in ("labels", "nodes", "links")]
    every = [x for verb in verbs for x in (tasks if verb == "train" else [verb])]
    helps = [f"## shoal {verb}\n\n```text\n{_help(*verb.split())}\n```\n" for verb in every]
    return f"# The command\n\n```text\n{overview}\n```\n\n" + "\n".join(helps)


def _help(*words: str) -> str:
    """What the command prints for ``--help``."""
    environment = os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "shoal", *words, "--help"]
    told = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, encoding="utf-8"
    )
    return told.stdout.strip()


def _capital(title: str) -> str:
    return title[0].upper() + title[1:]


# -- links ---------------------------------------------------------------------------------------


def place(path: str) -> str:
    """Where a file of the repository stands on the site, relative to docs/.

    Example:
        >>> place("docs/LOG.md"), place("CHANGELOG.md"), place("src/shoal/tasks/labels.py")
        ('LOG.md', 'CHANGELOG.md', 'code/src/shoal/tasks/labels.py.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "README.md"
    return path if path.endswith(".md") else f"code/{path}.md"


def targets(text: str, source: str) -> list[str]:
    """The files outside docs/ that a document links to, as paths in the repository."""
    links = (link.partition("#")[0] for _, link, _ in _LINK.findall(text))
    local = (link for link in links if link and not re.match(r"[a-z]+:", link))
    paths = (posixpath.normpath(posixpath.join(posixpath.dirname(source), x)) for x in local)
    return [_file(path) for path in paths if not path.startswith("docs/")]


def _file(path: str) -> str:
    """A folder stands for its ``__init__.py``."""
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else path


def relinked(text: str, source: str) -> str:
    """A document whose links lead to places on the site."""
    here = posixpath.dirname(place(source)) or "."

    def moved(match: re.Match[str]) -> str:
        link, hash_, anchor = match[2].partition("#")
        if not link or re.match(r"[a-z]+:", link):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        path = path if path.startswith("docs/") else _file(path)
        return f"{match[1]}{posixpath.relpath(place(path), here)}{hash_}{anchor}{match[3]}"

    return _LINK.sub(moved, text)


def listing(path: str) -> str:
    """A source file as a page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = {".py": "python", ".cff": "yaml"}.get(Path(path).suffix, "text")
    return f"{_HIDDEN}# {path}\n\n````{language}\n{text}\n````\n"


# -- what mkdocs calls ---------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Put the pages of the API and the results into the navigation."""
    sections = {name: pages for entry in config.nav for name, pages in entry.items()}
    api = [{text.partition("\n")[0].lstrip("# "): path} for path, text in api_pages().items()]
    sections["Reference"].append({"API": api})
    results = sorted((ROOT / "docs" / "results").glob("*.md"))
    sections["Results"] += [f"results/{path.name}" for path in results]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and those that documents link to."""
    from mkdocs.structure.files import (  # pyright: ignore[reportMissingImports]
        File,
        InclusionLevel,
    )

    pages = {**api_pages(), "reference/command.md": command_page()}
    queue = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    root = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
    wanted = [*root, *(x for source in [*queue, *root] for x in targets(_read(source), source))]
    for path in dict.fromkeys(wanted):
        if path != "README.md":
            pages[place(path)] = _read(path) if path.endswith(".md") else listing(path)
    for path, text in pages.items():
        made = File.generated(config, path, content=text)
        if path.startswith("code/"):
            made.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(made)
    return files


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where the files stand on the site."""
    path = page.file.src_uri
    if path.startswith(("code/", "reference/api/")) or path == "reference/command.md":
        return markdown
    outside = path in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
    return relinked(markdown, path if outside else f"docs/{path}")
