"""A ranking: for each of n queries its best k ids and their scores.

What every way of finding labels returns, whether it searched embeddings, counted the votes of
neighbors or matched words; what :mod:`shoal.rank.fusion` joins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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

    def matrix(self, n_cols: int) -> Csr:
        """The scores as a sparse matrix ``[n, n_cols]``, entries in the order of the ranking."""
        found = self.ids >= 0
        indptr = torch.nn.functional.pad(found.sum(1).cumsum(0), (1, 0))
        return Csr(indptr, self.ids[found], n_cols, self.scores[found])


def member(ids: Int[Tensor, "n c"], pairs: Csr) -> Bool[Tensor, "n c"]:
    """Whether (row, id) is an entry of a matrix with n rows; -1 never is."""
    row = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    found, _ = (
        pairs.with_values(None).coalesce().find(row.reshape(-1), ids.clamp(min=0).reshape(-1))
    )
    return found.view_as(ids) & (ids >= 0)
