"""The command ``shoal``: one verb a stage, one frozen dataclass of settings a verb.

Results go to standard output, words and progress to standard error; with ``--json`` standard output
is one JSON object. Bad input ends with one line and status 2. torch is imported inside verbs only,
so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Union

import tyro

from shoal.cli import row_settings as asked_of_rows
from shoal.cli import settings as asked
from shoal.cli.recipes import RECIPES, recipe
from shoal.core.columns import Columns
from shoal.core.errors import InputError, expect_device, fail
from shoal.data import is_graph

_VERBS = (
    asked.Data,
    asked.Convert,
    asked.Cluster,
    asked.Train,
    asked.Evaluate,
    asked.Report,
    asked.Spectrum,
    asked.Export,
    asked.Add,
    asked.Predict,
    asked.Query,
    asked.Serve,
    asked_of_rows.Plan,
    asked_of_rows.Gather,
)
# typing's Union (not ``|``) and a help text of its own keep tyro from importing a type checker and
# from reading its own source: two fifths of the time that --help takes.
_ABOUT = "In the order in which they are used."
_MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        sys.exit(_main())
    except BrokenPipeError:
        # nobody reads on: no word about it, as other commands do, nor from the flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main() -> int:
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(f"shoal {version('shoal')}", flush=True)
        return 0
    about = "Train on mini-batches when the labels, the rows or the graph are too many."
    verb: Any = tyro.cli(_any_verb(sys.argv[1:]), prog="shoal", description=about, config=_MARKERS)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return run(verb)


def _any_verb(arguments: list[str]) -> Any:
    """The verbs; where a recipe is named, its settings are the defaults of ``train``."""
    name = _recipe_named(arguments)
    train: Any = asked.Train
    if name is not None:
        default = recipe(name, "")
        object.__setattr__(default, "source", tyro.MISSING)  # no text, but tyro's word for required
        train = Annotated[asked.Train, tyro.conf.subcommand("train", default=default)]
    verbs = tuple(train if verb is asked.Train else verb for verb in _VERBS)
    return Annotated[Union[verbs], tyro.conf.arg(help=_ABOUT)]  # noqa: UP007  # pyright: ignore[reportInvalidTypeArguments, reportInvalidTypeForm]


def _recipe_named(arguments: list[str]) -> str | None:
    """The known recipe that ``shoal train`` is asked for; tyro complains about others."""
    named = [value for flag, value in pairwise(arguments) if flag == "--recipe"]
    named += [x.removeprefix("--recipe=") for x in arguments if x.startswith("--recipe=")]
    known = [name for name in named if name in RECIPES]
    return known[-1] if known and arguments[0] == "train" else None


def run(verb: asked.Common) -> int:
    """Run one verb and print what came of it.

    Returns:
        the exit status: 0, 2 for bad input, 130 for an interrupt.
    """
    try:
        function = _function(verb)
        expect_device(verb.device)
        result = _with_room(function, verb)
        if result:
            print(json.dumps(result) if verb.json else _readable(result), flush=True)
    except InputError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shoal: interrupted; what was saved before is whole", file=sys.stderr)
        return 130
    return 130 if result.get("stopped") == "interrupt" else 0


def _with_room(function: Callable[[Any], dict[str, Any]], verb: asked.Common) -> dict[str, Any]:
    """Call a verb's function; where memory ends, say what to do. What was saved before is whole.

    Raises:
        InputError: if the host or a device has no room, besides those of the function.
        MemoryError: never; it becomes an InputError.
        RuntimeError: as it came, if it says anything else.
    """
    try:
        return function(verb)
    except (MemoryError, RuntimeError) as error:
        from shoal.core.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "lower --batch-size, or leave a graph's features in a file (--host-rows)"
        got = str(error).partition("\n")[0] or "no more"
        fail("memory", "room for what this takes", got, remedy)


def _function(verb: asked.Common) -> Callable[[Any], dict[str, Any]]:
    """The verb's function; jobs import torch, so it is looked up only now."""
    if isinstance(verb, asked.Train) and is_graph(verb.source):
        from shoal.cli.graphs import train

        return train
    from shoal.cli import bandwidth, plan
    from shoal.data.formats import convert
    from shoal.report import report
    from shoal.serve import server
    from shoal.tasks import exporting, labels, spectra, use

    functions: dict[type, Callable[[Any], dict[str, Any]]] = {
        asked.Data: use.data,
        asked.Convert: lambda verb: convert(verb.source, verb.out, verb.to, verb.encoding),
        asked.Cluster: labels.cluster,
        asked.Train: labels.train,
        asked.Evaluate: use.evaluate,
        asked.Report: report,
        asked.Spectrum: spectra.measure,
        asked.Export: exporting.export,
        asked.Add: exporting.add,
        asked.Predict: use.predict,
        asked.Query: use.query,
        asked.Serve: server.serve,
        asked_of_rows.Plan: plan.plan,
        asked_of_rows.Gather: bandwidth.gather,
    }
    return functions[type(verb)]


def _readable(result: dict[str, Any], indent: str = "") -> str:
    """Indented lines, one a fact; numbers of a table stand below one another."""
    lines = []
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", _readable(value, indent + "  ")]
        elif isinstance(value, Columns):
            lines += [f"{indent}{key}", textwrap.indent(str(value), f"{indent}  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{key}"]
            lines += ["  ".join(f"{x}" for x in item.values()) for item in value]
        elif isinstance(value, list) and value and isinstance(value[0], str):
            lines += [f"{indent}{key}", *(f"{indent}  {line}" for line in value)]
        else:
            text = _figure(value) if isinstance(value, float) else value
            lines.append(f"{indent}{key:<{width}}  {text}")
    return "\n".join(lines)


def _figure(value: float) -> str:
    """Two decimals, or four digits that count where two decimals would hide them."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4g}"
