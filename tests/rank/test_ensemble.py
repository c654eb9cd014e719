"""Ensembles: features against a literal version; what the network learns from planted ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.metrics import inverse_propensity
from shoal.data.texts import no_pairs
from shoal.rank.ensemble import Candidates, NetworkCombiner, TrainedNetwork, join
from shoal.rank.ranking import Ranking, member


def random_ranking(n: int, n_labels: int, k: int, seed: int) -> Ranking:
    """Scores falling in each row, the last ids missing in some."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.rand(n, n_labels, generator=g).argsort(dim=1)[:, :k]
    scores = torch.rand(n, k, generator=g).sort(dim=1, descending=True).values
    none = torch.arange(k) >= torch.randint(0, k + 1, (n, 1), generator=g)
    return Ranking(scores.masked_fill(none, -torch.inf), ids.masked_fill(none, -1))


@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 99))
def test_features_are_score_share_and_reciprocal_rank(n: int, k: int, seed: int) -> None:
    """``join`` equals a loop over queries, candidates and rankings."""
    n_labels = 6
    rankings = [random_ranking(n, n_labels, k, seed), random_ranking(n, n_labels, 2, seed + 1)]
    frequency = torch.arange(n_labels)
    found = join(rankings, frequency)
    for i in range(n):
        union = sorted({j for r in rankings for j in r.ids[i].tolist() if j >= 0})
        width = found.ids.shape[1]
        assert found.ids[i].tolist() == union + [-1] * (width - len(union))
        for c, label in enumerate(union):
            want = []
            for r in rankings:
                ids, scores = r.ids[i].tolist(), r.scores[i].tolist()
                if label in ids:
                    rank = ids.index(label)
                    want += [scores[rank], scores[rank] / max(scores[0], 1e-6), 1 / (1 + rank)]
                else:
                    want += [0.0, 0.0, 0.0]
            want.append(torch.tensor(1.0 + label).log().item())
            torch.testing.assert_close(found.features[i, c], torch.tensor(want))
        assert not found.features[i, len(union) :].any()


def planted(n: int, seed: int) -> tuple[Candidates, Csr]:
    """One true label a query; the first ranking scores it 1 in three of four cases, the second
    says nothing."""
    g = torch.Generator().manual_seed(seed)
    n_labels, k = 40, 10
    noise = random_ranking(n, n_labels, k, seed + 1000).ids
    ids = torch.rand(n, n_labels, generator=g).argsort(dim=1)[:, :k]
    truth = ids[:, 0]
    right = torch.rand(n, generator=g) < 0.75
    scores = torch.rand(n, k, generator=g) * 0.5
    scores[:, 0] = torch.where(right, 1.0, scores[:, 0])
    scores, order = scores.sort(dim=1, descending=True)
    good = Ranking(scores, ids.gather(1, order))
    other = Ranking(torch.linspace(1, 0.1, k).expand(n, k), noise)
    indptr = torch.arange(n + 1)
    return join([other, good], torch.zeros(n_labels)), Csr(indptr, truth, n_labels)


def fitted(candidates: Candidates, truth: Csr, seed: int = 0, **options: Any) -> TrainedNetwork:
    """A network for these queries; nothing is dropped, and labels are known as often as here."""
    drop = no_pairs(*truth.shape)
    return NetworkCombiner(**options).fit(candidates, truth, drop, truth, seed)


def test_it_trusts_the_ranking_that_is_right_and_says_how_often() -> None:
    """Fresh queries: precision@1 near three in four, and the stated probabilities equal it."""
    network = fitted(*planted(1500, seed=0))
    candidates, truth = planted(1500, seed=1)
    ranking = network.rank(candidates, 2)
    hit = ranking.ids[:, 0] == truth.indices
    assert hit.float().mean() > 0.7
    assert abs(float(ranking.scores[:, 0].mean()) - float(hit.float().mean())) < 0.05
    sure = ranking.scores[:, 0] > 0.5
    assert 0.5 < float(sure.float().mean()) < 0.95  # both kinds of query occur
    assert float(hit[sure].float().mean()) > float(hit[~sure].float().mean()) + 0.3


@pytest.mark.parametrize(("weight", "first"), [(1.0, 0), (2.0, 0), (3.0, 1)])
def test_rare_labels_come_first_where_they_weigh_enough(weight: float, first: int) -> None:
    """Nothing tells queries apart; a common label is true in 7 of 10, a rare one in the others:
    the rare one comes first as soon as 0.3 of its weight exceeds 0.7."""
    n = 1000
    both = Ranking(torch.ones(n, 2), torch.tensor([[0, 1]]).expand(n, 2))
    found = join(
        [Ranking(both.scores, both.ids.roll(i, 1)) for i in (0, 1)], torch.tensor([70, 30])
    )
    truth = Csr(torch.arange(n + 1), (torch.arange(n) % 10 >= 7).long(), 2)
    inverse = inverse_propensity(truth)
    rare = math.log(weight) / math.log(inverse[1] / inverse[0])
    network = fitted(found, truth, rare=rare, epochs=5)
    assert (network.rank(found, 1).ids == first).all()


def test_the_same_seed_gives_the_same_network() -> None:
    """Fitting is a function of its arguments, and leaves torch's random state as it was."""
    candidates, truth = planted(200, seed=0)
    before = torch.get_rng_state()
    one, two = (fitted(candidates, truth, epochs=2).weights.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = fitted(candidates, truth, epochs=2, seed=1).weights.state_dict()
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_dropped_pairs_are_neither_predicted_nor_learned_from() -> None:
    """Dropping a query's best label gives the next one; too few candidates end in -1."""
    candidates, truth = planted(100, seed=0)
    network = fitted(candidates, truth, epochs=2)
    best = network.rank(candidates, 3)
    drop = Csr(torch.arange(101), best.ids[:, 0].contiguous(), truth.n_cols)
    without = network.rank(candidates, 2, drop)
    assert torch.equal(without.ids, best.ids[:, 1:])
    assert not bool(member(without.ids, drop).any())
    many = network.rank(candidates, 60)
    assert many.ids.shape == (100, 60)
    assert bool((many.ids[:, -1] == -1).all())
    assert bool((many.scores[many.ids >= 0] > 0).all())


def test_a_query_without_candidates_has_no_prediction() -> None:
    """No label is made up, and no NaN comes out."""
    empty = Ranking(torch.full((1, 2), -torch.inf), torch.full((1, 2), -1))
    network = fitted(*planted(50, seed=0), epochs=1)
    ranking = network.rank(join([empty, empty], torch.zeros(40)), 2)
    assert ranking.ids.tolist() == [[-1, -1]]
    assert ranking.scores.tolist() == [[-float("inf")] * 2]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Rankings of other queries, and held-out points of which nothing is found."""
    with pytest.raises(InputError, match="rankings: expected as many queries each"):
        join([random_ranking(1, 5, 2, 0), random_ranking(2, 5, 2, 0)], torch.zeros(5))
    candidates, _ = planted(10, seed=0)
    nothing = Csr(torch.zeros(11, dtype=torch.long), torch.zeros(0, dtype=torch.long), 40)
    with pytest.raises(InputError, match=r"rare: expected a power of at least 0, got -1.0"):
        NetworkCombiner(rare=-1.0)
    with pytest.raises(InputError, match="candidates: expected some true ones"):
        fitted(candidates, nothing)
