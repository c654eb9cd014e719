"""How the result of a subcommand is printed: aligned lines, tables, units."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any

from shoal.core.columns import Columns, metric_table
from shoal.core.errors import fail


def close_output() -> None:
    """Let standard output lead nowhere, so that the flush at exit fails no second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print to standard output.

    Raises:
        BrokenPipeError: if nobody reads it.
        InputError: if there is no room for it.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        close_output()
        remedy = "free space, or send it elsewhere"
        fail("standard output", "a place for the result", error.strerror, remedy)


def readable(result: dict[str, Any]) -> str:
    """One line per value; metrics as a table in per cent, rows of the same keys as columns.

    Example:
        >>> print(readable({"run": "runs/a", "test": {"P@1": 38.451, "P@3": 25.0, "MRR": 9.0}}))
        run  runs/a
        test, per cent
                @1     @3
          P   38.45  25.00
          MRR                9.00
        >>> print(readable({"rows": 3, "tiers": Columns([{"tier": "host", "ms": 0.5}])}))
        rows  3
        tiers
          tier    ms
          host  0.50
    """
    plain = [str(key) for key, value in result.items() if not isinstance(value, dict | list)]
    width = max(map(len, plain), default=0)
    lines = []
    for key, value in result.items():
        if isinstance(value, dict) and metric_table(value)[1]:
            lines += [f"{key}, per cent", textwrap.indent(_metrics(value), "  ")]
        elif isinstance(value, dict | list):
            lines += [str(key), textwrap.indent(_within(value), "  ")] if value else []
        else:
            lines.append(f"{key:<{width}}  {_figure(value) if isinstance(value, float) else value}")
    return "\n".join(lines)


def _within(value: dict[str, Any] | list[Any]) -> str:
    """What stands below a name: lines, or a table of dictionaries with the same keys."""
    if isinstance(value, dict):
        return readable(value)
    return str(Columns(value)) if isinstance(value[0], dict) else "\n".join(map(str, value))


def _metrics(metrics: dict[str, float]) -> str:
    """A row per kind of metric, a column per k; what has no k stands in a last one."""
    ks, rows = metric_table(metrics)
    width = max((len(kind) for kind, _ in rows), default=0)
    head = "".join(f"{'@' + k if k else '':>7}" for k in ks)
    body = (
        f"{kind:<{width}}" + "".join(f"{'' if x is None else f'{x:.2f}':>7}" for x in values)
        for kind, values in rows
    )
    lines = [" " * width + head, *body] if any(ks) else list(body)
    return "\n".join(line.rstrip() for line in lines)


def _figure(value: float) -> str:
    """Two decimals, or four digits that count where two decimals would hide them."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4g}"
