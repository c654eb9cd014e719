"""The gradient of an objective over some batches: dense parameters and gathered rows alike.

Rows that learn enter the objective as leaves ``[s, d]`` and leave as row gradients, so no sparse
tensor passes autograd. Several batches are averaged (gradient accumulation); their row gradients
are summed by id before anything looks at a norm.

Gradient caching (Gao, Zhang, Han and Callan, RepL4NLP 2021, section 3.2) bounds the memory of a
batch whose loss couples all of its rows, as in-batch negatives do. With outputs u = f(θ, x), the
chain rule splits over rows once v = ∂loss/∂u is known,

    ∂loss/∂θ = Σ_chunks v[chunk]ᵀ · ∂f(θ, x[chunk])/∂θ,

so outputs are computed a chunk at a time without a graph, the loss is differentiated at the
outputs alone, and each chunk runs again, with a graph and the same random numbers, to be
backpropagated from v. It costs one forward pass more and holds the activations of one chunk.

Several processes do the same with one part each: a process computes its share of the outputs with a
graph, all outputs are joined, every process differentiates the loss at them, and each carries its
part of v back. Gradients are summed over the processes; the sum is that of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.block import Batch
from shoal.core.errors import expect, expect_positive, fail
from shoal.core.objectives import Objective
from shoal.core.ranks import gathered, summed
from shoal.fetch.stepping import coalesce
from shoal.sample.parts import part

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, eq=False)
class Gradients:
    """How the gradient of a step is made.

    Attributes:
        accumulate: batches per step; their gradients are averaged.
        clip: upper bound of the norm of the whole gradient, rows included; None for no bound.
        precision: of outputs and loss; ``"bfloat16"`` where torch's autocast uses it. Parameters,
            gradients and optimizers stay in float32.
        chunk: rows of the model's output whose activations are held at a time, by gradient caching;
            None for all. The model is called with the hops that a part of the last one's `dst`
            needs, and must make one row per `dst`, from that row's entries alone. The gradient is
            the same up to rounding, but dropout's masks are drawn chunk by chunk.

    Raises:
        InputError: if a number is not positive, or the precision is another one.
    """

    accumulate: int = 1
    clip: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    chunk: int | None = None

    def __post_init__(self) -> None:
        expect_positive("accumulate", self.accumulate)
        expect_positive("chunk", self.chunk) if self.chunk is not None else None
        good = self.clip is None or self.clip > 0
        expect(good, "clip", "a norm above 0", self.clip, "raise it or leave it out")
        good = self.precision in ("float32", "bfloat16")
        expect(good, "precision", "float32 or bfloat16", self.precision, "choose one of them")


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of one step.

    Attributes:
        loss: mean over the batches.
        outputs: of each batch, detached.
        dense: one gradient a trained parameter, by name.
        ids: rows of the table that have a gradient, or None where the table does not learn.
        rows: their gradients.
    """

    loss: float
    outputs: list[Tensor]
    dense: dict[str, Tensor]
    ids: Int[Tensor, " s"] | None = None
    rows: Float[Tensor, "s ..."] | None = None

    def norm(self) -> Float[Tensor, ""]:
        """The Euclidean norm of everything together."""
        parts = [*self.dense.values()] + ([] if self.rows is None else [self.rows])
        norms = [torch.linalg.vector_norm(part) for part in parts]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def clip_(self, limit: float | None) -> None:
        """Scale in place so that the norm is at most `limit`; None leaves it."""
        if limit is None:
            return
        scale = (limit / (self.norm() + 1e-6)).clamp(max=1.0)
        for values in [*self.dense.values()] + ([] if self.rows is None else [self.rows]):
            values.mul_(scale)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that want a gradient, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradient_of(
    objective: Objective,
    batches: Sequence[Batch],
    rows_train: bool,
    how: Gradients | None = None,
) -> Gradient:
    """Differentiate the mean of the objective over `batches` once.

    Args:
        objective: gives one scalar per batch.
        batches: at least one.
        rows_train: whether the gathered rows need a gradient too.
        how: precision and chunk; None for float32 and the whole batch at once.

    Raises:
        InputError: if the model mixes rows and `how` asks for chunks.
    """
    how = Gradients() if how is None else how
    params, chunk = trained(objective.model), how.chunk
    for name in ("chunk",) * (chunk is not None) + ("processes",) * _is_shared(batches):
        _expect_rows_apart(name, objective.model)
    losses, outputs, rows = [], [], []
    dense: list[Tensor] = []
    for batch in batches:
        leaves: list[Tensor] = list(params.values())
        if rows_train:
            batch = replace(batch, src=batch.src.detach().requires_grad_())
            leaves.append(batch.src)
        passes = _Passes(objective, batch, leaves, how.precision == "bfloat16", len(batches))
        loss, out, grads = passes.whole() if chunk is None else passes.cached(chunk)
        losses.append(loss.item())
        outputs.append(out.detach())
        rows += grads[len(params) :]
        dense = _added(dense, grads[: len(params)])
    if _is_shared(batches):
        dense = summed(dense)
    named = dict(zip(params, dense, strict=True))
    if not rows_train:
        return Gradient(sum(losses), outputs, named)
    ids, joined = _joined([batch.blocks[0].src for batch in batches], rows)
    if _is_shared(batches):
        ids, joined = coalesce(gathered(ids), gathered(joined))
    return Gradient(sum(losses), outputs, named, ids, joined)


