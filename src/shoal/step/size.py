"""Advice: from a spectrum and a batch size to a step that holds, and where it stops growing.

    1/a = λ₁/(2(1 + B)) + k_b c/(2(1 − B)),     c = E‖H_i − H‖²_F / tr H

(E6 of :mod:`shoal.curvature.stability`) is where a quadratic with this curvature and noise stops
being stable. Safe is less, in two ways. The noise of the gradients shall hold no more than half of
the present loss L, nor of what training has gained since it began at L₀, so that c is
c + tr Σ/min(L, L₀ − L) (:func:`~shoal.curvature.stability.with_gradient_noise`). And momentum
shall not lengthen the step: λ₁/2 in place of λ₁/(2(1 + B)), since no net that was measured held a
longer one with momentum than without (docs/results/steps.md). The edge is twice the stable rate,
where a net without noise still catapults into a flatter place (4/λ₁; Lewkowycz et al., 2003.02218).
Where training ends in truth depends on the net: :func:`~shoal.step.evidence.evidence` tries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shoal.core.errors import expect
from shoal.curvature import stability
from shoal.curvature.batch_spectra import additive, batch_factor
from shoal.curvature.spectrum import Metric, Spectrum
from shoal.step.method import Method, Optimizer, method_of

Model = Literal["measured", "additive"]

HEADROOM = 2.0
# A Ritz value is within its residual of an eigenvalue; a step is not known better than so.
CONVERGED = 0.05


@dataclass(frozen=True)
class StepSize:
    """How far a step may go at one batch size.

    Attributes:
        batch_size: samples that one optimizer step averages over.
        safe: the learning rate at which noise holds half of the loss, or of what was gained; or,
            calibrated, the largest that is as near to both limits as the known one was.
        edge: twice the rate at which a quadratic stops being stable, or twice the calibrated one.
        regime: what limits the step: the noise of the batch, or curvature that all data have.
        critical_batch: where the two limit alike; beyond it a larger batch buys no larger step.
        momentum: B, or β₁, that this holds for.
        damping: the least damping at the optimizer's own learning rate; None where it has none.
        calibrated: whether it continues a rate that is known to train.
        trusted: whether nothing of what `notes` says makes it unsafe.
        notes: what to know before it is believed.
    """

    batch_size: int
    safe: float
    edge: float
    regime: Literal["noise", "curvature"]
    critical_batch: float
    momentum: float
    damping: float | None = None
    calibrated: bool = False
    trusted: bool = True
    notes: tuple[str, ...] = ()

    def explain(self) -> str:
        """Say it in words, one fact a line."""
        limit = "noise of the batch" if self.regime == "noise" else "curvature of all data"
        more = "buys a larger step" if self.regime == "noise" else "buys hardly a larger step"
        word = "safe" if self.trusted else "NOT safe"
        how = "from the rate you know" if self.calibrated else "from the spectrum alone"
        lines = [
            f"learning rate at batch size {self.batch_size}: {self.safe:.3g} ({word}, {how}); "
            f"edge {self.edge:.3g}",
            f"limited by the {limit}: a larger batch {more}; "
            f"critical batch {self.critical_batch:.3g}",
        ]
        if self.damping is not None:
            lines.append(f"least damping at the present learning rate: {self.damping:.3g}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def learning_rate(
    spectrum: Spectrum,
    batch_size: int,
    optimizer: Optimizer,
    *,
    model: Model = "measured",
    warmed: bool | None = None,
    began: float | None = None,
) -> StepSize:
    """Say how far `optimizer` may step at a batch size.

    Args:
        spectrum: of the Gauss–Newton (or empirical Fisher) matrix. For Adam it must be that of
            D^−½ H D^−½, ``spectrum(..., precondition=optimizer)``.
        batch_size: samples a step averages over, accumulation and ranks counted.
        optimizer: a torch optimizer, whose momentum, betas and decay are read, or a name.
        model: ``"measured"``: E5 to E7 with measured noise. ``"additive"``: the formula of
            Granziol, Zohren and Roberts, 2(1 + B)/(λ₁ + k_b s2/λ₁), for comparison: it misses real
            nets' noise.
        warmed: whether at least some fifty steps of training came before the measurement; None
            reads it from the optimizer's state where there is one. At initialization c can be far
            too small, so the larger of it and tr H is taken, and the advice is not trusted.
        began: the loss at which training began, L₀: for a cross-entropy of n classes about log n.
            Without it noise may hold half of the loss, which is too much for a net that has hardly
            learned yet.

    Raises:
        InputError: if the optimizer is unknown, the batch is larger than the data, the spectrum is
            not converged, of another curvature or of another metric, or its noise is not known.

    Example:
        >>> import torch
        >>> from shoal.curvature.spectrum import Noise
        >>> s = Spectrum(
        ...     "ggn", 2, 100, None, 10, "RandomSampler", ritz=torch.tensor([2.0]),
        ...     residuals=torch.zeros(1), nodes=torch.zeros(1), node_weights=torch.ones(1),
        ...     trace=4.0, trace_error=0.0, noise=Noise(s2=20.0, frobenius=40.0),
        ... )
        >>> plan = learning_rate(s, 10, "sgd")  # c = 10: 1/a = 2/2 + (10/10)/2
        >>> round(plan.safe, 6), plan.regime, round(plan.critical_batch, 6)
        (0.666667, 'curvature', 5.0)
    """
    method = method_of(optimizer)
    metric = "adam" if method.kind == "adam" and model == "measured" else "plain"
    facts = facts_of(spectrum, method, warmed, metric, began)
    k = noise_factor(spectrum, batch_size)
    if model == "additive":
        stable = safe = additive_rate(spectrum, facts, k, method)
    else:
        stable = stable_rate(facts, facts.c, k, method)
        law = stability.adam_rate if method.kind == "adam" else stability.safe_rate
        safe = law(facts.lam, facts.level, k, method.momentum)
    noisy = k * facts.c * (1 + method.momentum) > facts.lam * (1 - method.momentum)
    critical = stability.critical_batch(facts.lam, facts.c, population(spectrum), method.momentum)
    return StepSize(
        batch_size,
        safe,
        HEADROOM * stable,
        "noise" if noisy else "curvature",
        critical,
        method.momentum,
        damping=_damping(spectrum, facts, k, method),
        trusted=facts.trusted and model == "measured",
        notes=(*facts.notes, *notes_of(spectrum, batch_size, model)),
    )


@dataclass(frozen=True)
class Facts:
    """The numbers of a spectrum that the laws read, checked, and what to say about them."""

    lam: float
    c: float
    level: float
    trusted: bool
    notes: tuple[str, ...]


def facts_of(
    spectrum: Spectrum,
    method: Method,
    warmed: bool | None = None,
    metric: Metric | None = "plain",
    began: float | None = None,
) -> Facts:
    """λ₁ and c of a spectrum for a method, weight decay added.

    Args:
        spectrum: to be read.
        method: the optimizer's.
        warmed: as for :func:`learning_rate`.
        metric: that the spectrum must have been measured in; None for any.
        began: as for :func:`learning_rate`.

    Raises:
        InputError: if they cannot be used.
    """
    _expect_usable(spectrum, metric)
    notes = (*spectrum.warnings, *method.notes)
    c = spectrum.noise.frobenius / spectrum.trace
    warmed = method.started is not False if warmed is None else warmed
    if not warmed:
        c = max(c, spectrum.trace)
        notes += (
            "measured at initialization, where noise can be up to five times what it seems: train "
            "some fifty steps and measure again",
        )
    loss = spectrum.loss
    if began is not None:
        good = began > loss
        want, remedy = f"a loss above the present one, {loss:.4g}", "measure after some training"
        expect(good, "began", want, began, remedy)
        loss = min(loss, began - loss)
    level = stability.with_gradient_noise(c, spectrum.noise.gradient_covariance, loss)
    return Facts(spectrum.lam_max + method.decay, c, level, warmed, notes)


def noise_factor(spectrum: Spectrum, batch_size: int) -> float:
    """The noise of a batch in units of a sample's: k_b where samples are drawn independently.

    Elsewhere noise does not end at b = N, and 1/b is all that is known.

    Raises:
        InputError: if the batch is larger than the data.
    """
    k = batch_factor(batch_size, spectrum.dataset_size)
    return k if spectrum.noise.sampling == "independent" else 1 / batch_size


def population(spectrum: Spectrum) -> int | None:
    """N, where batches of all samples have no noise; else None."""
    return spectrum.dataset_size if spectrum.noise.sampling == "independent" else None


def stable_rate(facts: Facts, c: float, k: float, method: Method) -> float:
    """Where a quadratic stops being stable: E6, for Adam E7; `c` is that of `facts`, or its level.

    Example:
        >>> stable_rate(Facts(2.0, 10.0, 20.0, True, ()), 10.0, 0.1, method_of("sgd"))
        0.6666666666666666
    """
    law = stability.adam_rate if method.kind == "adam" else stability.largest_rate
    return law(facts.lam, c, k, method.momentum)


def additive_rate(spectrum: Spectrum, facts: Facts, k: float, method: Method) -> float:
    """The rate of Granziol, Zohren and Roberts: 2(1 + B)/(λ₁ + k_b s2/λ₁), for Adam its root."""
    tau = math.sqrt(k * spectrum.noise.s2)
    top = additive(facts.lam, tau).value
    if method.kind == "adam":
        # flat directions, limited by the noise's edge: a 2τ/ε' ≤ 2 in the metric of v
        return 1 / max(tau, top / 2)
    return 2 * (1 + method.momentum) / top


def _damping(spectrum: Spectrum, facts: Facts, k: float, method: Method) -> float | None:
    """The least damping for a second-order optimizer's own learning rate, from the density."""
    if method.kind != "damped" or method.lr is None:
        return None
    counts = spectrum.node_weights * spectrum.parameters
    excess = facts.c / spectrum.trace
    return stability.minimal_damping(method.lr, spectrum.nodes, k, excess, counts)


