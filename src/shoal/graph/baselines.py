"""Strong and simple models of nodes: what a network must beat, and what an ensemble gains by.

``linear`` and ``perceptron`` read a node's features and what its neighbors show on average
(:mod:`shoal.graph.propagate`), ``smoothed`` features averaged far and wide, and ``spread`` classes
alone. Each gives log-probabilities
``log p_m``; their pool is

    log p = Σ_m w_m log p_m + constant,    w ≥ 0 by least validation loss

(Genest, Zidek, "Combining probability distributions", Statistical Science 1986), so that a model
that does not help weighs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shoal.core.csr import Csr
from shoal.core.sparse import unit
from shoal.graph.features import words_of
from shoal.graph.layers import Layered
from shoal.graph.propagate import (
    averaging,
    class_means,
    neighbor_means,
    smoothed,
    spread_classes,
    word_means,
)
from shoal.graph.residual import Standardize

FLOATS = 2**27
"""The most numbers of all nodes' inputs: half a GiB."""
FEW = 2**19
"""Entries of sparse neighbor means up to which those of a further hop are read, too."""
_HOPS = 3
_LEAST = 1e-4  # of a probability whose logarithm is taken


class LinearModel(Layered):
    """Logistic regression.

    Args:
        in_dim: width of the rows; None where they are trained, and sum to the logits.
        out_dim: classes.
    """

    def __init__(self, in_dim: int | None, out_dim: int) -> None:
        super().__init__([], nn.Identity())
        self.scale = None if in_dim is None else Standardize(in_dim)
        weight = nn.Identity() if in_dim is None else nn.Linear(in_dim, out_dim, bias=False)
        self.weight, self.bias = weight, nn.Parameter(torch.zeros(out_dim))

    def leave(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Logits."""
        return self.weight(rows if self.scale is None else self.scale(rows)) + self.bias


class SmoothedModel(Layered):
    """A perceptron with dropout of its inputs, for rows that are averaged over many nodes.

    Args:
        in_dim: width of the rows.
        out_dim: classes.
        hidden: width between; that of the network on whole graphs.
        dropout: share of inputs, and of hidden entries, that is dropped while training.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__([], nn.Identity())
        self.scale = Standardize(in_dim)
        first, last = nn.Linear(in_dim, hidden), nn.Linear(hidden, out_dim)
        drop = nn.Dropout(dropout)
        self.perceptron = nn.Sequential(drop, first, nn.ReLU(), drop, last)

    def leave(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Logits."""
        return self.perceptron(self.scale(rows))


def smoothed_rows(graph: Csr, features: Csr | Tensor) -> Float[Tensor, "n f"]:
    """What the smoothed model reads: features smoothed, those of words at length one.

    Args:
        graph: row v lists the nodes that v reads.
        features: one row per node.
    """
    words = words_of(features, graph.n_rows)
    if words is not None:
        return unit(smoothed(graph, words.to_dense().float()))
    rows = features if isinstance(features, Tensor) else features.to_dense()
    return smoothed(graph, rows.float())


def inputs_of(
    graph: Csr, features: Csr | Tensor | None, known: Csr | None
) -> Csr | Float[Tensor, "n d"] | None:
    """What the linear model and the perceptron read: features, neighbor means, class means.

    Wide sparse features stay sparse, with the means of one hop, and of up to three while these have
    at most :data:`FEW` entries; others have those of up to three, as many as :data:`FLOATS` allow.

    Args:
        graph: row v lists the nodes that v reads.
        features: one row per node; None where there are none.
        known: ``[n, c]``, the classes that are known; None reads none.

    Returns:
        one row per node; None where there is nothing to read, or even the features are too many.
    """
    n, mean = graph.n_rows, averaging(graph)
    classes = [] if known is None else class_means(mean, known)
    words = None if features is None else words_of(features, n)
    if words is not None:
        means = [word_means(mean, words)]
        while len(means) < _HOPS and means[-1].nnz <= FEW:
            means.append(word_means(mean, means[-1]))
        return side_by_side([words, *means, *(Csr.from_dense(x) for x in classes)])
    dense = []
    if features is not None:
        rows = features.float() if isinstance(features, Tensor) else features.to_dense().float()
        hops = min(_HOPS, FLOATS // max(rows.numel(), 1) - 1)
        if hops < 0:
            return None
        dense = neighbor_means(mean, rows, hops)
    parts = [*dense, *classes]
    return torch.cat(parts, 1) if parts else None


def side_by_side(parts: Sequence[Csr]) -> Csr:
    """Columns of some matrices one after the other, ``[n, Σ f]``; what has no values has ones.

    Example:
        >>> side_by_side([Csr.from_lists([[1]], 2), Csr.from_lists([[0]], 1)]).to_dense().tolist()
        [[0.0, 1.0, 1.0]]
    """
    values = [torch.ones(x.nnz) if x.values is None else x.values.float() for x in parts]
    starts = torch.tensor([0, *(x.n_cols for x in parts)]).cumsum(0).tolist()
    columns = [x.indices.long() + start for x, start in zip(parts, starts, strict=False)]
    row, shape = torch.cat([x.row_ids() for x in parts]), (parts[0].n_rows, starts[-1])
    return Csr.from_coo(row, torch.cat(columns), shape, torch.cat(values))


def spread(graph: Csr, known: Csr) -> Float[Tensor, "n c"]:
    """Log-probabilities of classes that flow from where they are known."""
    found = spread_classes(averaging(graph), known)
    return (found / found.sum(1, keepdim=True).clamp(min=_LEAST)).clamp(min=_LEAST).log()


def log_scores(logits: Float[Tensor, "n c"], several: bool) -> Float[Tensor, "n c"]:
    """What is pooled: log-probabilities, or of several classes a node the logits."""
    return logits.float() if several else logits.float().log_softmax(1)


def pool(
    scores: Sequence[Float[Tensor, "n c"]], weights: Float[Tensor, " m"]
) -> Float[Tensor, "n c"]:
    """The weighted sum of some models' scores.

    Example:
        >>> pool([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])], torch.tensor([1.0, 0.5]))
        tensor([[1., 1.]])
    """
    return sum((w * x for w, x in zip(weights, scores, strict=True)), torch.zeros(()))


def pool_weights(
    scores: Sequence[Float[Tensor, "n c"]], target: Int[Tensor, " n"] | Bool[Tensor, "n c"]
) -> Float[Tensor, " m"]:
    """The weights of least loss on some nodes, at least 0; convex, so there is one least loss.

    Weights are those of scores at deviation one: one that is sure of itself is no better for that.

    Args:
        scores: of each model, of nodes that none of them was trained on.
        target: of these nodes.

    Example:
        The second model says the opposite of the truth.

        >>> right = torch.eye(2).repeat(5, 1)
        >>> weights = pool_weights([right, 1 - right], torch.tensor([0, 1] * 5))
        >>> bool(weights[0] > 1), float(weights[1])
        (True, 0.0)
    """
    deviation = torch.stack([x.double().std() for x in scores]).clamp(min=_LEAST)
    stacked = torch.stack([x.double() for x in scores]) / deviation[:, None, None]
    weights = torch.full((len(scores),), 1 / len(scores), dtype=torch.float64)
    step = 1.0
    loss, slope = _loss(stacked, weights, target)
    for _ in range(200):  # projected gradient with backtracking
        tried = (weights - step * slope).clamp(min=0)
        new, new_slope = _loss(stacked, tried, target)
        moved = tried - weights
        if new <= loss + (slope * moved).sum() + moved.square().sum() / (2 * step):
            done = float(moved.abs().max()) < 1e-5
            weights, loss, slope, step = tried, new, new_slope, 2 * step
            if done:
                break
        else:
            step /= 2
    return (weights / deviation).float()


def _loss(stacked: Tensor, weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        weights = weights.clone().requires_grad_()
        pooled = (weights[:, None, None] * stacked).sum(0)
        if target.dim() == 2:
            truth = target.to(pooled.dtype)
            loss = functional.binary_cross_entropy_with_logits(pooled, truth)
        else:
            loss = functional.cross_entropy(pooled, target)
        loss = loss + 1e-3 * weights.square().sum()  # where few nodes are told apart without error
        (slope,) = torch.autograd.grad(loss, weights)
    return loss.detach(), slope
