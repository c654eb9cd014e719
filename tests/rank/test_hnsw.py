"""Approximate top-k: what is found is scored exactly, little is missed, damage is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.search import top_k
from shoal.rank import hnsw as ann
from shoal.rank.hnsw import Hnsw, HnswSearch, recall


def clustered(n: int, seed: int, clusters: int = 100, d: int = 32) -> Tensor:
    """Unit rows around planted centers, those of one seed around the same ones as any other's."""
    centers = torch.randn(clusters, d, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(clusters, (n,), generator=generator)
    return normalize(centers[own] + torch.randn(n, d, generator=generator), dim=1)


@pytest.fixture(scope="module")
def index() -> Hnsw:
    """A graph of 2,000 planted keys, built by one thread, as all of the suite is."""
    return Hnsw.build(clustered(2000, seed=0), clustered(200, seed=1))


def test_recall_on_planted_clusters(index) -> None:
    """Of new queries nearly all of the ten best are found, as the recall measured at build says."""
    queries = clustered(300, seed=2)
    truth = top_k(queries, index.keys, 10)[1]
    found = recall(index.search(queries, 10)[1], truth)
    assert found > 0.95 and abs(found - index.recall) < 0.03
    assert len(truth.unique()) > 500  # not the same few keys for all


def test_scores_are_exact_and_falling(index) -> None:
    """A found key has the inner product that top_k gives it; ids are distinct."""
    queries = clustered(50, seed=3)
    scores, ids = index.search(queries, 20)
    products = (queries @ index.keys.T).gather(1, ids)
    torch.testing.assert_close(scores, products)
    assert bool((scores.diff(dim=1) <= 0).all())
    assert all(len(row.unique()) == 20 for row in ids)


def test_dropped_pairs_never_return_and_cost_no_recall(index) -> None:
    """Without its 30 best keys a query finds the next ten."""
    queries = clustered(100, seed=4)
    best = top_k(queries, index.keys, 30)[1]
    drop = Csr(torch.arange(101) * 30, best.flatten(), 2000)
    truth = top_k(queries, index.keys, 10, drop)[1]
    found = index.search(queries, 10, drop)[1]
    assert not bool((found.unsqueeze(2) == best.unsqueeze(1)).any())
    assert recall(found, truth) > 0.95


def test_few_keys_are_all_found() -> None:
    """With fewer keys than a walk remembers the answer is top_k's: ties, drops and ends."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-3, 4, (40, 3), generator=generator).float()
    queries = torch.randint(-3, 4, (20, 3), generator=generator).float()
    keep = torch.rand(20, 40, generator=generator) < 0.2
    drop, small = Csr.from_dense(~keep), Hnsw.build(keys)
    for pairs in (None, drop):
        scores, ids = small.search(queries, 15, pairs)
        expected = top_k(queries, keys, 15, pairs)
        assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])
    assert bool((ids == -1).any())
    assert small.search(queries[:0], 3)[1].shape == (0, 3)


def test_long_keys_are_found_by_product() -> None:
    """Lengths that differ tenfold: the walk follows products all the same."""
    generator = torch.Generator().manual_seed(0)
    keys = clustered(2000, 0) * torch.randn(2000, 1, generator=generator).exp()
    queries = clustered(100, seed=1)
    truth = top_k(queries, keys, 10)[1]
    assert recall(Hnsw.build(keys).search(queries, 10)[1], truth) > 0.95


def test_half_precision_keys(index) -> None:
    """float16 keys, as a run keeps its training points, are scored in float32."""
    half = Hnsw.build(index.keys.half())
    scores, ids = half.search(index.keys[:5], 1)
    assert scores.dtype == torch.float32 and ids[:, 0].tolist() == list(range(5))


def test_one_thread_builds_the_same_graph_again(index) -> None:
    """The same bytes for the same seed, others for another."""
    again = Hnsw.build(index.keys, seed=0)
    assert again.graph.save() == index.graph.save()
    assert Hnsw.build(index.keys, seed=1).graph.save() != index.graph.save()


READ = """
import sys, torch
from shoal.rank.hnsw import Hnsw
torch.set_num_threads(1)
keys, queries = torch.load(sys.argv[2])
torch.save(Hnsw.load(sys.argv[1], keys).search(queries, 7), sys.argv[3])
"""


def test_a_fresh_process_finds_the_same(index, tmp_path) -> None:
    """Saved, and read elsewhere, a graph answers bit for bit."""
    queries = clustered(20, seed=5)
    path = tmp_path / "a.hnsw"
    index.save(path)
    torch.save((index.keys, queries), tmp_path / "rows")
    files = [str(path), str(tmp_path / "rows"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", READ, *files], check=True)
    scores, ids = torch.load(tmp_path / "out")
    expected = index.search(queries, 7)
    assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])
    loaded = Hnsw.load(path, index.keys)
    assert (loaded.breadth, loaded.recall) == (index.breadth, index.recall)


def test_damaged_and_foreign_files_are_refused(index, tmp_path) -> None:
    """One flipped byte, a cut, other keys: a line that says what to do."""
    path = tmp_path / "a.hnsw"
    index.save(path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match="expected an index of these keys, got one of others"):
        Hnsw.load(path, index.keys + 1)
    middle = len(whole) // 2
    for damaged in (whole[:-9], whole[:middle] + b"\x00\xff" + whole[middle + 2 :], b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"expected a whole index, got .*; delete the file"):
            Hnsw.load(path, index.keys)


def test_graphs_are_kept_for_their_keys(tmp_path) -> None:
    """Built once, read by the next process, and never used for a model that changed."""
    told: list[dict[str, Any]] = []
    keys, queries = clustered(500, seed=0), clustered(150, seed=1)
    search = HnswSearch(tmp_path / "indexes", told.append)
    first = search(queries, keys, 5)
    search(queries[:1], keys, 5)
    assert [fact["built"] for fact in told] == [True]
    again = HnswSearch(tmp_path / "indexes", told.append)(queries, keys, 5)
    assert torch.equal(again[1], first[1]) and told[-1] == told[0] | {"built": False}
    moved = HnswSearch(tmp_path / "indexes", told.append)(queries, -keys, 5)[1]
    assert told[-1]["built"] and recall(moved, top_k(queries, -keys, 5)[1]) > 0.95
    assert len(list((tmp_path / "indexes").iterdir())) == 2


def test_missing_library_is_named(monkeypatch) -> None:
    """Without usearch the extra is named."""
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(
        InputError, match=r"search: expected the package usearch.*pip install 'torch-shoal\[ann\]'"
    ):
        Hnsw.build(torch.eye(3))


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(index) -> None:
    """NaN rows, no keys, k beyond them, another width: one line each."""
    with pytest.raises(InputError, match=r"keys: expected finite rows.* row 1"):
        Hnsw.build(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(InputError, match="keys: expected at least one"):
        Hnsw.build(torch.ones(0, 3))
    with pytest.raises(InputError, match="k: expected at most the 2000 keys"):
        index.search(index.keys[:1], 2001)
    with pytest.raises(InputError, match="queries: expected rows of 32, got 3"):
        index.search(torch.ones(1, 3), 1)


def test_keys_of_length_zero() -> None:
    """No length to divide by: products are zero, and ids rise."""
    scores, ids = Hnsw.build(torch.zeros(5, 2)).search(torch.ones(1, 2), 3)
    assert scores.tolist() == [[0.0] * 3] and ids.tolist() == [[0, 1, 2]]
    assert ann.digest(torch.zeros(5, 2)) != ann.digest(torch.zeros(2, 5))


def test_path_of_a_graph(index, tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(InputError, match=r"none\.hnsw"):
        Hnsw.load(tmp_path / "none.hnsw", index.keys)
