"""Pictures as inline SVG: lines over a number, bars over names.

Colors come from the page's custom properties (``--c0``, ``--c1``, …), so that a picture is light
where the page is and dark where it is. Lines differ in dashes too. Each mark says its numbers when
it is pointed at, and the table below a picture holds them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.report.markup import Markup, Number, number, table, tag

# Units of the viewBox: small, so that letters of 12 stay readable on a telephone.
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
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


def lines(
    series: Sequence[Series], x_name: str, y_name: str, marks: Sequence[Number] = ()
) -> Markup:
    """Lines over a shared number, with thin uprights at `marks`."""
    series = [_thinned(one) for one in series]
    low, high = _range([y for one in series for y in one.y])
    first, last = _range([x for one in series for x in one.x], margin=0.0)
    frame = _Frame(first, last, low, high)
    uprights = (
        tag("path", d=f"M{frame.x(at):.1f},{_TOP}V{_HEIGHT - _BOTTOM}", class_="mark")
        for at in marks
        if first <= at <= last
    )
    x_ticks = [(frame.x(at), number(at)) for at in ticks(first, last)]
    drawn = (_line(frame, one, i, x_name) for i, one in enumerate(series))
    picture = _svg(frame, x_ticks, x_name, y_name, *uprights, *drawn)
    points = sorted({x for one in series for x in one.x})
    at = [dict(zip(one.x, one.y, strict=True)) for one in series]
    rows = [[number(x), *(number(known.get(x)) for known in at)] for x in points]
    key = tag("path", d="M0,6H26", class_="line")
    return tag("", _legend(series, key), picture, _numbers(x_name, series, rows))


def bars(groups: Sequence[str], series: Sequence[Series], x_name: str, y_name: str) -> Markup:
    """Bars from zero, one a series in each group."""
    frame = _Frame(0, len(groups), 0.0, _range([0.0, *(y for one in series for y in one.y)])[1])
    step = frame.x(1) - frame.x(0)
    width = 0.8 * step / len(series)
    drawn = []
    for i, one in enumerate(series):
        for j, (group, y) in enumerate(zip(groups, one.y, strict=False)):
            left, top = frame.x(j) + 0.1 * step + i * width, frame.y(y)
            said = tag("title", f"{one.name}, {x_name} {group}: {number(y)}")
            size = {"width": f"{0.92 * width:.1f}", "height": f"{frame.y(0) - top:.1f}"}
            place = {"x": f"{left:.1f}", "y": f"{top:.1f}"}
            drawn.append(tag("rect", said, class_=f"bar c{i}", rx=1, **place, **size))
    x_ticks = [(frame.x(j + 0.5), group) for j, group in enumerate(groups)]
    picture = _svg(frame, x_ticks, x_name, y_name, *drawn)
    rows = [
        [group, *(number(one.y[j]) if j < len(one.y) else "–" for one in series)]
        for j, group in enumerate(groups)
    ]
    key = tag("rect", width=12, height=12, x=7, rx=2, class_="bar")
    return tag("", _legend(series, key), picture, _numbers(x_name, series, rows))


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


@dataclass(frozen=True)
class _Frame:
    """Where numbers stand in the picture."""

    first: Number
    last: Number
    low: Number
    high: Number

    def x(self, value: Number) -> float:
        share = (value - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: Number) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


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


def _line(frame: _Frame, one: Series, i: int, x_name: str) -> Markup:
    places = [(frame.x(x), frame.y(y)) for x, y in zip(one.x, one.y, strict=True)]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dense = "dot dense" if len(places) > 30 else "dot"
    dots = (
        tag(
            "circle",
            tag("title", f"{one.name}, {x_name} {number(x)}: {number(y)}"),
            cx=f"{at:.1f}", cy=f"{height:.1f}", r=3.2, class_=f"{dense} c{i}",
        )
        for (at, height), x, y in zip(places, one.x, one.y, strict=True)
    )  # fmt: skip
    return tag("", tag("path", d=path, class_=f"line c{i}"), *dots)


def _svg(
    frame: _Frame, x_ticks: list[tuple[float, str]], x_name: str, y_name: str, *drawn: Markup
) -> Markup:
    """The picture with its axes."""
    across = [(frame.y(at), number(at)) for at in ticks(frame.low, frame.high)]
    grid = (
        tag(
            "",
            tag("path", d=f"M{_LEFT},{y:.1f}H{_WIDTH - _RIGHT}", class_="grid"),
            tag("text", text, x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"),
        )
        for y, text in across
    )
    below = (
        tag("text", text, x=f"{x:.1f}", y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")
        for x, text in x_ticks
    )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    name = tag("text", x_name, x=middle, y=_HEIGHT - 4, text_anchor="middle", class_="axis")
    about = tag("title", f"{y_name} over {x_name}")
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return tag("svg", about, *grid, *below, name, *drawn, viewBox=box, role="img")


def _legend(series: Sequence[Series], mark: Markup) -> Markup:
    """Names of the series, each behind its mark."""
    box = {"viewBox": "0 0 26 12", "width": 26, "height": 12, "aria_hidden": "true"}
    keys = (tag("svg", mark, class_=f"c{i}", **box) for i in range(len(series)))
    names = (tag("li", key, one.name) for key, one in zip(keys, series, strict=True))
    return tag("ul", *names, class_="legend")


def _numbers(x_name: str, series: Sequence[Series], rows: Sequence[Sequence[object]]) -> Markup:
    heads = [x_name, *(one.name for one in series)]
    return tag("details", tag("summary", "Numbers"), table(heads, rows, "tall"))
