"""Losses over a shortlist: what a batch's points score against the labels that it holds.

Both read ``scores [b, s]`` and a :class:`~shoal.block.Block` whose entries are *all* known
positives between the two (an induced block), so that another point's label is never pushed away
from a point that has it too. Its zeros are the in-batch negatives. With P(i) the positives and N(i)
the negatives of point i:

    decoupled softmax   mean over p in P(i) of −log( e^{s_p/τ} / (e^{s_p/τ} + Σ_n e^{s_n/τ}) )
    hardest triplets    mean over p in P(i) of Σ_n w_n · max(0, s_n − s_p + m), n the k hardest

and then the mean over the points that have a positive. The softmax is that of Gupta et al.,
"Dual-encoders for extreme multi-label classification" (ICLR 2024): other positives leave the
denominator. The triplets are those of NGAME (Dahiya et al., WSDM 2023).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shoal._checks import expect, expect_positive
from shoal.block import Block


def decoupled_softmax(
    scores: Float[Tensor, "b s"], block: Block, temperature: float = 0.05
) -> Float[Tensor, ""]:
    """Negative log likelihood of each positive against the point's negatives.

    Args:
        scores: similarities, cosines for unit vectors.
        block: positives of the points (`dst`) among the labels (`src`).
        temperature: τ; 0.05 as in the published code of Gupta et al.

    Returns:
        the mean over positives of a point, then over points with a positive; 0 if none has one.

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
    logits = scores / temperature
    positive = logits[rows, columns]
    minus = torch.tensor(-torch.inf, dtype=logits.dtype, device=logits.device)
    negatives = torch.logsumexp(logits.index_put((rows, columns), minus), dim=1)
    return _mean_by_point(functional.softplus(negatives[rows] - positive), block)


def hardest_triplets(
    scores: Float[Tensor, "b s"],
    block: Block,
    margin: float = 0.3,
    k: int = 10,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Hinge of each positive against the point's k highest negatives, the hardest weighing most.

    A negative's weight is the softmax of ``s_n / temperature`` over those of the k that violate the
    margin; others weigh nothing. Gradients flow through scores and weights.

    Args:
        scores: similarities, cosines for unit vectors.
        block: positives of the points (`dst`) among the labels (`src`).
        margin: 0.3 as in NGAME's published configuration of the encoder's stage.
        k: negatives a point, fewer where the shortlist has fewer; 10 as there.
        temperature: of the weights; 0.1 as there. At infinity all violators weigh the same.

    Returns:
        the mean over positives of a point, then over points with a positive; 0 if none has one.

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


def _mean_by_point(losses: Float[Tensor, " e"], block: Block) -> Float[Tensor, ""]:
    """Average one loss a positive over the positives of a point, then over points that have any."""
    degree = block.csr.degrees()
    share = (1.0 / degree.clamp(min=1))[block.csr.row_ids()].to(losses.dtype)
    return (losses * share).sum() / (degree > 0).sum().clamp(min=1)
