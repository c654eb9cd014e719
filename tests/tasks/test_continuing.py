"""Training that begins with a trained run: its vectors at first, and new labels and data after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cli.settings import Add, Evaluate, Export, Train
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.data.texts import Examples, LabelData, Texts
from shoal.rank.predictor import Labeler
from shoal.tasks import labels, use
from shoal.tasks.encoders import labeler_of, learner_of, tokenize_of
from shoal.tasks.exporting import add, export
from shoal.tasks.fusing import load
from shoal.tasks.prepared import prepare
from shoal.training.run import Run
from tests.planted import planted_labels
from tests.tiny import save_tiny_bert

DATA = planted_labels(n=150, n_labels=12, noise=0.1)
NEW = Texts(["a", "b"], ["w1 w2", "zzz"], ["", ""])


def with_two_more(data: LabelData) -> LabelData:
    """The same points, and labels that the run does not know behind the others."""

    def wider(points: Examples) -> Examples:
        parts = (points.labels, points.drop)
        return Examples(points.texts, *(Csr(x.indptr, x.indices, 14, x.values) for x in parts))

    return LabelData("more", wider(data.train), wider(data.test), data.labels.stack(NEW))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data, with two labels more besides, and trained runs of a bag and a transformer."""
    folder = tmp_path_factory.mktemp("continuing")
    xc.write(DATA, folder / "data")
    xc.write(with_two_more(DATA), folder / "more")
    save_tiny_bert(folder / "bert")
    for name in ("bag", "bert", "twins"):
        labels.train(settings(folder, name, out=folder / name, steps=3))
    return folder


def settings(world: Path, name: str, **options: Any) -> Train:
    small: dict[str, Any] = {"batch_size": 24, "cluster_size": 6, "rank": "encoder", "lr": 0.01}
    small |= {"source": str(world / "data")}
    if name == "bag":
        return Train(**(small | {"dim": 16} | options))
    twins = {"label_encoder": "separate", "pooling": "cls"} if name == "twins" else {}
    return Train(**(small | {"encoder": str(world / "bert"), "max_length": 16} | twins | options))


@pytest.mark.parametrize("name", ["bag", "bert", "twins"])
@pytest.mark.parametrize("exported", [False, True])
def test_before_the_first_step_it_is_the_run(world: Path, name: str, exported: bool) -> None:
    """Vocabulary, vectors of documents and vectors of labels are the run's, bit for bit."""
    begin = world / name
    if exported:
        begin = world / f"{name}-out"
        export(Export(run=world / name, out=begin))
    asked = settings(world, name, from_=begin)
    prepared = prepare(DATA, 0.05, 0, tokenize_of(asked))
    vocabulary = prepared.lexicon.vocabulary
    learner = learner_of(vocabulary, prepared.tokens, len(prepared.train), asked)
    for part in (learner.model, *learner.encoders):
        part.eval() if isinstance(part, torch.nn.Module) else None
    found, run = Labeler(prepared.lexicon, *learner.encoders), labeler_of(Run.open(world / name))
    assert torch.equal(found.encode(DATA.test.texts), run.encode(DATA.test.texts))
    assert torch.equal(found.label_embeddings, run.label_embeddings)
    fresh = learner_of(vocabulary, prepared.tokens, len(prepared.train), replace(asked, from_=None))
    begun = fresh.encoders[0].embed(prepared.bags)
    assert not torch.equal(begun, found.encoder.embed(prepared.bags))


def test_it_learns_new_labels(world: Path) -> None:
    """Known tokens serve more labels; the run is used like any other, and resumes."""
    asked = settings(world, "bag", source=str(world / "more"), from_=world / "bag", steps=2)
    labels.train(replace(asked, out=world / "more-run"))
    lexicon = labeler_of(Run.open(world / "more-run")).lexicon
    assert lexicon.labels.uids[-2:] == ["a", "b"] and len(lexicon.labels) == 14
    assert len(lexicon.vocabulary) == len(labeler_of(Run.open(world / "bag")).lexicon.vocabulary)
    assert use.evaluate(Evaluate(run=world / "more-run"))["test"]
    assert labels.train(replace(asked, out=world / "more-run", resume=True))["steps"] == 2


def test_another_encoder_is_refused(world: Path, tmp_path: Path) -> None:
    """Each setting that the weights depend on is named; so is a folder without a run."""
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("bag", {"dim": 8}, "dim: expected 16, as "),
        ("bag", {"roles": False}, "roles: expected True, as "),
        ("bert", {}, "encoder: expected 'bag', as "),
        ("bag", {"from_": world / "bert"}, r"encoder: expected '.*bert', as "),
        ("bert", {"from_": world / "bert", "pooling": "cls"}, "pooling: expected 'mean', as "),
        ("twins", {"from_": world / "bert"}, "pooling: expected 'mean', as "),
        ("bag", {"from_": tmp_path / "absent"}, "a folder with a run, got nothing there"),
    ]
    for name, options, message in bad:
        options = {"from_": world / "bag", "out": tmp_path / "run"} | options
        with pytest.raises(InputError, match=message):
            labels.train(settings(world, name, **options))


def test_labels_are_added_without_training(world: Path, tmp_path: Path) -> None:
    """``shoal add``: an export that knows all labels; the run stays, and the card says so."""
    path = tmp_path / "new.jsonl"
    path.write_text('{"uid": "a", "title": "w1 w2"}\n{"uid": "b", "title": "?"}\n')
    told = add(Add(run=world / "bag", labels=path, out=tmp_path / "out"))
    assert (told["labels"], told["added"], told["without_known_words"]) == (14, 2, 1)
    found = load(tmp_path / "out").predict(["w1 w2"], k=3)[0]
    assert "a" in [x.uid for x in found]
    assert len(load(world / "bag").lexicon.labels) == 12
    assert "2 labels were added" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "export.json").read_text())["labels"] == 14
    path.write_text("")
    for text, message in (("", "expected new labels, got none"), ('{"uid": "a"}', "'title'")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            add(Add(run=world / "bag", labels=path, out=tmp_path / "out"))
