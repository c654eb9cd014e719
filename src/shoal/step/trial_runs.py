"""Trial runs around an advised rate: short, on the real model, and they leave no trace.

From the state that the model is in, the same batches are trained on at half, one, two and four
times the advised rate. A rate holds if the loss of the last quarter's batches fell, or stayed: if
during the run it is no more than that of the very same batches, with the same masks of dropout,
before the run. Steps average over as many samples as the advice is for, over several of the
loader's batches if need be. Afterwards parameters, buffers, gradients, optimizer state, modes,
random states and the stream's position are as they were, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core.batches import moved
from shoal.core.errors import expect, expect_positive
from shoal.core.optimizers import rates_of
from shoal.core.optimizers import unwrapped as unwrapped_optimizer
from shoal.curvature.preserve import preserve_state
from shoal.curvature.problem import Supervised, outputs_of, unwrapped
from shoal.curvature.samples import BatchSize, counted
from shoal.step.size import StepSize

# beyond this many times the loss before it, a run is called lost; below, its loss rose
WORSE = 1.5
# losses that differ by no more are equal: steps too small for float32 to tell
EQUAL = 1e-5


@dataclass(frozen=True)
class TrialRun:
    """One trial run.

    Attributes:
        factor: of the advised rate.
        lr: the rate.
        losses: of each step's batches, before the step; it ends early at a loss that is not finite.
        before: mean loss of the last quarter's batches before the run.
    """

    factor: float
    lr: float
    losses: tuple[float, ...]
    before: float

    @property
    def after(self) -> float:
        """Mean loss of the last quarter's batches in the run; infinite where one is not finite."""
        return _tail(self.losses) if all(map(math.isfinite, self.losses)) else math.inf

    @property
    def held(self) -> bool:
        """Whether the loss of the last quarter's batches fell, or stayed."""
        return self.after <= self.before + EQUAL * abs(self.before)

    @property
    def word(self) -> str:
        """Held, rose or lost."""
        if self.held:
            return "held"
        return "rose" if self.after <= WORSE * self.before else "lost"


@dataclass(frozen=True)
class TrialRuns:
    """Trial runs around an advised rate.

    Attributes:
        plan: the advice.
        runs: by growing rate.
        batches: of the loader, a step.
    """

    plan: StepSize
    runs: tuple[TrialRun, ...]
    batches: int = 1

    @property
    def largest(self) -> float:
        """The largest rate up to which every run held; 0 if the smallest did not."""
        held = takewhile(lambda run: run.held, self.runs)
        return max((run.lr for run in held), default=0.0)

    @property
    def best(self) -> float:
        """The rate that ended at the lowest loss; 0 where none held."""
        held = [run for run in self.runs if run.held]
        return min(held, key=lambda run: run.after).lr if held else 0.0

    @property
    def confirmed(self) -> bool:
        """Whether the advised rate held, and all below it that were tried."""
        return self.largest >= self.plan.safe * (1 - 1e-9)

    def explain(self) -> str:
        """Say it in words: one line per run, and the verdict."""
        lines = [
            f"{run.factor:g} x advice, {run.lr:.3g}: {run.word}, "
            f"loss {run.before:.4g} -> {run.after:.4g}"
            for run in self.runs
        ]
        word = "confirmed" if self.confirmed else "NOT confirmed"
        steps = f", in steps of {self.batches} of the loader's batches" if self.batches > 1 else ""
        best = f"of these take {self.best:.3g}" if self.best else "take a smaller one"
        return "\n".join(
            [
                *lines,
                f"advice of {self.plan.safe:.3g} at batch size {self.plan.batch_size} {word} by "
                f"trial runs{steps}; {best}",
            ]
        )


