"""Training on graphs is that of revision 2d1c72a: losses, metrics, weights of frozen commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.core.checkpoint import load

FROZEN = Path(__file__).parents[1] / "frozen"
REFERENCES = json.loads((FROZEN / "references.json").read_text())
SMALL: dict[str, Any] = {"hidden": 16, "fanouts": (5, 5), "batch_size": 64, "device": "cpu"}
COMMANDS = {
    "nodes": (lambda: shoal.NodeModel(**SMALL), "nodes", 20),
    "nodes_gat": (lambda: shoal.NodeModel(layer="gat", heads=2, **SMALL), "nodes", 20),
    "nodes_spectral": (lambda: shoal.NodeModel(step=shoal.spectral_step, **SMALL), "nodes", 50),
    "links": (lambda: shoal.LinkModel(**SMALL), "links", 10),
    "links_uniform": (lambda: shoal.LinkModel(negatives=shoal.PairSampler, **SMALL), "links", 5),
    "links_learned_rows": (lambda: shoal.LinkModel(**SMALL), "pairs", 10),
}


class Losses(shoal.Callback):
    def __init__(self) -> None:
        self.all: list[float] = []

    def step(self, progress, metrics):
        self.all.append(progress.loss)


@pytest.fixture(autouse=True)
def one_thread():
    """As the references were made; sums of more threads are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", COMMANDS)
def test_training_is_as_it_was(name: str, tmp_path: Path) -> None:
    """Ten losses, the last, validation and test metrics, and the sums of the best weights.

    On the processor that the references name they agree bit for bit.
    """
    make, data, epochs = COMMANDS[name]
    was, losses, out = REFERENCES[name], Losses(), tmp_path / "run"
    result = make().fit(FROZEN / f"data/{data}.npz", out=out, epochs=epochs, callbacks=[losses])
    assert losses.all[:10] == pytest.approx(was["losses"], rel=1e-6)
    assert losses.all[-1] == pytest.approx(was["last_loss"], rel=1e-6)
    assert (result.stopped, result.steps) == (was["stopped"], was["steps"])
    assert result.test == pytest.approx(was["test"], rel=1e-9)
    log = shoal.Run.open(out).log()
    valid = [{k: x[k] for k in y} for x, y in zip(of(log, "validate"), was["valid"], strict=True)]
    for got, want in zip(valid, was["valid"], strict=True):
        assert got == pytest.approx(want, abs=2e-3)
    for got, want in zip(of(log, "curvature"), was.get("curvature", []), strict=True):
        assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-6)
    state = load(out / "model.safetensors")
    found = {f"model/{key}": x for key, x in state["model"].items()}
    found |= {"rows": state["rows"]} if "rows" in state else {}
    assert found.keys() == was["weights"].keys()
    for key, (shape, total, squares) in was["weights"].items():
        x = found[key].double()
        assert list(x.shape) == shape
        assert float(x.square().sum()) == pytest.approx(squares, rel=1e-5)
        assert float(x.sum()) == pytest.approx(total, abs=1e-5 * (x.numel() * squares) ** 0.5)


@pytest.mark.parametrize(("name", "epochs"), [("nodes", 20), ("links", 10)])
def test_training_on_is_as_it_was(name: str, epochs: int, tmp_path: Path) -> None:
    """Two epochs more of a finished run that kept its checkpoints."""
    make, data, _ = COMMANDS[name]
    was, out, losses = REFERENCES[f"{name}-run-resumed"], tmp_path / "run", Losses()
    source = FROZEN / f"data/{data}.npz"
    make().fit(source, out=out, epochs=epochs, keep_resume=True)
    more = {"epochs": epochs + 2, "resume": True, "callbacks": [losses]}
    result = make().fit(source, out=out, **more)
    assert losses.all[:10] == pytest.approx(was["losses"], rel=1e-6)
    assert result.test == pytest.approx(was["test"], rel=1e-9) and result.steps == was["steps"]


def of(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]
