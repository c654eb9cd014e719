"""Losses over all labels of one-vs-all classifiers, in bounded memory.

A point with embedding x scores ``z_l = x · W_l / τ`` for label l. Every loss here has a gradient
G = ∂loss/∂z that can be written down without the loss (*loss-skip*: Jain et al., "Renée", MLSys
2023), so labels come in chunks: a chunk's logits ``[b, c]`` turn into G in place, add ``G W_c`` to
the gradient of x, and ``Gᵀ x`` moves the chunk's rows at once, by the optimizer that lives beside
the table. Neither logits nor a gradient of all labels ever exist (chunks: Zhang et al., "ELMO",
ICML 2025).

With P the positives of a point, N its other labels, y one over P, l the number of labels:

    binary     Σ_l softplus(z_l − log l) − y_l (z_l − log l)         G = σ(z − log l) − y
    softmax    mean over P of log Σ_{P ∪ N} e^z − z_p                G = softmax(z) − y / |P|
    decoupled  mean over P of log(e^{z_p} + Σ_N e^z) − z_p           G_p = −σ(s − z_p) / |P|
                                                                     G_n = e^{z_n − c}

where ``s = log Σ_N e^z`` and ``c = −log mean_P 1 / (e^{z_p} + e^s)``. A first pass over the
labels gives the loss, and s to the last two. The shift log l of the binary loss gives every label a
prior of one in l: without it all l classifiers would begin at one half. ``decoupled`` is
:func:`shoal.core.losses.decoupled_softmax`.

Processes that hold some labels each (:meth:`OneVsAll.shard`) make the chunks of their own. What a
point needs of all labels are s and the logits of its positives: two reductions of ``[b]`` and
``[e]`` between the passes, and one of the gradient of x where that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shoal.core import ranks
from shoal.core.block import Block
from shoal.core.errors import expect
from shoal.rank.one_vs_all import OneVsAll

# Logits or rows of a chunk, whichever are more: few enough to stay near the cache between the
# product that writes them and those that read them, enough for these to run at their full rate. 4
# to 16 MiB measured alike.
_TILE_BYTES = 2**23
_MIN_CHUNK = 256


def one_vs_all_loss(
    classifiers: OneVsAll,
    x: Float[Tensor, "b d"],
    block: Block,
    rows: Float[Tensor, "0 d"] | None = None,
) -> Float[Tensor, ""]:
    """The loss of a batch, whose backward pass moves the classifiers.

    Differentiating it (once) gives x its gradient and takes one step of the table's optimizer on
    the labels of the block, at the gradient of the scalar that is differentiated and the
    classifiers as they were. Evaluating it changes nothing.

    Args:
        classifiers: the classifiers and which loss they have.
        x: embeddings of the block's `dst`, in its order.
        block: the labels that are scored (`src`, distinct: all of them or a shortlist) and all
            positives among them, each once.
        rows: any tensor that wants a gradient and gets zero; it starts the backward pass where x
            wants none, because the encoder is frozen.

    Returns:
        the mean over the points (`binary`) or over those with a positive; 0 if there is none.

    Raises:
        InputError: if x does not fit the block or the classifiers.

    Example:
        Two labels, a point at the first one: cross-entropy log(1 + e⁻¹) before the step.

        >>> from shoal.fetch.update import RowSGD
        >>> classifiers = OneVsAll.of(torch.eye(2), RowSGD(lr=1.0), "softmax", temperature=1.0)
        >>> ids, x = torch.arange(2), torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> block = Block(ids[:1], ids, torch.tensor([0, 1]), ids[:1], ids[:1])
        >>> loss = one_vs_all_loss(classifiers, x, block)
        >>> round(loss.item(), 4)
        0.3133
        >>> loss.backward()  # moves the classifiers, and leaves x its gradient
        >>> classifiers.weights.tolist(), x.grad.tolist()
        ([[1.2689..., 0.0], [-0.2689..., 1.0]], [[-0.2689..., 0.2689...]])
    """
    _expect_fit(classifiers, x, block)
    return _Loss.apply(x, rows, classifiers, block)


def _expect_fit(classifiers: OneVsAll, x: Tensor, block: Block) -> None:
    want, got = (len(block.dst), classifiers.table.shape[1]), tuple(x.shape)
    expect(got == want, "x", f"one embedding per point of the block, {want}", got, "align them")


class _Loss(torch.autograd.Function):
    """The two passes as one node: the first in forward, the second in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor | None, classifiers: OneVsAll, block: Block
    ) -> Tensor:
        ctx.batch, ctx.rows = _Scored(classifiers, x.detach(), block), rows
        ctx.survey = ctx.batch.survey()
        return ctx.survey.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        want_x = ctx.needs_input_grad[0]
        grad_x = ctx.batch.descend(ctx.survey, grad, want_x)
        return grad_x if want_x else None, _zero(ctx.rows), None, None


