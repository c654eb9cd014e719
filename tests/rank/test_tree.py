"""NGAME's decision tree: the best cuts, what it says, and the labels that it ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.texts import no_pairs
from shoal.rank.ensemble import join
from shoal.rank.ranking import Ranking
from shoal.rank.tree import TrainedTree, TreeCombiner, fit_tree


def sample(n: int = 300, f: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, f, generator=generator).mul(4).round().div(4)  # values come twice
    true = (x[:, 0] > 0) ^ (x[:, 1] > 0.5)
    return x, true ^ (torch.rand(n, generator=generator) < 0.1)


def impurity(true: Tensor) -> float:
    p = float(true.double().mean()) if len(true) else 0.0
    return len(true) * 2 * p * (1 - p)


def literal_best(x: Tensor, true: Tensor) -> float:
    """The least impurity that any cut of any feature leaves."""
    return min(
        impurity(true[x[:, j] <= t]) + impurity(true[x[:, j] > t])
        for j in range(x.shape[1])
        for t in x[:, j].unique().tolist()
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_cut_is_the_best_there_is(seed: int) -> None:
    """Node by node, the impurity left equals that of a search over all cuts."""
    x, true = sample(seed=seed)
    tree = fit_tree(x, true, depth=3)
    at = {0: torch.ones(len(x), dtype=torch.bool)}
    for node in range(7):
        if node not in at or tree.feature[node] < 0:
            continue
        inside = at[node]
        right = x[:, tree.feature[node]] > tree.threshold[node]
        at[2 * node + 1], at[2 * node + 2] = inside & ~right, inside & right
        left = impurity(true[inside & ~right]) + impurity(true[inside & right])
        assert left == pytest.approx(literal_best(x[inside], true[inside]))
    assert len(at) > 5


def test_leaves_hold_the_share_of_their_samples() -> None:
    """Shares of samples are the true share of those with the same share; depth pays."""
    x, true = sample()
    errors = []
    for depth in (1, 7):
        shares = fit_tree(x, true, depth).shares(x)
        for value in shares.unique():
            assert true[shares == value].float().mean() == pytest.approx(float(value))
        errors.append(float((shares - true.float()).square().mean()))
    assert errors[1] < errors[0] / 2


def test_nothing_to_ask() -> None:
    """One class, one sample, or equal features: a leaf alone."""
    for x, true in (
        (torch.tensor([[0.0], [1.0]]), torch.tensor([True, True])),
        (torch.tensor([[0.0]]), torch.tensor([False])),
        (torch.zeros(4, 2), torch.tensor([True, False, True, False])),
    ):
        tree = fit_tree(x, true)
        assert int((tree.feature >= 0).sum()) == 0
        assert bool((tree.shares(x) == true.float().mean()).all())
    with pytest.raises(InputError, match="features: expected at least one sample"):
        fit_tree(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))


def test_scores_are_share_and_both_cosines() -> None:
    """(P + knn) + clf; candidates of other rankings are left out; pairs to drop are dropped."""
    text = Ranking(torch.tensor([[0.5, 0.4]]), torch.tensor([[0, 1]]))
    head = Ranking(torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 2]]))
    other = Ranking(torch.tensor([[1.0]]), torch.tensor([[3]]))
    found = join([text, head, other], torch.zeros(4))
    truth = Csr.from_lists([[1]], 4)
    combiner = TreeCombiner().fit(found, truth, no_pairs(1, 4), truth, seed=0)
    ranked = combiner.rank(found, 3)
    assert ranked.ids.tolist() == [[1, 0, 2]]
    assert ranked.scores[0].tolist() == pytest.approx([1 + 0.4 + 0.9, 0.5, 0.1])
    assert not combiner.probabilities
    again = TrainedTree.of_state(combiner.state_dict()).rank(found, 4, Csr.from_lists([[0]], 4))
    assert again.ids.tolist() == [[1, 2, -1, -1]]
