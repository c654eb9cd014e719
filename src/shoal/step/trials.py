"""Trial runs: short trainings from the state that a model is in, of which nothing is left.

A trial trains at a learning rate that falls linearly to zero, since a short run at a constant one
ends in the noise that its own rate makes, and so prefers a rate that is too small (Wu et al.,
1803.02021); which rate of a short run is best for a long one is measured in
docs/results/find-lr.md. It is judged by batches that it did not train on, the same for every trial,
before and after. Afterwards parameters, buffers, gradients, optimizer state, modes, random states
and the stream's position are as they were, bit for bit.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core import ranks
from shoal.core.batches import moved
from shoal.core.errors import expect
from shoal.core.optimizers import rates_of, unwrapped
from shoal.curvature.preserve import nothing_drawn
from shoal.curvature.problem import Supervised, outputs_of, reseed
from shoal.curvature.samples import BatchSize, counted

# losses that differ by no more of themselves are equal: steps too small for float32 to tell
EQUAL = 1e-5
# samples that a trial is judged by, at least; where data are few, a quarter of them at most
JUDGED = 1024


@dataclass(frozen=True)
class Trial:
    """One trial run.

    Attributes:
        lr: its first rate, of the optimizer's first group.
        steps: how many.
        before: the loss of the batches that judge, before the run.
        after: and after it; infinite where it is no number.
    """

    lr: float
    steps: int
    before: float
    after: float

    @property
    def held(self) -> bool:
        """Whether the loss fell, or stayed."""
        return self.after <= self.before + EQUAL * abs(self.before)

    @property
    def still(self) -> bool:
        """Whether the loss is where it was."""
        return abs(self.after - self.before) <= EQUAL * abs(self.before)


class Trials:
    """Trial runs of one model at one batch size, each from the same state on the same batches.

    Args:
        objective: model, loss and how the one is called for the other.
        loader: of batches.
        optimizer: of the model, in its state; of its groups each keeps its share of the rate.
        batch_size: samples of one of the loader's batches, where nothing else tells.
        seed: of what loader and training draw, the same in every run.

    Raises:
        InputError: if model or optimizer cannot be trained in runs, or the loader has no batch.
    """

    def __init__(
        self,
        objective: Supervised,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        batch_size: BatchSize = None,
        seed: int = 0,
    ) -> None:
        self.objective, self.loader, self.seed = objective, loader, seed
        self.optimizer = unwrapped(optimizer)
        self.device = _device_of(self.optimizer)
        with nothing_drawn(objective.model, loader):
            first = [next(self._batches())]
            outputs = partial(outputs_of, objective)
            (self.batch_size,) = counted(first, outputs, loader, batch_size)
        self.judges = -(-JUDGED // self.batch_size)
        with suppress(TypeError):  # a stream has no length
            self.judges = min(self.judges, max(1, len(loader) // 4))

    def run(self, lr: float, steps: int, batches: int = 1) -> Trial:
        """Train for some steps, and put everything back.

        Args:
            lr: of the first step, above 0; from there it falls in equal parts.
            steps: at least 1.
            batches: of the loader that a step averages over, each with batch statistics and
                negatives of its own.
        """
        model = self.objective.model
        with (
            nothing_drawn(model, self.loader),
            _put_back(model, self.optimizer),
            torch.enable_grad(),
        ):
            model.train()
            stream = self._batches()
            judges = list(islice(stream, self.judges))
            before = self._mean_loss(judges)
            good = self._train(stream, lr, steps, batches)
            after = self._mean_loss(judges) if good else math.inf
        # replicas judge by batches of their own and take one decision
        before, after = ranks.averaged([before, after])
        return Trial(lr, steps, before, after if math.isfinite(after) else math.inf)

    def _batches(self) -> Iterator[Any]:
        """Batches on the model's device, epoch after epoch, the same ones each time.

        Yields:
            one at a time: a run of large ones would not fit in memory.
        """
        reseed(self.seed)
        while True:
            empty = True
            for batch in self.loader:
                empty = False
                yield moved(batch, self.device)
            expect(not empty, "loader", "at least one batch", "none", "check the data set")

    def _train(self, stream: Iterator[Any], lr: float, steps: int, batches: int) -> bool:
        """Whether all losses were finite; it ends at the first that is not."""
        shares = rates_of(self.optimizer)
        for step in range(steps):
            for group, share in zip(self.optimizer.param_groups, shares, strict=True):
                group["lr"] = lr * share * (1 - step / steps)
            self.optimizer.zero_grad()
            loss = 0.0
            for batch in islice(stream, batches):
                part = self._loss(batch) / batches
                remedy = "check that loss_fn reads the outputs, and nothing detaches them"
                good = part.requires_grad
                expect(good, "loss", "one that the parameters enter", "a constant", remedy)
                part.backward()
                loss += part.item()
            if not math.isfinite(ranks.averaged([loss])[0]):
                return False
            self.optimizer.step()
        return True

    @torch.no_grad()
    def _mean_loss(self, batches: Sequence[Any]) -> float:
        with torch.random.fork_rng():
            reseed(self.seed)  # the same masks of dropout before and after
            return sum(self._loss(batch).item() for batch in batches) / len(batches)

    def _loss(self, batch: Any) -> Tensor:
        return self.objective.loss(self.objective.outputs({}, batch), batch)


def _device_of(optimizer: Any) -> torch.device:
    """Where an optimizer's parameters lie.

    Raises:
        InputError: if trial runs cannot train them.
    """
    kind, known = type(optimizer).__name__, isinstance(optimizer, torch.optim.Optimizer)
    remedy = "pass a torch optimizer of the model's parameters"
    expect(known, "optimizer", "a torch optimizer", kind, remedy)
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    alone = closure is None or closure.default is not inspect.Parameter.empty
    remedy = "search the rate with SGD or AdamW"
    expect(alone, "optimizer", "one whose step needs no closure", kind, remedy)
    learned = [x for group in optimizer.param_groups for x in group["params"] if x.requires_grad]
    remedy = "set requires_grad on what is to be trained"
    expect(bool(learned), "optimizer", "parameters that want a gradient", "none", remedy)
    device = learned[0].device
    remedy = "give it memory first: model.to_empty(device=...) and initialize it"
    expect(device.type != "meta", "model", "parameters with values", "the meta device", remedy)
    return device


@contextmanager
def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Parameters, buffers, gradients and the optimizer's state are as before in the end."""
    saved = {name: x.detach().clone() for name, x in _tensors_of(model)}
    state = copy.deepcopy(optimizer.state_dict())
    gradients = [(param, param.grad) for param in model.parameters()]
    for param, _ in gradients:
        param.grad = None  # else zero_grad(set_to_none=False) would write into them
    try:
        yield
    finally:
        with torch.no_grad():
            for name, x in _tensors_of(model):
                x.copy_(saved[name])
        optimizer.load_state_dict(state)
        for param, gradient in gradients:
            param.grad = gradient


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
