"""shoal spectrum: on a run, on own objects, and on what is neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.cli.settings import Spectrum, Train
from shoal.core.errors import InputError
from shoal.curvature.spectrum import Spectrum as Measured
from shoal.tasks import links, nodes
from shoal.tasks.spectra import job_of, measure
from shoal.training.run import Run
from tests.planted import planted_graph
from tests.tasks.test_links import planted, settings
from tests.tasks.test_nodes import write

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
"""


def test_a_run_is_measured_and_left_alone(tmp_path: Path) -> None:
    """The node job's Adam in its metric: rates for every batch size, files, the run unchanged."""
    path = write(planted_graph(n=210, classes=3, dim=12), tmp_path / "g.npz")
    out, sizes = tmp_path / "run", {"batch_size": 16, "fanouts": (2, 2), "hidden": 8}
    nodes.train(Train(source=str(path), out=out, steps=12, step="spectral", **sizes))
    before = (out / "last.safetensors").read_bytes(), (out / "log.jsonl").read_bytes()
    found = measure(Spectrum(source=str(out), lanczos=20, probes=2, max_batches=4))
    assert before == ((out / "last.safetensors").read_bytes(), (out / "log.jsonl").read_bytes())
    assert found["metric"] == "adam" and found["lam_max"] > 0 and found["sampling"] != "independent"
    rows = {row["batch"]: row for row in found["rates"]}
    assert rows[16]["spectral"] == pytest.approx(0.03) and 0 < rows[16]["safe"] <= rows[16]["edge"]
    assert Measured.load(found["spectrum"]).lam_max == pytest.approx(found["lam_max"], rel=1e-3)
    assert Path(found["picture"]).stat().st_size > 10_000
    assert json.loads(json.dumps(found)) == found
    assert job_of(Run.open(out))[0].loader.position > 0


@pytest.mark.parametrize(("features", "negatives"), [(True, "batch"), (False, "uniform")])
def test_a_run_on_links_is_measured(tmp_path: Path, features: bool, negatives: str) -> None:
    """Both criteria, split at their scores: no curvature below zero. The run has just ended an
    epoch, and the next one's batches are read."""
    path = planted(tmp_path / "g.npz", features)
    links.train(settings(path, negatives=negatives, epochs=2))
    run = Run.open(tmp_path / "run")
    assert job_of(run)[0].loader.position == len(job_of(run)[0].loader)
    found = measure(Spectrum(source=str(run.folder), lanczos=40, probes=2, max_batches=4))
    assert found["samples"] == 240 and found["sampling"] == "neighborhoods"
    ritz = Measured.load(found["spectrum"]).ritz
    assert float(ritz.min()) > -1e-5 * found["lam_max"]
    said = any("rows, which learn too, were held fixed" in note for note in found["notes"])
    assert said != features


def test_own_objects_are_measured_and_tried(tmp_path: Path) -> None:
    """A linear softmax by ``file.py:function``, with branch runs."""
    (tmp_path / "own.py").write_text(OWN)
    asked = Spectrum(source=f"{tmp_path}/own.py:objects", evidence=8, batch_sizes=(8, 16))
    found = measure(asked)
    assert [row["batch"] for row in found["rates"]] == [8, 16]
    assert len(found["evidence"]) == 5 and "advice" in found["evidence"][-1]
    assert (tmp_path / "spectrum" / "spectrum.png").exists()
    little = measure(replace(asked, evidence=0, began=found["loss"] + 0.01))
    assert little["rates"][0]["safe"] < found["rates"][0]["safe"] / 2
    assert "initial_loss: expected a loss above" in str(
        measure(replace(asked, evidence=0, began=0.1))
    )


def test_bad_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for source, named in (
        (f"{tmp_path}/absent.py:objects", "expected a file.py:function, got no such file"),
        (f"{tmp_path}/own.py:absent", "expected a function absent"),
        (f"{tmp_path}/own.py:bare", "got no model; return a dictionary"),
        (f"{tmp_path}/nothing", "expected a folder with a run"),
    ):
        with pytest.raises(InputError, match=named):
            measure(Spectrum(source=source))
