"""The bounds on in-batch negatives hold, and say something."""

from __future__ import annotations

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.search import top_k
from shoal.sample.certificate import Certificate, certify
from shoal.sample.clusters import balanced_clusters
from tests.planted import planted_labels

DATA = planted_labels(n=512, n_labels=64)
CLUSTERED = balanced_clusters(DATA.train_rows, 128, seed=0)
RANDOM = torch.randperm(512, generator=torch.Generator().manual_seed(0))


def certificate(order: torch.Tensor, size: int = 128) -> Certificate:
    return certify(DATA.train_rows, DATA.label_rows, DATA.train.labels, order, size)


@pytest.mark.parametrize("order", [CLUSTERED, RANDOM], ids=["clustered", "random"])
@pytest.mark.parametrize("size", [8, 128, 500])
def test_the_bounds_hold(order: torch.Tensor, size: int) -> None:
    """Floor below what is held, ceiling above what is missed, by exact search over all labels."""
    found = certificate(order, size)
    assert bool((found.floor <= found.hardest + 1e-5).all())
    best = top_k(DATA.train_rows, DATA.label_rows, 1, DATA.train.labels)[0][:, 0]
    assert bool((best <= torch.maximum(found.hardest, found.ceiling) + 1e-5).all())


def test_the_bounds_are_not_vacuous() -> None:
    """Clusters prove the hardest negative for a quarter of the points, random batches for none.

    And what they must hold is far harder than a label by chance.
    """
    found, chance = certificate(CLUSTERED), certificate(RANDOM)
    assert found.proven > 0.25 and chance.proven < 0.01
    scores = DATA.train_rows @ DATA.label_rows.T
    by_chance = scores[DATA.train.labels.to_dense() == 0].mean()
    assert found.floor.mean() > by_chance + 0.25
    assert found.ceiling.mean() < chance.ceiling.mean() - 0.1


def test_what_is_proven_is_true() -> None:
    """Where the certificate says so, the cluster holds the very hardest negative there is."""
    found = certificate(CLUSTERED)
    best = top_k(DATA.train_rows, DATA.label_rows, 1, DATA.train.labels)[0][:, 0]
    proven = found.hardest >= found.ceiling
    torch.testing.assert_close(found.hardest[proven], best[proven])
    assert bool((found.hardest < best - 1e-3).any())  # elsewhere it need not be


def test_the_first_bound_is_tight() -> None:
    """Two points at a small angle along the label's own direction: the floor is nearly reached."""
    angle = torch.tensor([0.8, 0.81])
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.nn.functional.normalize(torch.tensor([[-0.7, 0.72], [0.0, 1.0]]), dim=1)
    truth = Csr.from_lists([[1], [0]], n_cols=2)
    found = certify(points, labels, truth, torch.arange(2), size=2)
    assert 0 <= found.hardest[0] - found.floor[0] < 1e-3


def test_one_cluster_misses_nothing() -> None:
    """All points in one cluster: every negative that some point has is held."""
    found = certificate(CLUSTERED, 512)
    assert found.proven == 1.0 and bool((found.ceiling == -torch.inf).all())


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Rows that are not of length one, shapes that disagree."""
    rows, truth = DATA.train_rows, DATA.train.labels
    with pytest.raises(InputError, match="examples: expected unit vectors"):
        certify(2 * rows, DATA.label_rows, truth, CLUSTERED, 8)
    with pytest.raises(InputError, match="truth: expected examples x labels"):
        certify(rows[:5], DATA.label_rows, truth, CLUSTERED, 8)
