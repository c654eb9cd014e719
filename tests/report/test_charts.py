"""Pictures: marks stand where their numbers say, and every number is in the table."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from shoal.report.charts import Chart, Series, bar_chart, line_chart, ticks
from shoal.report.page import template


def drawn(chart: Chart) -> str:
    """The chart as the page draws it."""
    return template("parts.html").module.chart(chart)


def parsed(chart: Chart) -> ElementTree.Element:
    """The chart as XML, which is stricter than HTML."""
    return ElementTree.fromstring(f"<div>{drawn(chart)}</div>")


def picture(chart: Chart) -> ElementTree.Element:
    (svg,) = (x for x in parsed(chart).iter("svg") if x.get("role") == "img")
    return svg


def test_points_stand_in_proportion() -> None:
    """Places on either axis are a linear, rising function of the numbers."""
    svg = picture(line_chart([Series("loss", [1.0, 3.0, 2.0], [10, 20, 40])], "step", "loss"))
    dots = [(float(x.get("cx", 0)), float(x.get("cy", 0))) for x in svg.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, rel=0.01)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(0.5, rel=0.01) and y1 < y0
    assert next(svg.iter("circle")).findtext("title") == "loss, step 10: 1"


def test_bars_begin_at_zero() -> None:
    """Heights are in proportion to values, and all bars end on one line."""
    svg = picture(bar_chart(["a", "b", "c"], [Series("R@5", [10.0, 40.0, 0.0])], "tenth", "%"))
    rects = [(float(x.get("y", 0)), float(x.get("height", 0))) for x in svg.iter("rect")]
    heights = [height for _, height in rects]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01) and heights[2] == 0
    assert len({round(y + height) for y, height in rects}) == 1


@pytest.mark.parametrize("y", [[5.0], [0.0], [2.0, 2.0], [-1e-9, 1e9], [1e-12, 2e-12]])
def test_every_range_can_be_drawn(y: list[float]) -> None:
    """One value, equal ones, tiny and huge ones: marks stay inside the picture."""
    svg = picture(line_chart([Series("a", y, list(range(len(y))))], "x", "y", marks=[-5, 0]))
    box = [float(x) for x in (svg.get("viewBox") or "").split()]
    for dot in svg.iter("circle"):
        assert 0 < float(dot.get("cx", -1)) < box[2] and 0 < float(dot.get("cy", -1)) < box[3]


def test_long_lines_are_averaged_and_short_ones_are_not() -> None:
    """Of 1,200 points 120 are drawn, each the mean of ten; of 120 all are."""
    for n, size in ((1200, 10), (120, 1)):
        y = [float(i) for i in range(n)]
        rows = list(parsed(line_chart([Series("a", y, y)], "x", "y")).iter("tr"))[1:]
        assert len(rows) == 120
        said = "".join(rows[1].itertext())
        mean = sum(y[size : 2 * size]) / size
        assert said.endswith(f"{mean:.4g}")


def test_table_holds_every_number_of_every_series() -> None:
    """Series over other places share the table; a place that one lacks is a dash."""
    both = [Series("a", [1.0, 2.0], [1, 2]), Series("b", [3.0], [2])]
    rows = [[cell.text for cell in row] for row in parsed(line_chart(both, "x", "y")).iter("tr")]
    assert rows == [["x", "a", "b"], ["1", "1", "–"], ["2", "2", "3"]]


@pytest.mark.parametrize(("low", "high"), [(0, 97), (0.12, 0.61), (-3, 1e6), (5, 5.001)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    """Three to eleven evenly spaced numbers of one leading digit's steps."""
    at = ticks(low, high)
    steps = {round((b - a) / (high - low), 6) for a, b in pairwise(at)}
    assert 3 <= len(at) <= 11 and len(steps) == 1 and low <= at[0] and at[-1] <= high
    assert re.match(r"[125]0*\.?0*e|[125]", f"{at[1] - at[0]:.0e}")


def test_text_is_never_markup() -> None:
    """Names and values are escaped wherever they stand, attributes included."""
    bad = "<script>alert('1')</script>\" onload=\"x"
    markup = drawn(line_chart([Series(bad, [1.0], [1])], bad, bad))
    assert "<script" not in markup and '" onload' not in markup
