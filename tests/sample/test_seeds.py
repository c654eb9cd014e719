"""Batch samplers: every point once an epoch, whole clusters, the same batches after a resume."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.errors import InputError
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank, RandomBatchSampler

Sampler = RandomBatchSampler | ClusterBatchSampler


def embeddings(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


def clustered(n: int, batch_size: int, size, seed: int = 0, drop_last: bool = False):
    sampler = ClusterBatchSampler(n, batch_size, size, seed, drop_last)
    sampler.refresh(embeddings(n))
    return sampler


def build(kind: str, size: int, per_batch: int, extra: int, seed: int, drop_last: bool) -> Sampler:
    batch_size = size * per_batch
    n = batch_size + extra
    if kind == "random":
        return RandomBatchSampler(n, batch_size, seed, drop_last)
    if kind == "fresh":
        return ClusterBatchSampler(n, batch_size, size, seed, drop_last)
    return clustered(n, batch_size, size, seed, drop_last)


samplers = st.builds(
    dict,
    kind=st.sampled_from(["random", "fresh", "clustered"]),
    size=st.integers(1, 5),
    per_batch=st.integers(1, 4),
    extra=st.integers(0, 40),
    seed=st.integers(0, 9),
    drop_last=st.booleans(),
)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(samplers, st.integers(0, 5))
def test_every_point_once_an_epoch(choice: dict, epoch: int) -> None:
    """Without drop_last each point stands in one batch; with it all batches are full."""
    sampler = build(**choice)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    ids = torch.cat([*batches, torch.tensor([], dtype=torch.int64)])
    assert ids.dtype == torch.int64 and len(ids.unique()) == len(ids)
    full = batches if sampler.drop_last else batches[:-1]
    assert all(len(seeds) == sampler.batch_size for seeds in full)
    assert len(ids) == (len(full) * sampler.batch_size if sampler.drop_last else sampler.n)


@given(samplers, st.integers(0, 3), st.integers(0, 8))
def test_resume_at_any_batch(choice: dict, epoch: int, k: int) -> None:
    """State saved at batch k of epoch e, loaded elsewhere: the rest of e and all of e + 1 agree."""
    sampler, again = build(**choice), build(**choice)
    if isinstance(again, ClusterBatchSampler):
        again.refresh(embeddings(again.n, seed=9))
    sampler.set_epoch(epoch)
    rest = list(sampler)[k:]
    again.load_state_dict(sampler.state_dict())
    assert same(list(islice(again, k, None)), rest)
    for one in (sampler, again):
        one.set_epoch(epoch + 1)
    assert same(list(again), list(sampler))


def test_epochs_and_seeds_differ() -> None:
    """Another epoch or seed, another order; and (seed, epoch) = (0, 1) is not (1, 0)."""
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for sampler in (RandomBatchSampler(64, 64, seed), clustered(64, 64, 4, seed)):
            sampler.set_epoch(epoch)
            orders.append(tuple(next(iter(sampler)).tolist()))
    assert len(set(orders)) == 8


@pytest.mark.parametrize("n", [64, 61])
def test_no_cluster_straddles_two_batches(n: int) -> None:
    """Each cluster of the state lies in one batch, in every epoch, and companions change."""
    sampler = clustered(n, batch_size=16, size=4)
    neighbors = set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batch = torch.empty(n, dtype=torch.int64)
        for k, seeds in enumerate(sampler):
            batch[seeds] = k
        clusters = sampler.order.long().split(4)
        assert all(len(batch[ids].unique()) == 1 for ids in clusters)
        neighbors.add(
            tuple(sorted(int(batch[ids[0]] == batch[clusters[0][0]]) for ids in clusters))
        )
        neighbors.add(tuple(int(batch[ids[0]] == batch[clusters[0][0]]) for ids in clusters))
    assert len(neighbors) > 2


def test_random_until_the_first_refresh_then_at_once() -> None:
    """Fresh sampler: batches mix two far groups; right after refresh, in the same epoch, not."""
    rows = torch.eye(2).repeat(32, 1)
    sampler = ClusterBatchSampler(64, 8, 8, seed=0)
    assert any(len((seeds % 2).unique()) == 2 for seeds in sampler)
    sampler.refresh(rows)
    assert all(len((seeds % 2).unique()) == 1 for seeds in sampler)


def test_an_iteration_that_began_keeps_its_batches() -> None:
    """Refresh between two batches changes the next iteration, not this one."""
    sampler = clustered(64, 8, 8)
    whole, running = list(sampler), iter(sampler)
    head = [next(running)]
    sampler.refresh(embeddings(64, seed=5))
    assert same(head + list(running), whole)
    assert not same(list(sampler), whole)


def test_curriculum_gives_the_size_of_the_epoch() -> None:
    """Size 1 before the first entry, then that of the latest entry; only refresh takes it up."""
    sampler = ClusterBatchSampler(64, 8, [(2, 2), (4, 8)], seed=0)
    assert [sampler.size_at(e) for e in range(6)] == [1, 1, 2, 2, 8, 8]
    for epoch, size in ((1, 1), (2, 2), (5, 8)):
        sampler.set_epoch(epoch)
        before = sampler.size
        list(sampler)
        assert sampler.size == before
        sampler.refresh(embeddings(64))
        assert sampler.size == size


def test_state_is_four_bytes_a_point() -> None:
    """The clusters are int32 [n]; the rest of the state are two numbers."""
    state = clustered(61, 16, 4).state_dict()
    order = state.pop("order")
    assert order.dtype == torch.int32 and order.nbytes == 4 * 61
    assert state == {"epoch": 0, "size": 4}


def test_bank_holds_the_latest_directions() -> None:
    """Rows are unit length, the latest write wins, `filled` counts points, not writes."""
    bank = EmbeddingBank(5, 2)
    assert bank.filled == 0
    rows = torch.tensor([[3e5, 4e5], [0.0, 1e-6]], requires_grad=True)
    bank.write(torch.tensor([4, 1]), rows)
    bank.write(torch.tensor([4]), torch.tensor([[-1.0, 0.0]]))
    assert bank.filled == pytest.approx(0.4) and bank.rows.nbytes == 2 * 5 * 2
    expected = torch.tensor([[0.0, 0], [0, 1], [0, 0], [0, 0], [-1, 0]])
    torch.testing.assert_close(bank.rows.float(), expected)
    assert not bank.rows.requires_grad


def test_clusters_of_two_are_twins_and_of_one_are_examples() -> None:
    """The smallest sizes: equal examples stand together; alone all are as they were."""
    sampler = ClusterBatchSampler(4, 4, 2, seed=0)
    sampler.refresh(torch.eye(2).repeat(2, 1))
    assert sorted(map(sorted, sampler.order.view(2, 2).tolist())) == [[0, 2], [1, 3]]
    sampler = ClusterBatchSampler(8, 4, 1, seed=0)
    sampler.refresh(torch.eye(8))
    assert sampler.order.tolist() == list(range(8))


def test_bank_state_round_trip() -> None:
    """A bank that loads another's state refreshes a sampler to the same clusters."""
    bank, other = EmbeddingBank(40, 6), EmbeddingBank(40, 6)
    bank.write(torch.arange(30), embeddings(30))
    state = bank.state_dict()
    bank.write(torch.arange(30), embeddings(30, seed=1))
    other.load_state_dict(state)
    assert other.filled == 0.75 and not torch.equal(other.rows, bank.rows)
    bank.load_state_dict(state)
    orders = []
    for one in (bank, other):
        sampler = ClusterBatchSampler(40, 8, 4, seed=0)
        sampler.refresh(one.rows)
        orders.append(sampler.order)
    assert torch.equal(*orders)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    """Each message names the argument and, for sizes, the values that would do."""
    for make in (RandomBatchSampler, lambda *a: ClusterBatchSampler(a[0], a[1], 1, a[2])):
        with pytest.raises(InputError, match="batch_size: expected at most the 5 examples, got 6"):
            make(5, 6, 0)
        with pytest.raises(InputError, match="seed: expected a whole number of at least 0"):
            make(5, 2, -1)
        with pytest.raises(InputError, match="batch_size: expected a whole number of at least 1"):
            make(5, 0, 0)
    with pytest.raises(InputError, match=r"of the cluster size 64, got 1000; .* of 960 or 1024"):
        ClusterBatchSampler(5000, 1000, 64, seed=0)
    with pytest.raises(InputError, match="of the cluster size 64, got 32; use a batch_size of 64"):
        ClusterBatchSampler(5000, 32, [(0, 8), (3, 64)], seed=0)
    for bad in ([], [(3, 2), (1, 4)]):
        with pytest.raises(InputError, match=r"cluster_size: .* by rising epoch"):
            ClusterBatchSampler(5000, 32, bad, seed=0)
    sampler = ClusterBatchSampler(10, 4, 2, seed=0)
    with pytest.raises(InputError, match=r"embeddings: expected one row per example, \[10, d\]"):
        sampler.refresh(torch.zeros(9, 2))
    with pytest.raises(InputError, match="state: expected clusters of 10 examples, got 12"):
        sampler.load_state_dict(clustered(12, 4, 2).state_dict())
    with pytest.raises(InputError, match="state: expected rows of shape"):
        EmbeddingBank(10, 2).load_state_dict(EmbeddingBank(10, 3).state_dict())
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 10\), got 10"):
        EmbeddingBank(10, 2).write(torch.tensor([10]), torch.ones(1, 2))
