"""What a batch's curvature has for eigenvalues, given that of all data: equations E1 to E4.

A batch of b out of N samples sees H_b = H + noise, whose variance is that of one sample times

    k_b = (N − b) / (b (N − 1)),                     1/b for endless data, 0 for a batch of all.

Four models of the noise say where an outlier λ of H lies in H_b, and how much of its eigenvector is
left (with τ² = k_b s2, s2 = E‖(H_i − H) z‖² for a random unit z):

    E1  λ + τ²/λ                        noise as in every direction alike   (additive; BBP)
    E2  λ + τ² ∫ρ(x)/(λ − x)            the same over a bulk of density ρ
    E3  λ (1 + k_b Σ λ_j/(λ − λ_j))     Gauss–Newton of Gaussian features   (spiked Wishart)
    E4  λ + k_b κ                       κ = Σ_j E(v_jᵀ(H_i − H)v₁)²/(λ − λ_j), measured

E1 is the model of Granziol, Zohren and Roberts ("Learning Rates as a Function of Batch Size", JMLR
2022) and the transition of Baik, Ben Arous and Péché (2005); E3 is Bai and Yao (2012). In real
nets noise lies in the directions of the signal, so that E1 with s2 from random vectors is too small
by one to two orders of magnitude, and E4, with κ measured, is near (docs/concepts/steps.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, expect_positive, fail
from shoal.curvature.lanczos import lanczos
from shoal.curvature.products import Products

Vector = Float[Tensor, " m"]


@dataclass(frozen=True)
class Outlier:
    """Where an eigenvalue of all data's curvature lies in that of a batch.

    Attributes:
        value: the batch's eigenvalue; the edge, where the noise hides it.
        overlap: squared inner product of its eigenvectors, in [0, 1]; 0 where hidden.
        edge: where the noise's own bulk ends, on the outlier's side.
    """

    value: float
    overlap: float
    edge: float


def batch_factor(batch_size: int, dataset_size: int | None = None) -> float:
    """Return k_b, the variance of a mean over b of N samples in units of one sample's.

    Args:
        batch_size: b, drawn without replacement.
        dataset_size: N; None for endless data.

    Raises:
        InputError: if the batch is empty or larger than the data.

    Example:
        >>> batch_factor(4), batch_factor(4, 10), batch_factor(10, 10)
        (0.25, 0.16666666666666666, 0.0)
    """
    expect_positive("batch_size", batch_size)
    if dataset_size is None:
        return 1 / batch_size
    expect_positive("dataset_size", dataset_size)
    want = f"at most all {dataset_size} samples"
    expect(batch_size <= dataset_size, "batch_size", want, batch_size, "lower it")
    if batch_size == dataset_size:
        return 0.0
    return (dataset_size - batch_size) / (batch_size * (dataset_size - 1))


def batch_of_factor(k: float, dataset_size: int | None = None) -> float:
    """Return the batch size, not rounded, that has the factor `k`: the inverse of k_b.

    Example:
        >>> batch_of_factor(0.25), round(batch_of_factor(batch_factor(4, 10), 10), 9)
        (4.0, 4.0)
    """
    if dataset_size is None:
        return 1 / k if k > 0 else math.inf
    return dataset_size / (1 + k * (dataset_size - 1))


def additive(lam: float, tau: float) -> Outlier:
    """Outlier under noise alike in every direction on top of finite rank, E1.

    Valid for a bulk at zero, noise eigenvectors that are spread over all parameters and many
    parameters: the value fluctuates by τ√(2/P).

    Args:
        lam: an eigenvalue of all data's curvature, of either sign.
        tau: √(k_b s2), half the radius of the noise's semicircle; at least 0.

    Raises:
        InputError: if `tau` is negative or one is not finite.

    Example:
        >>> additive(4.0, 1.0)
        Outlier(value=4.25, overlap=0.9375, edge=2.0)
        >>> additive(-0.5, 1.0)
        Outlier(value=-2.0, overlap=0.0, edge=-2.0)
    """
    _expect_finite("lam", lam)
    _expect_at_least_zero("tau", tau)
    edge = math.copysign(2 * tau, lam)
    if abs(lam) <= tau:
        return Outlier(edge, 0.0, edge)
    return Outlier(lam + tau**2 / lam, 1 - (tau / lam) ** 2, edge)


def additive_bulk(lam: float, tau: float, nodes: Vector, weights: Vector) -> Outlier:
    """Outlier under noise alike in every direction on top of a bulk, E2.

    λ' = λ + τ² G(λ) with G(x) = ∫ρ/(x − y), while τ² ∫ρ/(λ − y)² < 1. Costs nothing where a density
    by stochastic Lanczos quadrature is known.

    Args:
        lam: the outlier, above all nodes or below all.
        tau: √(k_b s2), at least 0.
        nodes: of the bulk's density; the outlier itself left out.
        weights: of the nodes, at least 0; scaled to sum to one.

    Raises:
        InputError: if the outlier lies within the bulk.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> additive_bulk(4.0, 1.0, zero, one).value
        4.25
    """
    _expect_at_least_zero("tau", tau)
    nodes, weights = _bulk(lam, nodes, weights)
    weights = tau**2 * weights / weights.sum()

    def moved(x: float) -> float:
        return x + float((weights / (x - nodes)).sum())

    def lost(x: float) -> float:
        return float((weights / (x - nodes) ** 2).sum())

    return _outlier(lam, nodes, moved, lost, lambda x: 1 - lost(x))


def wishart(lam: float, others: Vector, k: float, counts: Vector | None = None) -> Outlier:
    """Outlier of the Gauss–Newton matrix of b Gaussian features, E3.

    λ' = λ (1 + k Σ λ_j/(λ − λ_j)) while k Σ λ_j²/(λ − λ_j)² < 1; far above the bulk the shift is
    k·(trace of the rest), whatever λ. Exact for endless data as P and b grow; with the k of finite
    data it is right to first order in k.

    Args:
        lam: the outlier, above all others.
        others: the other eigenvalues, at least 0.
        k: :func:`batch_factor`.
        counts: how often each occurs; once by default.

    Raises:
        InputError: if one is negative or the outlier lies within the bulk.

    Example:
        >>> found = wishart(3.0, torch.ones(100), 0.01)
        >>> round(found.value, 9), round(found.overlap, 9), round(found.edge, 9)
        (4.5, 0.5, 4.0)
    """
    counts = torch.ones_like(others) if counts is None else counts
    _expect_at_least_zero("k", k)
    low = float(others.min()) if len(others) else 0.0
    expect(low >= 0, "others", "eigenvalues of at least 0", low, "use the Gauss-Newton matrix")
    nodes, counts = _bulk(lam, others, counts)
    weights = k * counts

    def stretch(x: float) -> float:
        return 1 + float((weights * nodes / (x - nodes)).sum())

    def lost(x: float) -> float:
        return float((weights * (nodes / (x - nodes)) ** 2).sum())

    return _outlier(
        lam, nodes, lambda x: x * stretch(x), lost, lambda x: (1 - lost(x)) / stretch(x)
    )


@dataclass(frozen=True)
class Coupling:
    """How noise couples the outlier to the other eigenvectors, to second order.

    Attributes:
        kappa: Σ_j E(v_jᵀ(H_i − H)v₁)²/(λ₁ − λ_j); the shift at one sample's noise.
        leak: Σ_j E(v_jᵀ(H_i − H)v₁)²/(λ₁ − λ_j)²; the loss of overlap at one sample's noise.
    """

    kappa: float
    leak: float


def coupling(lam: float, others: Vector, squares: Vector) -> Coupling:
    """Sum the second-order perturbation of the outlier.

    Args:
        lam: λ₁.
        others: λ_j, all below λ₁.
        squares: E(v_jᵀ(H_i − H)v₁)² over samples, one per j.

    Raises:
        InputError: if some λ_j is not below λ₁.

    Example:
        >>> coupling(3.0, torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0]))
        Coupling(kappa=3.0, leak=2.0)
    """
    gaps = lam - others.double()
    expect(bool((gaps > 0).all()), "others", f"eigenvalues below {lam}", others, "leave it out")
    squares = squares.double()
    return Coupling(float((squares / gaps).sum()), float((squares / gaps**2).sum()))


def perturbed(lam: float, known: Coupling, k: float) -> Outlier:
    """The outlier at the noise `k`, by measured coupling, E4: λ + kκ.

    Second order in the noise: valid while kκ is at most λ. Where samples are not independent, κ is
    fitted at two batch sizes (:func:`fit_top`). With a `kappa` that is one pass' lower bound,
    ‖(I − v₁v₁ᵀ)(H_i − H)v₁‖²/λ₁, so is the value.

    Raises:
        InputError: beyond that.

    Example:
        >>> perturbed(3.0, Coupling(4.0, 2.0), 0.25)
        Outlier(value=4.0, overlap=0.5, edge=nan)
    """
    _expect_at_least_zero("k", k)
    want = f"a noise k·kappa of at most the eigenvalue {lam:.4g}"
    remedy = "ask for a larger batch, or measure on a batch of that size"
    expect(k * known.kappa <= lam * (1 + 1e-9), "k", want, f"{k * known.kappa:.4g}", remedy)
    return Outlier(lam + k * known.kappa, max(0.0, 1 - k * known.leak), math.nan)


def mean_top(products: Products, steps: int = 20, seed: int = 0) -> float:
    """The mean over batches of the largest eigenvalue of a batch's own curvature.

    Args:
        products: of the batches.
        steps: of Lanczos for each batch, at most; it stops at a residual of a hundredth.
        seed: of the starts.

    Raises:
        InputError: if a product is not finite.
    """
    p, count = products.shape[0], len(products.problem.sizes)
    found = [
        lanczos(
            partial(products.along, index),
            p,
            steps,
            seed=seed,
            tolerance=0.01,
            dtype=products.dtype,
            device=products.device,
        )
        for index in range(count)
    ]
    return sum(each.ritz[0].item() for each in found) / count


def fit_top(tops: Mapping[int, float], dataset_size: int | None = None) -> tuple[float, float]:
    """Fit lam_1 + kappa · k_b to the top eigenvalues of batches of two or more sizes.

    What is to be done where samples of a batch are not independent (in-batch losses, clusters,
    sampled neighborhoods): their spread is no function of one sample's, but is measured.

    Args:
        tops: mean top eigenvalue of a batch, by batch size (:func:`mean_top`).
        dataset_size: samples of the whole data, or None for endless data.

    Returns:
        lam_1 and kappa, by least squares.

    Raises:
        InputError: if there are fewer than two sizes.

    Example:
        >>> lam, kappa = fit_top({8: 3.0, 16: 2.5})
        >>> round(lam, 6), round(kappa, 6)
        (2.0, 8.0)
    """
    if len(tops) < 2:
        fail("tops", "two batch sizes or more", len(tops), "measure another loader too")
    factors = [batch_factor(size, dataset_size) for size in tops]
    rows = torch.tensor([[1.0, k] for k in factors], dtype=torch.float64)
    values = torch.tensor(list(tops.values()), dtype=torch.float64)
    lam, kappa = torch.linalg.lstsq(rows, values.unsqueeze(1)).solution.flatten().tolist()
    return lam, kappa


def _outlier(
    lam: float,
    nodes: Vector,
    moved: Callable[[float], float],
    lost: Callable[[float], float],
    overlap: Callable[[float], float],
) -> Outlier:
    """The common shape of E2 and E3: an outlier stands out while lost(λ) < 1."""
    above = lam > float(nodes.max())
    start = float(nodes.max() if above else nodes.min())
    at = _where_one(lost, start, 1.0 if above else -1.0)
    edge = moved(at) if at != start else start
    if lost(lam) >= 1:
        return Outlier(edge, 0.0, edge)
    return Outlier(moved(lam), overlap(lam), edge)


def _where_one(lost: Callable[[float], float], start: float, sign: float) -> float:
    """The x beyond `start` with lost(x) = 1; lost falls from infinity to zero there."""
    scale = max(abs(start), 1.0)
    step = 1e-12 * scale
    if lost(start + sign * step) < 1:
        return start
    while lost(start + sign * step) > 1:
        step *= 2
    low, high = step / 2, step
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if lost(start + sign * middle) > 1 else (low, middle)
    return start + sign * high


def _bulk(lam: float, nodes: Vector, weights: Vector) -> tuple[Vector, Vector]:
    """Nodes and weights in double precision, where the outlier lies beyond them."""
    _expect_finite("lam", lam)
    expect(len(nodes) > 0, "nodes", "a bulk of at least one node", "none", "use additive")
    low, high = (float(x) for x in torch.aminmax(nodes))
    want = f"an outlier beyond the bulk [{low:.4g}, {high:.4g}]"
    expect(lam > high or lam < low, "lam", want, lam, "leave the outlier out of the bulk")
    return nodes.double(), weights.double()


def _expect_finite(name: str, value: float) -> None:
    expect(math.isfinite(value), name, "a finite number", value, "measure it again")


def _expect_at_least_zero(name: str, value: float) -> None:
    good = math.isfinite(value) and value >= 0
    expect(good, name, "a number of at least 0", value, "measure it again")
