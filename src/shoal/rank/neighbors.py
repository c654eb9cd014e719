"""Votes of neighbors: the labels of the training points that are nearest to a text.

A point's k nearest training points j, with similarities s_j, vote for their labels::

    v_l = Σ_j w_j [l in Y_j],    w_j = max(s_j, 0)^p / Σ_i max(s_i, 0)^p

so v_l is the share of the neighborhood that carries label l, in [0, 1]. An encoder knows a label by
its text; its neighbors know it by what it was given to, so the two err differently.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.rank.ranking import Ranking


def votes(near: Ranking, labels: Csr, k: int, power: float = 4.0) -> Ranking:
    """Rank labels by the weighted share of neighbors that carry them.

    Args:
        near: the nearest training points of each query, by similarity.
        labels: of the training points; values are not read.
        k: labels a query at most.
        power: p; 0 counts every neighbor the same. 4 measured best for cosines of embeddings, 2
            for those of tf-idf vectors, on WordNet's validation split (docs/LOG.md).

    Raises:
        InputError: if the power is negative.

    Example:
        Two neighbors of weights 3/4 and 1/4 share label 0; only the nearer has label 2.

        >>> near = Ranking(torch.tensor([[0.75, 0.25]]), torch.tensor([[0, 1]]))
        >>> ranked = votes(near, Csr.from_lists([[0, 2], [0]], n_cols=3), k=3, power=1.0)
        >>> ranked.ids.tolist(), ranked.scores.tolist()
        ([[0, 2, -1]], [[1.0, 0.75, -inf]])
    """
    expect(power >= 0, "power", "a number of at least 0", power, "try 4")
    weight = near.scores.clamp(min=0) ** power * (near.ids >= 0)
    tiny = torch.finfo(weight.dtype).tiny
    weight = weight / weight.sum(1, keepdim=True).clamp(min=tiny)
    columns, offsets = labels.take(near.ids.clamp(min=0).flatten())
    values = weight.flatten().repeat_interleave(offsets.diff(), output_size=len(columns))
    used = values > 0
    # rows of the result end where the entries of their last neighbor end
    ends = offsets[near.ids.shape[1] :: near.ids.shape[1]]
    indptr = pad(used.cumsum(0), (1, 0))[pad(ends, (1, 0))]
    cast = Csr(indptr, columns[used], labels.n_cols, values[used])
    return Ranking.of(cast.coalesce(), k)
