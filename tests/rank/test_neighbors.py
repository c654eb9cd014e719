"""Votes of neighbors against a dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.rank.neighbors import votes
from shoal.rank.ranking import Ranking


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
