"""The label job with a transformer: learns, resumes, is used again, and refuses what is foreign."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cli.settings import Cluster, Evaluate, Predict, Query, Train
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.rank.predictor import Labeler
from shoal.tasks import labels, use
from shoal.tasks.encoders import learner_of, tokenize_of
from shoal.text.transformer import TokenTransformer
from shoal.training.job import Budget, Job
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.planted import planted_labels
from tests.tiny import save_tiny_bert
from tests.training.test_loop import interrupted, last_of, new_run

DATA = planted_labels(n=120, n_labels=16, noise=0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data, a tiny encoder, and one trained run."""
    folder = tmp_path_factory.mktemp("world")
    xc.write(DATA, folder / "planted")
    save_tiny_bert(folder / "bert")
    labels.train(settings(folder, out=folder / "run", epochs=12, lr=0.02))
    return folder


def settings(world: Path, **options: Any) -> Train:
    """Small batches of small clusters, a transformer, short texts."""
    small: dict[str, Any] = {"batch_size": 24, "cluster_size": 6, "max_length": 16, "lr": 1e-3}
    asked = {"source": str(world / "planted"), "encoder": str(world / "bert")} | small | options
    return Train(**asked)


def job_of(world: Path, **options: Any) -> Job:
    asked = settings(world, valid_every=1, **options)
    return labels.make_job(labels.prepare(DATA, 0.1, 0, tokenize_of(asked)), asked)


def _untrained(prepared: labels.Prepared, asked: Train) -> Any:
    vocabulary = prepared.lexicon.vocabulary
    return learner_of(vocabulary, prepared.tokens, len(DATA.train), asked).encoders


def test_training_beats_the_random_transformer(world: Path) -> None:
    """P@1 on the test points clearly exceeds that of the encoder at the start."""
    asked = settings(world)
    prepared = labels.prepare(DATA, 0.0, 0, tokenize_of(asked))
    encoders: Any = _untrained(prepared, asked)
    before = labels.judge(Labeler(prepared.lexicon, *encoders), DATA)
    run = Run.open(world / "run")
    (test,) = (event for event in run.log() if event["event"] == "test")
    assert test["P@1"] > before["P@1"] + 8


def test_a_run_is_used_again(world: Path, tmp_path: Path) -> None:
    """Evaluate, predict, query and cluster work on a run whose encoder's folder is gone."""
    shutil.copytree(world, tmp_path / "world", ignore=shutil.ignore_patterns("bert"))
    run, source = tmp_path / "world" / "run", str(tmp_path / "world" / "planted")
    (test,) = (event for event in Run.open(run).log() if event["event"] == "test")
    result = use.evaluate(Evaluate(run=run, source=source))
    assert result["test"] == {name: test[name] for name in result["test"]}
    (tmp_path / "texts.txt").write_text("w1 w2\n\nred\n")
    found = use.predict(Predict(run=run, texts=tmp_path / "texts.txt", json=True, k=3))
    assert [len(row["labels"]) for row in found["predictions"]] == [3, 3, 3]
    answer = use.query(Query(text="w1 w2", run=run, k=3))["labels"]
    assert [x["uid"] for x in answer] == [x["uid"] for x in found["predictions"][0]["labels"]]
    shape: dict[str, Any] = {"batch_size": 24, "cluster_size": 6, "sample": 20}
    assert labels.cluster(Cluster(source=source, run=run, **shape))["points"] == len(DATA.train)
    with pytest.raises(InputError, match="text: expected some word that the model knows"):
        use.query(Query(text="zzz ?", run=run))


def test_a_run_holds_no_pickle(world: Path) -> None:
    """Configuration and tokenizer as JSON, weights as safetensors, token ids as plain arrays."""
    files = {path.relative_to(world / "run").as_posix() for path in (world / "run").rglob("*")}
    encoder = {f"lexicon/encoder/{x}.json" for x in ("config", "tokenizer", "tokenizer_config")}
    assert encoder | {"last.safetensors", "tokens/indices.npy"} <= files
    endings = {Path(name).suffix for name in files}
    assert endings <= {"", ".json", ".jsonl", ".safetensors", ".npy", ".gz", ".txt"}


