"""Where SGD stops being stable, exactly: few parameters, or Gaussian features, E5 and E6.

What :mod:`shoal.curvature.stability` has as laws is measured against these, and they against
iterations. :func:`upper_bounds` are rigorous whatever the features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, fail
from shoal.curvature.stability import expect_curvature, expect_momentum, threshold

Vector = Float[Tensor, " m"]
# the quotient nears the eigenvalue as (λ₂/λ₁)²ᵗ: most problems settle within a hundred steps
_MOST_ITERATIONS, _TOLERANCE = 2000, 1e-7


def gaussian_rate(
    eigenvalues: Vector, k: float, momentum: float = 0.0, counts: Vector | None = None
) -> float:
    """The exact largest rate where features are Gaussian: least squares with a fresh batch a step.

    With q_i = a k (1 + B) / ((1 − B)(2(1 + B) − a λ_i)), the stationary variance of mode i in units
    of its noise, the threshold solves Σ λ_i q_i / (1 − λ_i q_i) = 1. For B = 0 that is
    k Σ a λ_i / (2 − a λ_i (1 + k)) = 1; without the k in the parenthesis it is the norm K of
    Agarwala and Pennington (2404.19261).

    Args:
        eigenvalues: of the features' covariance, at least 0, one above 0.
        k: noise of a batch; 1/b for endless data.
        momentum: B in [0, 1).
        counts: how often each eigenvalue occurs; once by default.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> b, p = 10, 100  # isotropic: 2b/(b + p + 1)
        >>> round(gaussian_rate(torch.ones(p), 1 / b) * (b + p + 1) / b, 9)
        2.0
    """
    values = eigenvalues.double()
    counts = torch.ones_like(values) if counts is None else counts.double()
    top = float(values.max()) if len(values) else 0.0
    good = bool((values >= 0).all()) and top > 0
    expect(good, "eigenvalues", "numbers of at least 0, one above", values, "use Gauss-Newton's")
    expect_curvature(top, 0.0, k)
    expect_momentum(momentum)
    b = momentum

    def grows(a: float) -> bool:
        q = a * k * (1 + b) / ((1 - b) * (2 * (1 + b) - a * values))
        return float((counts * values * q / (1 - values * q)).sum()) > 1

    # where the first mode alone would be unstable
    most = 2 * (1 + b) * (1 - b) / (top * (1 - b + k * (1 + b)))
    return threshold(grows, most)


def exact_rate(factors: Float[Tensor, "n p c"], k: float) -> float:
    """The exact mean-square threshold of SGD for few parameters, E5.

    1/a = λ_max(C⁻¹D) over symmetric M, with C(M) = HM + MH and
    D(M) = (1 − k) HMH + k E[H_i M H_i]: the second moment of x grows iff it does (Mulayoff and
    Michaeli, 2306.07850, theorem 3.2). In H's eigenbasis C divides by λ_i + λ_j; the top M is
    positive, so a power iteration from the identity finds it.

    Args:
        factors: R_i with H_i = R_i R_iᵀ, one per sample: Jacobian times the root of the loss'
            Hessian.
        k: noise of a batch; 0 gives 2/λ₁.

    Returns:
        the largest stable learning rate. Costs n p² (p + c) a step of the iteration: hundreds of
        parameters at most.

    Raises:
        InputError: if the curvature is zero or the iteration does not settle.

    Example:
        >>> same = torch.tensor([[[2.0]], [[2.0]]])  # two samples, both of curvature 4
        >>> round(exact_rate(same, 1.0), 6)
        0.5
    """
    factors = factors.double()
    values, vectors = torch.linalg.eigh(torch.einsum("npc,nqc->pq", factors, factors))
    values = values / len(factors)
    kept = values > 1e-10 * values[-1]
    expect(bool(values[-1] > 0), "factors", "a curvature above zero", "zero", "pass others")
    values, factors = values[kept], torch.einsum("pq,npc->nqc", vectors[:, kept], factors)
    root = (values[:, None] + values[None, :]).sqrt()
    m = torch.eye(len(values), dtype=torch.float64) / root
    top = 0.0
    for _ in range(_MOST_ITERATIONS):
        m = m / torch.linalg.matrix_norm(m)
        inner = m / root
        samples = torch.einsum("npc,pq,nqd->ncd", factors, inner, factors)
        noise = torch.einsum("npc,ncd,nqd->pq", factors, samples, factors) / len(factors)
        next_m = ((1 - k) * values[:, None] * inner * values + k * noise) / root
        before, top = top, float((m * next_m).sum())
        m = next_m
        if abs(top - before) < _TOLERANCE * top:
            return 1 / top
    fail("factors", "an iteration that settles", f"{_MOST_ITERATIONS} steps", "use gaussian_rate")
