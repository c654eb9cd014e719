"""Rankings against dense sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.rank.ranking import Ranking


def random_matrix(n: int, m: int, seed: int) -> torch.Tensor:
    """Half zeros, and few distinct values, so that ties are common."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (n, m), generator=g) * torch.randint(0, 2, (n, m), generator=g) / 4.0


@given(st.integers(0, 5), st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
def test_the_k_largest_of_each_row_ties_by_rising_column(n: int, m: int, k: int, seed: int) -> None:
    """Ranking.of equals a stable sort of each dense row, zeros left out."""
    dense = random_matrix(n, m, seed)
    ranking = Ranking.of(Csr.from_dense(dense), k)
    for row, scores, ids in zip(
        dense.tolist(), ranking.scores.tolist(), ranking.ids.tolist(), strict=True
    ):
        best = sorted(((-v, j) for j, v in enumerate(row) if v), key=lambda pair: pair)[:k]
        missing = k - len(best)
        assert ids == [j for _, j in best] + [-1] * missing
        assert scores == [-v for v, _ in best] + [-float("inf")] * missing


def test_a_whole_ranking_holds_the_matrix() -> None:
    """Listing all entries and putting them back gives the same matrix."""
    dense = random_matrix(6, 8, seed=0)
    assert dense.any()
    assert torch.equal(Ranking.of(Csr.from_dense(dense), 8).matrix(8).to_dense(), dense)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Shapes that do not fit and k below one say so."""
    with pytest.raises(InputError, match="scores, ids: expected two matrices"):
        Ranking(torch.zeros(1, 2), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="k: expected a whole number of at least 1"):
        Ranking.of(Csr.from_dense(torch.eye(2)), 0)
