"""Advice: from a spectrum and a batch size to a step that holds, and where it stops growing.

    1/a = λ₁/(2(1 + B)) + k_b c/(2(1 − B)),     c = E‖H_i − H‖²_F / tr H

(E6 of :mod:`shoal.curvature.stability`) is where a quadratic with this curvature and noise stops
being stable. Safe is less, in two ways. The noise of the gradients shall hold no more than half of
the present loss L, nor of what training has gained since it began at L₀, so that c is
c + tr Σ/min(L, L₀ − L) (:func:`~shoal.curvature.stability.with_gradient_noise`). And momentum
shall not lengthen the step: λ₁/2 in place of λ₁/(2(1 + B)), since no net that was measured held a
longer one with momentum than without (docs/results/steps.md). The edge is twice the stable rate,
where a net without noise still catapults into a flatter place (4/λ₁; Lewkowycz et al., 2003.02218).
Where training really ends depends on the net: :func:`~shoal.step.find_lr.find_lr` tries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from shoal.core.errors import expect
from shoal.core.optimizers import Optimizer, OptimizerInfo, optimizer_info
from shoal.curvature import stability
from shoal.curvature.batch_spectra import additive, batch_factor
from shoal.curvature.spectrum import Metric, Spectrum

Model = Literal["measured", "additive"]

EDGE = 2.0
_COLD = (
    "measured at initialization, where noise can be up to five times what it seems: train some "
    "fifty steps and measure again"
)
_UNTOLD = (
    "nothing shows whether it was measured after some fifty steps of training, and at "
    "initialization noise can be up to five times what it seems: pass after_warmup=True if so, or "
    "initial_loss="
)
_INDEFINITE = (
    "the curvature has the negative eigenvalue {:.3g}, and step sizes need one without: the loss "
    "is not convex in the outputs, as an in-batch loss in embeddings is not; give scores as "
    "outputs, or measure curvature='fisher'"
)
_RATES = (
    "the optimizer's groups have rates of their own, {} times the first, and the spectrum was "
    "measured without them: pass precondition=optimizer to spectrum()"
)
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
        """Say it in words, one statement per line."""
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

    def __str__(self) -> str:
        return self.explain()


def learning_rate(
    spectrum: Spectrum,
    batch_size: int,
    optimizer: Optimizer,
    *,
    model: Model = "measured",
    after_warmup: bool | None = None,
    initial_loss: float | None = None,
) -> StepSize:
    """How far `optimizer` may step at a batch size.

    Args:
        spectrum: of the Gauss–Newton (or empirical Fisher) matrix. For Adam it must be that of
            D^−½ H D^−½, ``spectrum(..., precondition=optimizer)``.
        batch_size: samples per step, accumulation and ranks counted.
        optimizer: a torch optimizer, whose momentum, betas and decay are read, or a name.
        model: ``"measured"``: E5 to E7 with measured noise. ``"additive"``: the formula of
            Granziol, Zohren and Roberts, 2(1 + B)/(λ₁ + k_b s2/λ₁), for comparison: it misses real
            nets' noise.
        after_warmup: whether at least some fifty steps of training came before the measurement;
            None reads it from the optimizer's state where there is one, or from `initial_loss`.
            At initialization c can be far too small, so unless it is known that training came
            before, the larger of it and tr H is taken, and the advice is not trusted.
        initial_loss: L₀, the loss before training: for a cross-entropy of n classes about log n.
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
    info = optimizer_info(optimizer)
    metric = info.metric if model == "measured" else "plain"
    law = law_of(spectrum, info, metric, after_warmup, initial_loss)
    k = law.noise_factor(batch_size)
    if model == "additive":
        stable = safe = law.additive_rate(k)
    else:
        stable = law.stable_rate(law.c, k)
        rate = stability.adam_rate if info.kind == "adam" else stability.safe_rate
        safe = rate(law.lam, law.level, k, info.momentum)
    noisy = k * law.c * (1 + info.momentum) > law.lam * (1 - info.momentum)
    return StepSize(
        batch_size,
        safe,
        EDGE * stable,
        "noise" if noisy else "curvature",
        law.critical_batch,
        info.momentum,
        damping=law.least_damping(k),
        trusted=law.trusted and model == "measured",
        notes=(*law.notes, *notes_of(spectrum, batch_size, model)),
    )


