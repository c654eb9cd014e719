"""Traces from products alone, with what they may be wrong by.

    Hutchinson   (1/k) Σ z'Hz over random signs z                           error ~ ‖H‖_F / √k
    Hutch++      the trace within the range of H S exactly, Hutchinson for the rest (Meyer, Musco,
                 Musco and Woodruff, SOSA 2021, algorithm 1)                error ~ tr H / k
    XTrace       Hutch++ with every vector in both roles, each left out of the range in turn
                 (Epperly, Tropp and Webber, SIMAX 2024, arXiv 2301.07825, section 2)

On matrices whose eigenvalues fall fast, as curvature's do, XTrace is the nearest per product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoal.core.errors import expect
from shoal.curvature.lanczos import Product


@runtime_checkable
class Matrix(Protocol):
    """What multiplies many vectors at once, at less than the cost of each alone."""

    def __matmul__(self, columns: Any, /) -> Any:
        """The product with each column."""
        ...


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated.

    Attributes:
        value: the estimate.
        error: its standard error, NaN where it cannot be estimated.
        products: that it took.
    """

    value: float
    error: float
    products: int


def hutchinson(product: Product | Matrix, p: int, products: int, seed: int = 0) -> Estimate:
    """Estimate the trace from random signs.

    Args:
        product: ``[p] → [p]``, linear; or a matrix, by ``@``.
        p: rows of the matrix.
        products: to be taken, at least 1.
        seed: of the signs.

    Raises:
        InputError: if there are no products.

    Example:
        Exact on a diagonal matrix, whose z'Hz is the same for all signs:

        >>> diagonal = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)
        >>> hutchinson(lambda v: diagonal * v, 3, 2).value
        8.0
    """
    expect(products >= 1, "products", "at least 1", products, "raise it")
    signs = _signs(p, products, seed)
    return _mean((signs * _all(product, signs)).sum(0).tolist(), products)


def hutchpp(product: Product | Matrix, p: int, products: int, seed: int = 0) -> Estimate:
    """Estimate the trace by Hutch++, a third of the products for each of its parts.

    Args:
        product: ``[p] → [p]``, linear and symmetric; or a matrix, by ``@``.
        p: rows of the matrix.
        products: to be taken, at least 3.
        seed: of the signs.

    Raises:
        InputError: if there are too few products.

    Example:
        Exact where the rank is at most a third of the products:

        >>> ones = torch.ones(50, dtype=torch.float64)
        >>> round(hutchpp(lambda v: (ones @ v) * ones, 50, 6).value, 9)
        50.0
    """
    expect(products >= 3, "products", "at least 3", products, "raise it")
    third = min(products // 3, p)
    signs = _signs(p, 2 * third, seed)
    basis, _ = torch.linalg.qr(_all(product, signs[:, :third]))
    inside = float((basis * _all(product, basis)).sum())
    rest = signs[:, third:] - basis @ (basis.T @ signs[:, third:])
    outside = _mean((rest * _all(product, rest)).sum(0).tolist(), 0)
    return Estimate(inside + outside.value, outside.error, 3 * third)


def xtrace(product: Product | Matrix, p: int, products: int, seed: int = 0) -> Estimate:
    """Estimate the trace by XTrace, half of the products with random vectors.

    Args:
        product: ``[p] → [p]``, linear and symmetric; or a matrix, by ``@``.
        p: rows of the matrix.
        products: to be taken, at least 4; from 2·p on the trace is exact.
        seed: of the vectors.

    Raises:
        InputError: if there are too few products.

    Example:
        >>> ones = torch.ones(50, dtype=torch.float64)
        >>> round(xtrace(lambda v: (ones @ v) * ones, 50, 6).value, 9)
        50.0
    """
    expect(products >= 4, "products", "at least 4", products, "raise it")
    half = min(products // 2, p)
    generator = torch.Generator().manual_seed(seed)
    omega = torch.randn(p, half, generator=generator).double()
    y = _all(product, omega)
    basis, r = torch.linalg.qr(y)
    inner = basis.T @ _all(product, basis)
    if half == p:
        return Estimate(float(inner.trace()), 0.0, 2 * half)
    return _leave_one_out(omega, y, basis, r, inner)


def _leave_one_out(omega: Tensor, y: Tensor, basis: Tensor, r: Tensor, inner: Tensor) -> Estimate:
    """The mean over i of Hutch++ on the range of all y but y_i, with ω_i for the rest.

    Within the range of Q, leaving out y_i is leaving out the direction s_i of its column of R that
    is orthogonal to all other columns; where those span it already, nothing.
    """
    p, half = omega.shape
    s = torch.stack([_aside(r, i) for i in range(half)], dim=1)
    w = basis.T @ omega
    c = w - s * (s * w).sum(0)
    quadratic = (omega * y).sum(0) - 2 * (c * r).sum(0) + (c * (inner @ c)).sum(0)
    length = (omega.square().sum(0) - c.square().sum(0)).clamp(min=1e-300)
    # of the unit vectors outside the range, the mean of u'Hu times their dimension
    outside = (p - half + s.square().sum(0)) * quadratic / length
    estimates = inner.trace() - (s * (inner @ s)).sum(0) + outside
    return _mean(estimates.tolist(), 2 * half)


def _aside(r: Tensor, i: int) -> Tensor:
    """The unit vector along column i of R less what the others span, or zero."""
    others = torch.cat([r[:, :i], r[:, i + 1 :]], dim=1)
    left, sizes, _ = torch.linalg.svd(others, full_matrices=False)
    left = left[:, sizes > 1e-12 * torch.linalg.matrix_norm(r, 2)]
    rest = r[:, i] - left @ (left.T @ r[:, i])
    rest = rest - left @ (left.T @ rest)
    length = torch.linalg.vector_norm(rest)
    small = length <= 1e-12 * torch.linalg.matrix_norm(r, 2)
    return torch.zeros_like(rest) if small else rest / length


def _all(product: Product | Matrix, columns: Tensor) -> Tensor:
    if isinstance(product, Matrix):
        return (product @ columns).double()
    return torch.stack([product(z).double() for z in columns.T], dim=1)


def _signs(p: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, (p, count), generator=generator).double() - 1.0


def _mean(values: list[float], products: int) -> Estimate:
    drawn = torch.tensor(values, dtype=torch.float64)
    error = float(drawn.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(drawn.mean()), error, products)
