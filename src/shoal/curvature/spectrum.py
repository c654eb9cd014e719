"""What was measured of an objective's curvature: the noun that advice is made from.

A :class:`Spectrum` holds eigenvalue estimates of H, the mean over samples of the per-sample
curvature H_i (Hessian, Gauss-Newton or empirical Fisher matrix), and its :class:`Noise`, how much
the curvature of a batch differs from it. It carries what it was measured on: nothing about another
batch size follows from it but through the noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.columns import html_table
from shoal.core.errors import expect, expect_file, fail
from shoal.core.files import file_aside

Curvature = Literal["hessian", "ggn", "fisher"]
Sampling = Literal["independent", "clustered", "in-batch", "neighborhoods"]
Metric = Literal["plain", "adam"]

FORMAT = "shoal spectrum 1"


def _stems(values: list[float]) -> str:
    """Eigenvalues on a line, as SVG: the picture that needs no package."""
    low, high = min(0.0, *values), max(0.0, *values)
    places = [20 + 360 * (x - low) / ((high - low) or 1.0) for x in values]
    stems = "".join(f'<path d="M{x:.1f},8V44" stroke="#0a6c74"/>' for x in places)
    ends = ((20, "start", low), (380, "end", high))
    words = "".join(
        f'<text x="{x}" y="60" text-anchor="{at}" font-size="12" fill="currentColor">{v:.3g}</text>'
        for x, at, v in ends
    )
    line = '<path d="M20,44H380" stroke="currentColor"/>'
    title = "<title>eigenvalues, as Lanczos finds them</title>"
    return f'<svg viewBox="0 0 400 66" width="400" role="img">{title}{line}{stems}{words}</svg>'


@dataclass(frozen=True, eq=False)
class Noise:
    """How the curvature of single samples spreads around its mean, from products of batches.

    With dH_i = H_i − H, and means over samples i; NaN where it was not measured.

    Attributes:
        s2: E‖dH_i z‖² for a random unit vector z.
        frobenius: F2 = E‖dH_i‖_F² = p · s2.
        kappa: kappa_1 = E‖(I − v1 v1')dH_i v1‖² / lam_1, v1 the top eigenvector: to first order the
            top eigenvalue of a batch of b independent samples is at least lam_1 + kappa / b.
        direct: E(v1'dH_i v1)².
        gradient_noise_scale: tr Cov(g_i) / ‖E g_i‖² of the gradients, in samples (McCandlish et
            al., arXiv 1812.06162, "B_simple").
        batch_sharpness: E[g_b'H_b g_b / ‖g_b‖²], the curvature of a batch along its own gradient
            (Andreyev and Beneventano, arXiv 2412.20553).
        micro_batch: samples of each batch that was measured.
        batches: how many.
        sampling: how a batch's samples were drawn. The factor 1 / b holds for ``"independent"``
            alone; elsewhere numbers are those of the loader's own batches, times their size.
        top: each batch's curvature in the first k Ritz vectors, ``[batches, k, k]``.
        sizes: samples of each batch, ``[batches]``.
        gradient_covariance: tr Cov(g_i) of one sample's gradient.
    """

    s2: float = math.nan
    frobenius: float = math.nan
    kappa: float = math.nan
    direct: float = math.nan
    gradient_noise_scale: float = math.nan
    batch_sharpness: float = math.nan
    micro_batch: int = 0
    batches: int = 0
    sampling: Sampling = "independent"
    top: Float[Tensor, "batches k k"] = field(default_factory=lambda: torch.zeros(0, 0, 0))
    sizes: Float[Tensor, " batches"] = field(default_factory=lambda: torch.zeros(0))
    gradient_covariance: float = math.nan


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of an objective's curvature H ``[p, p]``, as far as products with it show.

    Attributes:
        curvature: which matrix.
        parameters: p, how many numbers were differentiated.
        samples: how many samples H is the mean over.
        dataset_size: samples of the whole data, or None where the loader does not say.
        batch_size: of the loader.
        sampler: the name of what drew the batches.
        ritz: Ritz values, falling, ``[m]``; the outer ones are eigenvalues up to their residual.
        residuals: ‖H u − θ u‖ of each Ritz pair: an eigenvalue lies that near to θ, ``[m]``.
        nodes: of stochastic Lanczos quadrature, ``[m]``.
        node_weights: share of the eigenvalues at each node, together 1, ``[m]``.
        trace: of H.
        trace_error: its standard error.
        noise: how batches differ from H.
        seconds: that measuring took.
        products: with the whole of H that were taken, the noise's included.
        warnings: what to know before these numbers are believed.
        frobenius: ‖H‖_F², or NaN.
        metric: ``"adam"`` where H is D^−½ H D^−½, with D = √v + eps of the optimizer.
        loss: mean over the batches, or NaN.
        rates: of the optimizer's groups over the first one's, where the matrix holds them.

    Example:
        >>> values = torch.tensor([2.0, 1.0])
        >>> s = Spectrum(
        ...     "ggn", 2, 10, 10, 5, "RandomSampler", ritz=values, residuals=torch.zeros(2),
        ...     nodes=values, node_weights=torch.tensor([0.5, 0.5]), trace=3.0, trace_error=0.0,
        ... )
        >>> s.lam_max, Spectrum.from_json(s.to_json()).trace
        (2.0, 3.0)
        >>> print(str(s).splitlines()[1])
        greatest eigenvalue            2
    """

    curvature: Curvature
    parameters: int
    samples: int
    dataset_size: int | None
    batch_size: int
    sampler: str
    ritz: Float[Tensor, " m"]
    residuals: Float[Tensor, " m"]
    nodes: Float[Tensor, " n"]
    node_weights: Float[Tensor, " n"]
    trace: float
    trace_error: float
    noise: Noise = field(default_factory=Noise)
    seconds: float = 0.0
    products: int = 0
    warnings: tuple[str, ...] = ()
    frobenius: float = math.nan
    metric: Metric = "plain"
    loss: float = math.nan
    rates: tuple[float, ...] = ()

    def __repr__(self) -> str:
        rows = (f"{name:<30} {value}" for name, value in self._rows())
        return "\n".join([f"Spectrum ({self.curvature})", *rows])

    def _repr_html_(self) -> str:
        """The numbers that advice rests on, and a stem per Ritz value."""
        table = html_table([f"Spectrum ({self.curvature})", ""], self._rows())
        return table + _stems(self.ritz.tolist())

    def _rows(self) -> list[list[str]]:
        return [
            ["greatest eigenvalue", f"{self.lam_max:.4g}"],
            ["trace", f"{self.trace:.4g} ± {self.trace_error:.2g}"],
            ["parameters", f"{self.parameters:,}"],
            ["batch size", f"{self.batch_size:,}"],
            ["samples measured", f"{self.samples:,}"],
            ["gradient noise scale, samples", f"{self.noise.gradient_noise_scale:.4g}"],
            *(["note", warning] for warning in self.warnings),
        ]

    @property
    def lam_max(self) -> float:
        """The largest Ritz value: a lower bound of the largest eigenvalue."""
        return float(self.ritz[0])

    @property
    def indefinite(self) -> bool:
        """Whether an eigenvalue is below zero by more than rounding, which no step size allows."""
        return float(self.ritz[-1]) < -1e-3 * abs(self.lam_max)

    def to_json(self) -> str:
        """All of it as one line of JSON; what was not measured is null."""
        return json.dumps({"format": FORMAT, **_plain(asdict(self))}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, name: str = "spectrum") -> Spectrum:
        """Read what :meth:`to_json` wrote.

        Args:
            text: that line.
            name: what to call it in errors.

        Raises:
            InputError: if it is something else.
        """
        try:
            value = json.loads(text)
            good = isinstance(value, dict) and value.pop("format", None) == FORMAT
            if good:
                noise = _restored(Noise, value.pop("noise"))
                return _restored(cls, {**value, "noise": noise})
        except (json.JSONDecodeError, TypeError, KeyError, ValueError):
            pass
        fail(name, f'JSON with "format": "{FORMAT}"', "something else", "measure it again")

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file, whole or not at all."""
        with file_aside(Path(path)) as new:
            new.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if the file is missing or something else.
        """
        file = expect_file(path, "a spectrum")
        return cls.from_json(file.read_text(encoding="utf-8", errors="replace"), str(file))


def smoothed(
    nodes: Float[Tensor, " n"],
    weights: Float[Tensor, " n"],
    grid: Float[Tensor, " k"] | None = None,
    width: float | None = None,
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Draw a density: each node a normal bell of its weight.

    Args:
        nodes: of a quadrature.
        weights: theirs.
        grid: where to evaluate; None takes 1,024 points, a twentieth of the span beyond either end.
        width: standard deviation of the bells; None takes a hundredth of the span.

    Returns:
        the grid and the density on it, whose integral is that of the weights.

    Raises:
        InputError: if the width is not positive.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> grid, density = smoothed(one, one, width=0.5)
        >>> round(float(torch.trapezoid(density, grid)), 3)
        1.0
    """
    low, high = float(nodes.min()), float(nodes.max())
    width = width if width is not None else 0.01 * max(high - low, abs(high), 1e-12)
    expect(width > 0, "width", "a number above 0", width, "leave it out")
    beyond = max(0.05 * (high - low), 5 * width)
    if grid is None:
        grid = torch.linspace(low - beyond, high + beyond, 1024, dtype=torch.float64)
    bells = torch.exp(-0.5 * ((grid.unsqueeze(1) - nodes) / width) ** 2)
    return grid, bells @ weights / (width * math.sqrt(2 * math.pi))


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and None in place of tensors and NaN."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "values": _plain(value.double().flatten().tolist())}
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restored(kind: type[Any], value: Mapping[str, Any]) -> Any:
    """A dataclass from its plain form; an unknown name is a KeyError."""
    types = {part.name: str(part.type) for part in fields(kind)}
    return kind(**{name: _as(types[name], x) for name, x in value.items()})


def _as(kind: str, value: Any) -> Any:
    if kind.startswith("Float"):
        numbers = [math.nan if x is None else x for x in value["values"]]
        return torch.tensor(numbers, dtype=torch.float64).reshape(value["shape"])
    if kind == "float" and value is None:
        return math.nan
    return tuple(value) if kind.startswith("tuple") else value
