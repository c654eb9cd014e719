"""What the code before the rebuild computed is computed still: tests/frozen/README.md.

Sources without a split of their own were split at random then; that split is made here and given
to the models, so that the numbers compare.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import shoal
import shoal.rank.evaluate
import shoal.tasks.labels
from shoal.data.read import read
from shoal.data.splits import random_split
from shoal.data.texts import Examples, LabelData

FROZEN = Path(__file__).with_name("frozen")
REFERENCES = json.loads((FROZEN / "references.json").read_text())
PREDICTIONS = json.loads((FROZEN / "predictions.json").read_text())


class Losses(shoal.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, progress: Any, metrics: dict[str, Any]) -> None:
        self.losses.append(progress.loss)


def labels_csv() -> tuple[LabelData, Examples, Examples]:
    """labels.csv, split as it was: a fifth for testing, a tenth of the rest for validation.

    Its rows that repeat a text were examples of their own then; they are where rows have a uid.
    """
    lines = (FROZEN / "data" / "labels.csv").read_text(encoding="utf-8").splitlines()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        numbered = (f"{i or 'uid'},{line}" for i, line in enumerate(lines))
        path.write_text("\n".join(numbered) + "\n", encoding="utf-8")
        data = read(path)
    assert isinstance(data, LabelData)
    kept, test = random_split(len(data.train), 0.2, seed=0)
    train = data.train.subset(kept)
    learned, held_out = random_split(len(train), 0.1, seed=0)
    whole = LabelData(data.name, train, data.train.subset(test), data.labels)
    return whole, train.subset(learned), train.subset(held_out)


def trained(folder: Path, steps: int | None, epochs: int | None, **parts: Any) -> Any:
    """The page of the label task on the data as it was split then."""
    data, learned, held_out = labels_csv()
    watched = {"encoder": Losses(), "classifiers": Losses()}
    predictor, progress = shoal.tasks.labels.train(
        data,
        [shoal.Fold(learned, held_out)],
        shoal.Run.create(folder, {}),
        shoal.tasks.labels.Parts(**parts),
        budget=shoal.Budget(steps=steps, epochs=epochs),
        callbacks=lambda stage: [watched[stage]],
    )
    metrics, _ = shoal.rank.evaluate.evaluate(predictor, data.test, data.train.labels)
    return {name: x.losses for name, x in watched.items()}, progress, metrics


ENCODER_ALONE = {"classifiers": None, "combiner": None, "rankers": (shoal.EncoderRanker(),)}
BAG = {"encoder": shoal.BagEncoder(dim=16), "batches": shoal.Clustered(256, 16)}


def test_the_encoder_takes_the_same_steps(tmp_path: Path) -> None:
    """Ten losses of a bag, and the metrics of ranking by it alone."""
    want = REFERENCES["labels_bag"]
    losses, _, metrics = trained(tmp_path / "run", 10, None, **BAG, **ENCODER_ALONE)
    assert losses["encoder"] == pytest.approx(want["losses"], rel=2e-6)
    assert metrics == pytest.approx(want["test"], abs=1e-6)


def test_a_transformer_takes_the_same_steps(tmp_path: Path) -> None:
    """Ten losses of a tiny random transformer on clustered batches."""
    want = REFERENCES["labels_transformer"]
    name = str(FROZEN / "data" / "bert")
    encoder = shoal.TransformerEncoder(name, max_length=24, lr=0.002)
    batches = shoal.Clustered(64, 16, warm_epochs=0)
    parts = {"encoder": encoder, "batches": batches, **ENCODER_ALONE}
    losses, _, metrics = trained(tmp_path / "run", 20, None, **parts)
    assert losses["encoder"][:10] == pytest.approx(want["losses"], rel=2e-6)
    assert metrics == pytest.approx(want["test"], abs=0.4)


def test_the_whole_pipeline_ends_in_the_same_metrics(tmp_path: Path) -> None:
    """Encoder, classifiers and ensemble: losses of both stages, and the test metrics."""
    want = REFERENCES["labels_full"]
    losses, progress, metrics = trained(tmp_path / "run", None, 4, **BAG)
    assert losses["encoder"][:10] == pytest.approx(want["losses"], rel=2e-6)
    assert progress.loss == pytest.approx(want["last_loss"], rel=1e-5)
    assert losses["classifiers"][:10] == pytest.approx(want["head_losses"], rel=2e-6)
    assert losses["classifiers"][-1] == pytest.approx(want["head_last_loss"], rel=1e-5)
    # at these few examples the combiner takes more steps than it did: other answers, as good ones
    near = {name: metrics[name] for name in want["test"]}
    assert near == pytest.approx(want["test"], abs=1)


@pytest.mark.parametrize("name", ["run", "export"])
def test_label_models_of_before_open_and_predict_the_same(name: str) -> None:
    """The five best labels of ten texts, with their probabilities."""
    model = shoal.open(FROZEN / name)
    want = PREDICTIONS[name]
    found = model.predict(PREDICTIONS["texts"], k=5)
    for row, expected in zip(found, want, strict=True):
        assert [p.label for p in row] == [p["uid"] for p in expected]
        assert [p.score for p in row] == pytest.approx([p["score"] for p in expected], abs=2e-6)


@pytest.mark.parametrize("name", ["run", "export"])
def test_label_models_of_before_are_evaluated_on_the_rows_of_that_day(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table that was split at random, all rows are judged whose text was not trained on."""
    monkeypatch.chdir(FROZEN)
    judged = shoal.open(name).test_examples("data/labels.csv").texts.all()
    data, _, _ = labels_csv()
    known = set(data.train.texts.all())
    want = {text for text in data.test.texts.all() if text not in known}
    # rows that repeat a text are one example now
    assert set(judged) == want and 380 < len(want) < 540
