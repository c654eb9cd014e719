"""The learning rate to take, found by trial at each batch size.

Rates are compared by short trial runs (:mod:`shoal.step.trials`) that begin where the model is. The
loss after a run, over the logarithm of its rate, falls, has one valley and rises steeply; so from
the rate that the optimizer has the search walks downhill by factors of 4, then of 2, then of √2.
Each walk's runs are twice as long as those before: few steps tell a rate from one four times as
large, but prefer other rates than many do (docs/results/find-lr.md). Above the best rate it then
doubles until a run loses, and bisects: the edge is where that begins.
Further batch sizes begin from the rate found at the nearest one, times the square root of their
ratio. No law of curvature is asked: a spectrum costs more gradients than the two or three runs that
a better beginning saves (docs/results/find-lr.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core.errors import InputError, expect, expect_positive
from shoal.core.progress import progress
from shoal.curvature.problem import Supervised
from shoal.curvature.samples import BatchSize
from shoal.step.picture import png
from shoal.step.trials import Trial, Trials

# of the walks to the best rate, and how many times as long their runs are
WALKS = ((4.0, 1), (2.0, 2), (math.sqrt(2), 4))
# the edge is known to within this ratio
EDGE = 1.25
# strides of 16 to a first rate that moves the loss, and of 2 to one that loses
FAR = 8


@dataclass(frozen=True)
class FoundRate:
    """The rate found at one batch size.

    Attributes:
        batch_size: samples that a step averages over.
        trials: all that were run, by growing rate.
        batches: of the loader, a step.
    """

    batch_size: int
    trials: tuple[Trial, ...]
    batches: int = 1

    @property
    def best(self) -> Trial:
        """Of the longest runs the one with the lowest loss; of equal ones the smallest rate's."""
        most = max(trial.steps for trial in self.trials)
        return min((x for x in self.trials if x.steps == most), key=lambda x: x.after)

    @property
    def lr(self) -> float:
        """The rate to take: the first of a schedule that falls to zero."""
        return self.best.lr

    @property
    def edge(self) -> float | None:
        """The largest rate below the least one above the best that lost; None where none lost."""
        return None if self._lost is None else max(x.lr for x in self.trials if x.lr < self._lost)

    @property
    def gap(self) -> float:
        """By how much the rate that lost is above the edge; 1 where none lost."""
        return 1.0 if self._lost is None or self.edge is None else self._lost / self.edge

    @property
    def _lost(self) -> float | None:
        above = (x.lr for x in self.trials if x.lr > self.lr and not x.held)
        return min(above, default=None)

    @property
    def gradients(self) -> int:
        """What it cost: batches of the loader that were trained on."""
        return sum(trial.steps for trial in self.trials) * self.batches

    def explain(self) -> str:
        """One line."""
        most = self.trials[-1].lr
        edge = f"no edge up to {most:.3g}"
        if self.edge is not None:
            edge = f"edge {self.edge:.3g}, {self.edge / self.lr:.2g} times as far"
        return (
            f"batch size {self.batch_size}: learning rate {self.lr:.3g} (loss "
            f"{self.best.before:.4g} -> {self.best.after:.4g}); {edge}; "
            f"{len(self.trials)} runs, {sum(x.steps for x in self.trials)} steps"
        )


@dataclass(frozen=True)
class FoundRates:
    """The rates found at several batch sizes.

    Attributes:
        found: by growing batch size.
        known: batch size and rate that the optimizer has.
        notes: what to know before they are believed.
    """

    found: tuple[FoundRate, ...]
    known: tuple[int, float]
    notes: tuple[str, ...] = ()

    @property
    def lr(self) -> dict[int, float]:
        """The rate to take at each batch size."""
        return {x.batch_size: x.lr for x in self.found}

    @property
    def edge(self) -> dict[int, float | None]:
        """The largest rate that trained at each batch size; None where none failed."""
        return {x.batch_size: x.edge for x in self.found}

    @property
    def gradients(self) -> int:
        """What the search cost: batches of the loader that were trained on."""
        return sum(x.gradients for x in self.found)

    def explain(self) -> str:
        """A line for each batch size, and the notes."""
        return "\n".join([*(x.explain() for x in self.found), *(f"note: {x}" for x in self.notes)])

    def __str__(self) -> str:
        return self.explain()

    def _repr_png_(self) -> bytes | None:
        """The picture, in notebooks that have matplotlib."""
        try:
            return png(self)
        except InputError:
            return None


