"""The joint: one scalar of (parameters, batch), in two halves.

    outputs(params, batch)   embeddings or logits: the expensive half, which can be chunked
    loss(outputs, batch)     the mean over the seeds

Calling an objective composes them. Training differentiates it once, curvature twice; the
Gauss-Newton product and gradient caching use the halves. It changes nothing and reads nothing but
its arguments (and, in training mode, dropout's random numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from shoal.core.block import Batch, Block
from shoal.core.errors import fail
from shoal.core.losses import decoupled_softmax

Params = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """A module called on a batch's blocks and rows, and a criterion for what it returns.

    Attributes:
        model: called as ``model(blocks, rows)``.
        criterion: ``(outputs, batch)`` → scalar, mean over the seeds.

    Example:
        >>> from shoal.text.bag import BagSum
        >>> objective = Objective(BagSum(), lambda outputs, batch: outputs.square().sum())
    """

    model: nn.Module
    criterion: Callable[[Tensor, Batch], Tensor]

    def outputs(self, params: Params, batch: Batch) -> Tensor:
        """What the model makes of the batch, with `params` in place of its own parameters."""
        return functional_call(self.model, dict(params), (batch.blocks, batch.src))

    def loss(self, outputs: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """The criterion of outputs."""
        return self.criterion(outputs, batch)

    def __call__(self, params: Params, batch: Batch) -> Float[Tensor, ""]:
        """Both halves."""
        return self.loss(self.outputs(params, batch), batch)


@dataclass(frozen=True, eq=False)
class ByScores:
    """A criterion that scores pairs of embeddings, and a loss of the scores.

    Attributes:
        score: of embeddings and the last block, which says which pairs.
        loss: of scores and the last block. It may be convex in scores, as curvature wants it, where
            it is not in embeddings.
    """

    score: Callable[[Tensor, Block], Tensor]
    loss: Callable[[Tensor, Block], Tensor]

    def scores(self, outputs: Float[Tensor, "s d"], batch: Batch) -> Float[Tensor, ...]:
        """What the loss reads."""
        return self.score(outputs, batch.blocks[-1])

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of the scores."""
        return self.loss(self.scores(outputs, batch), batch.blocks[-1])


def in_batch(loss: Callable[[Tensor, Block], Tensor]) -> ByScores:
    """Turn a loss over a shortlist into a criterion.

    Outputs are embeddings of the last block's `dst` (the seeds), then of its `src` (the labels);
    scores are their inner products.

    Args:
        loss: such as :func:`~shoal.core.losses.decoupled_softmax`.
    """
    return ByScores(_seeds_by_labels, loss)


def _seeds_by_labels(
    outputs: Float[Tensor, "b_plus_s d"], shortlist: Block
) -> Float[Tensor, "b s"]:
    points, labels = outputs.split([len(shortlist.dst), len(shortlist.src)])
    return (points @ labels.T).float()


def node_cross_entropy(outputs: Float[Tensor, "b c"], batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy of the seeds' logits with their classes, ``batch.target``.

    Raises:
        InputError: if the batch carries no target.
    """
    if batch.target is None:
        fail("target", "one class per seed", None, "give the loader a target")
    return functional.cross_entropy(outputs.float(), batch.target)


def node_binary_cross_entropy(outputs: Float[Tensor, "b c"], batch: Batch) -> Float[Tensor, ""]:
    """Binary cross-entropy of the seeds' logits with their truth values, mean over all classes.

    For nodes that may have several classes, or none: ``batch.target`` is ``[b, c]``.

    Raises:
        InputError: if the batch carries no target.
    """
    if batch.target is None:
        fail("target", "one truth value per seed and class", None, "give the loader a target")
    logits = outputs.float()
    return functional.binary_cross_entropy_with_logits(logits, batch.target.to(logits.dtype))


def link_softmax(temperature: float = 0.05) -> ByScores:
    """Softmax of each link against all nodes of the batch that its source is not linked with.

    The last block is an induced shortlist over the graph that begins with its `dst`: outputs are
    embeddings of its `src`, scores their inner products. A node competes with all others but itself
    (:func:`~shoal.core.losses.decoupled_softmax`).

    Args:
        temperature: of the softmax, for unit vectors; the default is that of
            :func:`~shoal.core.losses.decoupled_softmax`.
    """

    def score(outputs: Tensor, shortlist: Block) -> Tensor:
        b = shortlist.dst.numel()
        scores = (outputs[:b] @ outputs.T).float()
        itself = torch.eye(b, len(outputs), dtype=torch.bool, device=scores.device)
        # finite, not -inf: a node whose only candidate is itself must not turn into 0/0
        return scores.masked_fill(itself, temperature * torch.finfo(scores.dtype).min / 2)

    return ByScores(score, partial(decoupled_softmax, temperature=temperature))


def link_binary_cross_entropy(temperature: float = 0.1) -> ByScores:
    """Binary cross-entropy of listed pairs, links and negatives weighing the same in total.

    The last block lists the pairs that are scored, as :class:`~shoal.sample.links.PairSampler`
    makes it: an entry is a link where its edge is at least 0. Outputs are embeddings, scores the
    inner products of listed pairs.

    Args:
        temperature: inner products are divided by it; the default is for unit vectors.
    """

    def score(outputs: Tensor, pairs: Block) -> Tensor:
        row, col = pairs.csr.row_ids(), pairs.indices.long()
        return (outputs[row] * outputs[col]).sum(1).float() / temperature

    return ByScores(score, _balanced_binary_cross_entropy)


def _balanced_binary_cross_entropy(logits: Float[Tensor, " e"], pairs: Block) -> Float[Tensor, ""]:
    linked = (pairs.edges >= 0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, linked, reduction="none")
    of_links = (losses * linked).sum() / linked.sum().clamp(min=1)
    of_others = (losses * (1 - linked)).sum() / (1 - linked).sum().clamp(min=1)
    return (of_links + of_others) / 2
