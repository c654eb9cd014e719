"""An export answers like its run, in a fresh process and by others, and is whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shoal.cli.settings import Evaluate, Export, Query, Train
from shoal.core import checkpoint
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.data.texts import LabelData, Texts
from shoal.rank.fused import FusedLabeler
from shoal.tasks import labels, use
from shoal.tasks.exporting import export
from shoal.tasks.fusing import load
from shoal.training.run import Run
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
RUNS: dict[str, dict[str, Any]] = {
    "fused": {"valid": 0.5},
    "plain": {"valid": 0.0, "roles": False},
    "head": {"valid": 0.0, "roles": False, "head": "joint", "rank": "head"},
    "frozen": {"valid": 0.0, "roles": False, "head": "frozen", "head_epochs": 1, "rank": "head"},
    "bert": {"valid": 0.0, "encoder": "bert", "steps": 2, "epochs": None, "max_length": 16},
    "twins": {
        "valid": 0.0, "encoder": "bert", "steps": 2, "epochs": None, "label_encoder": "separate",
        "pooling": "cls", "max_length": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind, and their exports."""
    folder = tmp_path_factory.mktemp("exporting")
    xc.write(DATA, folder / "data")
    save_tiny_bert(folder / "bert")
    for name, options in RUNS.items():
        small: dict[str, Any] = {"batch_size": 60, "cluster_size": 6, "epochs": 1}
        encoder = str(folder / "bert") if "encoder" in options else "bag"
        small |= options | {"encoder": encoder} | ({} if encoder != "bag" else {"dim": 16})
        labels.train(Train(source=str(folder / "data"), out=folder / name, **small))
        export(Export(run=folder / name, out=folder / f"{name}-out"))
    return folder


def predictions(folder: Path) -> list[list[dict[str, Any]]]:
    return [[asdict(x) for x in row] for row in load(folder).predict(TEXTS, k=5)]


@pytest.mark.parametrize("name", RUNS)
def test_it_predicts_as_the_run_did(world: Path, name: str) -> None:
    """The same labels with the same scores, bit for bit."""
    assert predictions(world / f"{name}-out") == predictions(world / name)