VARIANTS: dict[str, dict[str, Any]] = {
    "chunk": {"chunk": 10},
    "bank, separate": {"bank": True, "label_encoder": "separate", "accumulate": 2},
    "checkpointing, cls": {"gradient_checkpointing": True, "pooling": "cls", "clip": 0.1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(name: str, world: Path, tmp_path: Path) -> None:
    """Stopped after a refresh, a transformer's run ends in the same state, dropout and all."""
    make = partial(job_of, world, **VARIANTS[name])
    epoch = make().steps_per_epoch
    budget, whole = Budget(steps=epoch + 2), new_run(tmp_path / "whole")
    fit(make(), budget, whole)
    run = new_run(tmp_path / "parts")
    assert fit(interrupted(make(), epoch + 1), budget, run).step == epoch + 1
    fit(make(), budget, run, resume=True)
    assert same_tensors(last_of(run), last_of(whole))


def test_the_command_resumes(world: Path, tmp_path: Path) -> None:
    """Continued by the command, a run has the weights of one that went on; tokens stay as made."""
    common: dict[str, Any] = {"steps": 3, "lora": None}
    labels.train(settings(world, out=tmp_path / "whole", **common))
    run = Run.open(tmp_path / "whole")
    made = (run.folder / "tokens" / "indices.npy").stat().st_mtime_ns
    again = labels.train(settings(world, out=tmp_path / "whole", resume=True, **common))
    assert again["steps"] == 3
    assert (run.folder / "tokens" / "indices.npy").stat().st_mtime_ns == made


def test_caching_trains_to_the_same_weights(world: Path) -> None:
    """Without dropout, three steps with chunks and without end in the same weights."""
    states = []
    for chunk in (None, 7):
        job = job_of(world, chunk=chunk, lr=0.01)
        for module in job.objective.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        fit(job, Budget(steps=3))
        states.append(job.objective.model.state_dict())
    moved = 0.0
    start = job_of(world).objective.model.state_dict()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=2e-5)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-4


def test_memory_mapped_tokens_are_not_copied(world: Path, tmp_path: Path) -> None:
    """Examples' and labels' token ids are two spans of the one array that is mapped."""
    prepared = labels.prepare(DATA, 0.1, 0, tokenize_of(settings(world), tmp_path / "tokens"))
    start = prepared.tokens.indices.data_ptr()
    bags, label_bags = prepared.bags, prepared.lexicon.label_bags
    assert bags.indices.data_ptr() == start
    assert label_bags.indices.data_ptr() == start + 4 * bags.nnz
    assert label_bags.indices.dtype == torch.int32 and label_bags.n_rows == 16


def test_adapters_are_saved_and_used(world: Path, tmp_path: Path) -> None:
    """A run of adapters answers as it did when it was trained."""
    pytest.importorskip("peft", reason="adapters need the extra lora")
    result = labels.train(settings(world, out=tmp_path / "run", steps=3, lora=2))
    labeler = labels.labeler_of(Run.open(tmp_path / "run"))
    assert isinstance(labeler.encoder, TokenTransformer)
    assert any("lora" in name for name in labeler.encoder.state_dict())
    assert labels.judge(labeler, DATA) == result["test"]


def test_what_would_be_ignored_is_refused(world: Path, tmp_path: Path) -> None:
    """An option of the other kind of encoder, numbers out of range: named, and no run is begun."""
    bad: list[tuple[dict[str, Any], str]] = [
        ({"dim": 64}, "dim: expected an option of --encoder"),
        ({"encoder": "bag"}, "max_length: expected an option of --encoder bag, got one of a tra"),
        ({"chunk": 0}, "chunk: expected a whole number of at least 1"),
        ({"lora": 0}, "lora: expected a whole number of at least 1"),
        ({"max_length": 41}, "max_length: expected at most 40 tokens"),
        ({"encoder": "./absent"}, "absent: expected a folder with a Hugging Face model"),
    ]
    for options, message in bad:
        with pytest.raises(InputError, match=message):
            labels.train(settings(world, out=tmp_path / "run", **options))
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_weights_of_another_model_are_refused(world: Path, tmp_path: Path) -> None:
    """A run whose configuration was exchanged is refused in one line."""
    shutil.copytree(world / "run", tmp_path / "run")
    config = tmp_path / "run" / "lexicon" / "encoder" / "config.json"
    config.write_text(
        config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 8')
    )
    with pytest.raises(InputError, match="expected weights of the run's own encoder, got size mis"):
        labels.labeler_of(Run.open(tmp_path / "run"))
