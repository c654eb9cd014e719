"""Options of the encoder's stage: what is drawn, clustered, scored and weighed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.rank.predictor import BagRows, Labeler, embed
from shoal.tasks import labels
from shoal.tasks.batches import batch_sampler_of, curriculum, shortlist_of
from shoal.tasks.common import expect_settings
from shoal.training.job import Budget
from shoal.training.loop import fit
from tests.planted import planted_labels

DATA = planted_labels(n=240, n_labels=32, noise=0.3)
PREPARED = labels.prepare(DATA, 0.0, seed=0)


def settings(**options: Any) -> Train:
    """Small batches of small clusters."""
    options = {"batch_size": 24, "cluster_size": 6, "dim": 32, "lr": 0.02} | options
    return Train(source="planted", **options)


def p_at_1(**options: Any) -> float:
    """On the test points after 60 steps."""
    job = labels.make_job(PREPARED, settings(**options))
    fit(job, Budget(steps=60))
    return judge(job)


def judge(job: Any) -> float:
    """P@1 on the test points of the rows as they are."""
    return labels.judge(Labeler(PREPARED.lexicon, BagRows(rows_of(job))), DATA)["P@1"]


def rows_of(job: Any) -> Tensor:
    return job.table.as_subclass(Tensor)


UNTRAINED = judge(labels.make_job(PREPARED, settings()))


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": True},
        {"positives_by": "propensity"},
        {"cluster_by": "text+labels"},
        {"curriculum": True, "epochs": 6},
        {"side": "label", "batch_size": 16, "cluster_size": 4, "steps": 60},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_option_trains(options: Any) -> None:
    """Clearly ahead of the untrained bag, and not the numbers of the default."""
    assert p_at_1(**options) > UNTRAINED + 8


def test_label_side_is_the_transpose() -> None:
    """Seeds are labels that have points; ones of the block are the transposed label matrix's."""
    job = labels.make_job(PREPARED, settings(side="label", batch_size=8, cluster_size=4))
    batch = next(iter(job.loader))
    side = PREPARED.side("label")
    points = DATA.train.labels.transpose()
    trained = (points.degrees() > 0).nonzero().squeeze(1)
    assert side.truth.n_rows == len(trained) < 33
    dense = points.to_dense()[trained]
    *_, shortlist = batch.blocks
    assert torch.equal(shortlist.mask(), dense[batch.seeds][:, shortlist.src] > 0)
    # the first rows of the output are the labels' own embeddings
    outputs = job.objective.outputs({}, batch)
    own = embed(PREPARED.lexicon.label_bags, rows_of(job))[trained[batch.seeds]]
    torch.testing.assert_close(outputs[: len(batch.seeds)], own)


def test_rare_labels_are_drawn_more_often() -> None:
    """By propensity a point's rarer label is its shortlist more often than by chance."""
    truth = Csr.from_lists([[0, 1], *([[0]] * 200)], n_cols=2)
    share = {}
    for by in ("chance", "propensity"):
        sampler = shortlist_of(truth, settings(positives_by=by, positives=1))
        generator = torch.Generator().manual_seed(0)
        drawn = [sampler(torch.tensor([0]), generator)[0].src.item() for _ in range(150)]
        share[by] = sum(drawn) / 150
    # inverse propensities are 1.28 and 3.58: 0.74 of the draws
    assert abs(share["chance"] - 0.5) < 0.1 and abs(share["propensity"] - 0.74) < 0.1


def test_clusters_by_labels_hold_points_that_share_them() -> None:
    """With the labels' texts in the clusters, more pairs inside one share a label."""
    shared = {}
    truth = DATA.train.labels.to_dense()
    for by in ("text", "text+labels"):
        job = labels.make_job(PREPARED, settings(cluster_by=by, warm_epochs=0))
        assert job.refresh is not None
        job.refresh(0)
        sampler: Any = job.loader.batch_sampler
        own = truth[sampler.order.long()].view(40, 6, -1)
        shared[by] = float((own @ own.transpose(1, 2) > 0).float().mean())
    assert shared["text+labels"] > shared["text"] + 0.1


def test_curriculum_follows_the_published_epochs() -> None:
    """At 300 epochs clusters of 2, 4, ... begin where the published configuration has them."""
    begins = [10, 20, 25, 50, 75, 100, 125, 150, 200]
    assert curriculum(512, 300.0) == list(zip(begins, [2**i for i in range(1, 10)], strict=True))
    assert curriculum(12, 300.0) == [(10, 3), (20, 6), (25, 12)]
    assert curriculum(64, 6.0)[-1] == (2, 64) and curriculum(7, 5.0) == [(1, 7)]
    sampler: Any = batch_sampler_of(240, settings(curriculum=True), Budget(epochs=30))
    assert [sampler.size_at(epoch) for epoch in (0, 1, 2)] == [1, 3, 6]


def test_relevance_weighs_positives() -> None:
    """Graded: the loss is that of the criterion with the data's values; without values refused."""
    values = torch.rand(DATA.train.labels.nnz, generator=torch.Generator().manual_seed(0))
    points = replace(DATA.train, labels=DATA.train.labels.with_values(values))
    graded = replace(PREPARED, train=points)
    losses = []
    for flag in (False, True):
        job = labels.make_job(graded, settings(graded=flag))
        losses.append(float(job.objective({}, next(iter(job.loader)))))
    assert losses[0] != losses[1]
    with pytest.raises(InputError, match="graded: expected data whose labels have a relevance"):
        labels.make_job(PREPARED, settings(graded=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graded": True, "loss": "triplet"}, "graded: expected --loss softmax"),
        ({"side": "label", "positives_by": "propensity"}, "positives_by: expected chance, with"),
        ({"side": "label", "head": "joint"}, "head: expected none or frozen, with --side label"),
        ({"batches": "random", "curriculum": True}, "curriculum: expected --batches ngame"),
        ({"batches": "random", "cluster_by": "text+labels"}, "cluster_by: expected --batches ng"),
        ({"rare": -1.0}, "rare: expected a power of at least 0, got -1.0"),
        ({"rare": math.nan}, "rare: expected a power of at least 0, got nan"),
        ({"rare": 1.0, "rank": "encoder"}, "rare: expected 0 unless a network fuses"),
        ({"rare": 1.0, "fusion": "tree"}, "rare: expected 0 unless a network fuses"),
    ],
)
def test_options_that_contradict_are_named(options: Any, message: str) -> None:
    """No option is ignored."""
    with pytest.raises(InputError, match=message):
        expect_settings(settings(**options))


def test_a_curriculum_needs_an_end() -> None:
    """By the clock alone nobody knows when to double."""
    with pytest.raises(InputError, match="curriculum: expected a number of epochs or steps"):
        labels.make_job(PREPARED, settings(curriculum=True, minutes=1.0))