def test_it_predicts_the_same_in_a_fresh_process(world: Path, tmp_path: Path) -> None:
    """Three lines in another process and another place, the run and its data gone."""
    shutil.copytree(world / "fused-out", tmp_path / "moved")
    code = (
        "import sys, json, torch\nfrom shoal.tasks.fusing import load\n"
        "torch.set_num_threads(1)\n"
        "found = load(sys.argv[1]).predict(json.loads(sys.argv[2]), k=5)\n"
        "print(json.dumps([[vars(x) for x in row] for row in found]))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "moved"), json.dumps(TEXTS)]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == predictions(world / "fused")


@pytest.mark.parametrize("name", RUNS)
def test_others_make_the_same_vectors(world: Path, name: str) -> None:
    """Plain texts have shoal's vectors by the plain formula; label vectors are shoal's."""
    loaded = load(world / name)
    labeler = loaded.labeler if isinstance(loaded, FusedLabeler) else loaded
    out, texts = world / f"{name}-out", [*TEXTS, *DATA.test.texts.all()[:20]]
    expected = labeler.encode(Texts.of(texts))
    if "encoder" not in RUNS[name]:
        found = static_embedding(out / "encoder", texts)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    vectors = load_file(out / "labels.safetensors")["embeddings"]
    assert torch.equal(vectors, labeler.label_embeddings)
    assert ("classifiers" in load_file(out / "labels.safetensors")) == (
        name in ("head", "frozen", "fused")
    )
    assert (out / "label_encoder").is_dir() == (name in ("fused", "twins"))
    torch.testing.assert_close(by_library(out / "encoder", texts), expected, rtol=0, atol=1e-5)


def test_label_texts_have_the_label_encoder_s_vectors(world: Path) -> None:
    """A label of title alone is embedded as the run embedded it, by the exported label encoder."""
    titles = [text for text in DATA.labels.all() if text]
    for name in ("fused", "twins"):
        loaded = load(world / name)
        labeler = loaded.labeler if isinstance(loaded, FusedLabeler) else loaded
        bags = labeler.lexicon.vocabulary.labels(Texts.of(titles))
        expected = (labeler.label_encoder or labeler.encoder).embed(bags)
        out = world / f"{name}-out" / "label_encoder"
        if name == "fused":
            found = static_embedding(out, titles)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(by_library(out, titles), expected, rtol=0, atol=1e-5)


def test_commands_accept_it(world: Path, tmp_path: Path) -> None:
    """Evaluate, query and export itself; a run is neither begun nor continued there."""
    out = world / "fused-out"
    assert (
        use.evaluate(Evaluate(run=out))["test"]
        == use.evaluate(Evaluate(run=world / "fused"))["test"]
    )
    assert use.query(Query(text="w1 w2", run=out))["labels"]
    export(Export(run=out, out=tmp_path / "again"))
    assert predictions(tmp_path / "again") == predictions(out)
    for resume in (True, False):
        with pytest.raises(
            InputError, match=r"expected a (folder for a run|run to continue), got an e"
        ):
            labels.train(
                Train(source=str(world / "data"), out=out, resume=resume, valid=0.5, dim=16)
            )


def test_what_is_lost_is_said(world: Path) -> None:
    """Of a title with content a plain string makes a neighbor; how near is told."""
    about = json.loads((world / "fused-out" / "export.json").read_text())
    mine, long, _ = about["encoders"]
    assert mine["reads"] == "document title" and -1 < mine["least"] <= mine["mean"] < 1
    assert 0.5 < mine["mean"] < long["mean"] < 1 and "title and content" in long["reads"]
    assert mine["sample"] == f"test points of {world / 'data'}"
    (plain,) = json.loads((world / "plain-out" / "export.json").read_text())["encoders"]
    assert plain["least"] == 1.0 and plain["reads"] == "any text"


def test_the_card_has_the_metrics(world: Path) -> None:
    """The numbers of the record, and the encoders that are there."""
    card = (world / "fused-out" / "README.md").read_text()
    (test,) = (event for event in Run.open(world / "fused").log() if event["event"] == "test")
    assert card.startswith("---\n") and f"{test['P@1']:.2f}" in card
    assert "shoal.open(" in card and "SentenceTransformer(" in card and "AutoModel" not in card
    assert "AutoModel.from_pretrained(" in (world / "bert-out" / "README.md").read_text()


def test_it_holds_safetensors_json_and_text(world: Path) -> None:
    """Every file is of a kind that cannot run; a pickle that came later is refused by name."""
    kinds = {".json", ".jsonl", ".safetensors", ".md", ".gz"}
    for name in RUNS:
        files = [path for path in (world / f"{name}-out").rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= kinds


def test_a_pickle_is_refused(world: Path, tmp_path: Path) -> None:
    """In an export as in a run, even where the safetensors lie beside it."""
    for name in ("bert-out", "plain"):
        shutil.copytree(world / name, tmp_path / name)
        (tmp_path / name / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(InputError, match=r"pytorch_model\.bin: expected safetensors and JSON"):
            load(tmp_path / name)


DAMAGES: list[tuple[str, str, str]] = [
    ("export.json", "{}", r"expected shoal\.export/1, got None"),
    ("export.json", "[", r"export\.json: expected what an export is"),
    ("settings.json", "[]", "the settings of a run, got list"),
    ("settings.json", '{"source": 3}', "settings.json: source: expected <class 'str'>, got 3"),
    ("settings.json", '{"source": "x", "pooling": "max"}', "pooling: expected typing.Literal"),
    ("settings.json", '{"source": "x", "seed": true}', "seed: expected <class 'int'>, got True"),
    ("settings.json", "{}", "got no source"),
    ("lexicon/labels.json.gz", "", r"label_bags: expected a Csr of \(0, "),
    ("lexicon/tokenizer.json", "{}", "tokenizer"),
    ("fused.safetensors", "", "a whole checkpoint"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGES)
def test_damage_is_one_line(
    world: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    """Every JSON file and every part is checked when it is read."""
    shutil.copytree(world / "fused-out", tmp_path / "out")
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_only_an_export_is_replaced(world: Path, tmp_path: Path) -> None:
    """A run, a file and a folder of something else stay; an earlier export is replaced whole."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for out in (world / "plain", tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(InputError, match="expected nothing there, or an earlier export, got"):
            export(Export(run=world / "fused", out=out))
    shutil.copytree(world / "fused-out", tmp_path / "out")
    (tmp_path / "out" / "stray").write_text("")
    export(Export(run=world / "plain", out=tmp_path / "out"))
    assert predictions(tmp_path / "out") == predictions(world / "plain")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"stray", "fused.safetensors", "label_encoder", "long_encoder"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes", "out"]


def test_a_full_disk_leaves_the_old_export(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, nothing left behind, and the export that was there answers."""
    shutil.copytree(world / "plain-out", tmp_path / "out")

    def full(path: Path, state: dict[str, Any]) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(InputError, match=r"No space left on device; free space"):
        export(Export(run=world / "fused", out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert predictions(tmp_path / "out") == predictions(world / "plain")
