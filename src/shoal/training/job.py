"""What a run is: the job, its budget, how far it has come, and what a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shoal.core.block import Batch
from shoal.core.errors import expect, expect_positive
from shoal.core.objectives import Objective
from shoal.training.gradients import trained
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


@dataclass(frozen=True)
class Budget:
    """How long to train: the first limit reached ends the run.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the batch sampler.
        minutes: of training time, that of a resumed run's earlier parts included.
        patience: rounds of validation without a better result.
    """

    steps: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check that there is a limit and that each is positive.

        Raises:
            InputError: if not.
        """
        for name in ("steps", "epochs", "patience"):
            value = getattr(self, name)
            expect_positive(name, value) if value is not None else None
        minutes = self.minutes
        expect(minutes is None or minutes > 0, "minutes", "a number above 0", minutes, "raise it")
        limits = (self.steps, self.epochs, self.minutes)
        expect(any(x is not None for x in limits), "budget", "a limit", "none", "pass --steps")

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Steps until the end, or None where only the clock tells."""
        by_epochs = None if self.epochs is None else self.epochs * steps_per_epoch
        given = [x for x in (self.steps, by_epochs) if x is not None]
        return min(given) if given else None


@dataclass(frozen=True, eq=False)
class Job:
    """What is trained, and what happens around it.

    Attributes:
        objective: the scalar that is minimized.
        loader: the batches; a table of its own that learns is trained as well.
        optimizer: moves ``objective.model``'s parameters; None where it has none.
        clip: upper bound of the norm of the whole gradient, rows included; None for no bound.
        accumulate: batches a step; their gradients are averaged.
        warmup: steps until the full learning rate.
        autocast: compute outputs and loss in bfloat16 where torch's autocast does.
        chunk: rows of the model's output that hold activations at a time, by gradient caching
            (:func:`~shoal.training.gradients.gradient_of`); None for all.
        seed: of dropout and the like; the caller's random state is left as it was.
        refresh: called with the epoch before its first batch; returns facts for the record.
        observe: called with each batch and its outputs after the step.
        measure: facts about a batch and its outputs, for the record of steps; called every tenth
            step, so it should be cheap.
        evaluate: the validation metrics; the first one decides what is best (higher is better).
        evaluate_every: epochs between two of them.
        also: what else a checkpoint holds, by name: the batch sampler, an embedding bank.
        tables: further tables that learn, by name, whose rows the objective itself moves when it is
            differentiated (:func:`~shoal.rank.loss_skip.head_loss`). Their rates follow the
            schedule, a checkpoint holds them, and the norm that `clip` bounds leaves them out.
    """

    objective: Objective
    loader: Loader
    optimizer: torch.optim.Optimizer | None = None
    clip: float | None = None
    accumulate: int = 1
    warmup: int = 50
    autocast: bool = False
    chunk: int | None = None
    seed: int = 0
    refresh: Callable[[int], dict[str, Any]] | None = None
    observe: Callable[[Batch, Tensor], None] | None = None
    measure: Callable[[Batch, Tensor], dict[str, float]] | None = None
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 1
    also: Mapping[str, Stateful] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: if one is out of range.
        """
        expect_positive("accumulate", self.accumulate)
        expect_positive("evaluate_every", self.evaluate_every)
        expect_positive("chunk", self.chunk) if self.chunk is not None else None
        expect(self.warmup >= 0, "warmup", "at least 0 steps", self.warmup, "raise it")
        good = self.clip is None or self.clip > 0
        expect(good, "clip", "a norm above 0", self.clip, "raise it or leave it out")
        dense = bool(trained(self.objective.model))
        good = dense == (self.optimizer is not None)
        want = "one for the model's parameters" if dense else "None, since nothing dense is trained"
        expect(good, "optimizer", want, self.optimizer, "pass what the model needs")
        good = dense or self.table is not None
        expect(good, "objective", "parameters or a table that learn", "neither", "give it some")

    @property
    def table(self) -> Any | None:
        """The loader's table, if it learns."""
        table = self.loader.table
        return table if getattr(table, "trainable", False) else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that an epoch takes; its last one may average fewer batches."""
        return -(-len(self.loader) // self.accumulate)


@dataclass
class Progress:
    """Where a run stands; part of its checkpoint.

    Attributes:
        step: optimizer steps taken.
        seconds: of training, pauses left out.
        loss: of the last step.
        best: the best validation result so far.
        rounds: of validation since then.
        stopped: why the run ended: steps, minutes, patience or interrupt; empty while it runs.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    best: float = float("-inf")
    rounds: int = 0
    stopped: str = ""
