"""The examples run as they stand, on small data in place of the shipped one."""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import shoal
from shoal.data.formats import xc
from shoal.rank.evaluate import evaluate
from shoal.training.run import Run
from tests.planted import planted_labels
from tests.test_frozen import REFERENCES, Losses, labels_csv

pytestmark = pytest.mark.whole

EXAMPLES = Path(__file__).parents[1] / "examples"
PANGRAM = "the quick brown fox jumps over the lazy dog"  # so that every letter is known


def run(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What an example prints when it is called with these words."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.usefixtures("few_folds")
def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains twice, prints a table and three answers; the second time it shows what it has."""
    # so many that a tenth of them teaches a combiner
    data = planted_labels(n=2400, n_labels=64)
    titles = [f"{data.labels.titles[0]} {PANGRAM}", *data.labels.titles[1:]]
    xc.write(replace(data, labels=replace(data.labels, titles=titles)), tmp_path / "planted")
    words = ["--steps", "2", "--source", str(tmp_path / "planted"), "--out", str(tmp_path)]
    said = [run("demo.py", words, monkeypatch, capsys) for _ in range(2)]
    assert said[0] == said[1]
    table, *answers = said[0].split("\n\n")
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows] == ["batches", "random", "ngame", "ensemble"]
    # what comes after the encoder takes time; two steps of it may take less than a printed digit
    assert float(rows[3][-1]) > float(rows[2][-1]) >= 0
    for answer in answers:
        scores = [float(line.split()[-1]) for line in answer.strip().splitlines()[1:]]
        assert len(scores) == 3 and 1 >= scores[0] >= scores[1] >= scores[2] >= 0
    for batches in ("random", "ngame"):
        (end,) = (x for x in Run.open(tmp_path / f"demo-{batches}").log() if x["event"] == "end")
        assert end["step"] == 2


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("with_*.py")))
def test_a_foreign_trainer(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Few epochs in another library's trainer more than double P@1 or accuracy."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    said = run(name, ["--epochs", "3"], monkeypatch, capsys)
    lines = [line for line in said.splitlines() if line.startswith(("P@1", "accuracy"))]
    ((before, after),) = (line.split()[1::2] for line in lines)
    assert float(after) > 2 * float(before) > 0


@pytest.mark.usefixtures("few_folds")
def test_quickstart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way in ends in what it is for: metrics, labels of texts, classes, a learning rate."""
    said = run("quickstart.py", ["--rows", "600"], monkeypatch, capsys).splitlines()
    assert said[0].startswith("P@1 ") and float(said[0].split()[1]) > 15
    assert all(line.count(" | ") == 2 for line in said[1:3])
    accuracy = [line for line in said if line.startswith("accuracy ")]
    assert all(float(line.split()[1]) > 80 for line in accuracy)
    assert any("learning rate at batch size 512" in line for line in said[-3:])


def test_ngame_trains_as_the_recipe_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of both stages and metrics are those of the recipe that the command had."""
    monkeypatch.syspath_prepend(EXAMPLES)
    ngame = importlib.import_module("ngame")
    want = REFERENCES["labels_ngame"]
    data, learned, held_out = labels_csv()
    watched = {"encoder": Losses(), "classifiers": Losses()}
    # neighbors brought candidates as well, though the tree did not read their votes
    rankers = (shoal.EncoderRanker(), shoal.ClassifierRanker(), shoal.NeighborRanker())
    encoder = shoal.BagEncoder(dim=16, fields=False)
    recipe = ngame.Recipe(encoder, 256, 32, epochs=4, classifier_epochs=3, rankers=rankers)
    run = shoal.Run.create(tmp_path / "run", {})
    predictor = ngame.train(
        data, learned, held_out, run, recipe, callbacks=lambda stage: [watched[stage]]
    )
    losses, classifier_losses = (watched[stage].losses for stage in ("encoder", "classifiers"))
    assert losses[:10] == pytest.approx(want["losses"], rel=2e-6)
    assert losses[-1] == pytest.approx(want["last_loss"], rel=1e-5)
    assert classifier_losses[:10] == pytest.approx(want["head_losses"], rel=2e-6)
    assert classifier_losses[-1] == pytest.approx(want["head_last_loss"], rel=1e-5)
    metrics, _ = evaluate(predictor, data.test, data.train.labels)
    assert metrics == pytest.approx(want["test"], abs=1e-6)


def test_ngame_on_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page runs from a file to metrics, and what it leaves is a model."""
    words = "--dim 16 --batch-size 256 --cluster-size 32 --epochs 2 --classifier-epochs 1 --out"
    table = str(Path(__file__).with_name("frozen") / "data" / "labels.csv")
    said = run("ngame.py", [table, *words.split(), str(tmp_path / "run")], monkeypatch, capsys)
    name, score, *_ = said.split()
    assert name == "P@1" and float(score) > 5
    (found,) = shoal.open(tmp_path / "run").predict(["a tree with edible fruit"], k=3)
    assert len(found) == 3
