"""Where rows of features lie changes nothing but time: tiers, files, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shoal
from shoal.core.checkpoint import load, same_tensors
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.fetch.disk import DiskRows
from shoal.graph import features
from shoal.graph.features import feature_rows, write_rows
from tests.graphs import dense, write_graph
from tests.planted import planted_graph


def weights(folder: Path) -> Any:
    return load(folder / "model.safetensors")["model"]


def test_training_with_tiers_is_training_without(tmp_path: Path) -> None:
    """Rows on a device end in the same weights, and the result says what each tier served."""
    data = planted_graph(n=90, classes=3, dim=6)
    found, states = [], []
    for count in (0, 30, 1000):
        model = shoal.NodeModel(
            batch_size=12,
            hidden=4,
            fanouts=(2,),
            device_rows=count,
            baselines=False,
            device="cpu",
        )
        found.append(model.fit(data, out=tmp_path / str(count), steps=12))
        states.append(weights(tmp_path / str(count)))
    assert same_tensors(states[0], states[1]) and same_tensors(states[0], states[2])
    assert not found[0].details and [x["rows"] for x in found[1].details["tiers"]] == [30, 60]
    assert found[1].details["tiers"][0]["measured"] > 100 * 30 / 90
    assert [x["measured"] for x in found[2].details["tiers"]] == [100, 0]
    with pytest.raises(InputError, match="device_rows: expected at least 0, got -1"):
        shoal.NodeModel(hidden=4, device_rows=-1, device="cpu").fit(data, steps=1)


@pytest.mark.parametrize("task", [shoal.NodeModel, shoal.LinkModel])
@pytest.mark.parametrize("own", [None, ".safetensors", ".npz"])
@pytest.mark.whole
def test_training_from_a_file_is_training_from_memory(
    tmp_path: Path, task: type, own: str | None
) -> None:
    """Rows in a file, also resumed, end in the weights and metrics of all in memory."""
    source = write_graph(planted_graph(n=200, classes=2, dim=6), tmp_path / "graph.npz")
    source = dense(source, own) if own else source
    small: dict[str, Any] = {"batch_size": 16, "hidden": 4, "fanouts": (2,), "device": "cpu"}
    small |= {"baselines": False} if task is shoal.NodeModel else {"heuristics": False}
    found, states = [], []

    class Stop(shoal.Callback):
        def step(self, progress, metrics):
            progress.stopped = "interrupt" if progress.step == 3 else progress.stopped

    for count in (None, 0, 50, 1000):
        out, model = tmp_path / str(count), task(**small, host_rows=count)
        if count == 50:
            begun = task(**small, host_rows=10)
            assert begun.fit(source, out=out, epochs=2, callbacks=[Stop()]).stopped == "interrupt"
        found.append(model.fit(source, out=out, epochs=2, resume=count == 50))
        states.append(weights(out))
        assert (out / "rows.npy").exists() == (count is not None and not own)
    for more in (1, 2, 3):
        assert same_tensors(states[0], states[more]) and found[0].test == found[more].test
        again = shoal.open(tmp_path / str((0, 50, 1000)[more - 1]))
        assert again.evaluate() == again.evaluate(source) == found[0].test
    # another graph's rows are not those of the run's file
    other = write_graph(planted_graph(n=210, classes=2, dim=6, seed=1), tmp_path / "other.npz")
    one, two = (shoal.open(tmp_path / name).predict(209, other, k=2) for name in ("None", "0"))
    assert one == two
    assert not found[0].details and [x["rows"] for x in found[2].details["tiers"]] == [50, 150]
    assert found[2].details["tiers"][0]["measured"] > 25
    assert [x["measured"] for x in found[3].details["tiers"]] == [100, 0]


def test_rows_of_another_precision_are_written(tmp_path: Path) -> None:
    """A model reads float32: what the source holds in float64 is not its rows."""
    path = dense(write_graph(planted_graph(n=90, classes=3, dim=6), tmp_path / "g.npz"), ".npz")
    with np.load(path) as file:
        np.savez(path, **{**file, "x": file["x"].astype(np.float64)})
    model = shoal.NodeModel(host_rows=9, batch_size=12, hidden=4, device="cpu")
    model.fit(path, out=tmp_path / "run", steps=1)
    assert np.load(tmp_path / "run" / "rows.npy").dtype == np.float32


def test_a_file_of_rows_that_is_not_whole_is_named(tmp_path: Path) -> None:
    """A truncated file, or one of another graph, ends a resumed run in an error that names it."""
    source = write_graph(planted_graph(n=90, classes=3, dim=6), tmp_path / "graph.npz")
    model = shoal.NodeModel(host_rows=9, batch_size=12, hidden=4, device="cpu")
    more: dict[str, Any] = {"out": tmp_path / "run", "keep_resume": True}
    model.fit(source, steps=2, **more)
    path = tmp_path / "run" / "rows.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"rows\.npy: expected a whole file"):
        model.fit(source, steps=4, resume=True, **more)
    np.save(path, np.zeros((80, 6), np.float32))
    with pytest.raises(InputError, match=r"rows\.npy: expected the graph's 90 rows, got 80"):
        model.fit(source, steps=4, resume=True, **more)
    path.write_bytes(whole)
    assert model.fit(source, steps=4, resume=True, **more).steps == 4


def test_rows_that_are_trained_do_not_lie_in_tiers(tmp_path: Path) -> None:
    """Nodes without features have no rows to read from a file."""
    graph = planted_graph(n=90, classes=2).graph
    np.savez(tmp_path / "g.npz", indptr=graph.indptr, indices=graph.indices)
    with pytest.raises(InputError, match="host_rows: expected dense features, or sparse"):
        shoal.LinkModel(host_rows=9, device="cpu").fit(tmp_path / "g.npz")


def test_wide_features_are_written_as_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse features of 300 columns, projected part by part, are those projected at once."""
    wide = Csr.from_dense(torch.rand(50, 300) < 0.1).with_values(None)
    monkeypatch.setattr(features, "_WRITE_BYTES", 7 * 4 * 256)
    write_rows(tmp_path / "rows.npy", wide, seed=3)
    made = DiskRows(tmp_path / "rows.npy")
    assert torch.equal(made.gather(torch.arange(50)), feature_rows(wide, 3))
