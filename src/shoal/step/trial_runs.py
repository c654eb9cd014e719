"""Trial runs around an advised rate: short, on the real model, and they leave no trace.

From the state that the model is in, the same batches are trained on at half, one, two and four
times the advised rate. A safe rate is one whose noise holds at most half of the present loss
(:mod:`shoal.step.size`), above a loss that cannot be avoided: so a rate holds if the loss over the
last quarter of a run is at most one and a half times that of the same batches before it and, where
the initial loss is known, at least half of what was gained is still there. Afterwards parameters,
buffers, gradients, optimizer state, modes, random states and the stream's position are as they
were, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core.batches import moved
from shoal.core.errors import expect, expect_positive
from shoal.curvature.preserve import preserve_state
from shoal.curvature.problem import Supervised
from shoal.step.size import StepSize

WORSE = 1.5


@dataclass(frozen=True)
class TrialRun:
    """One trial run.

    Attributes:
        factor: of the advised rate.
        lr: the rate.
        losses: of each step's batch, before the step; it ends early at a loss that is not finite.
        held: whether its loss ended at no more than the limit.
    """

    factor: float
    lr: float
    losses: tuple[float, ...]
    held: bool


@dataclass(frozen=True)
class TrialRuns:
    """Trial runs around an advised rate.

    Attributes:
        plan: the advice.
        before: mean loss of the batches before any step.
        limit: the loss beyond which a run is lost.
        runs: by growing rate.
    """

    plan: StepSize
    before: float
    limit: float
    runs: tuple[TrialRun, ...]

    @property
    def largest(self) -> float:
        """The largest rate up to which every run held; 0 if the smallest did not."""
        held = takewhile(lambda run: run.held, self.runs)
        return max((run.lr for run in held), default=0.0)

    @property
    def confirmed(self) -> bool:
        """Whether the advised rate held, and all below it that were tried."""
        return self.largest >= self.plan.safe * (1 - 1e-9)

    def explain(self) -> str:
        """Say it in words: one line per run, and the verdict."""
        lines = [
            f"{run.factor:g} x advice, {run.lr:.3g}: {'held' if run.held else 'lost'}, "
            f"loss {self.before:.4g} -> {_tail(run.losses):.4g}"
            for run in self.runs
        ]
        word = "confirmed" if self.confirmed else "NOT confirmed"
        return "\n".join([*lines, f"advice of {self.plan.safe:.3g} {word} by trial runs"])


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
    initial_loss: float | None = None,
    seed: int = 0,
) -> TrialRuns:
    """Train for some steps at rates around an advised one, and put everything back.

    Args:
        model: in the state that the advice is for.
        loss_fn: ``(outputs, targets)`` → scalar, as for ``shoal.spectrum``.
        loader: of batches of the plan's size.
        optimizer: of the model, in its state.
        plan: the advice.
        factors: of the advised rate, each above 0.
        steps: of each run.
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)``.
        initial_loss: the loss before training, if it is known.
        seed: of what training draws, the same in every run.

    Raises:
        InputError: if a number is out of range or the loader has no batch.
    """
    expect_positive("steps", steps)
    good = len(factors) > 0 and all(x > 0 for x in factors)
    expect(good, "factors", "numbers above 0", factors, "leave them out")
    device = next(model.parameters()).device
    with preserve_state(model, loader, "train", seed):
        passes = chain.from_iterable(repeat(loader, steps))  # enough, unless it is empty
        batches = [moved(batch, device) for batch in islice(passes, steps)]
    expect(len(batches) > 0, "loader", "at least one batch", "none", "check the data set")
    objective = Supervised(model, loss_fn, forward)
    runs = []
    with _put_back(model, optimizer) as again:
        model.train()
        with torch.no_grad():
            torch.manual_seed(seed)
            losses = [_loss(objective, batch).item() for batch in batches]
        before = sum(losses) / len(losses)
        limit = _limit(before, initial_loss)
        for factor in sorted(factors):
            again()
            torch.manual_seed(seed)
            runs.append(_run(objective, optimizer, batches, factor, plan.safe, limit))
    return TrialRuns(plan, before, limit, tuple(runs))


def _limit(before: float, initial_loss: float | None) -> float:
    """The loss beyond which a run is lost."""
    if initial_loss is None:
        return WORSE * before
    want = f"a loss above the present one, {before:.4g}"
    expect(initial_loss > before, "initial_loss", want, initial_loss, "train some steps first")
    return min(WORSE * before, (before + initial_loss) / 2)


def _run(
    objective: Supervised,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    factor: float,
    safe: float,
    limit: float,
) -> TrialRun:
    first = optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group["lr"] = factor * safe * (group["lr"] / first if first > 0 else 1.0)
    losses: list[float] = []
    for batch in batches:
        optimizer.zero_grad()
        loss = _loss(objective, batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
    held = all(map(math.isfinite, losses)) and _tail(losses) <= limit
    return TrialRun(factor, factor * safe, tuple(losses), held)


def _tail(losses: Sequence[float]) -> float:
    """Mean of the last quarter."""
    last = losses[-max(1, len(losses) // 4) :]
    return sum(last) / len(last)


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
