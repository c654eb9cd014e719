"""Rankings against dense sorting, votes of neighbors against a dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.rank.ranking import Ranking, votes


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


@given(st.integers(0, 4), st.integers(1, 5), st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 99))
def test_votes_are_the_weights_times_the_label_matrix(
    n: int, near: int, power: float, seed: int
) -> None:
    """Weights ``[n, points]`` times labels give the votes, also where neighbors are missing."""
    g = torch.Generator().manual_seed(seed)
    points, labels = 6, 5
    given_labels = torch.rand(points, labels, generator=g) < 0.4
    scores = torch.rand(n, near, generator=g).sort(dim=1, descending=True).values - 0.2
    ids = torch.rand(n, points, generator=g).argsort(dim=1)[:, :near]
    none = torch.rand(n, near, generator=g) < 0.2
    ranking = Ranking(scores.masked_fill(none, -torch.inf), ids.masked_fill(none, -1))
    weight = torch.zeros(n, points)
    for i in range(n):
        for score, j in zip(ranking.scores[i].tolist(), ranking.ids[i].tolist(), strict=True):
            if j >= 0:
                weight[i, j] = max(score, 0.0) ** power
    weight /= weight.sum(1, keepdim=True).clamp(min=1e-30)
    found = votes(ranking, Csr.from_dense(given_labels), k=labels, power=power)
    torch.testing.assert_close(found.matrix(labels).to_dense(), weight @ given_labels.float())


@pytest.mark.usefixtures("unchecked")
def test_a_negative_power_is_refused() -> None:
    """It would let the farthest neighbor vote most."""
    ranking = Ranking(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(InputError, match="power: expected a number of at least 0"):
        votes(ranking, Csr.from_lists([[0]], n_cols=1), k=1, power=-1.0)
