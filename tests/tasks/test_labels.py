"""The label job: held-out points, batches of clusters, and metrics that training moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.cli.settings import Cluster, Train
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.data.texts import Examples, LabelData, Texts, no_pairs
from shoal.rank.predictor import BagRows, Labeler, embed
from shoal.tasks import labels
from shoal.text.vocabulary import random_rows
from shoal.training.job import Budget
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.planted import planted_labels

DATA = planted_labels(n=240, n_labels=32, noise=0.3)


def settings(**options: Any) -> Train:
    """Small batches of small clusters."""
    options = {"batch_size": 24, "cluster_size": 6, "dim": 32, "lr": 0.02} | options
    return Train(source=options.pop("source", "planted"), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The planted data as the command reads it."""
    xc.write(DATA, tmp_path / "planted")
    return tmp_path


def untrained(data: LabelData) -> dict[str, float]:
    """Metrics of the random projection of tf-idf that training starts from."""
    prepared = labels.prepare(data, 0.0, seed=0)
    rows = random_rows(prepared.tokens, 32, seed=0)
    return labels.judge(Labeler(prepared.lexicon, BagRows(rows)), data)


@pytest.mark.parametrize("batches", ["ngame", "random"])
def test_training_beats_the_untrained_bag(folder: Path, batches: Any) -> None:
    """P@1 on the test points clearly exceeds that of the bag at the start; the run is whole."""
    asked = settings(source=str(folder / "planted"), out=folder / "run", batches=batches, epochs=6)
    result = labels.train(asked)
    assert result["test"]["P@1"] > untrained(DATA)["P@1"] + 8
    n_batches = -(-len(labels.prepare(DATA, 0.1, seed=0).train) // 24)
    assert result["stopped"] == "steps" and result["steps"] == 6 * n_batches
    again = labels.judge(labels.labeler_of(Run.open(folder / "run")), DATA)
    assert again == result["test"]


def test_batches_are_whole_clusters_of_the_rows_as_they_are() -> None:
    """After the warm-up each epoch's clusters are those of the table's rows at its beginning."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    job = labels.make_job(prepared, settings())
    fit(job, Budget(epochs=1))
    sampler: Any = job.loader.batch_sampler
    assert sampler.size == 1 and job.refresh is not None
    assert job.refresh(1) == {"cluster_size": 6, "clusters": 40, "anew": True} and sampler.size == 6
    assert job.table is not None
    points = embed(prepared.bags, job.table.as_subclass(Tensor))
    own = points[sampler.order.long()].view(40, 6, -1)
    inside = (own @ own.transpose(1, 2)).mean()
    assert inside > 2 * (points @ points.T).mean()


def test_bank_holds_what_the_steps_computed() -> None:
    """With a bank every training point's stale embedding is there after an epoch."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    job = labels.make_job(prepared, settings(bank=True))
    fit(job, Budget(epochs=1))
    bank: Any = job.state["bank"]
    assert job.table is not None and bank.filled == 1.0
    fresh = embed(prepared.bags, job.table.as_subclass(Tensor))
    assert (bank.rows.float() * fresh).sum(1).mean() > 0.9


def test_validation_points_are_not_trained_on() -> None:
    """Held-out examples and training examples are all, each once; 0 holds none out."""
    prepared = labels.prepare(DATA, 0.25, seed=0)
    assert prepared.valid is not None and 40 < len(prepared.valid) < 80
    uids = prepared.train.texts.uids + prepared.valid.texts.uids
    assert sorted(uids) == sorted(DATA.train.texts.uids)
    assert prepared.bags.n_rows == len(prepared.train)
    assert labels.prepare(DATA, 0.0, seed=0).valid is None


def test_validation_set_without_any_truth_is_none() -> None:
    """Where every held-out pair is known from its reverse, nothing is left to validate on."""
    texts = Texts(["a", "b"], ["red cup", "blue cup"], ["", ""])
    points = Examples(texts, Csr.from_lists([[1], [0]], n_cols=2), no_pairs(2, 2))
    prepared = labels.prepare(LabelData("twins", points, points, texts), 0.5, seed=0)
    assert prepared.valid is None and len(prepared.train) == 1


def test_fewer_labels_than_ranks(tmp_path: Path) -> None:
    """With three labels, P@5 is left out in validation and test alike."""
    rows = [f"{word} {i},{word}" for i, word in enumerate(["red", "blue", "old"] * 8)]
    (tmp_path / "small.csv").write_text("text,labels\n" + "\n".join(rows) + "\n")
    asked = settings(
        source=str(tmp_path / "small.csv"), out=tmp_path / "run", batch_size=6, epochs=2,
        valid=0.2, valid_every=1,
    )  # fmt: skip
    result = labels.train(asked)
    assert "P@3" in result["test"] and "P@5" not in result["test"]
    rounds = [x for x in Run.open(tmp_path / "run").log() if x["event"] == "validate"]
    assert "valid_P@1" in rounds[0] and "valid_R@3" in rounds[0]


def test_changed_data_cannot_spoil_a_run(folder: Path) -> None:
    """Resuming on data that changed is refused, and the finished run still answers."""
    asked = {"source": str(folder / "planted"), "out": folder / "run"}
    before = labels.train(settings(**asked, steps=3))["test"]
    xc.write(planted_labels(n=240, n_labels=40, noise=0.5, seed=1), folder / "planted")
    with pytest.raises(InputError, match="expected"):
        labels.train(settings(**asked, steps=6, resume=True))
    assert labels.judge(labels.labeler_of(Run.open(folder / "run")), DATA) == before


def test_cluster_finds_harder_negatives(tmp_path: Path) -> None:
    """Clustered batches hold 1.5 × as many of the ten hardest negatives as random ones do."""
    xc.write(planted_labels(n=240, n_labels=160), tmp_path / "planted")
    asked = Cluster(
        source=str(tmp_path / "planted"), batch_size=24, cluster_size=12, dim=64, sample=240
    )
    result = labels.cluster(asked)
    recall = result["hard_negative_recall"]
    assert recall["clustered"]["k=10"] > 1.5 * recall["random"]["k=10"]
    assert result["clusters"] == 20 and result["points"] == 240
    labels.train(settings(source=asked.source, out=tmp_path / "run", steps=3))
    trained = labels.cluster(Cluster(**(vars(asked) | {"run": tmp_path / "run"})))
    assert trained["hard_negative_recall"] != recall


def test_losses_and_positives_are_those_asked_for() -> None:
    """Triplets and softmax differ; fewer positives make a shorter shortlist."""
    prepared = labels.prepare(DATA, 0.0, seed=0)
    lengths, losses = [], []
    for options in ({"positives": 1}, {}, {"loss": "triplet"}, {"temperature": 0.2}):
        job = labels.make_job(prepared, settings(**options))
        batch = next(iter(job.loader))
        lengths.append(len(batch.blocks[-1].src))
        losses.append(float(job.objective({}, batch)))
    assert lengths[0] < lengths[1] and lengths[1] == lengths[2] == lengths[3]
    assert len(set(losses)) == 4 and torch.tensor(losses).isfinite().all()
