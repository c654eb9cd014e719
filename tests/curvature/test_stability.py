"""E5 to E9 against the iterations that they describe: errors die below a threshold, grow above."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shoal.core.errors import InputError
from shoal.curvature import exact as exact_laws
from shoal.curvature import stability
from shoal.curvature.batch_spectra import batch_factor

Curvature = Callable[[np.ndarray], np.ndarray]


def growth(
    products: Iterator[Curvature],
    p: int,
    rate: float,
    steps: int,
    momentum: float = 0.0,
) -> float:
    """Mean logarithm of the growth of a perturbation a step, under a stream of batch curvatures."""
    x, v, total = np.ones(p) / math.sqrt(p), np.zeros(p), 0.0
    burn = steps // 4
    for i in range(steps):
        v = momentum * v - rate * next(products)(x)
        x = x + v
        norm = math.sqrt(x @ x)
        x, v = x / norm, v / norm
        total += math.log(norm) if i >= burn else 0.0
    return total / (steps - burn)


def gaussian_batches(scales: np.ndarray, b: int, seed: int) -> Iterator[Curvature]:
    """Products with XᵀX/b of fresh rows of X, whose columns have the variances `scales`."""
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.normal(size=(b, len(scales))) * np.sqrt(scales)
        yield lambda x, rows=rows: rows.T @ (rows @ x) / len(rows)


@pytest.mark.parametrize("b", [4, 64])
def test_isotropic_regression(b: int) -> None:
    """T4, E5: SGD on isotropic least squares turns within 2 % of 2b/(b + P + 1)."""
    p = 300
    exact = exact_laws.gaussian_rate(torch.ones(p), 1 / b)
    assert exact == pytest.approx(2 * b / (b + p + 1))
    steps = 12_000 if b == 4 else 800
    assert growth(gaussian_batches(np.ones(p), b, 0), p, 0.98 * exact, steps) < 0
    assert growth(gaussian_batches(np.ones(p), b, 0), p, 1.02 * exact, steps) > 0


@pytest.mark.parametrize("b", [4, 64])
def test_heavy_ball(b: int) -> None:
    """T5, E6: with momentum 0.9 it turns within 12 % of the closed form; E6's law is near it."""
    p = 200
    scales = 1.0 / np.arange(1, p + 1)
    exact = exact_laws.gaussian_rate(torch.from_numpy(scales), 1 / b, momentum=0.9)
    for factor, grows in ((0.88, False), (1.12, True)):
        stream = gaussian_batches(scales, b, 1)
        assert (growth(stream, p, factor * exact, 1500, 0.9) > 0) == grows
    law = stability.largest_rate(1.0, float(scales.sum()), 1 / b, 0.9)
    assert 0.5 < law / exact < 1.2


def test_the_exact_operator() -> None:
    """T6, E5: an MLP's Gauss–Newton matrix; SGD on it turns at 1.0 to 1.3 times the exact rate."""
    factors = mlp_factors(40)
    n, p, _ = factors.shape
    b = 4
    exact = exact_laws.exact_rate(factors, batch_factor(b, n))
    rows = factors.numpy()

    def stream() -> Iterator[Curvature]:
        rng = np.random.default_rng(2)
        while True:
            r = rows[rng.choice(n, b, replace=False)]
            r = r.transpose(1, 0, 2).reshape(p, -1)
            yield lambda x, r=r: r @ (r.T @ x) / b

    def grows(rate: float) -> bool:
        return growth(stream(), p, rate, 1500) > 0.002

    # directions without curvature never grow: their share keeps the growth at 0 below the threshold
    assert not grows(0.97 * exact) and grows(1.3 * exact)
    trace, lam, frobenius, c = facts_of(factors)
    law = stability.largest_rate(lam, c, batch_factor(b, n))
    # two Rayleigh quotients of E5's problem, M = v₁v₁ᵀ and M = I, above which SGD is unstable
    assert exact <= min(2 / lam, 2 * trace / (frobenius + batch_factor(b, n) * c * trace))
    assert 0.5 < law / exact < 1.3


