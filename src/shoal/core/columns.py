"""Tables for people: rows of one kind of thing, and metrics by kind and k."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

# metrics of nodes and links, which have no k
OF_GRAPHS = ("accuracy", "macro_F1", "micro_F1", "ROC_AUC", "MRR", "AUC")
# metrics of labels at a threshold, and of probabilities, which have none either
OF_LABELS = ("F1", "F1_macro", "precision", "recall", "ECE")


class Columns(list[dict[str, Any]]):
    """Rows with the same keys, which ``str`` shows below one another; to JSON a list of objects.

    Example:
        >>> print(Columns([{"tier": "host", "rows": 1200}, {"tier": "disk", "rows": 5}]))
        tier  rows
        host  1200
        disk     5
        >>> print(Columns([{"lr": 0.00314159, "P@1": 37.123}, {"lr": 0.5, "P@1": 0.0}]))
             lr    P@1
        0.00314  37.12
           0.50   0.00
    """

    def __str__(self) -> str:
        """Names, then a line per row; numbers stand right."""
        names = list(self[0]) if self else []
        cells = [names, *([_cell(row[name]) for name in names] for row in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numeric = [isinstance(self[0][name], int | float) for name in names]
        lines = (
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            )
            for line in cells
        )
        return "\n".join(line.rstrip() for line in lines)


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a notebook; whatever stands in a cell is text.

    Example:
        >>> html_table(["a"], [["<b>"]])
        '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(x)}</th>" for x in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def metric_table(
    metrics: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """The ks, and per kind of metric its name and one value per k, None where there is none.

    Metrics without a k stand in a last column of their own, whose k is empty.

    Example:
        >>> metric_table({"P@1": 40.0, "P@5": 20.0, "PSP@5": 9.0, "step": 3})
        (['1', '5'], [('P', [40.0, 20.0]), ('PSP', [None, 9.0])])
        >>> metric_table({"MRR": 9.0, "hits@1": 4.0})
        (['1', ''], [('MRR', [None, 9.0]), ('hits', [4.0, None])])
    """
    kinds: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, at, k = name.removeprefix("valid_").partition("@")
        if at or kind in OF_GRAPHS + OF_LABELS:
            kinds.setdefault(kind, {})[k] = value
    ks = sorted(dict.fromkeys(k for row in kinds.values() for k in row), key=lambda k: not k)
    return ks, [(kind, [row.get(k) for k in ks]) for kind, row in kinds.items()]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"
