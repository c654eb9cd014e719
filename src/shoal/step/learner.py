"""The learning rate, and perhaps momentum, from curvature that is measured while training.

    form "noise"    1/a = λ₁/2 + k_b (c + tr Σ/L)/(2(1 − B)), for Adam E7: the default
    form "polyak"   a and B of a noiseless quadratic, E9: the form of Granziol, Zohren and Roberts
                    (JMLR 2022) as in their abstract, for comparison; it diverges easily

Measurements are noisy and nets change, so a rate is left alone during warm-up, is the law's at the
first measurement, from then on an average over measurements that changes by at most 1.5 times at
each, and is halved, with the weights of the last measurement put back, when half of what training
had gained is lost again. How far beyond the law a net can go is found once, after the first
measurement, by a range test (:mod:`shoal.step.range_test`).

Plain gradients take the law's own rate. Adam's second moments leave the law some four to twenty
times too low, so there the rate moves in proportion to the law, from the one that was given
(docs/concepts/steps.md).

How often curvature is measured follows from a budget: a measurement costs so many gradients, and
all of them may take a twentieth of all gradients. That counts steps and not seconds, so that a
resumed run measures when the uninterrupted one would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from shoal.core import ranks
from shoal.core.batches import size_of
from shoal.core.errors import InputError, expect, expect_positive
from shoal.core.optimizers import Optimizer, optimizer_info
from shoal.curvature import stability
from shoal.step.estimator import Measurement
from shoal.step.range_test import RangeTest

Form = Literal["noise", "polyak"]
Measure = Callable[[Sequence[Any]], Measurement]

# a measurement takes this many samples or batches of the loader's own, whichever is more
SAMPLES, FEWEST, MOST = 256, 2, 8
SPIKES = 5
# losses are averaged over about ten and about a hundred steps
FAST, SLOW = 0.1, 0.01


class StepLearner:
    """Sets an optimizer's learning rate, and perhaps momentum, from measured curvature.

    Call :meth:`observe` after each step, with its batches and its loss, and then :meth:`apply`. Its
    :attr:`factor`, the present rate over the first, is there for what else follows a schedule.

    Args:
        optimizer: SGD, Adam or one alike, at the rate that training begins with; anything that
            :func:`~shoal.core.optimizers.optimizer_info` reads.
        measure: measures some batches, such as a
            :class:`~shoal.step.estimator.CurvatureEstimator`.
        form: which law.
        warmup: steps before the first measurement; at initialization curvature misleads.
        share: of all gradients that measuring may cost; a tenth trained no better (docs/LOG.md).
        max_change: bound of the change at each measurement but the first, as a ratio.
        average: weight of the newest measurement in the mean of logarithms.
        learn_momentum: for plain gradients, also choose the momentum at which this batch size is
            critical, B = (λ₁ − n)/(λ₁ + n), n = k(c + tr Σ/L): more would hardly lengthen steps.
        range_test: whether to run one after the first measurement; only where losses are known and
            weights can be put back.
        state: returns a copy of what a spike puts back; None only halves the rate.
        restore: puts it back.

    Raises:
        InputError: if a number is out of range, or `form` does not fit the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        measure: Measure,
        *,
        form: Form = "noise",
        warmup: int = 50,
        share: float = 0.05,
        max_change: float = 1.5,
        average: float = 0.5,
        learn_momentum: bool = False,
        range_test: bool = True,
        state: Callable[[], Any] | None = None,
        restore: Callable[[Any], None] | None = None,
    ) -> None:
        expect_positive("warmup", warmup)
        expect(0 < share <= 1, "share", "a share in (0, 1]", share, "try 0.05")
        expect(max_change > 1, "max_change", "a ratio above 1", max_change, "try 1.5")
        expect(0 < average <= 1, "average", "a weight in (0, 1]", average, "try 0.5")
        expect(form in ("noise", "polyak"), "form", "noise or polyak", form, "choose one")
        info = optimizer_info(optimizer)
        lr, plain = info.lr or 0.0, info.kind == "sgd"
        want = "an optimizer of plain gradients, such as SGD"
        for name, on in (("form", form == "polyak"), ("learn_momentum", learn_momentum)):
            expect(plain or not on, name, want, info.kind, "leave it out")
        expect(lr > 0, "lr", "a learning rate above 0", lr, "pass one that training can begin with")
        self.optimizer, self.measure, self.form = info, measure, form
        self.warmup, self.share, self.max_change = warmup, share, max_change
        self.average, self.learn_momentum = average, learn_momentum
        self.first_lr, self.lr, self.applied, self.momentum = lr, lr, lr, info.momentum
        self.step, self.due, self.spikes = 0, warmup, 0
        self.mean: float | None = None  # of the law's logarithm
        self.reference: float | None = None
        self.damped = 1.0  # what spikes have left of the rate
        self.batches: list[Any] = []
        self.losses = {"first": math.nan, "fast": math.nan, "slow": math.nan}
        self.variance = 0.0  # of single losses around their average
        self.range_test = RangeTest(ended=not range_test or form == "polyak" or restore is None)
        self.state, self.restore = state, restore
        self.kept = self.newer = None

    @property
    def factor(self) -> float:
        """The present rate in units of the first."""
        return self.lr / self.first_lr

    def observe(
        self, batches: Sequence[Any], loss: float | None, averaged: int | None = None
    ) -> dict[str, float]:
        """Take note of a step, and measure curvature if it is time.

        Args:
            batches: that it averaged over, or some of them.
            loss: of them, before the step; None where it is not known, and spikes are not seen.
            averaged: how many it averaged over in this process; all that are given by default.
                Processes of torch.distributed count besides, and agree on what they saw.

        Returns:
            metrics of the measurement, if there was one, or of the spike; else nothing.

        Raises:
            InputError: if a spike comes after so many that the rate cannot be the reason.
        """
        self.step += 1
        averaged = len(batches) if averaged is None else averaged
        if loss is not None:  # processes that saw the same decide the same
            (loss,) = ranks.averaged([loss])
        spiked = loss is not None and self._spiked(loss)
        if self.range_test.running:
            return self._test_range(math.inf if spiked else self.losses["fast"])
        if loss is not None and spiked:
            return self._recover(loss)
        if self.step < self.due:
            return {}
        self.batches = [*self.batches, *batches][: _needed(batches)]
        if len(self.batches) < _needed(batches):
            return {}
        found = _of_step(self.measure(self.batches), averaged)
        self.batches = []
        self.due = self.step + math.ceil(found.cost / (self.share * averaged))
        self._learn(found)
        self.kept = self.newer = None if self.state is None else self.state()
        if not self.range_test.ended and loss is not None:
            self.range_test.observe(self.losses["fast"], math.sqrt(self.variance))
            self.lr *= self.range_test.factor
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "lam_max": found.lam,
            "noise": found.noise,
        }

    def apply(self, optimizer: torch.optim.Optimizer, *schedulers: LRScheduler) -> None:
        """Multiply an optimizer's rates by what the rule's has changed, and set its momentum.

        What else sets rates goes on doing so: warm-up and decay of a schedule stay.

        Args:
            optimizer: whose first group began with the first rate.
            schedulers: of its rates, whose own bases are multiplied too.
        """
        if self.lr != self.applied:
            scale_rates(optimizer, schedulers, self.lr / self.applied)
            self.applied = self.lr
        self.set_momentum(optimizer)

    def set_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the momentum that was learned, if it is."""
        if self.learn_momentum or self.form == "polyak":
            for group in optimizer.param_groups:
                group["momentum"] = self.momentum

    # -- the rate ------------------------------------------------------------------------------

    def _learn(self, found: Measurement) -> None:
        law = self._law(found)
        first = self.reference is None
        weight = 1.0 if first else self.average
        self.mean = weight * math.log(law) + (1 - weight) * (self.mean or 0.0)
        self.reference = law if self.reference is None else self.reference
        target = math.exp(self.mean)
        if self.optimizer.kind != "sgd":
            target = self.first_lr * target / self.reference
        ratio = self.damped * self.range_test.multiplier * target / self.lr
        # the rate before the first measurement was a guess
        bound = math.inf if first else self.max_change
        self.lr *= min(max(ratio, 1 / bound), bound)

    def _law(self, found: Measurement) -> float:
        lam = found.lam + self.optimizer.decay
        present, gained = self.losses["fast"], self.losses["first"] - self.losses["fast"]
        # a loss that has risen has gained nothing to keep
        level = min(present, gained) if gained > 0 else present
        noise = stability.with_gradient_noise(found.noise, found.spread, level)
        if self.form == "polyak":
            rate, self.momentum = stability.polyak(lam, found.least)
            return rate
        if self.optimizer.kind == "adam":
            return stability.adam_rate(lam, noise, 1.0, self.optimizer.momentum)
        if self.learn_momentum:
            best = max(0.0, (lam - noise) / (lam + noise))
            self.momentum += self.average * (min(best, 0.99) - self.momentum)
        return stability.safe_rate(lam, noise, 1.0, self.momentum)

    def _test_range(self, loss: float) -> dict[str, float]:
        """A step of the range test; at its end the rate is multiplied by its result."""
        test = self.range_test
        law = self.lr / test.factor
        test.observe(loss, math.sqrt(self.variance))
        self.lr = law * test.factor
        if not test.ended:
            if test.snapshot_due and self.state is not None:
                self.kept, self.newer = self.newer, self.state()
            return {}
        if test.trouble and self.kept is not None and self.restore is not None:
            self.restore(self.kept)
            self.losses["fast"] = self.losses["slow"]
        return {"lr": self.lr, "multiplier": test.multiplier}

    # -- spikes --------------------------------------------------------------------------------

    def _spiked(self, loss: float) -> bool:
        """Whether half of what training had gained is lost, or the loss is not finite."""
        if not math.isfinite(loss):
            return True
        known = self.losses
        if math.isnan(known["first"]):
            self.losses = dict.fromkeys(known, loss)
            return False
        # the first few losses are averaged evenly
        fast, slow = max(FAST, 1 / (self.step + 1)), max(SLOW, 1 / (self.step + 1))
        self.variance += slow * ((loss - known["fast"]) ** 2 - self.variance)
        known["fast"] += fast * (loss - known["fast"])
        known["slow"] += slow * (min(loss, known["first"]) - known["slow"])
        lost = known["slow"] + 0.5 * (known["first"] - known["slow"])
        return self.step > self.warmup and known["fast"] > max(lost, 2 * known["slow"])

    def _recover(self, loss: float) -> dict[str, float]:
        self.spikes += 1
        where = f"loss at step {self.step}"
        remedy = "begin with a lower learning rate, and check the data"
        expect(self.spikes <= SPIKES, where, f"at most {SPIKES} spikes", loss, remedy)
        self.damped /= 2
        self.lr /= 2
        self.losses["fast"] = self.losses["slow"]
        if self.kept is not None and self.restore is not None:
            self.restore(self.kept)
        elif not math.isfinite(loss):
            raise InputError(f"{where}: expected a finite number, got {loss}; {remedy}")
        return {"spike": loss, "lr": self.lr}

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, the batches that wait for a measurement included."""
        own = {name: getattr(self, name) for name in _STATE}
        inner = getattr(self.measure, "state_dict", dict)()
        lists = {"batches": list(self.batches), "losses": dict(self.losses)}
        return {**own, **lists, "range_test": asdict(self.range_test), "measure": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name in (*_STATE, "batches", "losses"):
            setattr(self, name, state[name])
        self.range_test = RangeTest(**state["range_test"])
        if state["measure"]:
            self.measure.load_state_dict(state["measure"])  # pyright: ignore[reportFunctionMemberAccess]


_STATE = (
    "first_lr", "lr", "applied", "momentum", "step", "due", "spikes", "mean", "reference",
    "damped", "variance", "kept", "newer",
)  # fmt: skip


def _of_step(found: Measurement, averaged: int) -> Measurement:
    """From single batches to a step that averages over several, on all processes."""
    count = averaged * ranks.world_size()
    mine = [found.lam, found.noise, found.spread, found.least]
    lam, noise, spread, least = ranks.averaged(mine)
    return Measurement(lam, noise / count, spread / count, least, found.cost)


def scale_rates(
    optimizer: torch.optim.Optimizer, schedulers: Sequence[LRScheduler], ratio: float
) -> None:
    """Multiply an optimizer's rates, and what schedulers make rates from, by a ratio.

    Args:
        optimizer: of whose groups the rates are multiplied, and the bounds that OneCycleLR and its
            like keep there.
        schedulers: of which bases are multiplied, those of schedulers within them too.
        ratio: above 0.
    """
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if name in group:
                group[name] *= ratio
    waiting = list(schedulers)
    while waiting:
        scheduler = waiting.pop()
        waiting += getattr(scheduler, "_schedulers", [])  # of SequentialLR and ChainedScheduler
        for name in ("base_lrs", "max_lrs"):
            bases = getattr(scheduler, name, None)
            if isinstance(bases, list):
                bases[:] = [base * ratio for base in bases]


def _needed(batches: Sequence[Any]) -> int:
    """Batches per measurement, by the size of those that come."""
    size = max(size_of(batches[0]), 1)
    return max(FEWEST, min(MOST, -(-SAMPLES // size)))
