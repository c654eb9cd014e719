"""The density of all eigenvalues, by stochastic Lanczos quadrature.

From a random unit vector v, m Lanczos steps give Ritz values θ_j and weights w_j = (first component
of their vectors)² with Σ_j w_j f(θ_j) = v'f(H)v, exactly for polynomials f below degree 2m. Its
mean over v is tr f(H) / p, so the pairs (θ_j, w_j) stand for the density of eigenvalues. By Chen,
Trogdon and Ubaru (ICML 2021, arXiv 2105.06595, theorem 1), with m ≥ 12/t + 1/2 steps from
n ≥ 4 ln(2p/η) / (t² (p + 2)) vectors, its Wasserstein distance to the true density is at most
t · (lam_max − lam_min), except with probability η.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, expect_positive
from shoal.curvature.lanczos import Product, lanczos


def quadrature(
    product: Product,
    p: int,
    steps: int,
    vectors: int = 1,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return nodes and weights that stand for the eigenvalues of a symmetric matrix.

    Args:
        product: ``[p] → [p]``, linear and symmetric.
        p: rows of the matrix.
        steps: of Lanczos from each vector.
        vectors: random starts. At a million parameters one is as good as many.
        seed: of the first start; the next ones follow.
        dtype: of the vectors that `product` is given.
        device: where they live.

    Returns:
        nodes and weights, together 1, of all starts.

    Raises:
        InputError: if there are no vectors.

    Example:
        >>> diagonal = torch.tensor([3.0, 1.0], dtype=torch.float64)
        >>> nodes, weights = quadrature(lambda v: diagonal * v, 2, 2)
        >>> [round(x, 6) for x in nodes.tolist()], round(float(weights.sum()), 6)
        ([3.0, 1.0], 1.0)
    """
    expect_positive("vectors", vectors)
    runs = [
        lanczos(product, p, steps, seed=seed + k, dtype=dtype, device=device)
        for k in range(vectors)
    ]
    weights = torch.cat([run.weights for run in runs]) / vectors
    return torch.cat([run.ritz for run in runs]), weights


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


def wasserstein_bound(steps: int, vectors: int, p: int, span: float, eta: float = 0.05) -> float:
    """Bound the distance of a quadrature from the true density, as the module says.

    Args:
        steps: of Lanczos from each vector.
        vectors: random starts.
        p: rows of the matrix.
        span: lam_max − lam_min, in whose unit the bound is.
        eta: probability that it fails.

    Returns:
        at most `span`, the distance that nothing exceeds.

    Example:
        >>> wasserstein_bound(1201, 1, 10**9, 1.0) < 0.011
        True
    """
    by_steps = 12 / max(steps - 0.5, 0.5)
    by_vectors = math.sqrt(4 * math.log(2 * p / eta) / ((p + 2) * vectors))
    return span * min(max(by_steps, by_vectors), 1.0)
