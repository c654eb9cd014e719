"""Losses over a shortlist: what a batch's examples score against the labels that it holds.

All read ``scores [b, s]`` and a :class:`~shoal.core.block.Block` whose entries are *all* known
positives between the two (an induced block), so that another example's label is never pushed away
from an example that has it too. Its zeros are the in-batch negatives. With P(i) the positives and
N(i) the negatives of example i:

    decoupled softmax   mean over p in P(i) of −log( e^{s_p/τ} / (e^{s_p/τ} + Σ_n e^{s_n/τ}) )
    hardest triplets    mean over p in P(i) of Σ_n w_n · max(0, s_n − s_p + m), n the k hardest
    lowest triplets     the same over the j lowest p in P(i) only

and then the mean over the examples that have a positive. The softmax is that of Gupta et al.,
"Dual-encoders for extreme multi-label classification" (ICLR 2024): other positives leave the
denominator. The triplets are those of NGAME (Dahiya et al., WSDM 2023), of its first and of its
last stage.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shoal.core.block import Block
from shoal.core.errors import expect, expect_positive


def decoupled_softmax(
    scores: Float[Tensor, "b s"],
    block: Block,
    temperature: float = 0.05,
    relevance: Float[Tensor, " nnz"] | None = None,
) -> Float[Tensor, ""]:
    """Negative log likelihood of each positive against the example's negatives.

    Args:
        scores: similarities, cosines for unit vectors.
        block: positives of the examples (`dst`) among the labels (`src`).
        temperature: τ; 0.05 as in the published code of Gupta et al.
        relevance: what a positive counts among those of its example, at least 0: one number per
            entry of the label matrix that the block was expanded from. None counts all the same.

    Returns:
        the mean over positives of an example, then over examples with a positive; 0 if none has
        one.

    Raises:
        InputError: if the temperature is not positive.

    Example:
        One positive and one negative with equal scores: log 2.

        >>> ids = torch.tensor([0])
        >>> one = Block(ids, torch.arange(2), torch.tensor([0, 1]), ids, ids)
        >>> decoupled_softmax(torch.zeros(1, 2), one)
        tensor(0.6931)
    """
    expect(temperature > 0, "temperature", "a number above 0", temperature, "try 0.05")
    rows, columns = block.csr.row_ids(), block.indices.long()
    negatives, positive, _ = _Logits.apply(scores, rows, columns, temperature)
    return _mean_by_point(functional.softplus(negatives[rows] - positive), block, relevance)


def hardest_triplets(
    scores: Float[Tensor, "b s"],
    block: Block,
    margin: float = 0.3,
    k: int = 10,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Hinge of each positive against the example's k highest negatives, the hardest weighing most.

    A negative's weight is the softmax of ``s_n / temperature`` over those of the k that violate the
    margin; others weigh nothing. Gradients flow through scores and weights.

    Args:
        scores: similarities, cosines for unit vectors.
        block: positives of the examples (`dst`) among the labels (`src`).
        margin: 0.3 as in NGAME's published configuration of the encoder's stage.
        k: negatives per example, fewer where the shortlist has fewer; 10 as there.
        temperature: of the weights; 0.1 as there. At infinity all violators weigh the same.

    Returns:
        the mean over positives of an example, then over examples with a positive; 0 if none has
        one.

    Raises:
        InputError: if k is less than one or the temperature is not positive.

    Example:
        A positive at 0.5, a negative at 0.6, margin 0.3: 0.6 − 0.5 + 0.3.

        >>> ids = torch.tensor([0])
        >>> one = Block(ids, torch.arange(2), torch.tensor([0, 1]), ids, ids)
        >>> hardest_triplets(torch.tensor([[0.5, 0.6]]), one)
        tensor(0.4000)
    """
    expect_positive("k", k)
    expect(temperature > 0, "temperature", "a number above 0", temperature, "try 0.1")
    rows, columns = block.csr.row_ids(), block.indices.long()
    masked = scores.masked_fill(block.mask(), -torch.inf)
    hardest = masked.topk(min(k, scores.shape[1]), dim=1).values[rows]
    hinge = (hardest - scores[rows, columns].unsqueeze(1) + margin).clamp(min=0)
    # a finite floor, not −inf: a row without violators must not turn into 0/0
    floor = torch.finfo(scores.dtype).min
    weight = torch.where(hinge > 0, hardest / temperature, floor).softmax(dim=1)
    return _mean_by_point((weight * hinge).sum(1), block)


