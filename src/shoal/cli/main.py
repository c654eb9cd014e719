"""The command ``shoal``: one subcommand per stage, each with its own frozen settings dataclass.

Results go to standard output, messages and progress to standard error; with ``--json`` standard
output is one JSON object. Bad input ends with one line and status 2. torch is imported inside the
functions of the subcommands only, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Union

import tyro

from shoal.cli import config, data, info, parts, train, use
from shoal.cli.show import close_output, readable, say
from shoal.core.distribution import installed_version
from shoal.core.errors import InputError, expect, fail

_ABOUT = "Train on mini-batches when the labels, the rows or the graph are too many."
# In the order in which they are used.
VERBS: dict[str, tuple[Any, Any]] = {
    "data": (data.Data, data.describe),
    "convert": (data.Convert, data.convert),
    "cluster": (data.Cluster, data.cluster),
    "train": (train.Train, train.train),
    "evaluate": (use.Evaluate, use.evaluate),
    "predict": (use.Predict, use.predict),
    "query": (use.Query, use.query),
    "report": (use.Report, use.report),
    "serve": (use.Serve, use.serve),
    "export": (use.Export, use.export),
    "add": (use.Add, use.add),
    "find-lr": (parts.FindLr, parts.find_lr),
    "spectrum": (parts.Spectrum, parts.spectrum),
    "plan": (parts.Plan, parts.plan),
    "gather": (parts.Gather, parts.gather),
    "info": (info.Info, info.info),
    "completion": (info.Completion, info.completion),
}

# what `shoal plan` answers of a model; without one of these words, of a table's rows
PLANS: dict[str, tuple[Any, Any]] = {
    "labels": (parts.PlanLabels, parts.plan_labels),
    "nodes": (parts.PlanNodes, parts.plan_nodes),
    "links": (parts.PlanLinks, parts.plan_links),
}


def main() -> None:
    """Run the command line and exit with its status."""
    _open_streams()
    try:
        sys.exit(_main(sys.argv[1:]))
    except BrokenPipeError:
        close_output()  # nobody reads on: no word about it, as other commands do


def _open_streams() -> None:
    """Let each standard stream take whatever is said.

    One that the caller closed leads nowhere: else the next file that is opened would get its
    number, and with it what libraries print there. Letters that an encoding lacks are escaped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(number, "r+" if number == 0 else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _main(words: list[str]) -> int:
    try:
        return _answered(words)
    except InputError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2


def _answered(words: list[str]) -> int:
    for word in words:
        # what the system passes on as bytes can neither be written down nor be opened by libraries
        known = not any("\udc80" <= letter <= "\udcff" for letter in word)
        got, remedy = ascii(word), "rename the file or correct the text"
        expect(known, "argument", "text in the encoding of the terminal", got, remedy)
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name == "help" and rest:
        name, rest = rest[0], [*rest[1:], "--help"]
    if name in ("help", "-h", "--help"):
        say(overview())
        return 0
    if name in ("version", "-V", "--version"):
        say(f"shoal {installed_version()}")
        return 0
    return run(*parse(name, rest))


def overview() -> str:
    """What ``shoal --help`` prints: a line per subcommand, the first of its settings' docstring."""
    width = max(map(len, VERBS))
    lines = (f"  {name:<{width}}  {_first_line(verb)}" for name, (verb, _) in VERBS.items())
    return "\n".join(
        [
            "usage: shoal COMMAND [OPTIONS]",
            "",
            _ABOUT,
            "",
            "commands, in the order in which they are used:",
            *lines,
            "",
            "options:",
            "  -h, --help     Show this, or with a command its options: shoal train labels --help.",
            "  -V, --version  Show shoal's version.",
        ]
    )


def _first_line(settings: type) -> str:
    return (settings.__doc__ or "").partition("\n")[0].rstrip(".")


def parse(name: str, words: list[str]) -> tuple[Any, Callable[[Any], dict[str, Any]]]:
    """The settings that the words behind a subcommand stand for, and its function.

    Raises:
        InputError: if there is no such subcommand, task or setting of a file; what is wrong with
            flags tyro says by itself and exits.
    """
    if name not in VERBS:
        near = get_close_matches(name, VERBS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "see shoal --help"
        fail("command", f"one of {', '.join(VERBS)}", name or "none", remedy)
    if name == "train":
        return train.parse(words)
    settings, function = VERBS[name]
    if name == "plan" and words and words[0] in PLANS:
        (settings, function), name = PLANS[words[0]], f"plan {words[0]}"
        words = words[1:]
    return config.parsed(settings, f"shoal {name}", words), function


def every_command() -> Any:
    """All subcommands as one type, from which tyro makes a shell's completion."""
    tasks = train.tasks().items()
    task = [Annotated[x.settings, tyro.conf.subcommand(name)] for name, x in tasks]
    commands = [
        Annotated[settings, tyro.conf.subcommand(name)]
        for name, (settings, _) in VERBS.items()
        if name != "train"
    ]
    of_tasks = make_dataclass("Train", [("task", Union[tuple(task)])])  # noqa: UP007
    return Union[(*commands, Annotated[of_tasks, tyro.conf.subcommand("train")])]


def run(settings: Any, function: Callable[[Any], dict[str, Any]]) -> int:
    """Run one subcommand and print what came of it.

    Returns:
        the exit status: 0, or 130 for an interrupt.
    """
    try:
        with _logged(settings.verbose):
            result = _with_room(function, settings)
        if result:
            say(json.dumps(result) if settings.json else readable(result))
    except KeyboardInterrupt:
        print("shoal: interrupted; what was saved before is whole", file=sys.stderr)
        return 130
    return 130 if result.get("stopped") == "interrupt" else 0


@contextmanager
def _logged(verbose: bool) -> Iterator[None]:
    """Send what is logged under ``shoal`` to standard error: warnings, or all there is.

    What is said again with other numbers alone, such as of each fold, is said once.
    """
    logger, handler = logging.getLogger("shoal"), logging.StreamHandler()
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        words = re.sub(r"\d+", "", record.getMessage())
        return verbose or not (words in said or said.add(words))

    handler.addFilter(is_new)
    handler.setFormatter(logging.Formatter("shoal: %(levelname)s: %(message)s"))
    before = logger.level
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _with_room(function: Callable[[Any], dict[str, Any]], settings: Any) -> dict[str, Any]:
    """Call a subcommand's function; where memory or threads end, say what to do.

    Raises:
        InputError: if the host or a device has no room, besides those of the function.
        MemoryError: never; it becomes an InputError.
        RuntimeError: as it came, if it says anything else.
    """
    try:
        return function(settings)
    except (MemoryError, RuntimeError) as error:
        from shoal.core.memory import is_out_of_memory, is_out_of_threads

        got = str(error).partition("\n")[0] or "no more"
        if is_out_of_threads(error):
            remedy = "raise a limit: ulimit -u, ulimit -v, or the container's"
            fail("threads", "as many as this takes", got, remedy)
        if not is_out_of_memory(error):
            raise
        remedy = "lower --batch-size, or leave a graph's features in a file (--host-rows)"
        fail("memory", "room for what this takes", got, remedy)
