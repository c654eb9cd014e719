"""The command ``shoal``: one verb a stage, one frozen dataclass of settings a verb.

Results go to standard output, words and progress to standard error; with ``--json`` standard output
is one JSON object. Bad input ends with one line and status 2. torch is imported inside verbs only,
so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import tyro

from shoal import settings as asked
from shoal._checks import InputError
from shoal.data import is_graph

_Verb = (
    asked.Data | asked.Cluster | asked.Train | asked.Evaluate | asked.Predict | asked.Query
)  # in the order in which they are used
_MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)


def main() -> None:
    """Run the command line and exit with its status."""
    if sys.argv[1:] == ["--version"]:
        print(f"shoal {version('shoal')}")
        return
    about = "Train on mini-batches when the labels, the rows or the graph are too many."
    verb: Any = tyro.cli(_Verb, prog="shoal", description=about, config=_MARKERS)  # pyright: ignore[reportArgumentType, reportCallIssue]
    sys.exit(run(verb))


def run(verb: asked.Common) -> int:
    """Run one verb and print what came of it.

    Returns:
        the exit status: 0, 2 for bad input, 130 for an interrupt.
    """
    try:
        result = _function(verb)(verb)
    except InputError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shoal: interrupted; what was saved before is whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on: no word about it, as other commands do
        return 0
    print(json.dumps(result) if verb.json else _readable(result))
    return 130 if result.get("stopped") == "interrupt" else 0


def _function(verb: asked.Common) -> Callable[[Any], dict[str, Any]]:
    """The verb's function; jobs import torch, so it is looked up only now."""
    if isinstance(verb, asked.Train) and is_graph(verb.source):
        from shoal.tasks import nodes

        return nodes.train
    from shoal.tasks import labels, use

    functions: dict[type, Callable[[Any], dict[str, Any]]] = {
        asked.Data: use.data,
        asked.Cluster: labels.cluster,
        asked.Train: labels.train,
        asked.Evaluate: use.evaluate,
        asked.Predict: use.predict,
        asked.Query: use.query,
    }
    return functions[type(verb)]


def _readable(result: dict[str, Any], indent: str = "") -> str:
    """Indented lines, one a fact; numbers of a table stand below one another."""
    lines = []
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", _readable(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{key}"]
            lines += ["  ".join(f"{x}" for x in item.values()) for item in value]
        else:
            text = f"{value:.2f}" if isinstance(value, float) else value
            lines.append(f"{indent}{key:<{width}}  {text}")
    return "\n".join(lines)
