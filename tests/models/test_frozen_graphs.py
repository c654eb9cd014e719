"""The pages of graph tasks train as in revision 2d1c72a: losses, metrics, weights.

Then the models were these pages with bare layers; today's models put more around them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.tasks import links, nodes

pytestmark = pytest.mark.whole

FROZEN = Path(__file__).parents[1] / "frozen"
REFERENCES = json.loads((FROZEN / "references.json").read_text())
COMMANDS = {
    "nodes": ("nodes", 20),
    "nodes_gat": ("nodes", 20),
    "nodes_spectral": ("nodes", 50),
    "links": ("links", 10),
    "links_uniform": ("links", 5),
    "links_learned_rows": ("pairs", 10),
}
SHARED: dict[str, Any] = {"batch_size": 64, "fanouts": (5, 5)}


def job_of(name: str) -> tuple[shoal.Job, Any, Any, Any]:
    """The job of a frozen command, its network, data and rows."""
    source = FROZEN / f"data/{COMMANDS[name][0]}.npz"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("nodes"):
            data = shoal.load_nodes(source)
            rows = shoal.feature_rows(data.features)
            sizes = rows.shape[1], 16, len(data.class_names), 2
            network = shoal.Gat(*sizes, heads=2) if name == "nodes_gat" else shoal.Sage(*sizes)
            return nodes.build(data, network, rows, **SHARED), network, data, rows
        data = shoal.load_links(source)
        if data.features is None:
            rows = shoal.unified(shoal.word_rows(data.graph.n_rows, 16), shoal.RowAdam(lr=0.01))
        else:
            rows = shoal.feature_rows(data.features)
        network = shoal.LinkEncoder(shoal.Sage(rows.shape[1], 16, 16, 2, dropout=0.0))
        negatives = {"negatives": shoal.PairSampler} if name == "links_uniform" else {}
        return links.build(data, network, rows, **SHARED, **negatives), network, data, rows


def evaluated(network: Any, data: Any, rows: Any, state: Any) -> dict[str, float]:
    """Test metrics of the best weights, which the network and its rows take."""
    network.load_state_dict(state["model"])
    rows = state["rows"] if "rows" in state else rows
    if isinstance(data, shoal.NodeData):
        return nodes.metrics(network, data, rows, data.test)
    return links.metrics(network.embed(data.graph, rows), data, "test")


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
    was, losses, out = REFERENCES[name], Losses(), tmp_path / "run"
    job, *found = job_of(name)
    run, budget = shoal.Run.create(out, {}), shoal.Budget(epochs=COMMANDS[name][1])
    rule = shoal.spectral_step(job) if name == "nodes_spectral" else None
    progress = shoal.fit(job, budget, run, step=rule, callbacks=[losses])
    assert losses.all[:10] == pytest.approx(was["losses"], rel=1e-6)
    log = shoal.Run.open(out).log()
    if rule is not None:
        # since 2026-11-30 the range test ends otherwise (docs/LOG.md), here at step 160, not 155
        first, before = of(log, "curvature")[0], was["curvature"][0]
        assert {k: first[k] for k in before} == pytest.approx(before, rel=1e-6)
        return
    assert losses.all[-1] == pytest.approx(was["last_loss"], rel=1e-6)
    assert (progress.stopped, progress.step) == (was["stopped"], was["steps"])
    state = run.load_model()
    test = evaluated(*found, state)
    assert {key: test[key] for key in was["test"]} == pytest.approx(was["test"], rel=1e-9)
    valid = [{k: x[k] for k in y} for x, y in zip(of(log, "validate"), was["valid"], strict=True)]
    for got, want in zip(valid, was["valid"], strict=True):
        assert got == pytest.approx(want, abs=2e-3)
    for got, want in zip(of(log, "curvature"), was.get("curvature", []), strict=True):
        assert {k: got[k] for k in want} == pytest.approx(want, rel=1e-6)
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
    was, out, losses = REFERENCES[f"{name}-run-resumed"], tmp_path / "run", Losses()
    run = shoal.Run.create(out, {})
    shoal.fit(job_of(name)[0], shoal.Budget(epochs=epochs), run)
    job, *found = job_of(name)
    budget = shoal.Budget(epochs=epochs + 2)
    progress = shoal.fit(job, budget, run, resume=True, callbacks=[losses])
    assert losses.all[:10] == pytest.approx(was["losses"], rel=1e-6)
    test = evaluated(*found, run.load_model())
    assert {key: test[key] for key in was["test"]} == pytest.approx(was["test"], rel=1e-9)
    assert progress.step == was["steps"]


def of(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]
