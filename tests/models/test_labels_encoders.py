"""LabelModel with transformers, and models that go on from a trained encoder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.texts import Examples, LabelData, Texts
from shoal.tasks.labels import Parts, build
from tests.models.test_labels_runs import Interrupt, expect_same
from tests.planted import planted_labels
from tests.tiny import save_tiny_bert

DATA = planted_labels(n=120, n_labels=16, noise=0.1)
TEXTS = [*DATA.test.texts.titles[:8], "w1 w2", ""]
ALONE: dict[str, Any] = {
    "rankers": [shoal.EncoderRanker()], "combiner": None, "classifiers": None, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder of transformers."""
    return str(save_tiny_bert(tmp_path_factory.mktemp("bert") / "bert"))


def spec(bert: str, **options: Any) -> shoal.TransformerEncoder:
    """Short texts, a large rate."""
    return shoal.TransformerEncoder(bert, **{"max_length": 16, "lr": 0.01} | options)


def model_of(encoder: Any, **parts: Any) -> shoal.LabelModel:
    """Ranks by the encoder alone, on small batches of small clusters."""
    return shoal.LabelModel(encoder=encoder, batches=shoal.Clustered(24, 6), **ALONE | parts)


KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "twins": {"separate_labels": True, "pooling": "cls"},
    "frugal": {"gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def trained(bert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three steps of each kind of encoder."""
    folder, encoders = tmp_path_factory.mktemp("trained"), {"bag": shoal.BagEncoder(dim=16)}
    encoders |= {name: spec(bert, **options) for name, options in KINDS.items()}
    for name, encoder in encoders.items():
        model_of(encoder).fit(DATA, valid=0.0, steps=3, out=folder / name)
    return {name: folder / name for name in encoders}


@pytest.mark.whole
def test_training_beats_the_random_transformer(bert: str) -> None:
    """P@1 on the test examples clearly exceeds that of the encoder at the start."""
    encoder, tokens = spec(bert).begin(
        DATA.train.texts, DATA.labels, seed=0, device="cpu", folder=None
    )
    before = shoal.Predictor(
        encoder, DATA.labels, tokens.span(120, tokens.n_rows), (shoal.EncoderRanker(),)
    )
    untrained = model_of(spec(bert)).with_predictor(before).evaluate(DATA)
    result = model_of(spec(bert, lr=0.02)).fit(DATA, valid=0.1, epochs=12)
    assert result.test["P@1"] > untrained["P@1"] + 8


@pytest.mark.slow
def test_a_fresh_process_opens_every_kind(trained: dict[str, Path], tmp_path: Path) -> None:
    """Elsewhere, the encoder's own folder not needed, a tree as well: the same bits."""
    combined: dict[str, Any] = {
        "rankers": [shoal.EncoderRanker(), shoal.ClassifierRanker()],
        "combiner": shoal.TreeCombiner(),
        "classifiers": shoal.Classifiers(epochs=1),
    }
    data = planted_labels(n=520, n_labels=8)
    model = model_of(shoal.BagEncoder(dim=8), **combined)
    model.fit(data, valid=0.5, steps=2, out=tmp_path / "tree")
    assert model.predictor.combiner is not None
    shutil.copytree(trained["twins"], tmp_path / "twins")
    code = (
        "import sys, torch, shoal\n"
        "torch.set_num_threads(1)\n"
        "for folder in ('tree', 'twins'):\n"
        "    rows = shoal.open(folder, device='cpu').predict(sys.argv[1:])\n"
        "    print([[(p.label, p.score) for p in row] for row in rows])\n"
    )
    words = [sys.executable, "-c", code, *TEXTS]
    told = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    for line, folder in zip(told.stdout.splitlines(), ("tree", "twins"), strict=True):
        rows = shoal.open(tmp_path / folder, device="cpu").predict(TEXTS)
        assert line == str([[(p.label, p.score) for p in row] for row in rows])


def test_a_folder_holds_no_pickle(trained: dict[str, Path], tmp_path: Path) -> None:
    """Configuration and tokenizer as JSON, weights as safetensors; one that came later is
    refused by name."""
    for folder in trained.values():
        endings = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert endings <= {".json", ".jsonl", ".safetensors", ".gz"}
    shutil.copytree(trained["mean"], tmp_path / "run")
    (tmp_path / "run" / "encoder" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: expected"):
        shoal.open(tmp_path / "run")


@pytest.mark.parametrize("name", ["chunks", "twins", "clip"])
@pytest.mark.whole
def test_resumed_equals_uninterrupted(name: str, bert: str, tmp_path: Path) -> None:
    """Stopped after a refresh, a transformer's run ends in the same bits, dropout and all."""
    encoder = spec(bert, **KINDS.get(name, {}))
    gradients = {
        "chunks": shoal.Gradients(chunk=10),
        "twins": shoal.Gradients(accumulate=2),
        "clip": shoal.Gradients(clip=0.1),
    }[name]
    options: dict[str, Any] = {"valid": 0.0, "epochs": 2, "keep_resume": True}

    def run(out: Path, **more: Any) -> shoal.Result:
        return model_of(encoder, gradients=gradients).fit(DATA, out=out, **options | more)

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", callbacks=[Interrupt(whole.steps // 2 + 1)]).steps < whole.steps
    made = (tmp_path / "parts" / "tokens" / "indices.npy").stat().st_mtime_ns
    assert run(tmp_path / "parts", resume=True).steps == whole.steps
    assert (tmp_path / "parts" / "tokens" / "indices.npy").stat().st_mtime_ns == made
    expect_same(tmp_path / "whole", tmp_path / "parts")


def test_memory_mapped_tokens_are_not_copied(bert: str, tmp_path: Path) -> None:
    """Examples' and labels' token ids are two spans of the one array that is mapped."""
    _, tokens = spec(bert).begin(
        DATA.train.texts, DATA.labels, seed=0, device="cpu", folder=tmp_path / "tokens"
    )
    documents, labels = tokens.span(0, 120), tokens.span(120, tokens.n_rows)
    start = tokens.indices.data_ptr()
    assert documents.indices.data_ptr() == start
    assert labels.indices.data_ptr() == start + 4 * documents.nnz
    assert labels.indices.dtype == torch.int32 and labels.n_rows == 16


def test_adapters_are_saved_and_used(bert: str, tmp_path: Path) -> None:
    """A run of adapters answers as it did when it was trained; they are trained on from there."""
    pytest.importorskip("peft", reason="adapters need the extra lora")
    model = model_of(spec(bert, lora=2))
    result = model.fit(DATA, valid=0.0, steps=3, out=tmp_path / "run")
    again = shoal.open(tmp_path / "run")
    assert again.evaluate(DATA) == result.test
    assert not any("lora" in name for name in again.encoder.module.state_dict())


@pytest.mark.parametrize("name", ["bag", *KINDS])
def test_before_the_first_step_it_is_the_model(name: str, trained: dict[str, Path]) -> None:
    """Vocabulary, vectors of documents and vectors of labels are the model's, bit for bit."""
    model = shoal.open(trained[name], device="cpu")
    begun, tokens = model.encoder.begin(
        DATA.train.texts, DATA.labels, seed=1, device="cpu", folder=None
    )
    documents, labels = tokens.span(0, 120), tokens.span(120, tokens.n_rows)
    assert torch.equal(begun.embed(documents), model.predictor.encode(DATA.train.texts))
    assert torch.equal(begun.embed_labels(labels), model.predictor.label_embeddings)
    job = build(Parts(encoder=begun, batches=shoal.Clustered(24, 6)), begun, tokens,
                DATA.train.labels)  # fmt: skip
    shoal.fit(job, shoal.Budget(steps=1))
    assert not torch.equal(begun.embed(documents), model.predictor.encode(DATA.train.texts))
    assert torch.equal(  # the model given learned nothing
        shoal.open(trained[name]).predictor.label_embeddings, model.predictor.label_embeddings
    )


@pytest.mark.parametrize("name", ["bag", "mean"])
def test_a_model_goes_on_with_new_labels_and_data(
    name: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    """Known tokens serve more labels; the new run is used like any other."""
    new = Texts(["a", "b"], ["w1 w2", "zzz"], ["", ""])

    def wider(x: Examples) -> Examples:
        parts = (Csr(y.indptr, y.indices, 18, y.values) for y in (x.labels, x.drop))
        return Examples(x.texts, *parts)

    more = LabelData("more", wider(DATA.train), wider(DATA.test), DATA.labels.stack(new))
    begin = shoal.open(trained[name], device="cpu")
    model = model_of(begin.encoder)
    result = model.fit(more, valid=0.1, steps=2, out=tmp_path / "run")
    assert result.steps == 2 and model.labels.uids[-2:] == ["a", "b"]
    assert model.encoder.n_tokens == begin.encoder.n_tokens
    assert not torch.equal(model.encode(TEXTS), begin.encode(TEXTS))
    assert shoal.open(tmp_path / "run").predict(TEXTS) == model.predict(TEXTS)
    # a long way from random: two more steps stay near
    assert (model.encode(TEXTS[:8]) * begin.encode(TEXTS[:8])).sum(1).min() > 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length: expected a whole number of at least 1"),
        ({"max_length": 41}, "max_length: expected at most 40 tokens"),
        ({"lr": 0.0}, "lr: expected a number above 0"),
        ({"lora": 0}, "lora: expected a whole number of at least 1"),
        ({"name": "./absent"}, "absent: expected a folder with a Hugging Face model"),
    ],
)
def test_bad_settings_are_named(options: Any, message: str, bert: str, tmp_path: Path) -> None:
    """One line each, and nothing is left of the run."""
    with pytest.raises(InputError, match=message):
        encoder = shoal.TransformerEncoder(**{"name": bert, "max_length": 16} | options)
        model_of(encoder).fit(DATA, steps=1, valid=0.0, out=tmp_path / "run")
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_weights_of_another_model_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    """A folder whose configuration was exchanged is refused in one line."""
    shutil.copytree(trained["mean"], tmp_path / "run")
    config = tmp_path / "run" / "encoder" / "config.json"
    wrong = config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 8')
    config.write_text(wrong)
    with pytest.raises(InputError) as caught:
        shoal.open(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_unknown_words_and_plain_texts(trained: dict[str, Path]) -> None:
    """A tokenizer's unknown token is no known word; every text is a title."""
    model = shoal.open(trained["mean"])
    assert model.unknown(["w1", "???", ""]).tolist() == [False, True, True]
    assert len(model.predict("w1 w2", k=3)) == 3