def mlp_factors(n: int) -> torch.Tensor:
    """Jacobians times the root of the softmax' Hessian of a random MLP, one a sample."""
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(5, 6, generator=generator, dtype=torch.float64) / 2
    w2 = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)

    def outputs(flat: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return flat[30:].view(3, 5) @ torch.tanh(flat[:30].view(5, 6) @ one)

    flat = torch.cat([w1.flatten(), w2.flatten()])
    jacobians = torch.stack([torch.func.jacrev(outputs)(flat, one) for one in x])
    q = torch.stack([outputs(flat, one).softmax(0) for one in x])
    # root of diag(q) − qqᵀ: diag(√q)(1 − √q√qᵀ)
    root = q.sqrt().unsqueeze(2) * (torch.eye(3) - (q[:, :, None] * q[:, None, :]).sqrt())
    return torch.einsum("ncp,ncd->npd", jacobians, root)


def facts_of(factors: torch.Tensor) -> tuple[float, float, float, float]:
    """tr H, λ₁, ‖H‖²_F and c, densely."""
    each = torch.einsum("npc,nqc->npq", factors, factors)
    mean = each.mean(0)
    trace = float(mean.trace())
    noise = float((each - mean).square().sum((1, 2)).mean())
    lam = float(torch.linalg.eigvalsh(mean)[-1])
    return trace, lam, float(mean.square().sum()), noise / trace


def test_a_batch_of_all_is_gradient_descent() -> None:
    """T7: k_N = 0 gives 2/λ₁ everywhere, 2(1 + B)/λ₁ with momentum, and no damping at 2/λ₁."""
    factors = mlp_factors(12)
    _, lam, _, c = facts_of(factors)
    k = batch_factor(12, 12)
    values = torch.linalg.eigvalsh(torch.einsum("npc,nqc->pq", factors, factors) / 12).clamp(min=0)
    assert exact_laws.exact_rate(factors, k) == pytest.approx(2 / lam, rel=1e-4)
    assert exact_laws.gaussian_rate(values, k) == pytest.approx(2 / lam)
    assert stability.largest_rate(lam, c, k) == pytest.approx(2 / lam)
    assert stability.largest_rate(lam, c, k, 0.9) == pytest.approx(2 * 1.9 / lam)
    assert stability.minimal_damping(1.99, values, k) == 0


@pytest.mark.parametrize("rate", [0.5, 8.0])
def test_damping(rate: float) -> None:
    """T8, E8: preconditioned least squares dies just above δ_min and grows just below it."""
    b, scales = 8, 1.0 / np.arange(1, 101) ** 1.5
    damping = stability.minimal_damping(rate, torch.from_numpy(scales), 1 / b)
    # the law is the sum of both limits, so at most this far from the exact rate of what it damps
    for factor, grows in ((1.1, False), (0.4, True)):
        mu = scales / (scales + factor * damping)
        assert (growth(gaussian_batches(mu, b, 3), 100, rate, 4000) > 0) == grows
    least = [stability.minimal_damping(a, torch.from_numpy(scales), a / 800) for a in (1.0, 2.0)]
    assert damping > 0 and least[1] > least[0]


def test_damping_goes_with_rate_over_batch() -> None:
    """E8: where noise dominates, δ ∝ a/b: a k tr/2 of a flat spectrum; the paper's form too."""
    flat = torch.full((1000,), 0.01)
    for rate, b in ((1.0, 4), (2.0, 4), (2.0, 8)):
        damping = stability.minimal_damping(rate, flat, 1 / b)
        assert damping == pytest.approx(rate / b * 10 / 2, rel=0.05)
        paper = stability.additive_damping(rate, 0.01, 100.0, 1 / b)
        assert paper == pytest.approx(rate * 100 / (2 * b * 0.01), rel=0.01)


def test_the_paper_s_damping() -> None:
    """T8 as published: λ spiked by Wigner noise, a step over λ + δ turns within 5 % of 2."""
    rng = np.random.default_rng(5)
    p, lam, tau, rate = 400, 1.0, 0.8, 3.0
    x = rng.normal(size=(p, p)) * tau / math.sqrt(2 * p)
    noisy = x + x.T
    noisy[0, 0] += lam
    top = float(np.linalg.eigvalsh(noisy)[-1])
    damping = stability.additive_damping(rate, lam, tau**2, 1.0)
    at_top = rate * (lam + tau**2) / 2 - lam
    assert damping == pytest.approx(max(at_top, rate * tau))
    assert rate * top / (lam + at_top) == pytest.approx(2, rel=0.05)


def test_adam_with_held_moments() -> None:
    """T10, E7: at b = N Adam's average of gradients turns at 38/λ₁ of what v preconditions."""
    scales = np.array([4.0, 1.0, 0.1])
    root = np.array([2.0, 0.1, 1.0])  # √v
    lam = float((scales / root).max())
    rate = stability.adam_rate(lam, c=5.0, k=batch_factor(32, 32), beta1=0.9)
    assert rate == pytest.approx(38 / lam)
    for factor, grows in ((0.98, False), (1.02, True)):
        x, m = np.ones(3), np.zeros(3)
        for _ in range(600):
            m = 0.9 * m + 0.1 * scales * x
            x = x - factor * rate * m / root
        assert (np.abs(x).max() > 1) == grows


def test_adam_with_noise_is_heavy_ball() -> None:
    """E7 with noise: heavy ball with β₁ for B and (1 − β₁)a for a; the law is conservative."""
    scales, b, beta = 1.0 / np.arange(1, 101), 8, 0.9
    rate = stability.adam_rate(1.0, float(scales.sum()), 1 / b, beta)
    stream = gaussian_batches(scales, b, 4)
    assert growth(stream, 100, (1 - beta) * rate * 0.9, 3000, beta) < 0
    stream = gaussian_batches(scales, b, 4)
    assert growth(stream, 100, (1 - beta) * rate * 2.5, 3000, beta) > 0


def test_polyak_s_rate() -> None:
    """T11, E9: on a quadratic every step shrinks the error by √B, and by more for no other pair."""
    lams = np.linspace(0.5, 8.0, 20)
    rate, momentum = stability.polyak(8.0, 0.5)

    def radius(a: float, b: float) -> float:
        pairs = [np.array([[1 + b - a * lam, -b], [1.0, 0.0]]) for lam in lams]
        return max(float(np.abs(np.linalg.eigvals(pair)).max()) for pair in pairs)

    best = radius(rate, momentum)
    assert best == pytest.approx(math.sqrt(momentum), rel=1e-6)
    others = [radius(rate * x, momentum * y) for x in (0.9, 1.1) for y in (0.9, 1.0, 1.05)]
    assert min(others) > best


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_gradient_noise_holds_half_the_loss(momentum: float) -> None:
    """Least squares with noisy targets: at the rate with c + tr Σ/L the excess loss is L/2."""
    p, b, sigma = 100, 8, 0.3
    level = sigma**2
    # Gaussian rows of variance 1/p: H = 1/p, c = tr H = 1, and tr Σ = σ² at the minimum
    c = stability.with_gradient_noise(1.0, sigma**2, level)
    rate = stability.largest_rate(1 / p, c, 1 / b, momentum)
    rng = np.random.default_rng(6)
    x, v, seen = np.zeros(p), np.zeros(p), []
    for i in range(4000):
        rows = rng.normal(size=(b, p)) / math.sqrt(p)
        gradient = rows.T @ (rows @ x - sigma * rng.normal(size=b)) / b
        v = momentum * v - rate * gradient
        x = x + v
        if i > 1000:
            seen.append(float(x @ x) / p / 2)
    assert np.mean(seen) == pytest.approx(level / 2, rel=0.2)


def test_the_critical_batch_parts_the_regimes() -> None:
    """E6: at b* both terms are alike; momentum 0.9 moves it by 19 times."""
    lam, c, n = 2.0, 30.0, 4000
    for momentum in (0.0, 0.9):
        b = stability.critical_batch(lam, c, n, momentum)
        k = (n - b) / (b * (n - 1))
        assert k * c / (1 - momentum) == pytest.approx(lam / (1 + momentum))
    ratio = stability.critical_batch(lam, c, momentum=0.9) / stability.critical_batch(lam, c)
    assert ratio == pytest.approx(19)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: stability.largest_rate(-1.0, 1.0, 0.1), "lam: expected an eigenvalue above 0"),
        (lambda: stability.largest_rate(math.inf, 1.0, 0.1), "lam: expected"),
        (lambda: stability.largest_rate(1.0, -1.0, 0.1), "c: expected"),
        (lambda: stability.largest_rate(1.0, 1.0, -0.1), "k: expected"),
        (lambda: stability.largest_rate(1.0, 1.0, 0.1, 1.0), "momentum: expected"),
        (lambda: exact_laws.gaussian_rate(torch.tensor([-1.0, 1.0]), 0.1), "eigenvalues: expected"),
        (lambda: exact_laws.gaussian_rate(torch.zeros(2), 0.1), "eigenvalues: expected"),
        (lambda: exact_laws.exact_rate(torch.zeros(2, 2, 1), 0.1), "factors: expected"),
        (lambda: stability.minimal_damping(0.0, torch.ones(1), 0.1), "rate: expected"),
        (lambda: stability.polyak(1.0, -0.5), "least: expected an eigenvalue in"),
        (lambda: stability.polyak(1.0, 2.0), "least: expected an eigenvalue in"),
    ],
)
def test_outside_its_limits_a_law_refuses(call, named: str, unchecked: None) -> None:
    """Each limit of validity is named, with what came and what to do."""
    with pytest.raises(InputError, match=named):
        call()