def trial_runs(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    loader: Any,
    optimizer: torch.optim.Optimizer,
    plan: StepSize,
    *,
    factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    steps: int = 50,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    batch_size: BatchSize = None,
    seed: int = 0,
) -> TrialRuns:
    """Train for some steps at rates around an advised one, and put everything back.

    Args:
        model: in the state that the advice is for.
        loss_fn: ``(outputs, targets)`` → scalar, as for ``shoal.spectrum``.
        loader: of batches of the plan's size, or of a size that divides it: steps then average
            over several, each with batch statistics and negatives of its own.
        optimizer: of the model, in its state.
        plan: the advice.
        factors: of the advised rate, each above 0.
        steps: of each run.
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)``.
        batch_size: samples of one of the loader's batches, where nothing else tells.
        seed: of what training draws, the same in every run.

    Raises:
        InputError: if a number is out of range, the loader has no batch, or its batches do not make
            up the plan's size.
    """
    expect_positive("steps", steps)
    good = len(factors) > 0 and all(x > 0 for x in factors)
    expect(good, "factors", "numbers above 0", factors, "leave them out")
    objective = Supervised(unwrapped(model), loss_fn, forward)
    model, optimizer = objective.model, unwrapped_optimizer(optimizer)
    device = next(model.parameters()).device
    with preserve_state(model, loader, "train", seed):
        first = [moved(batch, device) for batch in islice(iter(loader), 1)]
        expect(len(first) > 0, "loader", "at least one batch", "none", "check the data set")
        (size,) = counted(first, partial(outputs_of, objective), loader, batch_size)
        good = plan.batch_size % size == 0
        want, remedy = f"batches of {plan.batch_size} or a divisor of it", "pass a loader of those"
        expect(good, "loader", want, f"batches of {size}", remedy)
        count = plan.batch_size // size
        passes = chain.from_iterable(repeat(loader, steps * count))  # enough, unless it is empty
        batches = [moved(batch, device) for batch in islice(passes, steps * count)]
    chunks = [batches[i : i + count] for i in range(0, len(batches), count)]
    runs = []
    with _put_back(model, optimizer) as again:
        model.train()
        with torch.no_grad():
            torch.manual_seed(seed)
            before = [_mean([_loss(objective, x).item() for x in chunk]) for chunk in chunks]
        for factor in sorted(factors):
            again()
            torch.manual_seed(seed)
            losses = _run(objective, optimizer, chunks, factor * plan.safe)
            runs.append(TrialRun(factor, factor * plan.safe, losses, _tail(before)))
    return TrialRuns(plan, tuple(runs), count)


def _run(
    objective: Supervised,
    optimizer: torch.optim.Optimizer,
    chunks: Sequence[Sequence[Any]],
    lr: float,
) -> tuple[float, ...]:
    """The loss of each step, at `lr` for the first group and its share of it for the others."""
    for group, rate in zip(optimizer.param_groups, rates_of(optimizer), strict=True):
        group["lr"] = lr * rate
    losses: list[float] = []
    for chunk in chunks:
        optimizer.zero_grad()
        parts = []
        for batch in chunk:
            loss = _loss(objective, batch) / len(chunk)
            loss.backward()
            parts.append(loss.item())
        losses.append(sum(parts))
        if not math.isfinite(losses[-1]):
            break
        optimizer.step()
    return tuple(losses)


def _tail(losses: Sequence[float]) -> float:
    """Mean of the last quarter."""
    return _mean(losses[-max(1, len(losses) // 4) :])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _loss(objective: Supervised, batch: Any) -> Tensor:
    return objective.loss(objective.outputs({}, batch), batch)


@contextmanager
def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Callable[[], None]]:
    """Within, training leaves no trace.

    Yields:
        what goes back to the beginning at once.
    """
    saved = {name: x.detach().clone() for name, x in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    gradients = [(param, param.grad) for param in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]

    def again() -> None:
        model.load_state_dict(saved)
        optimizer.load_state_dict(copy.deepcopy(state))
        for param, _ in gradients:
            param.grad = None

    with torch.random.fork_rng():
        for param, _ in gradients:
            param.grad = None
        try:
            with torch.enable_grad():
                yield again
        finally:
            again()
            for param, gradient in gradients:
                param.grad = gradient
            for module, training in modes:
                module.training = training
