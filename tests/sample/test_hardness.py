"""Hard-negative recall: known shares on planted vectors, and the definition as an oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.expand import ShortlistSampler
from shoal.sample.hardness import batch_hardness, hard_negative_recall
from shoal.sample.seeds import ClusterBatchSampler, RandomBatchSampler


def planted(k: int, size: int) -> tuple[Tensor, Csr]:
    """k far clusters of `size` near points each; every point is its own only label."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(k).repeat(size, 1)
    rows = rows + 0.01 * torch.randn(k * size, k, generator=generator)
    return rows, Csr.from_lists([[i] for i in range(k * size)], n_cols=k * size)


def test_clustered_batches_hold_all_and_random_ones_their_share() -> None:
    """Hardest size - 1 negatives are the cluster: clustered 1, random (b - 1) / (n - 1)."""
    rows, truth = planted(16, 16)
    clusters = ClusterBatchSampler(256, 32, 16, seed=0)
    clusters.refresh(rows)
    shortlist = ShortlistSampler(truth)
    assert hard_negative_recall(rows, rows, truth, clusters, shortlist, (5, 15)) == {5: 1, 15: 1}
    random = RandomBatchSampler(256, 32, seed=0)
    shares = []
    for epoch in range(10):
        random.set_epoch(epoch)
        shares.append(hard_negative_recall(rows, rows, truth, random, shortlist, (15,))[15])
    assert sum(shares) / 10 == pytest.approx(31 / 255, abs=0.01)


def test_agrees_with_the_definition() -> None:
    """Examples with several positives, few negatives or none: equal to the sets, point by point."""
    generator = torch.Generator().manual_seed(1)
    points, labels = (torch.randn(n, 4, generator=generator) for n in (12, 7))
    dense = torch.rand(12, 7, generator=generator) < 0.4
    dense[0], dense[1] = True, torch.arange(7) != 3
    truth = Csr.from_dense(dense)
    batches = torch.randperm(12, generator=generator).split(5)
    shortlist = ShortlistSampler(truth, positives=7)
    for k in (1, 3, 7, 100):
        shares = []
        for seeds in batches:
            (block,) = shortlist(seeds, generator)
            for i in seeds.tolist():
                ranked = (labels @ points[i]).argsort(descending=True).tolist()
                hardest = [label for label in ranked if not dense[i, label]][:k]
                if hardest:
                    shares.append(len(set(hardest) & set(block.src.tolist())) / len(hardest))
        got = hard_negative_recall(points, labels, truth, batches, shortlist, (k,))[k]
        assert got == pytest.approx(sum(shares) / len(shares))
        assert len(shares) == 11


def test_a_sample_estimates_the_whole() -> None:
    """300 of 1,024 points give the share of all within three standard errors, by their seed."""
    rows, truth = planted(32, 32)
    batches = list(RandomBatchSampler(1024, 256, seed=0))
    args = (rows, rows, truth, batches, ShortlistSampler(truth))
    whole = hard_negative_recall(*args, ks=(20,))[20]
    part = hard_negative_recall(*args, ks=(20,), sample=300, seed=1)
    assert part == hard_negative_recall(*args, ks=(20,), sample=300, seed=1)
    assert part[20] != whole and part[20] == pytest.approx(whole, abs=0.02)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    """Misaligned truth, a k of zero, foreign seeds, batches without a sampled point."""
    rows, truth = planted(2, 2)
    shortlist = ShortlistSampler(truth)
    seeds = torch.arange(4)
    with pytest.raises(
        InputError, match=r"truth: expected examples x labels, \(3, 4\), got \(4, 4\)"
    ):
        hard_negative_recall(rows[:3], rows, truth, [seeds], shortlist)
    with pytest.raises(InputError, match="ks: expected a whole number of at least 1, got 0"):
        hard_negative_recall(rows, rows, truth, [seeds], shortlist, ks=(0,))
    with pytest.raises(InputError, match=r"batches: expected ids in \[0, 4\), got 4"):
        hard_negative_recall(rows, rows, truth, [seeds + 1], shortlist)
    with pytest.raises(
        InputError, match="batches: expected some of the sampled examples, got none"
    ):
        hard_negative_recall(rows, rows, truth, [], shortlist)


def shortlist_of(dense: Tensor) -> Block:
    """The block whose points and labels have these positives."""
    csr = Csr.from_dense(dense)
    return Block(
        torch.arange(len(dense)),
        torch.arange(csr.n_cols),
        csr.indptr,
        csr.indices.long(),
        csr.indices.long(),
    )


def test_hardness_of_a_batch_agrees_with_the_definition() -> None:
    """All points looked at: means over point by point; some of them: near it."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(600 + 80, 8, generator=generator)
    dense = torch.rand(600, 80, generator=generator) < 0.05
    dense[3] = True
    points, labels = outputs.split([600, 80])
    scores = points @ labels.T
    some = [i for i in range(600) if 0 < dense[i].sum() < 80]
    hardest = sum(max(scores[i][~dense[i]].tolist()) for i in some) / len(some)
    whole = batch_hardness(outputs, shortlist_of(dense), sample=600)
    assert whole["hardest_negative"] == pytest.approx(hardest, rel=1e-4)
    assert whole["positive"] == pytest.approx(float(scores[dense].mean()), rel=1e-4)
    part = batch_hardness(outputs, shortlist_of(dense))
    assert part["hardest_negative"] == pytest.approx(hardest, rel=0.1) and part != whole


def test_hardness_of_clusters_is_above_that_of_random_batches() -> None:
    """Near points' labels score high; a batch without negatives has no hardness."""
    rows, truth = planted(16, 16)
    clusters = ClusterBatchSampler(256, 32, 16, seed=0)
    clusters.refresh(rows)
    found = []
    for seeds in (next(iter(clusters)), torch.arange(16)):
        (block,) = ShortlistSampler(truth)(seeds, torch.Generator().manual_seed(0))
        outputs = torch.cat([rows[block.dst], rows[block.src]])
        found.append(batch_hardness(outputs, block)["hardest_negative"])
    assert found[0] > 0.9 and found[1] < 0.2  # the first 16 rows are one of each cluster
    assert batch_hardness(torch.ones(2, 3), shortlist_of(torch.ones(1, 1) > 0)) == {}


def test_hardness_changes_nothing() -> None:
    """Neither outputs nor gradients know that they were looked at."""
    outputs = torch.ones(3, 2, requires_grad=True)
    batch_hardness(outputs, shortlist_of(torch.eye(1, 2) > 0))
    assert outputs.grad is None and torch.equal(outputs, torch.ones(3, 2))
