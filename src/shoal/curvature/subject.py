"""What is measured: an objective in halves, its parameters, and the batches that it is a mean over.

Measuring changes nothing: parameters enter as leaves that share the model's memory, buffers as
copies; :func:`~shoal.curvature.untouched.untouched` puts back all that is not an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shoal.core.block import Batch
from shoal.core.errors import expect, expect_positive
from shoal.core.objectives import Objective


@runtime_checkable
class Halves(Protocol):
    """An objective: a scalar of parameters and batch, split at the outputs."""

    def outputs(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Logits, embeddings or scores, one row a sample."""
        ...

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """Their mean loss."""
        ...


@dataclass(frozen=True, eq=False)
class Supervised:
    """A module and a loss function as an objective.

    Attributes:
        model: called through `forward`.
        loss_fn: ``(outputs, targets)`` → scalar, mean over the batch; ``(outputs, batch)`` with a
            `forward` of one's own.
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)`` of ``(inputs, targets)``.
    """

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    forward: Callable[[nn.Module, Any], Tensor] | None = None

    def outputs(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The model's outputs, with `params` in place of its own parameters and buffers."""
        if self.forward is None:
            return functional_call(self.model, dict(params), (batch[0],))
        called = _Called(self.model, self.forward)
        return functional_call(called, {f"model.{k}": x for k, x in params.items()}, (batch,))

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """The loss function of outputs."""
        return self.loss_fn(outputs, batch[1] if self.forward is None else batch)


class _Called(nn.Module):
    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.called = model, forward

    def forward(self, batch: Any) -> Tensor:
        return self.called(self.model, batch)


@dataclass(frozen=True, eq=False)
class Subject:
    """An objective at its parameters, over fixed batches.

    Attributes:
        objective: in halves.
        leaves: what is differentiated, by name.
        frozen: all other parameters, detached.
        buffers: of the model; an evaluation gets copies.
        batches: on the parameters' device.
        sizes: samples of each.
        seed: of the random numbers that a batch's evaluation draws, the same each time.
    """

    objective: Halves
    leaves: dict[str, Tensor]
    frozen: dict[str, Tensor]
    buffers: dict[str, Tensor]
    batches: Sequence[Any]
    sizes: Sequence[int]
    seed: int = 0

    @property
    def parameters(self) -> int:
        """How many numbers are differentiated."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    def outputs(self, values: Sequence[Tensor], index: int) -> Tensor:
        """Outputs of batch `index`, with `values` in place of the leaves."""
        reseed((self.seed << 20) + index)
        given = dict(zip(self.leaves, values, strict=True))
        copies = {name: buffer.clone() for name, buffer in self.buffers.items()}
        return self.objective.outputs({**self.frozen, **copies, **given}, self.batches[index])

    def loss(self, outputs: Tensor, index: int) -> Tensor:
        """Loss of outputs of batch `index`."""
        return self.objective.loss(outputs, self.batches[index])

    def value(self, index: int) -> Tensor:
        """Both halves, at the parameters."""
        return self.loss(self.outputs(list(self.leaves.values()), index), index)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """The mean of :meth:`value` over all samples."""
        total = sum(self.sizes)
        return sum(n * self.value(i).item() for i, n in enumerate(self.sizes)) / total


def subject_of(
    objective: Supervised | Objective,
    loader: Any,
    *,
    max_batches: int,
    params: Callable[[str], bool] | None = None,
    seed: int = 0,
    needs_leaves: bool = True,
) -> Subject:
    """Take the first batches of a loader and the parameters that want a gradient.

    Args:
        objective: with the model as its attribute.
        loader: iterated afresh, within :func:`~shoal.curvature.untouched.untouched`.
        max_batches: how many batches at most.
        params: which parameters, by name; None for all that want a gradient.
        seed: as in :class:`Subject`.
        needs_leaves: whether a model without parameters is an error.

    Raises:
        InputError: if no parameter is left, one is in half precision, or there is no batch.
    """
    model = objective.model
    leaves = _leaves(model, params) if needs_leaves else {}
    batches = _first(loader, max_batches)
    for leaf in list(leaves.values())[:1]:
        batches = [moved(batch, leaf.device) for batch in batches]
    others = {k: x.detach() for k, x in model.named_parameters() if k not in leaves}
    sizes = [size_of(batch) for batch in batches]
    return Subject(objective, leaves, others, dict(model.named_buffers()), batches, sizes, seed)


def _leaves(model: nn.Module, params: Callable[[str], bool] | None) -> dict[str, Tensor]:
    wanted = {name: x for name, x in model.named_parameters() if x.requires_grad}
    remedy = "set requires_grad on what is to be measured"
    expect(bool(wanted), "model", "parameters that want a gradient", "none", remedy)
    chosen = {name: x for name, x in wanted.items() if params is None or params(name)}
    names = ", ".join(list(wanted)[:4])
    expect(bool(chosen), "params", "a filter that some name passes", "none did", f"names: {names}")
    for name, x in chosen.items():
        good = x.dtype in (torch.float32, torch.float64)
        remedy = "measure a float32 copy, copy.deepcopy(model).float()"
        expect(good, name, "float32 or float64", str(x.dtype).removeprefix("torch."), remedy)
    return {name: x.detach().requires_grad_() for name, x in chosen.items()}


def _first(loader: Any, max_batches: int) -> list[Any]:
    expect_positive("max_batches", max_batches)
    fresh = hasattr(loader, "__iter__") and iter(loader) is not loader
    kind = type(loader).__name__
    remedy = "pass the loader itself: an iterator would be used up"
    expect(fresh, "loader", "something to iterate afresh", kind, remedy)
    inside = getattr(loader, "position", 0) > 0
    batches = list(islice(iter(loader), max_batches))
    if inside and len(batches) < max_batches:
        # shoal's loaders go on in their epoch, of which little or nothing may be left
        batches += islice(iter(loader), max_batches - len(batches))
    expect(bool(batches), "loader", "at least one batch", "none", "check the data set")
    return batches


def reseed(seed: int) -> None:
    """Seed the random numbers of the processor and of devices that are in use.

    torch.manual_seed would also queue a seed for devices that are not, which nobody could take
    back, and formats the whole call stack for it: a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def size_of(batch: Any) -> int:
    """Samples of a batch: its seeds, or the first axis of its first tensor."""
    if isinstance(batch, Batch):
        return len(batch.seeds)
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, Sequence) or isinstance(batch, Mapping):
        for part in parts:
            if (size := size_of(part)) > 0:
                return size
    return 0


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    if isinstance(batch, Tensor | Batch):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(part, device) for key, part in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(moved(part, device) for part in batch)
    return batch
