"""Charts: lines over a number and bars over names, placed here and drawn as SVG by ``page.html``.

Colors come from the page's custom properties (``--c0``, ``--c1``, …), so that a chart is light
where the page is and dark where it is. Lines differ in dashes too. Each mark shows its numbers when
it is pointed at, and the table below a chart holds them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.report.history import Number

# Units of the viewBox: small, so that letters of 12 stay readable on a telephone.
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 10, 40
# more points than this on a line cannot be told apart
_MOST = 120


@dataclass(frozen=True)
class Series:
    """One line, or one bar of each group.

    Attributes:
        name: for the legend.
        y: its values.
        x: where they stand; for bars their places are the groups'.
    """

    name: str
    y: Sequence[Number]
    x: Sequence[Number] = ()


@dataclass(frozen=True)
class Chart:
    """What the template draws, in units of the viewBox, and the numbers below it.

    Attributes:
        x_name: of the axis below.
        y_name: of the axis on the left.
        names: of the series.
        x_ticks: places and labels.
        y_ticks: places and labels.
        rows: of the table: the x, and one value per series.
        marks: places of thin uprights.
        lines: per series its path and its dots, as place, height and title.
        bars: per series its rectangles, as left, top, width, height and title.
    """

    x_name: str
    y_name: str
    names: list[str]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    rows: list[list[str]]
    marks: list[float] = field(default_factory=list)
    lines: list[tuple[str, list[tuple[Any, ...]]]] = field(default_factory=list)
    bars: list[list[tuple[Any, ...]]] = field(default_factory=list)


def line_chart(
    series: Sequence[Series], x_name: str, y_name: str, marks: Sequence[Number] = ()
) -> Chart:
    """Lines over a shared number, with thin uprights at `marks`."""
    series = [_thinned(one) for one in series]
    low, high = _range([y for one in series for y in one.y])
    first, last = _range([x for one in series for x in one.x], margin=0.0)
    across, up = _axis(first, last, LEFT, WIDTH - RIGHT), _axis(low, high, HEIGHT - BOTTOM, TOP)
    drawn = []
    for one in series:
        places = [(across(x), up(y)) for x, y in zip(one.x, one.y, strict=True)]
        said = [
            f"{one.name}, {x_name} {number(x)}: {number(y)}"
            for x, y in zip(one.x, one.y, strict=True)
        ]
        path = "M" + "L".join(f"{x},{y}" for x, y in places)
        drawn.append((path, [(*place, title) for place, title in zip(places, said, strict=True)]))
    at = [dict(zip(one.x, one.y, strict=True)) for one in series]
    xs = sorted({x for one in series for x in one.x})
    return Chart(
        x_name,
        y_name,
        [one.name for one in series],
        [(across(x), number(x)) for x in ticks(first, last)],
        [(up(y), number(y)) for y in ticks(low, high)],
        [[number(x), *(number(known.get(x)) for known in at)] for x in xs],
        marks=[across(x) for x in marks if first <= x <= last],
        lines=drawn,
    )


def bar_chart(groups: Sequence[str], series: Sequence[Series], x_name: str, y_name: str) -> Chart:
    """Bars from zero, one per series in each group."""
    high = _range([0.0, *(y for one in series for y in one.y)])[1]
    across, up = _axis(0, len(groups), LEFT, WIDTH - RIGHT), _axis(0, high, HEIGHT - BOTTOM, TOP)
    step = across(1) - across(0)
    width = 0.8 * step / len(series)
    drawn = [
        [
            (
                round(across(j) + 0.1 * step + i * width, 1),
                up(y),
                round(0.92 * width, 1),
                round(up(0) - up(y), 1),
                f"{one.name}, {x_name} {group}: {number(y)}",
            )
            for j, (group, y) in enumerate(zip(groups, one.y, strict=False))
        ]
        for i, one in enumerate(series)
    ]
    return Chart(
        x_name,
        y_name,
        [one.name for one in series],
        [(across(j + 0.5), group) for j, group in enumerate(groups)],
        [(up(y), number(y)) for y in ticks(0, high)],
        [
            [group, *(number(one.y[j]) if j < len(one.y) else "–" for one in series)]
            for j, group in enumerate(groups)
        ],
        bars=drawn,
    )


def ticks(low: Number, high: Number, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart.

    Example:
        >>> ticks(0, 97), ticks(0.12, 0.61)
        ([0.0, 20.0, 40.0, 60.0, 80.0], [0.2, 0.3, 0.4, 0.5, 0.6])
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((x for x in (1, 2, 5, 10)), key=lambda x: abs(x * power - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: object) -> str:
    """A number for people: four digits that count, none that say nothing.

    Example:
        >>> [number(x) for x in (0.00012345, 3.0, 12.3456, 12345.6, True, None, "x")]
        ['0.0001234', '3', '12.35', '12,346', 'yes', '–', 'x']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _axis(first: Number, last: Number, start: Number, end: Number) -> Any:
    """Where a number between `first` and `last` stands between `start` and `end`."""

    def place(value: Number) -> float:
        return round(start + (value - first) / (last - first) * (end - start), 1)

    return place


def _range(values: Sequence[Number], margin: float = 0.06) -> tuple[Number, Number]:
    """From the least to the greatest with some air, wider than nothing even for one value."""
    low, high = min(values), max(values)
    air = margin * (high - low) if high > low else max(abs(high), 1.0) / 2
    return low - air, high + air


def _thinned(series: Series) -> Series:
    """The points, neighbors averaged where there are more than can be told apart."""
    kept = list(zip(series.x, series.y, strict=True))
    size = -(-len(kept) // _MOST)
    runs = [kept[i : i + size] for i in range(0, len(kept), size or 1)]
    y = [sum(y for _, y in run) / len(run) for run in runs]
    return Series(series.name, y, [run[-1][0] for run in runs])
