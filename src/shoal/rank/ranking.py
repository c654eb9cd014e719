"""A ranking: for each of n queries its best k ids and their scores.

What every way of finding labels returns, whether it searched embeddings, counted the votes of
neighbors or matched words; what :mod:`shoal.rank.ensemble` joins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ids with scores, best first; a query with fewer than k has -1 with -inf at its end.

    Attributes:
        scores: falling along each row, ``[n, k]``.
        ids: distinct along each row, ``[n, k]``.
    """

    scores: Float[Tensor, "n k"]
    ids: Int[Tensor, "n k"]

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            InputError: if scores and ids do not belong together.
        """
        good = self.ids.dim() == 2 and self.scores.shape == self.ids.shape
        shapes = tuple(self.scores.shape), tuple(self.ids.shape)
        expect(good, "scores, ids", "two matrices [n, k]", shapes, "pass one score an id")

    @staticmethod
    def among(scores: Float[Tensor, "n c"], ids: Int[Tensor, "n c"], k: int) -> Ranking:
        """The k best of some ids of each query.

        Args:
            scores: of the ids; -inf for one that is not ranked.
            ids: distinct along each row, but for -1.
            k: how many; all where there are fewer.

        Example:
            >>> Ranking.among(torch.tensor([[0.5, 2.0, -torch.inf]]), torch.tensor([[4, 7, 1]]), 3)
            Ranking(scores=tensor([[2.0000, 0.5000,   -inf]]), ids=tensor([[ 7,  4, -1]]))
        """
        best, at = scores.topk(min(k, scores.shape[1]), dim=1)
        return Ranking(best, ids.gather(1, at).masked_fill(best == -torch.inf, -1))

    @staticmethod
    def of(matrix: Csr, k: int) -> Ranking:
        """Return the k largest entries of each row, equal ones by rising column.

        Args:
            matrix: with values; no column twice in a row.
            k: how many.

        Raises:
            InputError: if k is not positive.

        Example:
            >>> scores = Csr.from_dense(torch.tensor([[0.0, 2.0, 3.0], [0.5, 0.0, 0.0]]))
            >>> Ranking.of(scores, 2).ids
            tensor([[ 2,  1],
                    [ 0, -1]])
        """
        expect_positive("k", k)
        values = torch.ones(matrix.nnz) if matrix.values is None else matrix.values
        row = matrix.row_ids()
        order = torch.argsort(matrix.indices, stable=True)
        order = order[torch.argsort(values[order], descending=True, stable=True)]
        order = order[torch.argsort(row[order], stable=True)]
        # rows are in place again, so the i-th entry of a row stands i after the row's first
        place = torch.arange(matrix.nnz, device=row.device) - matrix.indptr[row]
        kept = place < k
        scores = values.new_full((matrix.n_rows, k), -torch.inf)
        ids = torch.full_like(scores, -1, dtype=torch.int64)
        at = row[kept], place[kept]
        scores[at], ids[at] = values[order][kept], matrix.indices[order][kept].long()
        return Ranking(scores, ids)

    def within(self, pool: Int[Tensor, "n c"]) -> Ranking:
        """The same without ids that are not in the pool of their query.

        Args:
            pool: ids of each query, rising, -1 behind them.
        """
        last = torch.iinfo(torch.int64).max
        rising = pool.masked_fill(pool < 0, last)
        at = torch.searchsorted(rising, self.ids).clamp(max=pool.shape[1] - 1)
        out = (rising.gather(1, at) != self.ids) | (self.ids < 0)
        scores = self.scores.masked_fill(out, -torch.inf)
        return Ranking.among(scores, self.ids, self.ids.shape[1])

    def matrix(self, n_cols: int) -> Csr:
        """The scores as a sparse matrix ``[n, n_cols]``, entries in the order of the ranking."""
        found = self.ids >= 0
        indptr = pad(found.sum(1).cumsum(0), (1, 0))
        return Csr(indptr, self.ids[found], n_cols, self.scores[found])


def united(ids: Int[Tensor, "n k"]) -> Int[Tensor, "n c"]:
    """The distinct ids of each row, rising, -1 behind them.

    Example:
        >>> united(torch.tensor([[3, 1, 3, -1], [2, -1, -1, 0]]))
        tensor([[1, 3],
                [0, 2]])
    """
    last = torch.iinfo(torch.int64).max
    listed, _ = ids.masked_fill(ids < 0, last).sort(dim=1)
    listed[:, 1:].masked_fill_(listed[:, 1:] == listed[:, :-1], last)
    listed, _ = listed.sort(dim=1)
    listed = listed[:, : max(int((listed < last).sum(1).max()), 1) if len(ids) else 1]
    return listed.masked_fill(listed == last, -1)


def member(ids: Int[Tensor, "n c"], pairs: Csr) -> Bool[Tensor, "n c"]:
    """Whether (row, id) is an entry of a matrix with n rows; -1 never is."""
    row = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    found, _ = (
        pairs.with_values(None).coalesce().find(row.reshape(-1), ids.clamp(min=0).reshape(-1))
    )
    return found.view_as(ids) & (ids >= 0)


def votes(near: Ranking, labels: Csr, k: int, power: float = 4.0) -> Ranking:
    """Rank labels by the weighted share of neighbors that carry them.

    A query's k nearest examples j, with similarities s_j, vote for their labels::

        v_l = Σ_j w_j [l in Y_j],    w_j = max(s_j, 0)^p / Σ_i max(s_i, 0)^p

    so v_l is the share of the neighborhood that carries label l, in [0, 1]. An encoder knows a
    label by its text; its neighbors know it by what it was given to, so the two err differently.

    Args:
        near: the nearest known examples of each query, by similarity.
        labels: of the known examples; values are not read.
        k: labels per query at most.
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
