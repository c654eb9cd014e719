"""shoal spectrum: on a run, on own objects, and on what is neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shoal.cli.objects import job_of
from shoal.curvature.spectrum import Spectrum as Measured
from shoal.data.formats import xc
from tests.command import result, shoal
from tests.graphs import write_graph
from tests.planted import planted_graph, planted_labels

FROZEN = Path(__file__).parents[1] / "frozen"
QUICK = ["--lanczos", 20, "--probes", 2, "--max-batches", 4]
OWN = """
import torch
from torch.nn.functional import cross_entropy

def objects():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(64, 4), torch.arange(64) % 3
    loader = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 64, 8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "loss_fn": cross_entropy, "loader": loader, "optimizer": optimizer}

def bare():
    return {"loader": []}

def number():
    return 1
"""


@pytest.mark.whole
def test_a_run_is_measured_and_left_alone(tmp_path: Path) -> None:
    """The node job's Adam in its metric: rates for every batch size, files, the run unchanged."""
    path = write_graph(planted_graph(n=210, classes=3, dim=12), tmp_path / "g.npz")
    out, sizes = tmp_path / "run", ["--batch-size", 16, "--fanouts", 2, 2, "--hidden", 8]
    words = [path, *sizes, "--steps", 12, "--step", "spectral", "--out", out]
    result("train", "nodes", *words, "--keep-resume")
    files = ("last.safetensors", "log.jsonl", "model.safetensors")
    before = [(out / name).read_bytes() for name in files]
    found = result("spectrum", out, *QUICK)
    assert before == [(out / name).read_bytes() for name in files]
    assert found["metric"] == "adam" and found["lam_max"] > 0 and found["sampling"] != "independent"
    rows = {row["batch"]: row for row in found["rates"]}
    assert rows[16]["spectral"] == pytest.approx(0.01) and 0 < rows[16]["safe"] <= rows[16]["edge"]
    assert Measured.load(found["spectrum"]).lam_max == pytest.approx(found["lam_max"], rel=1e-3)
    assert Path(found["picture"]).stat().st_size > 10_000
    assert job_of(out)[0].loader.position > 0
    (out / "last.safetensors").unlink()  # as a run that kept no more than its model
    found = result("spectrum", out, *QUICK)
    assert found["metric"] == "plain" and any("--keep-resume" in x for x in found["notes"])


@pytest.mark.whole
def test_a_run_on_labels_is_measured(tmp_path: Path) -> None:
    """The encoder's rows, in the batches that the run was trained with."""
    xc.write(planted_labels(n=60, n_labels=16), tmp_path / "planted")
    sizes = ["--batch-size", 12, "--cluster-size", 4, "--dim", 8, "--steps", 4, "--valid", 0.5]
    words = [tmp_path / "planted", *sizes, "--out", tmp_path / "run", "--keep-resume"]
    result("train", "labels", *words)
    found = result("spectrum", tmp_path / "run", *QUICK)
    assert found["batch_size"] == 12 and found["sampling"] == "clustered" and found["lam_max"] > 0
    assert job_of(tmp_path / "run")[0].loader.position > 0


def test_a_run_on_links_is_measured(tmp_path: Path) -> None:
    """Split at their scores: no curvature below zero. A run that has just ended an epoch."""
    path = write_graph(planted_graph(n=210, classes=3, dim=12), tmp_path / "g.npz")
    sizes = ["--batch-size", 16, "--fanouts", 2, 2, "--hidden", 8, "--epochs", 2]
    result("train", "links", path, *sizes, "--out", tmp_path / "run", "--keep-resume")
    job, _ = job_of(tmp_path / "run")
    assert job.loader.position == len(job.loader)
    found = result("spectrum", tmp_path / "run", *QUICK)
    assert found["sampling"] == "neighborhoods"
    ritz = Measured.load(found["spectrum"]).ritz
    assert float(ritz.min()) > -1e-5 * found["lam_max"]