def _zero(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else torch.zeros_like(rows)


@dataclass(frozen=True, eq=False)
class _Survey:
    """What the second pass needs to know of the first.

    Attributes:
        loss: the scalar.
        share: one over the number of points that the loss averages.
        shift: G of a label that is no positive is ``exp(z − shift)``; σ of it for `binary`.
        at: G of the positives, in the block's order; unused for `binary`.
    """

    loss: Float[Tensor, ""]
    share: float
    shift: Float[Tensor, "b 1"]
    at: Float[Tensor, " e"]


@dataclass(frozen=True, eq=False)
class _Tile:
    """A chunk of labels: ids, classifiers, logits, and where positives are.

    ``logits[row, column]`` belong to ``block.indices[entry]``.
    """

    ids: Int[Tensor, " c"]
    weights: Float[Tensor, "c d"]
    logits: Float[Tensor, "b c"]
    row: Int[Tensor, " e_chunk"]
    column: Int[Tensor, " e_chunk"]
    entry: Int[Tensor, " e_chunk"]


class _Scored:
    """A batch in front of the labels of its block."""

    def __init__(self, classifiers: OneVsAll, x: Float[Tensor, "b d"], block: Block) -> None:
        self.classifiers, self.block, self.like = classifiers, block, x
        self.x = x.to(classifiers.table.dtype) / classifiers.temperature
        self.row, self.degree = block.csr.row_ids(), block.csr.degrees()
        # labels of the block whose classifiers are here, and their positives, by rising column
        first, here = classifiers.first, torch.ones_like(block.src, dtype=torch.bool)
        if classifiers.sharded:
            here = (block.src >= first) & (block.src < first + len(classifiers.table))
        self.src = block.src[here] - first
        entry = block.indices.argsort(stable=True)
        self.entry = entry[here[block.indices[entry].long()]]
        self.column = (here.cumsum(0) - 1)[block.indices[self.entry].long()]
        widest = max(len(x), classifiers.table.shape[1]) * self.x.element_size()
        self.chunk = classifiers.chunk or max(_TILE_BYTES // widest, _MIN_CHUNK)

    def tiles(self) -> Iterator[_Tile]:
        """All labels in chunks.

        Yields:
            one tile after the other, in the same memory: its logits are gone when the next comes.
        """
        chunk, entry, column = self.chunk, self.entry, self.column
        row = self.row[entry]
        starts = torch.arange(0, len(self.src) + chunk, chunk, device=column.device)
        bounds = torch.searchsorted(column, starts).tolist()
        memory = self.x.new_empty(len(self.x), min(chunk, len(self.src)))
        for i, ids in enumerate(self.src.split(chunk) if len(self.src) else ()):
            weights, logits = self.classifiers.rows(ids, self.x.device), memory[:, : len(ids)]
            self.product(self.x, weights.T, logits)
            here = slice(bounds[i], bounds[i + 1])
            yield _Tile(ids, weights, logits, row[here], column[here] - i * chunk, entry[here])

    def product(self, a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
        """Write (or add) ``a @ b`` to `out`, multiplied in the classifiers's type."""
        dtype = self.classifiers.dtype
        if dtype is not None and dtype != out.dtype:
            result = a.to(dtype) @ b.to(dtype)
            out.add_(result) if add else out.copy_(result)
        elif add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)

    def _summed(self, own: Tensor) -> Tensor:
        """Over the processes, where each holds labels of its own."""
        return ranks.summed([own])[0] if self.classifiers.sharded else own

    def survey(self) -> _Survey:
        """The first pass."""
        if self.classifiers.kind == "binary":
            return self._survey_binary()
        below, positive = self._negatives()
        each = torch.logaddexp(positive, below[self.row])
        degree = self.degree.clamp(min=1).to(positive.dtype)
        if self.classifiers.kind == "softmax":
            total = torch.logaddexp(below, self._log_sum_exp(positive))
            shift = total.where(self.degree > 0, torch.inf)
            each = total[self.row]
            at = (positive - each).exp() - 1 / degree[self.row]
        else:
            shift = degree.log() - self._log_sum_exp(-each)
            at = -(below[self.row] - each).exp() / degree[self.row]
        share = 1 / max(int((self.degree > 0).sum()), 1)
        loss = ((each - positive) / degree[self.row]).sum() * share
        return _Survey(loss, share, shift.unsqueeze(1), at)

    def _negatives(self) -> tuple[Float[Tensor, " b"], Float[Tensor, " e"]]:
        """Of each point ``log Σ_N e^z``, and the logits of the positives."""
        below = self.x.new_full((len(self.x),), -torch.inf)
        positive = self.x.new_zeros(len(self.row))
        for tile in self.tiles():
            positive[tile.entry] = tile.logits[tile.row, tile.column]
            tile.logits[tile.row, tile.column] = -torch.inf
            below = torch.logaddexp(below, tile.logits.logsumexp(1))
        if self.classifiers.sharded:
            below = ranks.log_sum_exp(below)
        return below, self._summed(positive)

    def _log_sum_exp(self, values: Float[Tensor, " e"]) -> Float[Tensor, " b"]:
        """Over the positives of each point; −inf where there are none."""
        out = values.new_full((len(self.x),), -torch.inf)
        top = out.scatter_reduce(0, self.row, values, "amax")
        total = torch.zeros_like(out).index_add_(0, self.row, (values - top[self.row]).exp())
        return total.log() + top.where(self.degree > 0, 0.0)

    def _survey_binary(self) -> _Survey:
        share, prior = 1 / max(len(self.x), 1), math.log(self.classifiers.n_labels)
        loss = self.x.new_zeros(())
        for tile in self.tiles():
            z = tile.logits.sub_(prior)
            loss = loss + functional.softplus(z).sum() - z[tile.row, tile.column].sum()
        loss = self._summed(loss)
        shift = self.x.new_full((len(self.x), 1), prior)
        return _Survey(loss * share, share, shift, self.x.new_empty(0))

    def descend(
        self, survey: _Survey, grad: Float[Tensor, ""], want_x: bool
    ) -> Float[Tensor, "b d"]:
        """The second pass: move the classifiers; return the gradient of x, if it is wanted."""
        scale = survey.share * grad.to(self.x)
        scaled, grad_x = self.x * scale, torch.zeros_like(self.x)
        for tile in self.tiles():
            g = self._gradient_(tile, survey)
            if want_x:  # before the rows move
                self.product(g, tile.weights, grad_x, add=True)
            grad_rows = torch.empty_like(tile.weights)
            self.product(g.T, scaled, grad_rows)
            self.classifiers.table.update(tile.ids, grad_rows)
        if want_x:
            grad_x = self._summed(grad_x)
        return (grad_x * (scale / self.classifiers.temperature)).to(self.like.dtype)

    def _gradient_(self, tile: _Tile, survey: _Survey) -> Float[Tensor, "b c"]:
        """Turn logits into the gradient at them, in place."""
        g = tile.logits.sub_(survey.shift)
        if self.classifiers.kind == "binary":
            g.sigmoid_()
            g[tile.row, tile.column] -= 1
        else:
            g.exp_()
            g[tile.row, tile.column] = survey.at[tile.entry]
        return g