def find_lr(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    loader: Any,
    optimizer: torch.optim.Optimizer,
    batch_sizes: Sequence[int] = (),
    *,
    steps: int = 25,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    batch_size: BatchSize = None,
    seed: int = 0,
) -> FoundRates:
    """Find the learning rate that trains best, at one or several batch sizes, by short trial runs.

    The rate is the first one of a schedule that falls to zero. Nothing is left of the runs: model,
    optimizer, gradients, random states and the loader's position are as before, bit for bit.

    Args:
        model: in the state that it shall train on from; it may be compiled or in
            DistributedDataParallel, where all processes find the same rate.
        loss_fn: ``(outputs, targets)`` → scalar, as for :func:`shoal.spectrum`.
        loader: of batches; or a function from batch size to loader.
        optimizer: any of torch's, or alike, whose step needs no closure. The search begins at its
            rate; groups keep their shares of it.
        batch_sizes: samples that a step averages over; by default the loader's own. Where they are
            multiples of the loader's, a step averages over several of its batches.
        steps: of the shortest runs; those that decide are four times as long. More are nearer to
            long training, above all in small batches (docs/results/find-lr.md).
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)``.
        batch_size: samples of one of the loader's batches, where nothing else tells.
        seed: of all that is drawn, the same in every run.

    Raises:
        InputError: if a number is out of range, the loader has no batch or cannot make up a batch
            size, the optimizer cannot be tried, or no rate makes a finite loss.

    Example:
        A quadratic of curvature 1 without noise: the edge of many steps whose rate falls is near 4.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> loader = [(torch.ones(4, 1), torch.zeros(4, 1))] * 8
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> half_square = lambda outputs, targets: (outputs - targets).square().mean() / 2
        >>> found = find_lr(model, half_square, loader, optimizer)
        >>> 0.5 < found.lr[4] <= found.edge[4] < 5
        True
    """
    expect_positive("steps", steps)
    objective = Supervised(model, loss_fn, forward)
    by_size = callable(loader) and not hasattr(loader, "__iter__")
    remedy = "say at which batch sizes"
    expect(bool(batch_sizes) or not by_size, "batch_sizes", "at least one", "none", remedy)
    for size in batch_sizes:
        expect_positive("batch_sizes", size)

    def trials_of(size: int | None) -> Trials:
        made = loader(size) if by_size else loader
        return Trials(objective, made, optimizer, batch_size, seed)

    first = trials_of(min(batch_sizes) if by_size else None)
    wanted = sorted(set(batch_sizes)) or [first.batch_size]
    here, lr = first.batch_size, _lr_of(first.optimizer)
    found: dict[int, FoundRate] = {}
    for size in progress(sorted(wanted, key=lambda x: abs(math.log(x / here))), "find rates"):
        trials = trials_of(size) if by_size else first
        want, remedy = f"batches of {size} or a divisor of it", "pass a function of the batch size"
        good = size % trials.batch_size == 0
        expect(good, "loader", want, f"batches of {trials.batch_size}", remedy)
        nearest = min(found, key=lambda x: abs(math.log(x / size)), default=None)
        begin = lr * math.sqrt(size / here)
        if nearest is not None:
            begin = found[nearest].lr * math.sqrt(size / nearest)
        found[size] = _search(trials, size, begin, steps)
    in_order = tuple(found[size] for size in wanted)
    return FoundRates(in_order, (here, lr), _notes_of(in_order))


def _notes_of(found: Sequence[FoundRate]) -> tuple[str, ...]:
    """What to know before the rates are believed."""
    notes = []
    most = max(x.batches for x in found)
    if most > 1:
        notes.append(
            f"steps average over up to {most} of the loader's batches: batch normalization and "
            "in-batch losses see the loader's batches, not the larger ones"
        )
    still = ", ".join(str(x.batch_size) for x in found if x.best.still)
    if still:
        notes.append(
            f"no rate lowered the loss at batch size {still}: the model is at its best already, or "
            "steps= are too few"
        )
    return tuple(notes)


def _lr_of(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the first group; in a warm-up from 0, that it rises to."""
    group = optimizer.param_groups[0]
    lr = float(group["lr"]) or float(group.get("initial_lr", 0.0))
    expect(
        0 < lr < math.inf, "lr", "a learning rate above 0", lr, "pass one to begin the search at"
    )
    return lr


def _search(trials: Trials, size: int, begin: float, steps: int) -> FoundRate:
    """Walk from `begin` to the best rate, and from there up to the edge."""
    made: list[Trial] = []

    def run(lr: float, longer: int = 1) -> Trial:
        alike = (x for x in made if x.steps == longer * steps)
        # a walk comes back to where it was
        trial = next((x for x in alike if math.isclose(x.lr, lr, rel_tol=1e-6)), None)
        if trial is None:
            trial = trials.run(lr, longer * steps, size // trials.batch_size)
            made.append(trial)
        return trial

    best = run(begin)
    want, remedy = "a finite number before any step", "check the data, or begin with other weights"
    expect(math.isfinite(best.before), "loss", want, best.before, remedy)
    far = WALKS[0][0] ** 2
    for _ in range(FAR):  # to where a step shows, and does no harm
        if best.held and not best.still:
            break
        best = run(best.lr * far if best.still else best.lr / far)
    moves = any(not trial.still for trial in made)
    remedy = "check that loss_fn reads the outputs, and that the optimizer has the parameters"
    expect(moves, "loss", "one that training changes", f"{best.before:.4g} always", remedy)
    best = min(made, key=lambda trial: trial.after)
    want, remedy = "a finite one after training at some rate", "begin at a much smaller rate"
    expect(math.isfinite(best.after), "loss", want, f"none down to {made[-1].lr:.3g}", remedy)
    for factor, longer in WALKS:
        best = run(best.lr, longer)
        for direction in (factor, 1 / factor):
            while (further := run(best.lr * direction, longer)).after < best.after:
                best = further
    lost = best
    for _ in range(FAR):
        lost = run(2 * lost.lr)
        if not lost.held:
            break
    while (found := FoundRate(size, _by_rate(made), size // trials.batch_size)).gap > EDGE:
        assert found.edge is not None
        run(found.edge * math.sqrt(found.gap))
    return found


def _by_rate(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    return tuple(sorted(trials, key=lambda trial: trial.lr))