def _is_shared(batches: Sequence[Batch]) -> bool:
    return any(batch.share is not None for batch in batches)


@dataclass(frozen=True, eq=False)
class _Passes:
    """The passes over one batch; each is a context of autocast of its own.

    For autocast keeps its copies of the weights while a context lasts, and copies that a pass
    without a graph made would cut the graph of the next one.
    """

    objective: Objective
    batch: Batch
    leaves: list[Tensor]
    autocast: bool
    count: int

    def whole(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Loss, outputs and the gradient of each leaf, from one graph."""
        out = self._outputs(self.batch)
        if self.batch.share is None:
            loss = self._loss(out)
            return loss, out, self._grads(loss, None)
        loss, every, cache = self._at_outputs(out.detach())
        return loss, every, self._grads(out, cache)

    def cached(self, chunk: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The same from a graph a chunk; rows of like lengths share one, to be padded least."""
        want, got = "a batch with hops that a model reads", f"{len(self.batch.blocks)} blocks"
        expect(len(self.batch.hops) > 0, "chunk", want, got, "leave chunk out")
        order = self.batch.hops[-1].indptr.diff().argsort(stable=True)
        parts = [(ids, _part(self.batch, ids)) for ids in order.split(chunk)]
        states, pieces = [], []
        for _, piece in parts:
            states.append(_random_state(self.batch.src.device))
            with torch.no_grad():
                pieces.append(self._outputs(piece))
        loss, every, cache = self._at_outputs(_in_order(pieces, order))
        after = _random_state(self.batch.src.device)
        sums = [torch.zeros_like(leaf) for leaf in self.leaves]
        for (ids, piece), state in zip(parts, states, strict=True):
            _set_random_state(state, self.batch.src.device)
            grads = self._grads(self._outputs(piece), cache[ids])
            for total, grad in zip(sums, grads, strict=True):
                total += grad
        _set_random_state(after, self.batch.src.device)
        return loss, every, sums

    def _at_outputs(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, the outputs of all processes, and the loss's gradient at those of this one."""
        share = self.batch.share
        every = (out if share is None else share.joined(out)).requires_grad_()
        loss = self._loss(every)
        (cache,) = torch.autograd.grad(loss, every)
        return loss, every, cache if share is None else cache[share.own]

    def _outputs(self, batch: Batch) -> Tensor:
        with self._cast():
            return self.objective.outputs(trained(self.objective.model), batch)

    def _loss(self, out: Tensor) -> Tensor:
        with self._cast():
            return self.objective.loss(out, self.batch) / self.count

    def _grads(self, value: Tensor, cache: Tensor | None) -> list[Tensor]:
        # a parameter that this batch does not touch has the gradient zero
        grads = torch.autograd.grad(
            value, self.leaves, cache, allow_unused=True, materialize_grads=True
        )
        return list(grads)

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.batch.src.device.type, torch.bfloat16, enabled=self.autocast)


def _part(batch: Batch, ids: Tensor) -> Batch:
    """The batch as a model sees it that makes only rows `ids` of the last hop's `dst`."""
    hops, read = part(batch.hops, ids)
    blocks = (*hops, *batch.blocks[len(hops) :])
    return replace(batch, blocks=blocks, src=batch.src.index_select(0, read))


def _in_order(pieces: list[Tensor], order: Tensor) -> Tensor:
    joined = torch.cat(pieces)
    want, got = f"{len(order)} rows, one a dst of the last hop", len(joined)
    expect(got == len(order), "chunk", f"a model that makes {want}", got, "leave chunk out")
    out = torch.empty_like(joined)
    out[order] = joined
    return out


def _expect_rows_apart(setting: str, model: nn.Module) -> None:
    """Refuse what parts of a batch would get wrong: rows of the output that depend on each other.

    Assumption: a model that mixes rows does so by batch normalization; other ways cannot be seen
    from outside.

    Raises:
        InputError: naming the module.
    """
    for name, module in model.named_modules():
        mixes = isinstance(module, _BATCH_NORMS) and (
            module.training or module.running_mean is None
        )
        if mixes:
            what = f"{type(module).__name__} at {name or 'the top'} over the statistics of a batch"
            remedy = f"put it in eval mode, or train without {setting}"
            fail(setting, "a model that keeps rows apart", what, remedy)


def _added(sums: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """Element-wise sums; no tensor is written to, since autograd may have handed out one twice."""
    return [a + b for a, b in zip(sums, grads, strict=True)] if sums else grads


def _random_state(device: torch.device) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _joined(ids: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    if len(ids) == 1:
        return ids[0], grads[0]
    return coalesce(torch.cat(ids), torch.cat(grads))
