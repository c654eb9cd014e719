"""Classifiers as a part of the label job: after the encoder, together with it, stopped, resumed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core.block import Batch
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.rank.fused import FusedLabeler
from shoal.rank.head_job import AllLabels
from shoal.rank.predictor import BagRows, Labeler
from shoal.tasks import heads, labels
from shoal.tasks.fusing import predictor_of
from shoal.tasks.heads import classifiers_of, frozen_job
from shoal.training.job import Budget
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.planted import planted_labels

DATA = planted_labels(n=900, n_labels=24, noise=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted data as the command reads it."""
    folder = tmp_path_factory.mktemp("heads")
    xc.write(DATA, folder / "planted")
    return folder


def asked(folder: Path, run: str, **options: Any) -> Train:
    """A small run with a head."""
    small: dict[str, Any] = {"batch_size": 60, "cluster_size": 6, "dim": 16, "lr": 0.02}
    small |= {"valid": 0.5, "epochs": 2, "head": "frozen", "head_lr": 0.02}
    if options.get("head", "frozen") == "frozen":
        small |= {"head_epochs": 3}
    return Train(source=str(folder / "planted"), out=folder / run, **(small | options))


def train(folder: Path, run: str, **options: Any) -> tuple[Run, dict[str, Any]]:
    result = labels.train(asked(folder, run, **options))
    return Run.open(folder / run), result


@pytest.mark.parametrize(
    "options",
    [{"head_epochs": 6, "epochs": 2}, {"head": "joint", "head_lr": 0.1, "epochs": 12}],
    ids=["frozen", "joint"],
)
def test_a_head_ranks_alone_better_than_the_encoder(folder: Path, options: Any) -> None:
    """Classifiers begin as label embeddings and beat them on noisy label texts."""
    run, result = train(folder, f"alone-{options.get('head')}", rank="head", **options)
    predictor = predictor_of(run)
    assert isinstance(predictor, Labeler) and predictor.classifiers is not None
    again = labels.judge(predictor, DATA)
    assert {name: result["test"][name] for name in again} == again
    encoder = labels.judge(dataclasses.replace(predictor, classifiers=None), DATA)
    assert again["P@1"] > encoder["P@1"] + 2


@pytest.mark.parametrize("kind", ["frozen", "joint"])
def test_a_head_is_a_ranking_of_the_fused_labeler(folder: Path, kind: str) -> None:
    """It stands in the saved memory, as it is in its own checkpoint."""
    options = {} if kind == "joint" else {"head_epochs": 2}
    run, _ = train(
        folder, f"fused-{kind}", epochs=1, **({"head": kind, "head_epochs": 5} | options)
    )
    fused, head = predictor_of(run), classifiers_of(run)
    assert isinstance(fused, FusedLabeler) and fused.memory.head is not None
    assert head is not None and torch.equal(fused.memory.head, head)