@dataclass(frozen=True, eq=False)
class Law:
    """The stability law of one optimizer on one spectrum.

    Attributes:
        spectrum: that was measured.
        info: the optimizer's.
        lam: λ₁, weight decay added.
        c: the noise of a sample's curvature.
        level: c, and the noise of gradients beside it.
        trusted: whether the numbers are those of a net after warm-up.
        notes: what to know before they are believed.
    """

    spectrum: Spectrum
    info: OptimizerInfo
    lam: float
    c: float
    level: float
    trusted: bool
    notes: tuple[str, ...]

    def noise_factor(self, batch_size: int) -> float:
        """The noise of a batch in units of a sample's: k_b where samples are drawn independently.

        Elsewhere noise does not end at b = N, and 1/b is all that is known.

        Raises:
            InputError: if the batch is larger than the data.
        """
        k = batch_factor(batch_size, self.spectrum.dataset_size)
        return k if self.spectrum.noise.sampling == "independent" else 1 / batch_size

    @property
    def critical_batch(self) -> float:
        """The batch at which noise and curvature limit alike."""
        # batches of all samples have no noise only where samples are drawn independently
        independent = self.spectrum.noise.sampling == "independent"
        n = self.spectrum.dataset_size if independent else None
        return stability.critical_batch(self.lam, self.c, n, self.info.momentum)

    def stable_rate(self, c: float, k: float) -> float:
        """Where a quadratic stops being stable: E6, for Adam E7; `c` is the law's, or its level."""
        rate = stability.adam_rate if self.info.kind == "adam" else stability.largest_rate
        return rate(self.lam, c, k, self.info.momentum)

    def additive_rate(self, k: float) -> float:
        """Granziol, Zohren and Roberts' 2(1 + B)/(λ₁ + k_b s2/λ₁), for Adam its root."""
        tau = math.sqrt(k * self.spectrum.noise.s2)
        top = additive(self.lam, tau).value
        if self.info.kind == "adam":
            # flat directions, limited by the noise's edge: a 2τ/ε' ≤ 2 in the metric of v
            return 1 / max(tau, top / 2)
        return 2 * (1 + self.info.momentum) / top

    def least_damping(self, k: float) -> float | None:
        """For a second-order optimizer's own learning rate, from the density; None for others."""
        if self.info.kind != "damped" or self.info.lr is None:
            return None
        counts = self.spectrum.node_weights * self.spectrum.parameters
        excess = self.c / self.spectrum.trace
        return stability.minimal_damping(self.info.lr, self.spectrum.nodes, k, excess, counts)


def law_of(
    spectrum: Spectrum,
    info: OptimizerInfo,
    metric: Metric | None,
    after_warmup: bool | None = None,
    initial_loss: float | None = None,
) -> Law:
    """The law of an optimizer on a spectrum.

    Args:
        spectrum: that was measured.
        info: the optimizer's.
        metric: that the spectrum must have been measured in; None for any, of a carried rate.
        after_warmup: as for :func:`learning_rate`.
        initial_loss: as for :func:`learning_rate`.

    Raises:
        InputError: if the spectrum cannot be used.
    """
    _expect_usable(spectrum, metric)
    notes = (*spectrum.warnings, *info.notes)
    c = spectrum.noise.frobenius / spectrum.trace
    # a loss that is known to have fallen tells of training as well as an optimizer's state
    told = info.started if initial_loss is None else True
    warm = told if after_warmup is None else after_warmup
    if not warm:
        # where nothing is known, a rate that is carried keeps to what was measured
        c = max(c, spectrum.trace) if warm is False or metric is not None else c
        notes += (_COLD if warm is False else _UNTOLD,)
    if spectrum.indefinite:
        notes += (_INDEFINITE.format(float(spectrum.ritz[-1])),)
    alike = _same_rates(info.rates, spectrum.rates)
    if not alike:
        rates = ", ".join(f"{rate:.3g}" for rate in info.rates)
        notes += (_RATES.format(rates),)
    trusted = bool(warm) and alike and not spectrum.indefinite
    loss = spectrum.loss
    if initial_loss is not None:
        want, remedy = f"a loss above the present one, {loss:.4g}", "measure after some training"
        expect(initial_loss > loss, "initial_loss", want, initial_loss, remedy)
        loss = min(loss, initial_loss - loss)
    level = stability.with_gradient_noise(c, spectrum.noise.gradient_covariance, loss)
    return Law(spectrum, info, spectrum.lam_max + info.decay, c, level, trusted, notes)


def _same_rates(wanted: tuple[float, ...], measured: tuple[float, ...]) -> bool:
    """Whether a spectrum holds the rates of an optimizer's groups; equal ones need not be held."""
    return all(abs(rate - 1) < 1e-6 for rate in wanted) or (
        len(wanted) == len(measured)
        and all(abs(a - b) <= 1e-3 * abs(a) for a, b in zip(wanted, measured, strict=True))
    )


def notes_of(spectrum: Spectrum, batch_size: int, model: Model) -> tuple[str, ...]:
    """Assumptions beyond the measurement."""
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
    remedy = "measure with curvature='fisher'"
    got, want = f"{spectrum.trace:.3g}", "a trace above zero"
    expect(not spectrum.trace <= 0, "spectrum", want, got, remedy)
    known = math.isfinite(noise) and noise >= 0 and spectrum.trace > 0
    remedy = "measure at least two batches, with probes=8"
    expect(known, "spectrum", "a trace above zero and the noise of batches", noise, remedy)
