"""Tables for people: rows of one kind of thing, its names above them."""

from __future__ import annotations

from typing import Any


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


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"
