"""Runs on graphs that revision 2d1c72a wrote open, and predict and evaluate the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import shoal
from shoal.core.errors import InputError

FROZEN = Path(__file__).parents[1] / "frozen"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The frozen predictions; their folder is the working directory, one thread as they had."""
    monkeypatch.chdir(FROZEN)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield json.loads((FROZEN / "predictions.json").read_text())
    torch.set_num_threads(threads)


def test_a_run_on_nodes_predicts_the_same(frozen: dict) -> None:
    """Classes and scores of twenty nodes, and the test metrics."""
    model = shoal.open("nodes-run", device="cpu")
    assert isinstance(model, shoal.NodeModel) and model.fanouts == (5, 5) and model.heads is None
    rows = model.predict(frozen["nodes"], k=5)
    for row, was in zip(rows, frozen["nodes-run"], strict=True):
        assert [(x.label, x.name) for x in row] == [(c["class"], c["name"]) for c in was["classes"]]
        expected = pytest.approx([c["score"] for c in was["classes"]], abs=3e-7)
        assert [x.score for x in row] == expected
    references = json.loads(Path("references.json").read_text())
    assert model.evaluate().items() >= references["nodes-run"]["evaluate"].items()


def test_a_run_on_links_predicts_the_same(frozen: dict) -> None:
    """Links and scores of twenty nodes, and the test metrics."""
    model = shoal.open("links-run", device="cpu")
    assert isinstance(model, shoal.LinkModel)
    rows = model.predict(frozen["nodes"], k=5)
    for row, was in zip(rows, frozen["links-run"], strict=True):
        assert [x.node for x in row] == [c["node"] for c in was["links"]]
        expected = pytest.approx([c["score"] for c in was["links"]], abs=3e-7)
        assert [x.score for x in row] == expected
    references = json.loads(Path("references.json").read_text())
    assert model.evaluate() == references["links-run"]["evaluate"]


def test_an_old_run_that_is_saved_is_one_of_today(frozen: dict, tmp_path: Path) -> None:
    """What was opened from the first layout opens again from today's."""
    model = shoal.open("nodes-run", device="cpu")
    model.save(tmp_path / "new")
    again = shoal.open(tmp_path / "new")
    assert again.predict([0, 30], k=3) == model.predict([0, 30], k=3)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("settings.json", '{"source": "data/nodes.npz"}', "expected the settings of a run"),
        ("settings.json", "[]", "expected the settings of a run"),
        ("record.jsonl", "", "expected"),
        ("best.safetensors", "", "expected a whole checkpoint"),
    ],
)
def test_damage_is_named(frozen: dict, tmp_path: Path, file: str, text: str, message: str) -> None:
    """Settings, log and checkpoint that are not whole end in one line."""
    run = tmp_path / "run"
    shutil.copytree("nodes-run", run)
    (run / file).write_text(text)
    with pytest.raises(InputError, match=message):
        shoal.open(run)
