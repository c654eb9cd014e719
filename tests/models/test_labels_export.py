"""An export answers like its model, by shoal and by others, and is whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shoal
from shoal.core import checkpoint
from shoal.core.errors import InputError
from shoal.data.texts import LabelData, Texts
from tests.planted import planted_labels
from tests.text.test_sentence import by_library, static_embedding
from tests.tiny import save_tiny_bert


def with_contents(texts: Texts) -> Texts:
    """The first half of each title stays, the rest is content."""
    words = [title.split() for title in texts.titles]
    halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in words]
    return Texts(
        texts.uids, *([" ".join(half) for half in side] for side in zip(*halves, strict=True))
    )


def data() -> LabelData:
    """Planted data whose documents have titles and contents."""
    made = planted_labels(n=520, n_labels=16, noise=0.3)
    train, test = (replace(x, texts=with_contents(x.texts)) for x in (made.train, made.test))
    return replace(made, train=train, test=test)


DATA = data()
TEXTS = ["w1 w2", "w3 and what is not known", "?"]
BAG = shoal.BagEncoder(dim=16)
ALONE: dict[str, Any] = {"rankers": [shoal.EncoderRanker()], "combiner": None, "classifiers": None}
KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "ensemble": lambda bert: {"encoder": BAG, "classifiers": shoal.Classifiers(epochs=1)},
    "plain": lambda bert: {"encoder": replace(BAG, fields=False), **ALONE},
    "classifiers": lambda bert: {
        "encoder": replace(BAG, fields=False),
        "classifiers": shoal.Classifiers(epochs=1),
        "rankers": [shoal.ClassifierRanker()],
        "combiner": None,
    },
    "bert": lambda bert: {"encoder": shoal.TransformerEncoder(bert, max_length=16), **ALONE},
    "twins": lambda bert: {
        "encoder": shoal.TransformerEncoder(
            bert, max_length=16, separate_labels=True, pooling="cls"
        ),
        **ALONE,
    },
}
OF_WORDS = ("ensemble", "plain", "classifiers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every kind, and their exports."""
    folder = tmp_path_factory.mktemp("exporting")
    bert = str(save_tiny_bert(folder / "bert"))
    for name, parts in KINDS.items():
        given = {"batches": shoal.Clustered(60, 6), "device": "cpu"} | parts(bert)
        model = shoal.LabelModel(**given)
        valid = DATA.test if name == "ensemble" else 0.0
        model.fit(DATA, valid=valid, steps=8, out=folder / "runs" / name)
        model.export(folder / f"{name}-out", documents=DATA.test.texts)
    return folder


