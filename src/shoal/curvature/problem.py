"""The problem that is measured: an objective in halves, its parameters, and batches of its data.

Measuring changes nothing: parameters enter as leaves that share the model's memory, buffers as
copies; :func:`~shoal.curvature.preserve.preserve_state` puts back all that is not an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from shoal.core.batches import moved
from shoal.core.block import Batch
from shoal.core.errors import expect, expect_positive
from shoal.core.objectives import ByScores, Objective
from shoal.curvature.samples import BatchSize, counted

ROWS = "rows"


@runtime_checkable
class SplitObjective(Protocol):
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
        """The model's outputs, with `params` in place of its own parameters and buffers.

        Raises:
            InputError: without `forward`, if a batch is no pair.
        """
        if self.forward is None:
            inputs = batch[0] if isinstance(batch, list | tuple) and len(batch) > 1 else None
            remedy = "pass forward=, (model, batch) -> outputs; loss_fn then gets outputs and batch"
            kind = type(batch).__name__
            expect(inputs is not None, "loader", "batches (inputs, targets)", kind, remedy)
            return functional_call(self.model, dict(params), (inputs,))
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
class Problem:
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

    objective: SplitObjective
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


def problem_of(
    objective: Supervised | Objective,
    loader: Any,
    *,
    max_batches: int,
    params: Callable[[str], bool] | None = None,
    seed: int = 0,
    needs_leaves: bool = True,
    batch_size: BatchSize = None,
) -> Problem:
    """Take the first batches of a loader and the parameters that require a gradient.

    Args:
        objective: with the model as its attribute.
        loader: iterated afresh, within :func:`~shoal.curvature.preserve.preserve_state`.
        max_batches: how many batches at most.
        params: which parameters, by name; None for all that require a gradient.
        seed: as in :class:`Problem`.
        needs_leaves: whether a model without parameters is an error.
        batch_size: samples of a batch, or a function of the batch, where nothing else tells.

    Raises:
        InputError: if no parameter is left, one is in half precision, there is no batch, or its
            samples cannot be counted.
    """
    model = objective.model
    leaves = _leaves(model, params) if needs_leaves else {}
    batches = _first(loader, max_batches)
    for leaf in list(leaves.values())[:1]:
        batches = [moved(batch, leaf.device) for batch in batches]
    others = {k: x.detach() for k, x in model.named_parameters() if k not in leaves}
    outputs = partial(outputs_of, objective)
    sizes = counted(batches, outputs, loader, batch_size)
    return Problem(objective, leaves, others, dict(model.named_buffers()), batches, sizes, seed)


@torch.no_grad()
def outputs_of(objective: Supervised | Objective, batch: Any) -> Tensor:
    """What the model makes of a batch in evaluation mode, where samples do not mix."""
    modules = [module for module in objective.model.modules() if module.training]
    objective.model.eval()
    try:
        return objective.outputs({}, batch)
    finally:
        for module in modules:
            module.training = True


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, out of torch.compile, whose graphs have no second derivative, and DDP."""
    model = getattr(model, "_orig_mod", model)
    parallel = isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)
    return unwrapped(model.module) if parallel else model


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

    torch.manual_seed would also queue a seed for devices that are not, which could not be taken
    back, and formats the whole call stack for it: a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


# -- other splits, other leaves ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Two functions as an objective in halves.

    Attributes:
        outputs: ``(params, batch)`` → outputs.
        loss: ``(outputs, batch)`` → scalar.
    """

    outputs: Callable[[Mapping[str, Tensor], Any], Tensor]
    loss: Callable[[Tensor, Any], Tensor]


def split_at_scores(objective: Objective) -> Objective | Split:
    """The objective with the scores of pairs for outputs, where it scores pairs.

    A loss over a shortlist is convex in the scores, not in the embeddings, so Gauss-Newton splits
    it there.
    """
    criterion = objective.criterion
    if not isinstance(criterion, ByScores):
        return objective
    return Split(
        lambda params, batch: criterion.scores(objective.outputs(params, batch), batch),
        lambda scores, batch: criterion.loss(scores, batch.blocks[-1]),
    )


def with_rows(problem: Problem) -> Problem:
    """Add the rows that the batches gathered to what is differentiated.

    Where an objective has no parameters but the rows of its table, as a bag of words has, the rows
    that the measured batches touch are its parameters: the curvature is zero in all others.

    Args:
        problem: over :class:`~shoal.core.block.Batch` es whose rows stand in ``src``.

    Returns:
        the same with a leaf ``rows`` ``[u, d]``, the distinct rows of all batches; ``src`` then
        holds positions in it.
    """
    batches: Sequence[Any] = problem.batches
    ids = torch.cat([batch.blocks[0].src for batch in batches])
    distinct, positions = torch.unique(ids, return_inverse=True)
    gathered = torch.cat([batch.src for batch in batches]).detach()
    rows = gathered.new_empty(len(distinct), *gathered.shape[1:])
    rows[positions] = gathered  # copies of a row are equal
    pieces = positions.split([len(batch.blocks[0].src) for batch in batches])
    placed = [replace(batch, src=at) for batch, at in zip(batches, pieces, strict=True)]
    inner = problem.objective

    def outputs(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        others = {name: x for name, x in params.items() if name != ROWS}
        return inner.outputs(others, replace(batch, src=params[ROWS][batch.src]))

    leaves = {**problem.leaves, ROWS: rows.requires_grad_()}
    return replace(problem, objective=Split(outputs, inner.loss), leaves=leaves, batches=placed)


def in_metric(problem: Problem, scales: Mapping[str, Tensor]) -> Problem:
    """The same problem with u in place of the leaves θ = S u.

    A leaf scaled by s has its curvature multiplied by s².

    Args:
        problem: what is measured.
        scales: S of some leaves, by name, above zero; others keep theirs.
    """
    inner = problem.objective

    def outputs(params: Mapping[str, Tensor], batch: Any) -> Tensor:
        scaled = {k: x * scales[k] if k in scales else x for k, x in params.items()}
        return inner.outputs(scaled, batch)

    leaves = {
        name: (leaf.detach() / scales[name]).requires_grad_() if name in scales else leaf
        for name, leaf in problem.leaves.items()
    }
    return replace(problem, objective=Split(outputs, inner.loss), leaves=leaves)