def lowest_triplets(
    scores: Float[Tensor, "b s"],
    block: Block,
    margin: float = 0.2,
    positives: int = 3,
    k: int = 5,
) -> Float[Tensor, ""]:
    """Hinge of each example's lowest positives against its highest negatives.

    A pair's weight is the softmax of its hinge over the violating negatives of its positive.
    Gradients flow through scores and weights.

    Args:
        scores: cosines.
        block: positives of the examples (`dst`) among the labels (`src`).
        margin: 0.2 as in NGAME's published code of the classifiers' stage.
        positives: how many of an example, fewer where it has fewer; 3 as there.
        k: negatives per example, fewer where the shortlist has fewer; 5 as there.

    Returns:
        the mean over those positives of an example, then over examples with a positive; 0 if none
        has one.

    Raises:
        InputError: if a count is less than one.

    Example:
        Positives at 0.5 and 0.9, a negative at 0.6: only the lowest positive counts.

        >>> ids, at = torch.tensor([0]), torch.tensor([0, 1])
        >>> two = Block(ids, torch.arange(3), torch.tensor([0, 2]), at, at)
        >>> lowest_triplets(torch.tensor([[0.5, 0.9, 0.6]]), two, positives=1)
        tensor(0.3000)
    """
    expect_positive("positives", positives)
    expect_positive("k", k)
    width, true = scores.shape[1], block.mask()
    lowest = scores.masked_fill(~true, torch.inf)
    lowest = lowest.topk(min(positives, width), largest=False).values.unsqueeze(2)
    hardest = scores.masked_fill(true, -torch.inf).topk(min(k, width)).values.unsqueeze(1)
    hinge = (hardest - lowest + margin).clamp(min=0)
    floor = torch.finfo(scores.dtype).min
    each = (torch.where(hinge > 0, hinge, floor).softmax(dim=2) * hinge).sum(2)
    count = block.csr.degrees().clamp(max=positives)
    return (each.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


class _Logits(torch.autograd.Function):
    """Each example's log Σ_n e^{s_n/τ} over its negatives ``[b]``, and s_p/τ of positives ``[e]``.

    Equivalent to

        logits = scores / τ
        masked = logits.index_put((rows, columns), −∞)
        masked.logsumexp(dim=1), logits[rows, columns], masked.softmax(dim=1)

    whose gradient torch finds in three times as many passes over ``[b, s]``. The softmax is an
    output because it is the gradient of the first one: higher derivatives pass through it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor, rows: Tensor, columns: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = scores / temperature
        positive = logits[rows, columns]
        # a finite floor, not −∞: without negatives the highest is the floor too, and not 0/0
        logits[rows, columns] = torch.finfo(logits.dtype).min
        highest = logits.amax(1, keepdim=True) if logits.shape[1] else logits.sum(1, keepdim=True)
        softmax = logits.sub_(highest).exp_()
        total = softmax.sum(1, keepdim=True)
        return (highest + total.log()).squeeze(1), positive, softmax.div_(total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, rows, columns, ctx.temperature = inputs
        ctx.save_for_backward(rows, columns, output[2])
        ctx.save_for_forward(rows, columns, output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, columns, softmax = ctx.saved_tensors
        negatives, positive, again = grads
        slope = torch.zeros_like(softmax[:, :1]) if negatives is None else negatives.unsqueeze(1)
        if again is not None:
            slope = slope + again - (softmax * again).sum(1, keepdim=True)
        grad = softmax * (slope / ctx.temperature)
        if positive is not None:
            grad.index_put_((rows, columns), positive / ctx.temperature, accumulate=True)
        return grad, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns, softmax = ctx.saved_tensors
        assert tangents[0] is not None  # the scores': nothing else here has a derivative
        tangent = tangents[0] / ctx.temperature
        mean = (softmax * tangent).sum(1, keepdim=True)
        return mean.squeeze(1), tangent[rows, columns], softmax * (tangent - mean)


def _mean_by_point(
    losses: Float[Tensor, " e"], block: Block, relevance: Float[Tensor, " nnz"] | None = None
) -> Float[Tensor, ""]:
    """Average one loss per positive over those of an example, then over examples that have any."""
    rows = block.csr.row_ids()
    weight = torch.ones_like(losses)
    if relevance is not None:
        weight = relevance.to(losses.device)[block.edges].to(losses.dtype)
    total = weight.new_zeros(len(block.dst)).index_add(0, rows, weight)
    share = weight / total.where(total > 0, 1.0)[rows]
    return (losses * share).sum() / (total > 0).sum().clamp(min=1)
