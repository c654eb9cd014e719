"""The picture of rates that were found: batch size across, learning rate up.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.core.distribution import require
from shoal.core.errors import fail

if TYPE_CHECKING:
    from shoal.step.find_lr import FoundRates

BLUE, ORANGE, GREEN, RED, GREY = "#1f6fb4", "#d9730d", "#2c8a4b", "#c23b3b", "#777777"


def picture(path: Path, rates: FoundRates) -> Path:
    """Draw where to go, what not to cross, where the optimizer is, and each trial run.

    Args:
        path: .png, .svg or .pdf; its folder is made if need be.
        rates: that were found.

    Raises:
        InputError: if matplotlib is not installed or the file cannot be written.
    """
    figure = _drawn(rates)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        fail(str(path), "a .png, .svg or .pdf file to write", error, "name another --out")
    return path


def png(rates: FoundRates) -> bytes:
    """The picture as the bytes of a PNG.

    Raises:
        InputError: if matplotlib is not installed.
    """
    made = io.BytesIO()
    _drawn(rates).savefig(made, format="png")
    return made.getvalue()


def _drawn(rates: FoundRates) -> Any:
    figure = require("matplotlib.figure", "picture", "plot").Figure(figsize=(6.4, 4.4), dpi=130)
    axes = figure.add_subplot()
    sizes = [x.batch_size for x in rates.found]
    for held, mark, color, word in (
        (True, ".", GREY, "tried: loss fell"),
        (False, "x", RED, "tried: loss rose"),
    ):
        runs = [(x.batch_size, t.lr) for x in rates.found for t in x.trials if t.held == held]
        if runs:
            axes.plot(*zip(*runs, strict=True), mark, color=color, ms=5, alpha=0.6, label=word)
    axes.plot(sizes, [x.lr for x in rates.found], "o-", color=BLUE, label="go there")
    edges = [(x.batch_size, x.edge) for x in rates.found if x.edge is not None]
    if edges:
        axes.plot(*zip(*edges, strict=True), "--", marker="_", color=RED, label="do not cross")
    size, lr = rates.known
    axes.plot([size], [lr], "*", color="black", ms=11, label="you are here")
    for x in rates.found:
        axes.annotate(
            f"{x.lr:.2g}",
            (x.batch_size, x.lr),
            textcoords="offset points",
            xytext=(7, -4),
            color=BLUE,
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({*sizes, size}), [str(x) for x in sorted({*sizes, size})])
    axes.margins(x=0.15)
    axes.set_xlabel("batch size")
    axes.set_ylabel("learning rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    figure.tight_layout()
    return figure
