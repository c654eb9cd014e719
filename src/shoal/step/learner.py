"""The on-the-fly learner: every so often it looks at curvature, and sets rate and momentum.

    form "noise"    1/a = λ₁/2 + k_b (c + tr Σ/L)/(2(1 − B)), for Adam E7: the default
    form "polyak"   a and B of a noiseless quadratic, E9: the form of Granziol, Zohren and Roberts
                    (JMLR 2022) as their abstract tells it, for comparison; it diverges easily

Measurements are noisy and nets change, so a rate is left alone during warm-up, is the law's at the
first look, from then on an average over looks that changes by at most 1.5 times at each, and is
halved, with the weights of the last look put back, when half of what training had gained is lost
again. How far beyond the law a net can go is measured once, after the first look, by a climb
(:mod:`shoal.step.climb`).

Plain gradients take the law's own rate. Adam's second moments leave the law some four to twenty
times too low, so there a rate goes as the law goes, from the one that it was given (docs/steps.md).

How often it looks follows from a budget: a look costs so many gradients, and looks may take a
twentieth of all gradients. That counts and does not time, so that a resumed run looks when the
uninterrupted one would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from shoal.core.batches import size_of
from shoal.core.errors import InputError, expect, expect_positive
from shoal.curvature import stability
from shoal.step.climb import Climb
from shoal.step.method import Method, method_of
from shoal.step.probe import Reading

Form = Literal["noise", "polyak"]
Look = Callable[[Sequence[Any]], Reading]

# looks are made of this many samples or batches of the loader's own, whichever is more
SAMPLES, FEWEST, MOST = 256, 2, 8
SPIKES = 5
# losses are averaged over about ten and about a hundred steps
FAST, SLOW = 0.1, 0.01


class StepLearner:
    """Sets an optimizer's learning rate, and perhaps momentum, from looks at curvature.

    Call :meth:`observe` after each step, with its batches and its loss, and then :meth:`apply`. Its
    :attr:`factor`, the present rate over the first, is there for what else follows a schedule.

    Args:
        method: the optimizer's (:func:`~shoal.step.method.method_of`).
        lr: the rate that training begins with.
        look: measures some batches, such as a :class:`~shoal.step.probe.Probe`.
        form: which law.
        warmup: steps before the first look; at initialization curvature misleads.
        share: of all gradients that looks may cost; a tenth trained no better (docs/LOG.md).
        max_change: bound of the change at each look but the first, as a ratio.
        average: weight of the newest look in the mean of logarithms.
        absolute: take the law's own rate, or go with it from `lr`; by default the first for plain
            gradients, the second for Adam.
        learn_momentum: for plain gradients, also choose the momentum at which this batch size is
            critical, B = (λ₁ − n)/(λ₁ + n), n = k(c + tr Σ/L): more would hardly lengthen steps.
        climb: whether headroom is measured after the first look; only where losses are known and
            weights can be put back.
        state: a copy of what is put back after a spike; None only halves the rate.
        restore: puts it back.

    Raises:
        InputError: if a number is out of range, or `form` does not fit the optimizer.
    """

    def __init__(
        self,
        method: Method,
        lr: float,
        look: Look,
        *,
        form: Form = "noise",
        warmup: int = 50,
        share: float = 0.05,
        max_change: float = 1.5,
        average: float = 0.5,
        absolute: bool | None = None,
        learn_momentum: bool = False,
        climb: bool = True,
        state: Callable[[], Any] | None = None,
        restore: Callable[[Any], None] | None = None,
    ) -> None:
        expect_positive("warmup", warmup)
        expect(0 < share <= 1, "share", "a share in (0, 1]", share, "try 0.05")
        expect(max_change > 1, "max_change", "a ratio above 1", max_change, "try 1.5")
        expect(0 < average <= 1, "average", "a weight in (0, 1]", average, "try 0.5")
        expect(form in ("noise", "polyak"), "form", "noise or polyak", form, "choose one")
        plain = method.kind == "sgd"
        want = "an optimizer of plain gradients, such as SGD"
        for name, on in (("form", form == "polyak"), ("learn_momentum", learn_momentum)):
            expect(plain or not on, name, want, method.kind, "leave it out")
        expect(lr > 0, "lr", "a learning rate above 0", lr, "pass one that training can begin with")
        self.method, self.look, self.form = method, look, form
        self.warmup, self.share, self.max_change = warmup, share, max_change
        self.average, self.learn_momentum = average, learn_momentum
        self.absolute = plain if absolute is None else absolute
        self.first_lr, self.lr, self.momentum = lr, lr, method.momentum
        self.step, self.due, self.spikes = 0, warmup, 0
        self.mean: float | None = None  # of the law's logarithm
        self.reference: float | None = None
        self.damped = 1.0  # what spikes have left of the rate
        self.batches: list[Any] = []
        self.losses = {"first": math.nan, "fast": math.nan, "slow": math.nan}
        self.variance = 0.0  # of single losses around their average
        self.climb = Climb(ended=not climb or form == "polyak" or restore is None)
        self.state, self.restore = state, restore
        self.kept = self.newer = None

    @property
    def factor(self) -> float:
        """The present rate in units of the first."""
        return self.lr / self.first_lr

    def observe(
        self, batches: Sequence[Any], loss: float | None, averaged: int | None = None
    ) -> dict[str, float]:
        """Take note of a step, and look if it is time.

        Args:
            batches: that it averaged over, or some of them.
            loss: of them, before the step; None where it is not known, and spikes are not seen.
            averaged: how many it averaged over in this process; all that are given by default.
                Processes of torch.distributed count besides, and agree on what they saw.

        Returns:
            facts about the look, if there was one, or about the spike; else nothing.

        Raises:
            InputError: if a spike comes after so many that the rate cannot be the reason.
        """
        self.step += 1
        averaged = len(batches) if averaged is None else averaged
        spiked = loss is not None and self._spiked(loss)
        if self.climb.running:
            return self._climbed(math.inf if spiked else self.losses["fast"])
        if loss is not None and spiked:
            return self._recover(loss)
        if self.step < self.due:
            return {}
        self.batches = [*self.batches, *batches][: _needed(batches)]
        if len(self.batches) < _needed(batches):
            return {}
        reading = _of_step(self.look(self.batches), averaged)
        self.batches = []
        self.due = self.step + math.ceil(reading.cost / (self.share * averaged))
        self._learn(reading)
        self.kept = self.newer = None if self.state is None else self.state()
        if not self.climb.ended and loss is not None:
            self.climb.see(self.losses["fast"], math.sqrt(self.variance))
            self.lr *= self.climb.factor
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "lam_max": reading.lam,
            "noise": reading.noise,
        }

    def apply(self, optimizer: Optimizer) -> None:
        """Set the rates of an optimizer's groups, in proportion, and the momentum that was learned.

        Args:
            optimizer: whose first group had the first rate; nothing else may set its rates.
        """
        first = optimizer.param_groups[0]["lr"]
        for group in optimizer.param_groups:
            group["lr"] = self.lr * group["lr"] / first
        self.set_momentum(optimizer)

    def set_momentum(self, optimizer: Optimizer) -> None:
        """Set the momentum that was learned, if it is."""
        if self.learn_momentum or self.form == "polyak":
            for group in optimizer.param_groups:
                group["momentum"] = self.momentum

    # -- the rate ------------------------------------------------------------------------------

    def _learn(self, reading: Reading) -> None:
        law = self._law(reading)
        first = self.reference is None
        weight = 1.0 if first else self.average
        self.mean = weight * math.log(law) + (1 - weight) * (self.mean or 0.0)
        self.reference = law if self.reference is None else self.reference
        target = math.exp(self.mean)
        if not self.absolute:
            target = self.first_lr * target / self.reference
        ratio = self.damped * self.climb.headroom * target / self.lr
        # what the first look leaves was a guess
        bound = math.inf if first else self.max_change
        self.lr *= min(max(ratio, 1 / bound), bound)

    def _law(self, reading: Reading) -> float:
        lam = reading.lam + self.method.decay
        present, gained = self.losses["fast"], self.losses["first"] - self.losses["fast"]
        # a loss that has risen has gained nothing to keep
        level = min(present, gained) if gained > 0 else present
        noise = stability.with_gradient_noise(reading.noise, reading.spread, level)
        if self.form == "polyak":
            rate, self.momentum = stability.polyak(lam, reading.least)
            return rate
        if self.method.kind == "adam":
            return stability.adam_rate(lam, noise, 1.0, self.method.momentum)
        if self.learn_momentum:
            best = max(0.0, (lam - noise) / (lam + noise))
            self.momentum += self.average * (min(best, 0.99) - self.momentum)
        return stability.safe_rate(lam, noise, 1.0, self.momentum)

    def _climbed(self, loss: float) -> dict[str, float]:
        """A step of the climb; at its end the rate has its headroom."""
        law = self.lr / self.climb.factor
        self.climb.see(loss, math.sqrt(self.variance))
        self.lr = law * self.climb.factor
        if not self.climb.ended:
            if self.climb.at_stage and self.state is not None:
                self.kept, self.newer = self.newer, self.state()
            return {}
        if self.climb.trouble and self.kept is not None and self.restore is not None:
            self.restore(self.kept)
            self.losses["fast"] = self.losses["slow"]
        return {"lr": self.lr, "headroom": self.climb.headroom}

    # -- spikes --------------------------------------------------------------------------------

    def _spiked(self, loss: float) -> bool:
        """Whether half of what training had gained is lost, or the loss is no number."""
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
        """All that a resumed run needs, the batches that wait for a look included."""
        names = ("lr", "momentum", "step", "due", "spikes", "mean", "reference", "damped")
        state = {name: getattr(self, name) for name in (*names, "variance")}
        probe = self.look.state_dict() if hasattr(self.look, "state_dict") else None
        lists = {"batches": list(self.batches), "losses": dict(self.losses)}
        lists |= {"climb": self.climb.state_dict()}
        return {**state, **lists, "look": probe, "kept": self.kept, "newer": self.newer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        for name, value in state.items():
            if name == "look":
                if value is not None:
                    self.look.load_state_dict(value)  # pyright: ignore[reportFunctionMemberAccess]
            elif name == "climb":
                self.climb = Climb.of_state(value)
            else:
                setattr(self, name, value)


def learner_for(optimizer: Optimizer, look: Look, **options: Any) -> StepLearner:
    """A learner for a torch optimizer, as it stands.

    Args:
        optimizer: SGD, Adam or one alike.
        look: measures batches.
        options: of :class:`StepLearner`.

    Raises:
        InputError: if the optimizer is unknown.
    """
    method = method_of(optimizer)
    return StepLearner(method, float(optimizer.param_groups[0]["lr"]), look, **options)


def _of_step(reading: Reading, averaged: int) -> Reading:
    """What a look at single batches says of a step that averages over several, on all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        numbers = torch.tensor([reading.lam, reading.noise, reading.spread, reading.least])
        torch.distributed.all_reduce(numbers)
        ranks = torch.distributed.get_world_size()
        lam, noise, spread, least = (numbers / ranks).tolist()
        reading = Reading(lam, noise / ranks, spread / ranks, least, reading.cost)
    return replace(reading, noise=reading.noise / averaged, spread=reading.spread / averaged)


def _needed(batches: Sequence[Any]) -> int:
    """Batches a look, by the size of those that come."""
    size = max(size_of(batches[0]), 1)
    return max(FEWEST, min(MOST, -(-SAMPLES // size)))
