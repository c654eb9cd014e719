"""The batch sampler that looks after its own clusters: shoal's batches, whatever a trainer says."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.integrations.batches import NgameBatchSampler
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank

N, BATCH, CLUSTER = 26, 8, 4


def _vectors(seed: int = 0) -> Tensor:
    return torch.randn(N, 5, generator=torch.Generator().manual_seed(seed))


def _clusters(seed: int = 0) -> ClusterBatchSampler:
    return ClusterBatchSampler(N, BATCH, CLUSTER, seed)


def _rows() -> Csr:
    """Point j has 1 + j % 3 rows, scattered over the data set."""
    point = torch.arange(N).repeat_interleave(1 + torch.arange(N) % 3)
    where = torch.randperm(len(point), generator=torch.Generator().manual_seed(1))
    return Csr.from_coo(point, where, (N, len(point)))


def _epochs(sampler: NgameBatchSampler, count: int) -> list[list[list[int]]]:
    return [list(sampler) for _ in range(count)]


@given(st.integers(0, 5), st.integers(0, 3))
def test_every_point_once_an_epoch_by_one_of_its_rows(seed: int, epoch: int) -> None:
    """An epoch takes exactly one row of every point, and so every row at most once."""
    rows = _rows()
    owner = torch.empty(rows.nnz, dtype=torch.int64).scatter(0, rows.indices, rows.row_ids())
    sampler = NgameBatchSampler(_clusters(seed), _vectors, rows)
    sampler.set_epoch(epoch)
    taken = [row for batch in sampler for row in batch]
    assert len(taken) == len(set(taken)) == N
    assert sorted(owner[taken].tolist()) == list(range(N))
    assert len(list(sampler)) == len(sampler)


def test_batches_are_shoals_own() -> None:
    """Epoch by epoch the points of a batch are those of ClusterBatchSampler, refreshed alike."""
    own = _clusters(3)
    sampler = NgameBatchSampler(_clusters(3), _vectors, refresh_every=2)
    for epoch in range(5):
        own.set_epoch(epoch)
        if epoch in (1, 3):
            own.refresh(_vectors())
        assert list(sampler) == [seeds.tolist() for seeds in own]
    assert sampler.clusters.size == CLUSTER


def test_an_epoch_that_nobody_announces_is_the_next_one() -> None:
    """Without set_epoch, with it, and with a callback that begins each epoch: the same stream."""
    silent = _epochs(NgameBatchSampler(_clusters(), _vectors, _rows()), 4)
    for begins in (False, True):
        told, stream = NgameBatchSampler(_clusters(), _vectors, _rows()), []
        for epoch in range(4):
            told.set_epoch(epoch)
            if begins:
                told.begin(epoch)
            stream.append(list(told))
        assert stream == silent
    assert silent[1] != silent[2]


def test_rows_of_a_point_are_taken_uniformly() -> None:
    """Over many epochs each of a point's rows comes up in its share, within five deviations."""
    rows = _rows()
    sampler = NgameBatchSampler(_clusters(), _vectors, rows, warm_epochs=1000)
    count = torch.zeros(rows.nnz)
    for _ in range(600):
        count[torch.tensor([row for batch in sampler for row in batch])] += 1
    share = (1.0 / rows.degrees())[rows.row_ids()]
    expected, spread = 600 * share, (600 * share * (1 - share)).sqrt()
    assert ((count[rows.indices] - expected).abs() <= 5 * spread).all()


def test_it_clusters_once_an_epoch_from_what_embed_gives_then() -> None:
    """Beginning an epoch twice embeds once; warm epochs and those between do not embed."""
    calls: list[int] = []

    def embed() -> Tensor:
        calls.append(sampler.begun)
        return _vectors(len(calls))

    sampler = NgameBatchSampler(_clusters(), embed, warm_epochs=2, refresh_every=2)
    for epoch in range(7):
        sampler.set_epoch(epoch)
        sampler.begin(epoch)
        list(sampler)
    assert calls == [2, 4, 6]


@pytest.mark.parametrize("stop", [(0, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("banked", [False, True])
def test_resumed_equals_uninterrupted(stop: tuple[int, int], banked: bool, tmp_path: Path) -> None:
    """Saved in the middle of an epoch and loaded elsewhere, the stream goes on unchanged."""

    def make() -> NgameBatchSampler:
        bank = EmbeddingBank(N, 5)
        return NgameBatchSampler(_clusters(), bank if banked else _vectors, _rows())

    def learn(sampler: NgameBatchSampler, epoch: int, k: int) -> None:
        if sampler.bank is not None:  # as if step k of the epoch had embedded some points
            ids = torch.arange(k, N, 3)
            sampler.bank.write(ids, _vectors(10 * epoch + k)[ids])

    whole, stream = make(), {}
    for epoch in range(4):
        for k, batch in enumerate(whole):
            stream[epoch, k] = batch
            learn(whole, epoch, k)
            if (epoch, k) == stop:
                whole.save(tmp_path)
    resumed = make()
    resumed.load(tmp_path)
    for epoch in range(stop[0], 4):
        resumed.set_epoch(epoch)
        skip = stop[1] + 1 if epoch == stop[0] else 0
        for k, batch in enumerate(islice(resumed, skip, None), start=skip):
            assert batch == stream[epoch, k]
            learn(resumed, epoch, k)


def test_two_ranks_share_the_batches() -> None:
    """accelerate deals batches i to rank i mod W: together they hold every point once."""
    accelerate = pytest.importorskip("accelerate.data_loader", reason="needs accelerate")
    shards = [
        accelerate.BatchSamplerShard(
            NgameBatchSampler(_clusters(), _vectors, warm_epochs=0), 2, rank, even_batches=False
        )
        for rank in range(2)
    ]
    seen = [row for shard in shards for batch in shard for row in batch]
    assert sorted(seen) == list(range(N))


def _rank(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    sampler = NgameBatchSampler(_clusters(), lambda: _vectors(rank), warm_epochs=0)
    torch.save(list(sampler), f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_take_the_clusters_of_the_first(tmp_path: Path) -> None:
    """Two processes whose embeddings differ iterate the same batches: those of rank 0."""
    spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    alone = NgameBatchSampler(_clusters(), _vectors, warm_epochs=0)
    assert first == second == list(alone)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_named() -> None:
    """Counts, rows and a foreign state are refused in one line."""
    few = Csr.from_lists([[0], []], n_cols=2)
    for name, make in {
        "warm_epochs": lambda: NgameBatchSampler(_clusters(), _vectors, warm_epochs=-1),
        "refresh_every": lambda: NgameBatchSampler(_clusters(), _vectors, refresh_every=0),
        "rows": lambda: NgameBatchSampler(_clusters(), _vectors, few),
    }.items():
        with pytest.raises(InputError, match=f"^{name}: expected"):
            make()
    bare = NgameBatchSampler(_clusters(), _vectors).state_dict()
    with pytest.raises(InputError, match="state: expected one with a bank"):
        NgameBatchSampler(_clusters(), EmbeddingBank(N, 5)).load_state_dict(bare)