@pytest.mark.whole
def test_own_objects_are_measured(tmp_path: Path) -> None:
    """A linear softmax by ``file.py:function``, also with the loss that it began at."""
    (tmp_path / "own.py").write_text(OWN)
    words = ["spectrum", f"{tmp_path}/own.py:objects", "--batch-sizes", 8, 16, *QUICK]
    found = result(*words)
    assert [row["batch"] for row in found["rates"]] == [8, 16]
    assert (tmp_path / "spectrum" / "spectrum.png").exists()
    little = result(*words, "--initial-loss", found["loss"] + 0.01)
    assert little["rates"][0]["safe"] < found["rates"][0]["safe"] / 2
    assert "initial_loss: expected a loss above" in json.dumps(
        result(*words, "--initial-loss", 0.1)
    )


@pytest.mark.whole
def test_rates_of_own_objects_and_of_a_run_are_found(tmp_path: Path) -> None:
    """``shoal find-lr``: a row a batch size, a picture; a remedy where rows are trained."""
    (tmp_path / "own.py").write_text(OWN)
    words = ["find-lr", f"{tmp_path}/own.py:objects", "--batch-sizes", 8, 16, "--steps", 4]
    found = result(*words)
    assert [row["batch"] for row in found["rates"]] == [8, 16]
    assert all(row["loss_after"] < row["loss_before"] for row in found["rates"])
    assert found["now"] == {"batch": 8, "lr": 0.1}
    assert Path(found["picture"]) == tmp_path / "rates.png"
    assert Path(found["picture"]).stat().st_size > 10_000
    assert "take" in shoal(*words).out
    path = write_graph(planted_graph(n=90, classes=3, dim=6), tmp_path / "g.npz")
    sizes = ["--batch-size", 16, "--fanouts", 2, "--hidden", 8, "--steps", 2, "--keep-resume"]
    result("train", "nodes", path, *sizes, "--out", tmp_path / "run")
    found = result("find-lr", tmp_path / "run", "--steps", 2)
    assert found["now"]["batch"] == 16 and len(found["rates"]) == 1
    xc.write(planted_labels(n=60, n_labels=16), tmp_path / "planted")
    sizes = ["--dim", 8, "--steps", 1, "--valid", 0, "--batch-size", 12, "--cluster-size", 4]
    result("train", "labels", tmp_path / "planted", *sizes, "--out", tmp_path / "labels")
    refused = shoal("find-lr", tmp_path / "labels")
    assert refused.refused and "expected a run with frozen rows" in refused.err


@pytest.mark.whole
def test_objects_by_name_and_in_order_are_the_same(tmp_path: Path) -> None:
    """A function that returns a tuple is measured as one that names its objects."""
    tuple_of_them = """
def in_order():
    made = objects()
    return tuple(made.get(part) for part in ("model", "loss_fn", "loader", "optimizer"))
"""
    (tmp_path / "own.py").write_text(OWN + tuple_of_them)
    by_name, in_order = (
        result("spectrum", f"{tmp_path}/own.py:{name}", *QUICK) for name in ("objects", "in_order")
    )
    assert by_name["lam_max"] == in_order["lam_max"] and by_name["rates"] == in_order["rates"]


def test_bad_sources_are_named(tmp_path: Path) -> None:
    """No file, no function, not what a function must return, no run, an export."""
    (tmp_path / "own.py").write_text(OWN)
    shutil.copytree(FROZEN / "export", tmp_path / "export")
    for source, named in (
        (f"{tmp_path}/absent.py:objects", "no file"),
        (f"{tmp_path}/own.py:absent", "has no attribute 'absent'"),
        (f"{tmp_path}/own.py:bare", "got no model; return a dictionary"),
        (f"{tmp_path}/own.py:number", "got no model; return a dictionary"),
        (f"{tmp_path}/nothing", "expected a folder with a run"),
        (f"{tmp_path}/export", "expected a run to measure, got an export"),
    ):
        found = shoal("spectrum", source)
        assert found.refused and named in found.err, found