def notes_of(spectrum: Spectrum, batch_size: int, model: Model) -> tuple[str, ...]:
    """What is assumed beyond the measurement."""
    sampling = spectrum.noise.sampling
    notes = []
    if model == "additive":
        notes.append("additive noise from random vectors: up to 270 times too little for nets")
    if sampling != "independent" and batch_size != spectrum.batch_size:
        notes.append(
            f"noise was measured on {sampling} batches of {spectrum.batch_size}; that it goes as "
            f"1/b to {batch_size} is an assumption: measure there too"
        )
    return tuple(notes)


def _expect_usable(spectrum: Spectrum, metric: Metric | None) -> None:
    got = spectrum.curvature
    remedy = "measure it with curvature='ggn'"
    expect(got in ("ggn", "fisher"), "spectrum", "a curvature of no negative values", got, remedy)
    remedy = "pass precondition=optimizer to spectrum(), or use rescale() from a rate you know"
    remedy = "measure it without precondition" if metric == "plain" else remedy
    same = metric in (None, spectrum.metric)
    expect(same, "spectrum", f"one in the metric {metric}", spectrum.metric, remedy)
    lam, residual = spectrum.lam_max, float(spectrum.residuals[0])
    near = math.isfinite(residual) and residual <= CONVERGED * abs(lam)
    want = f"a greatest Ritz value with a residual of at most {CONVERGED:.0%}"
    got = f"{lam:.4g} ± {residual:.2g}"
    expect(near, "spectrum", want, got, "measure with more steps, such as steps=60")
    expect(lam > 0, "spectrum", "a curvature above zero", lam, "check that the loss depends on it")
    noise = spectrum.noise.frobenius
    known = math.isfinite(noise) and noise >= 0 and spectrum.trace > 0
    remedy = "measure at least two batches, with probes=8"
    expect(known, "spectrum", "a trace above zero and the noise of batches", noise, remedy)