def predictions(folder: Path) -> list[list[dict[str, Any]]]:
    return [[asdict(x) for x in row] for row in shoal.open(folder).predict(TEXTS, k=5)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.whole
def test_it_predicts_as_the_run_does(world: Path, name: str) -> None:
    """The same labels with the same scores, bit for bit; and so does its own export."""
    assert predictions(world / f"{name}-out") == predictions(world / "runs" / name)


@pytest.mark.parametrize("name", KINDS)
def test_others_make_the_same_vectors(world: Path, name: str) -> None:
    """Plain texts have shoal's vectors by the plain formula; label vectors are shoal's."""
    model = shoal.open(world / "runs" / name)
    out, texts = world / f"{name}-out", [*TEXTS, *DATA.test.texts.all()[:20]]
    expected = model.predictor.encode(Texts.of(texts))
    if name in OF_WORDS:
        found = static_embedding(out / "encoder", texts)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    vectors = load_file(out / "labels.safetensors")
    assert torch.equal(vectors["embeddings"], model.predictor.label_embeddings)
    assert ("classifiers" in vectors) == (name in ("ensemble", "classifiers"))
    assert (out / "label_encoder").is_dir() == (name in ("ensemble", "twins"))
    torch.testing.assert_close(by_library(out / "encoder", texts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ensemble", "twins"])
def test_label_texts_have_the_label_encoder_s_vectors(world: Path, name: str) -> None:
    """A label of title alone is embedded as the model embeds it, by the exported label encoder."""
    titles, encoder = DATA.labels.all(), shoal.open(world / "runs" / name).encoder
    expected = encoder.embed_labels(encoder.labels(Texts.of(titles)))
    out = world / f"{name}-out" / "label_encoder"
    if name in OF_WORDS:
        found = static_embedding(out, titles)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_library(out, titles), expected, rtol=0, atol=1e-5)


def test_it_is_used_like_a_run(world: Path, tmp_path: Path) -> None:
    """Evaluated, exported again, gone on with; a run is not begun there."""
    out = world / "ensemble-out"
    model = shoal.open(out)
    assert model.evaluate(DATA) == shoal.open(world / "runs" / "ensemble").evaluate(DATA)
    model.export(tmp_path / "again")
    assert predictions(tmp_path / "again") == predictions(out)
    with pytest.raises(InputError, match="expected a folder without a model, got a model"):
        shoal.LabelModel(device="cpu").fit(DATA, out=out)


def test_what_is_lost_is_said(world: Path) -> None:
    """Of a title with content a plain string makes a neighbor; how near is told."""
    about = json.loads((world / "ensemble-out" / "model.json").read_text())
    mine, long, _ = about["exported"]
    assert mine["reads"] == "document title" and -1 < mine["least"] < mine["mean"] < 1
    assert 0.5 < mine["mean"] < long["mean"] < 1 and "title and content" in long["reads"]
    assert mine["sample"] == "documents"
    (plain,) = json.loads((world / "plain-out" / "model.json").read_text())["exported"]
    assert plain["least"] == 1.0 and plain["reads"] == "any text"


def test_the_card_has_the_metrics(world: Path, tmp_path: Path) -> None:
    """The numbers of the test, the encoders that are there, and labels that came later."""
    card = (world / "ensemble-out" / "README.md").read_text()
    model = shoal.open(world / "runs" / "ensemble")
    assert card.startswith("---\n") and f"{model.evaluate(DATA)['P@1']:.2f}" in card
    assert "shoal.open(" in card and "SentenceTransformer(" in card and "AutoModel" not in card
    assert "AutoModel.from_pretrained(" in (world / "bert-out" / "README.md").read_text()
    model.add(["w1 w2", "w3"]).export(tmp_path / "out")
    assert "added after training: 2" in (tmp_path / "out" / "README.md").read_text()
    assert len(shoal.open(tmp_path / "out").labels) == 18


def test_it_holds_safetensors_json_and_text(world: Path) -> None:
    """Every file is of a kind that cannot run."""
    for name in KINDS:
        files = [path for path in (world / f"{name}-out").rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".gz"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", "{}", r"expected a model of format shoal\.model/1, got None"),
        ("model.json", "[", r"model\.json: expected what a model is"),
        ("model.json", '{"format": "shoal.model/1", "task": "x"}', "task: expected one of"),
        ("labels.json.gz", "", r"label_tokens: indptr: expected whole numbers \[1\]"),
        ("model.safetensors", "", "a whole checkpoint"),
        ("bag.safetensors", "", "a whole checkpoint"),
    ],
)
def test_damage_is_one_line(
    world: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    """Every JSON file and every part is checked when it is read."""
    shutil.copytree(world / "ensemble-out", tmp_path / "out")
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        shoal.open(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_only_an_export_is_replaced(world: Path, tmp_path: Path) -> None:
    """A run, a file and a folder of something else stay; an earlier export is replaced whole."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    one, two = (shoal.open(world / "runs" / name) for name in ("ensemble", "plain"))
    for out in (world / "runs" / "plain", tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(InputError, match="expected nothing there, or an earlier export, got"):
            one.export(out)
    shutil.copytree(world / "ensemble-out", tmp_path / "out")
    (tmp_path / "out" / "stray").write_text("precious")
    with pytest.raises(InputError, match="expected an export and nothing else, got stray; move it"):
        two.export(tmp_path / "out")
    (tmp_path / "out" / "stray").unlink()
    two.export(tmp_path / "out")
    assert predictions(tmp_path / "out") == predictions(world / "runs" / "plain")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"label_encoder", "long_encoder"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes", "out"]


def test_a_full_disk_leaves_the_old_export(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, nothing left behind, and the export that was there answers."""
    shutil.copytree(world / "plain-out", tmp_path / "out")
    model = shoal.open(world / "runs" / "ensemble")

    def full(path: Path, state: dict[str, Any]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(InputError, match=r"No space left on device; free space"):
        model.export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert predictions(tmp_path / "out") == predictions(world / "plain-out")
