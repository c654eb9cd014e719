"""What every system shares: what it is asked, what it returns, and how time is taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.data.splits import validation_split
from shoal.data.texts import LabelData
from shoal.rank.ranking import member

# Share of the training points that choices are judged by, and how many others at most learn then.
VALID, TUNED = 0.05, 100_000
# Labels judged, and what a rival predicts so that as many are left without the filtered ones.
TOP, DEEP = 5, 100


class Skipped(Exception):
    """A system cannot run here; the message says why."""


@dataclass(frozen=True)
class Asked:
    """What a system is asked to do.

    Attributes:
        data: the data set.
        source: where it was read from.
        folder: for whatever must be written.
        seed: of everything random.
        epochs: passes over the training points, of systems that make them.
        minutes: CPU time of training, instead of epochs, of systems at equal time; None if unknown.
        batch_size: points a batch.
        sweep_steps: of each run of a sweep over learning rates.
        pecos_python: a Python with libpecos.
        quick: look at little.
    """

    data: LabelData
    source: str
    folder: Path
    seed: int
    epochs: int
    minutes: float | None
    batch_size: int
    sweep_steps: int
    pecos_python: str
    quick: bool


@dataclass
class Clock:
    """Wall and CPU seconds of the stages of one system: tune, train, predict."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the body takes to a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Add seconds to a stage; negative ones move out of it."""
        for kind, value in (("wall", wall), ("cpu", cpu)):
            key = f"{name}_{kind}"
            self.seconds[key] = self.seconds.get(key, 0.0) + value


@dataclass(frozen=True)
class Outcome:
    """What a system predicts for the test points, ``[n, 5]``, and what else is to be known."""

    top: Tensor
    clock: Clock
    facts: dict[str, Any]


def to_tune(data: LabelData) -> LabelData:
    """What rivals without an encoder choose on: training points against others held out."""
    train, valid = validation_split(data, VALID, seed=0)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return replace(data, train=train.subset(order[:TUNED].sort().values), test=valid)


def without(ids: Tensor, drop: Csr, k: int = TOP) -> Tensor:
    """The first k of each row that are no pairs of `drop`; -1 where there are fewer."""
    kept = (ids >= 0) & ~member(ids, drop)
    order = (~kept).int().argsort(dim=1, stable=True)[:, :k]
    return ids.gather(1, order).masked_fill(~kept.gather(1, order), -1)


def threads() -> int:
    """Threads of every system."""
    return torch.get_num_threads()
