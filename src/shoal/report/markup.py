"""HTML and SVG as nested calls; what is not markup already is escaped: no text becomes any."""

from __future__ import annotations

import html
from collections.abc import Sequence

Number = int | float


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        name: of the element, or empty for its children alone.
        children: markup, or anything else, which is escaped; None is left out.
        attributes: ``class_`` is class, other underscores are hyphens; a None is left out.

    Example:
        >>> tag("p", "1 < 2 ", tag("b", "&"), class_="a")
        '<p class="a">1 &lt; 2 <b>&amp;</b></p>'
    """
    inside = "".join(
        child if isinstance(child, Markup) else html.escape(str(child))
        for child in children
        if child is not None
    )
    if not name:
        return Markup(inside)
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>{inside}</{name}>")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], class_: str = "") -> Markup:
    """A table whose first column names the rows; it scrolls on its own where it is too wide."""
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    body = (
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    inner = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", inner, class_=f"scroll {class_}".strip(), tabindex=0)


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
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
