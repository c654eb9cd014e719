"""The nouns of training: a job, its budget, its progress, and what a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoal.core.block import Batch
from shoal.core.errors import expect, expect_positive
from shoal.core.objectives import Objective
from shoal.training.gradients import Gradients, trained
from shoal.training.loader import Loader


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Continue where `state` was taken."""
        ...


class StepRule(Stateful, Protocol):
    """What decides, beside the schedule, how far a step may go; ``shoal.spectral_step`` makes one.

    Where it comes from is no business of the loop: curvature, a table of rates, a search.
    """

    @property
    def factor(self) -> float:
        """The present learning rate in units of the one that training began with."""
        ...

    def observe(self, batches: Sequence[Batch], loss: float) -> dict[str, float]:
        """Take note of a step: its batches and its loss; called once per step, after it.

        The loss may be no finite number: then the step was not taken, and a rule that puts back an
        earlier state (and lowers its factor) saves the run.

        Returns:
            metrics for the log if there is something new, else nothing.
        """
        ...

    def set_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the momentum of an optimizer's groups, where the rule chooses one."""
        ...


@dataclass(frozen=True)
class Budget:
    """How long to train: the first limit reached ends the run.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the batch sampler.
        minutes: of training time, that of a resumed run's earlier parts included.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Check that there is a limit and that each is positive.

        Raises:
            InputError: if not.
        """
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            expect_positive(name, value) if value is not None else None
        minutes = self.minutes
        expect(minutes is None or minutes > 0, "minutes", "a number above 0", minutes, "raise it")
        limits = (self.steps, self.epochs, self.minutes)
        expect(any(x is not None for x in limits), "budget", "a limit", "none", "pass steps")

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Steps until the end, or None where only the clock ends the run."""
        by_epochs = None if self.epochs is None else self.epochs * steps_per_epoch
        given = [x for x in (self.steps, by_epochs) if x is not None]
        return min(given) if given else None


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained, and what happens around it.

    Attributes:
        objective: the scalar that is minimized.
        loader: the batches; its table is trained as well if it is trainable.
        optimizer: moves ``objective.model``'s parameters; None where it has none.
        gradients: how the gradient of a step is made: accumulation, clipping, precision, chunks.
        warmup: steps until the full learning rate.
        seed: of dropout and the like; the caller's random state is left as it was.
        refresh: called with the epoch before its first batch; returns metrics for the log.
        observe: called with each batch and its outputs after the step.
        measure: metrics of a batch and its outputs, for the log; called at the first and every
            tenth step, so it should be cheap.
        evaluate: the validation metrics; the first one decides what is best (higher is better).
        evaluate_every: epochs between two of them.
        state: what else a checkpoint holds, by name: the batch sampler, an embedding bank.
        tables: further trainable tables, by name, whose rows the objective itself moves when it is
            differentiated (:func:`~shoal.rank.loss_skip.head_loss`). Their rates follow the
            schedule, a checkpoint holds them, and the norm that is clipped leaves them out.
    """

    objective: Objective
    loader: Loader
    optimizer: torch.optim.Optimizer | None = None
    gradients: Gradients = field(default_factory=Gradients)
    warmup: int = 50
    seed: int = 0
    refresh: Callable[[int], dict[str, Any]] | None = None
    observe: Callable[[Batch, Tensor], None] | None = None
    measure: Callable[[Batch, Tensor], dict[str, float]] | None = None
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 1
    state: Mapping[str, Stateful] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers, and that what is trained has an optimizer.

        Raises:
            InputError: if one is out of range.
        """
        expect_positive("evaluate_every", self.evaluate_every)
        expect(self.warmup >= 0, "warmup", "at least 0 steps", self.warmup, "raise it")
        dense = bool(trained(self.objective.model))
        good = dense == (self.optimizer is not None)
        want = "one for the model's parameters" if dense else "None, since nothing dense is trained"
        expect(good, "optimizer", want, self.optimizer, "pass what the model needs")
        good = dense or self.table is not None
        expect(good, "objective", "trainable parameters or rows", "neither", "give it some")

    @property
    def table(self) -> Any | None:
        """The loader's table, if it is trainable."""
        table = self.loader.table
        return table if getattr(table, "trainable", False) else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last one may average fewer batches."""
        return -(-len(self.loader) // self.gradients.accumulate)


@dataclass
class Progress:
    """How far a run has come; part of its checkpoint.

    Attributes:
        step: optimizer steps taken.
        seconds: of training, pauses left out.
        loss: of the last step.
        best: the best validation result so far.
        rounds: of validation since then.
        stopped: why the run ended: steps, minutes, interrupt, or what a callback put here; empty
            while it runs.
        share: of the budget that is spent, in [0, 1].
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float = float("-inf")
    rounds: int = 0
    stopped: str = ""
    share: float = 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until the budget is spent, at the pace so far; NaN before the first step."""
        return self.seconds * (1 / self.share - 1) if self.share > 0 else math.nan