@pytest.mark.parametrize("negatives", ["batch", "mined"])
def test_stopped_in_the_stage_and_resumed_equals_uninterrupted(
    folder: Path, negatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the stage ends the command; --resume continues inside, bit for bit."""
    options = {"rank": "head", "head_negatives": negatives, "epochs": 1}
    whole, result = train(folder, f"whole-{negatives}", **options)
    made = heads.frozen_job

    def stopping(*args: Any) -> Any:
        job, steps = made(*args), []

        def observe(batch: Batch, outputs: Tensor) -> None:
            steps.append(batch)
            if len(steps) == 11:
                signal.raise_signal(signal.SIGINT)

        return dataclasses.replace(job, observe=observe)

    monkeypatch.setattr(heads, "frozen_job", stopping)
    parts, stopped = train(folder, f"parts-{negatives}", **options)
    assert stopped["stopped"] == "interrupt" and "test" not in stopped
    monkeypatch.setattr(heads, "frozen_job", made)
    _, again = train(folder, f"parts-{negatives}", resume=True, **options)
    assert again["test"] == result["test"]
    one, two = (Run.open(run.folder / "head").load_last() for run in (whole, parts))
    for state in (one, two):
        state["progress"].pop("seconds")
    assert one["progress"]["step"] == two["progress"]["step"] > 11 and same_tensors(one, two)
    begun = [x["event"] for x in Run.open(parts.folder / "head").log()]
    assert begun.count("resume") == 1


def test_a_longer_trained_encoder_gets_a_new_head(folder: Path) -> None:
    """Where the encoder goes on learning, the classifiers begin anew from its embeddings."""
    run, _ = train(folder, "longer", rank="head", epochs=1)
    first = classifiers_of(run)
    train(folder, "longer", rank="head", epochs=2, resume=True)
    again, second = classifiers_of(run), Run.open(run.folder / "head")
    assert first is not None and again is not None and not torch.equal(first, again)
    assert second.settings == {"encoder_steps": 16}
    assert [x["event"] for x in second.log()].count("resume") == 0


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, True),
        ({"rank": "head", "valid": 0.0}, True),
        ({"rank": "encoder"}, False),
        ({"valid": 0.1}, False),
        ({"head": "none", "head_lr": 0.01}, False),
    ],
    ids=["fused", "alone", "encoder", "too few held out", "none"],
)
def test_a_head_is_trained_where_it_ranks(
    folder: Path, tmp_path: Path, options: Any, trained: bool
) -> None:
    """Nobody waits for classifiers that no ranking asks."""
    run, _ = train(folder, str(tmp_path / "run"), **options)
    assert (run.folder / "head").is_dir() == trained


@pytest.mark.parametrize("texts", [True, False])
def test_labels_texts_are_points_of_these_labels(folder: Path, texts: bool) -> None:
    """Seed n + l of an epoch has label l alone; without texts no seed is beyond the points."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    vocabulary: Any = prepared.lexicon.vocabulary
    rows = vocabulary.first_rows(prepared.tokens, 16, 0)
    labeler, n = Labeler(prepared.lexicon, BagRows(rows)), len(prepared.train)
    settings = asked(folder, "none", valid=0.0, head_texts=texts)
    job = frozen_job(labeler, labeler.encoder.embed(prepared.bags), prepared, settings)
    own = {}
    for batch in job.loader:
        block = batch.blocks[-1]
        for seed, row in zip(batch.seeds.tolist(), block.mask(), strict=True):
            if seed >= n:
                own[seed - n] = block.src[row].tolist()
    assert own == {label: [label] for label in range(len(DATA.labels) if texts else 0)}
    fit(job, Budget(steps=2))  # points and texts have rows to read


def test_negatives_are_those_asked_for() -> None:
    """A batch's own labels, hard ones besides, or all of them."""
    prepared = labels.prepare(planted_labels(n=240, n_labels=160), 0.0, seed=0)
    counts = {}
    for negatives in ("batch", "mined", "all"):
        options = {"head": "joint", "head_negatives": negatives, "warm_epochs": 0}
        settings = Train(source="x", batch_size=24, cluster_size=6, dim=16, **options)  # pyright: ignore[reportArgumentType]
        job = labels.make_job(prepared, settings)
        assert job.refresh is not None
        job.refresh(0)
        *_, shortlist, scored = next(iter(job.loader)).blocks
        assert set(shortlist.src.tolist()) <= set(scored.src.tolist())
        counts[negatives] = len(scored.src)
    assert counts["batch"] < counts["mined"] < counts["all"] == 160


def test_joint_gradients_reach_the_encoder() -> None:
    """With a head the same batch moves the encoder's rows otherwise, and moves the classifiers."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    rows, moved = [], []
    for kind in ("none", "joint"):
        settings = Train(source="x", batch_size=60, cluster_size=6, dim=16, head=kind)  # pyright: ignore[reportArgumentType]
        job = labels.make_job(prepared, settings)
        begin = [table.as_subclass(Tensor).clone() for table in job.tables.values()]
        fit(job, Budget(steps=2))
        assert job.table is not None
        rows.append(job.table.as_subclass(Tensor))
        ends = [table.as_subclass(Tensor) for table in job.tables.values()]
        moved += [not torch.equal(a, b) for a, b in zip(begin, ends, strict=True)]
    assert moved == [True] and not torch.allclose(rows[0], rows[1])


def test_all_positives_of_the_batch_are_its_labels() -> None:
    """The stage scores the union of its points' labels, each known positive marked."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    part = heads.HeadPart.of(torch.zeros(24, 4), prepared.train.labels, Train(source="x"))
    seeds = torch.tensor([3, 5])
    (block,) = part.blocks(seeds, torch.Generator().manual_seed(0))
    (every,) = AllLabels(prepared.train.labels)(seeds, torch.Generator())
    union = every.mask().any(0).nonzero().flatten()
    assert sorted(block.src.tolist()) == union.tolist()
    assert torch.equal(block.mask(), every.mask()[:, block.src])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "none", "head_lr": 0.01, "rank": "head"}, "rank: expected fused or encoder"),
        (
            {"head": "none", "head_lr": 0.01, "head_epochs": 2},
            "head_epochs: expected an option of",
        ),
        ({"head": "none"}, "head_lr: expected an option of a head"),
        ({"head": "joint", "head_epochs": 2}, "head_epochs: expected an option of"),
        ({"head_dropout": 1.0}, "head_dropout: expected a share"),
        ({"head_lr": 0.0}, "head_lr: expected a number above 0"),
    ],
)
def test_bad_settings_are_named(folder: Path, options: Any, message: str) -> None:
    """One line each, before anything is trained."""
    with pytest.raises(InputError, match=message):
        train(folder, "bad", **options)
    assert not (folder / "bad").exists()


def test_a_missing_head_is_named(folder: Path) -> None:
    """A run that was stopped before its head says what to do."""
    run, _ = train(folder, "missing", rank="head", epochs=1)
    (run.folder / "head" / "last.safetensors").unlink()
    (run.folder / "head" / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"last\.safetensors: expected"):
        predictor_of(Run.open(run.folder))
    shutil.rmtree(run.folder / "head")
    with pytest.raises(InputError, match="expected a trained head, got none; resume the run"):
        predictor_of(Run.open(run.folder))
    assert json.loads((run.folder / "settings.json").read_text())["head"] == "frozen"
