"""The picture of a spectrum: density with outliers, batch against full, step sizes.

Needs matplotlib, the extra ``plot``. Nothing is computed here but by the functions of
:mod:`shoal.curvature` and :mod:`shoal.step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.core.distribution import require
from shoal.core.errors import fail
from shoal.curvature.batch_spectra import additive, batch_factor
from shoal.curvature.spectrum import Spectrum, smoothed
from shoal.step.picture import BLUE, GREEN, GREY, ORANGE, RED
from shoal.step.rules import Rates
from shoal.step.size import StepSize

# residuals of this share of λ₁ and less: a Ritz value that stands for an eigenvalue
_SETTLED = 0.01
# and of this share of λ₁ and more: one that is drawn
_OUT = 0.05


def picture(
    path: Path,
    spectrum: Spectrum,
    plans: Sequence[StepSize] = (),
    known: Sequence[tuple[int, Rates]] = (),
) -> Path:
    """Draw what is there, in up to three panels.

    Args:
        path: .png, .svg or .pdf.
        spectrum: density and outliers; batch against full, where noise was measured.
        plans: absolute advice by growing batch size.
        known: rates by every rule from a known one, by growing batch size.

    Raises:
        InputError: if matplotlib is not installed or the file cannot be written.
    """
    library = require("matplotlib.figure", "picture", "plot")
    panels = [_density]
    panels += [_batches] if spectrum.noise.batches > 1 else []
    panels += [_rates] if plans or known else []
    across, down = min(len(panels), 2), -(-len(panels) // 2)
    figure = library.Figure(figsize=(5.2 * across, 3.9 * down), dpi=130)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        panel(axes, spectrum, plans, known)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        fail(str(path), "a .png, .svg or .pdf file to write", error, "name another --out")
    return path


def _density(axes: Any, spectrum: Spectrum, *_: Any) -> None:
    """Stochastic Lanczos quadrature on a logarithmic axis; settled Ritz values as stems."""
    grid, density = smoothed(spectrum.nodes, spectrum.node_weights)
    floor = 1e-3 / spectrum.parameters / max(float(grid[-1] - grid[0]), 1e-30)
    axes.fill_between(grid, floor, density.clamp(min=floor), color=BLUE, alpha=0.35, lw=0)
    axes.plot(grid, density.clamp(min=floor), color=BLUE, lw=1, label="density (SLQ)")
    near = spectrum.residuals < _SETTLED * spectrum.ritz[0].abs()
    settled = spectrum.ritz[near & (spectrum.ritz.abs() > _OUT * spectrum.ritz[0].abs())]
    if len(settled):
        axes.vlines(settled, floor, float(density.max()), color=RED, lw=0.8, label="outliers")
    axes.set_yscale("log")
    axes.set_xlabel(f"eigenvalue of the {_name(spectrum)}", fontsize=8)
    axes.set_ylabel("share per unit", fontsize=8)
    axes.set_title(f"λ₁ = {spectrum.lam_max:.4g}, trace {spectrum.trace:.4g}", fontsize=9)


def _batches(axes: Any, spectrum: Spectrum, *_: Any) -> None:
    """The greatest eigenvalue of a batch: measured, by coupling, by the additive model."""
    noise, lam = spectrum.noise, spectrum.lam_max
    sizes = _powers(spectrum)
    factors = torch.tensor([batch_factor(b, spectrum.dataset_size) for b in sizes])
    inside = noise.kappa * factors <= lam
    coupled = [lam + noise.kappa * float(k) for k in factors]
    paper = [additive(lam, float(k * noise.s2) ** 0.5).value for k in factors]
    valid = [(b, y) for b, y, ok in zip(sizes, coupled, inside, strict=True) if ok]
    axes.plot(
        *zip(*valid, strict=True), color=ORANGE, label="λ₁ + kκ, coupling (E4)"
    ) if valid else None
    axes.plot(sizes, paper, color=GREY, ls="--", label="λ₁ + k s2/λ₁, additive (E1)")
    axes.axhline(lam, color=BLUE, lw=0.8, label="all that was measured")
    if len(noise.top):
        tops = torch.linalg.eigvalsh(noise.top)[:, -1]
        axes.plot([noise.micro_batch] * len(tops), tops, "o", ms=2.5, color=RED, alpha=0.4)
        axes.plot(
            [noise.micro_batch], [float(tops.mean())], "D", ms=5, color=RED, label="batches, mean"
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size", fontsize=8)
    axes.set_ylabel("greatest eigenvalue", fontsize=8)
    axes.set_title(
        f"κ = {noise.kappa:.3g}, F2/tr = {noise.frobenius / spectrum.trace:.3g}", fontsize=9
    )


def _rates(
    axes: Any,
    spectrum: Spectrum,
    plans: Sequence[StepSize],
    known: Sequence[tuple[int, Rates]],
) -> None:
    """Step sizes over batch sizes, the regimes shaded."""
    sizes = [plan.batch_size for plan in plans] or [b for b, _ in known]
    if plans:
        safe, edge = [plan.safe for plan in plans], [plan.edge for plan in plans]
        axes.plot(sizes, safe, color=BLUE, label="safe")
        axes.fill_between(sizes, safe, edge, color=BLUE, alpha=0.15, lw=0, label="to the edge")
        axes.axvspan(
            sizes[0],
            min(max(plans[0].critical_batch, sizes[0]), sizes[-1]),
            color=GREEN,
            alpha=0.08,
            lw=0,
        )
        axes.axvline(plans[0].critical_batch, color=GREEN, lw=0.8, label="critical batch")
    styles = {
        "spectral": (ORANGE, "-"),
        "additive": (GREY, "--"),
        "linear": (GREY, ":"),
        "sqrt": (GREY, "-."),
    }
    for name, (color, style) in styles.items() if known else ():
        y = [getattr(rates, name) for _, rates in known]
        axes.plot(
            [b for b, _ in known], y, color=color, ls=style, label=f"{name}, from a known rate"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(sizes[0], sizes[-1])
    axes.set_xlabel("batch size", fontsize=8)
    axes.set_ylabel("learning rate", fontsize=8)
    axes.set_title("noise limits left of the critical batch, curvature right", fontsize=9)


def _name(spectrum: Spectrum) -> str:
    names = {
        "ggn": "Gauss–Newton matrix",
        "hessian": "Hessian",
        "fisher": "empirical Fisher matrix",
    }
    inside = ", in Adam's metric" if spectrum.metric == "adam" else ""
    return names[spectrum.curvature] + inside


def _powers(spectrum: Spectrum) -> list[int]:
    """Batch sizes 1, 2, 4, … up to the data, or to 64 times the measured ones."""
    most = spectrum.dataset_size or 64 * max(spectrum.batch_size, 1)
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
