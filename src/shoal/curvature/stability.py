"""How far a step may go: the learning rate a beyond which an optimizer leaves a minimum, E5 to E9.

With a fresh batch each step, a minimum with curvature H holds x ← x − a H_b x as long as E‖x‖² does
not grow. What counts is not the greatest eigenvalue of one batch's curvature, but λ₁ of all data's
and the noise summed over every direction:

    E5  SGD        1/a = λ₁/2 + k_b c/2                     c = E‖H_i − H‖²_F / tr H
    E6  momentum B 1/a = λ₁/(2(1 + B)) + k_b c/(2(1 − B))   critical batch: both terms alike
    E7  Adam       the same of D^−½ H D^−½, D = √v + ε, B = β₁, for a (1 − β₁) in place of a
    floor          the rate at which gradient noise alone holds half the loss: c + tr Σ/L for c
    E8  damping    the least δ at which (H + δ)^−1 or (D + δ)^−1 holds at a given a
    safe           E6 with the floor, and λ₁/2 for its first term: momentum lengthens no step
    E9  Polyak     a = (2/(√λ₁ + √λ_P))², B = ((√λ₁ − √λ_P)/(√λ₁ + √λ_P))², without noise

with k_b of :func:`~shoal.curvature.batch_spectra.batch_factor`. E5 is the sum of two rigorous
bounds; the exact threshold is the eigenvalue problem of Mulayoff and Michaeli (2306.07850), here
:func:`~shoal.curvature.exact.exact_rate`; of Gaussian features it is a closed form,
:func:`~shoal.curvature.exact.gaussian_rate`. All need a
positive semi-definite curvature: the Gauss–Newton matrix. They say where a quadratic stops being
stable: nets bend, and train at one to five times that (docs/concepts/steps.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect
from shoal.curvature.batch_spectra import batch_of_factor

Vector = Float[Tensor, " m"]


def largest_rate(lam: float, c: float, k: float, momentum: float = 0.0) -> float:
    """The largest stable learning rate of SGD, E5, or with momentum, E6.

    Args:
        lam: λ₁ of the Gauss–Newton matrix, above 0; add coupled weight decay to it.
        c: E‖H_i − H‖²_F / tr H, at least 0.
        k: noise of a batch, k_b.
        momentum: B in [0, 1) of heavy-ball momentum as in ``torch.optim.SGD`` (dampening 0, not
            Nesterov's).

    Raises:
        InputError: if one is out of range.

    Example:
        >>> largest_rate(2.0, 10.0, 0.1), largest_rate(2.0, 0.0, 1.0, momentum=0.5)
        (0.6666666666666666, 1.5)
    """
    expect_curvature(lam, c, k)
    expect_momentum(momentum)
    return 1 / (lam / (2 * (1 + momentum)) + k * c / (2 * (1 - momentum)))


def safe_rate(lam: float, c: float, k: float, momentum: float = 0.0) -> float:
    """E6 without what momentum gains on a quadratic: 1/a = λ₁/2 + k c/(2(1 − B)).

    Of all networks that were measured none held a longer step with momentum than without
    (docs/results/steps.md), though a quadratic without noise holds 1 + B times as long a one.

    Args:
        lam: λ₁, as for :func:`largest_rate`, the others too.
        c: with the floor of gradient noise (:func:`with_gradient_noise`).
        k: noise of a batch.
        momentum: B.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> safe_rate(2.0, 0.0, 1.0, momentum=0.5), safe_rate(2.0, 10.0, 0.1, momentum=0.5)
        (1.0, 0.5)
    """
    expect_momentum(momentum)
    return largest_rate(lam, c / (1 - momentum), k)


def adam_rate(lam: float, c: float, k: float, beta1: float = 0.9) -> float:
    """The largest stable learning rate of Adam with its second moments held, E7.

    1/a = λ₁(1 − β₁)/(2(1 + β₁)) + k c/2; without noise and with β₁ = 0.9 it is the 38/λ₁ of
    Cohen et al. (2207.14484).

    Args:
        lam: λ₁ of D^−½ H D^−½, with D = √v + ε as the optimizer has it.
        c: E‖H_i − H‖²_F / tr H of the same.
        k: noise of a batch.
        beta1: of the optimizer; 0 for RMSprop.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> round(adam_rate(1.0, 0.0, 0.0), 9)
        38.0
    """
    # an average of gradients is heavy-ball momentum with (1 − β₁) times the step
    return largest_rate(lam, c, k, beta1) / (1 - beta1)


def with_gradient_noise(c: float, covariance: float, loss: float) -> float:
    """Put for c in E5 to E7 what keeps the gradients' own noise below half of the loss.

    A stable quadratic does not rest at its minimum: noise of trace Σ in the gradients holds the
    loss a k tr Σ/(4(1 − B)) / (1 − a/a_max) above it, a_max being the largest stable rate. That is
    half of the loss L at 1/a = 1/a_max + k tr Σ/(2(1 − B)L), which is the law with c + tr Σ/L.
    Beyond it training goes on, but at such a rate the loss hardly falls.

    Args:
        c: E‖H_i − H‖²_F / tr H.
        covariance: tr Σ, of one sample's gradient.
        loss: L, which the loss that cannot be avoided is part of; at most 0 or not known leaves c.

    Example:
        >>> with_gradient_noise(10.0, 4.0, 2.0), with_gradient_noise(10.0, math.nan, 2.0)
        (12.0, 10.0)
    """
    known = math.isfinite(covariance) and math.isfinite(loss) and loss > 0
    return c + covariance / loss if known else c


def critical_batch(
    lam: float, c: float, dataset_size: int | None = None, momentum: float = 0.0
) -> float:
    """The batch size at which curvature and noise limit the step alike, E6: b* = (c/λ₁)(1+B)/(1−B).

    Below it the stable rate grows with b, above it hardly. For Adam pass β₁ as the momentum.

    Args:
        lam: λ₁.
        c: E‖H_i − H‖²_F / tr H.
        dataset_size: N; None for endless data.
        momentum: B.

    Returns:
        b*, not rounded, at most N; 1 or less means that noise never limits.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> round(critical_batch(2.0, 10.0, momentum=0.9), 6)
        95.0
    """
    expect_curvature(lam, c, 0.0)
    expect_momentum(momentum)
    if c == 0:
        return 1.0
    return batch_of_factor(lam * (1 - momentum) / (c * (1 + momentum)), dataset_size)


def additive_damping(rate: float, lam: float, s2: float, k: float) -> float:
    """The least damping of (M + δ)⁻¹ under additive noise, the paper's E8, at least 0.

    The top direction needs a(λ + k s2/λ)/(λ + δ) ≤ 2, a flat one a·2τ/δ ≤ 2 with τ = √(k s2). Where
    noise dominates the first is a s2/(2bλ): proportional to the ratio of learning rate to batch
    size, as the paper has it.

    Args:
        rate: the learning rate a, above 0.
        lam: λ₁, above 0.
        s2: E‖(H_i − H)z‖², z a random unit vector.
        k: noise of a batch.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> additive_damping(2.0, 1.0, 4.0, 0.01), additive_damping(1.0, 1.0, 100.0, 0.1)
        (0.4, 4.5)
    """
    expect_curvature(lam, s2, k)
    _expect_rate(rate)
    top = rate * (lam + k * s2 / lam) / 2 - lam
    return max(top, rate * math.sqrt(k * s2), 0.0)


def minimal_damping(
    rate: float,
    eigenvalues: Vector,
    k: float,
    excess: float = 1.0,
    counts: Vector | None = None,
) -> float:
    """The least δ at which x ← x − a (H + δ)⁻¹ H_b x is stable, by E5 of what it preconditions.

    With μ_i = λ_i/(λ_i + δ), solve a (μ₁ + k f Σ μ_i)/2 = 1. Where noise dominates,
    δ = a k f tr H/2, proportional to learning rate over batch size.

    Args:
        rate: the learning rate a, above 0.
        eigenvalues: of H, or of H's diagonal where that preconditions; at least 0.
        k: noise of a batch.
        excess: f = c / tr H of the curvature itself; 1 for Gaussian features. Assumption: damping
            leaves it.
        counts: how often each eigenvalue occurs; once by default.

    Returns:
        δ, or 0 where none is needed.

    Raises:
        InputError: if one is out of range.

    Example:
        >>> round(minimal_damping(3.0, torch.ones(1), 0.0), 6)  # 3/(1 + δ) = 2
        0.5
    """
    values = eigenvalues.double().clamp(min=0)
    counts = torch.ones_like(values) if counts is None else counts.double()
    top = float(values.max()) if len(values) else 0.0
    expect_curvature(top, excess, k)
    _expect_rate(rate)

    def holds(damping: float) -> bool:
        mu = torch.where(values > 0, values / (values + damping), 0.0)
        return rate * float(mu.max() + k * excess * (counts * mu).sum()) < 2

    if holds(0.0):
        return 0.0
    # all of it is at most Σ λ_i/δ
    return threshold(holds, rate * (top + k * excess * float((counts * values).sum())) / 2)


def polyak(lam: float, least: float) -> tuple[float, float]:
    """Learning rate and momentum that are best on a noiseless quadratic, E9.

    Every step shrinks the error by √B. Without a noise term it is no advice for training: at batch
    64 it diverged in every variant tried (docs/concepts/steps.md).

    Args:
        lam: the greatest eigenvalue.
        least: the least one, above 0: a Hessian has none such, so that a stand-in is needed.

    Raises:
        InputError: if they are not 0 < least ≤ lam.

    Example:
        >>> polyak(9.0, 1.0)
        (0.25, 0.25)
    """
    _expect_finite_above("lam", lam)
    good = 0 < least <= lam
    remedy = "pass the least eigenvalue above zero that was resolved, or use largest_rate"
    expect(good, "least", f"an eigenvalue in (0, {lam:.4g}]", least, remedy)
    root, other = math.sqrt(lam), math.sqrt(least)
    return (2 / (root + other)) ** 2, ((root - other) / (root + other)) ** 2


def threshold(beyond: Callable[[float], bool], most: float) -> float:
    """Where a condition turns true between 0 and `most`, by bisection."""
    low, high = 0.0, most
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


def expect_curvature(lam: float, c: float, k: float) -> None:
    """Raise unless λ₁ is above 0, and c and k at least 0.

    Raises:
        InputError: naming the first that is not.
    """
    _expect_finite_above("lam", lam)
    for name, value in (("c", c), ("k", k)):
        good = math.isfinite(value) and value >= 0
        expect(good, name, "a finite number of at least 0", value, "measure it again")


def _expect_finite_above(name: str, value: float) -> None:
    good = math.isfinite(value) and value > 0
    want = "an eigenvalue above 0"
    expect(good, name, want, value, "measure the Gauss-Newton matrix, curvature='ggn'")


def expect_momentum(momentum: float) -> None:
    """Raise unless momentum is in [0, 1).

    Raises:
        InputError: if it is not.
    """
    expect(0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum, "lower it")


def _expect_rate(rate: float) -> None:
    good = math.isfinite(rate) and rate > 0
    expect(good, "rate", "a learning rate above 0", rate, "raise it")
