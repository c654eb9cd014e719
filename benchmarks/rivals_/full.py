"""The exact softmax over all labels, on the bag encoder that the mini-batches train.

One classifier a label, beginning as the embedding of the label's text, and a dense step of Adam:
every batch scores every label, and nothing is sampled. The loss is shoal's own decoupled softmax
(Gupta et al., ICLR 2024) over the whole row. Learning rate and dropout are chosen on validation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from time import perf_counter

import torch
from shoal.cli.settings import Train
from shoal.rank.head_job import AllLabels
from shoal.tasks.prepared import Prepared, prepare
from torch import Tensor, nn
from torch.nn import functional

from rivals_.common import TOP, VALID, Asked, Clock, Outcome
from shoal.core.block import Batch, Block
from shoal.core.losses import decoupled_softmax
from shoal.core.metrics import evaluate
from shoal.core.objectives import Objective
from shoal.core.search import top_k
from shoal.data.texts import Examples
from shoal.rank.predictor import BagRows
from shoal.sample.expand import Chain, Hop
from shoal.tasks.labels import make_job
from shoal.text.bag import BagSum
from shoal.training.job import Budget, Job
from shoal.training.loader import Loader
from shoal.training.loop import fit

OPTIONS = ((0.01, 0.0), (0.03, 0.0), (0.03, 0.3))
JUDGED, POINTS = 2000, 24


class AllScores(nn.Module):
    """Scores of all labels, ``[b, l]``: a bag's unit vector times every classifier."""

    def __init__(self, names: Tensor, dropout: float) -> None:
        super().__init__()
        self.bag, self.dropout = BagSum(), dropout
        self.classifiers = nn.Parameter(names.clone())

    def forward(self, blocks: list[Block], rows: Tensor) -> Tensor:
        """Score the batch's points."""
        points = functional.dropout(self.bag(blocks, rows), self.dropout, self.training)
        return points @ self.classifiers.T


@dataclass(frozen=True, eq=False)
class Model:
    """What is trained, and the data that it is trained on."""

    prepared: Prepared
    scores: AllScores
    rows: BagRows

    def rank(self, points: Examples, k: int) -> Tensor:
        """The best labels of points."""
        bags = self.prepared.lexicon.vocabulary.documents(points.texts)
        classifiers = self.scores.classifiers.detach()
        return top_k(self.rows.embed(bags), classifiers, k, points.drop)[1]

    def precision(self, points: Examples) -> float:
        """P@1."""
        top = self.rank(points, 1)
        return evaluate(top, points.labels, torch.ones(points.labels.n_cols), ks=(1,))["P@1"]


@dataclass
class Curve:
    """P@1 of held-out points against seconds of training, those of judging left out."""

    model: Model
    points: Examples
    every: int
    begin: float = field(default_factory=perf_counter)
    taken: int = 0
    found: list[tuple[float, float]] = field(default_factory=list)

    def observe(self, batch: Batch, outputs: Tensor) -> None:
        """Count a step; judge every so many."""
        self.taken += 1
        if self.taken % self.every == 0:
            now = perf_counter()
            value = self.model.precision(self.points)
            self.found.append((round(now - self.begin, 1), round(value, 2)))
            self.begin += perf_counter() - now


def full_softmax(asked: Asked) -> Outcome:
    """Choose on validation, then train on the other points and draw the curve on validation.

    The points held out stay so: they are what the curve is read from.
    """
    clock = Clock()
    with clock.stage("tune"):
        held = prepare(asked.data, VALID, 0)
        found = {option: _try(held, asked, *option) for option in OPTIONS}
        lr, dropout = max(found, key=lambda option: found[option])
    with clock.stage("train"):
        prepared = prepare(asked.data, VALID, asked.seed)
        job, model = _job(prepared, asked, lr, dropout)
        steps = asked.epochs * job.steps_per_epoch
        curve = Curve(model, _some(prepared), max(steps // POINTS, 1))
        fit(replace(job, observe=curve.observe), Budget(steps=steps))
    with clock.stage("predict"):
        top = model.rank(asked.data.test, TOP)
    told = {f"lr {a}, dropout {b}": round(p, 2) for (a, b), p in found.items()}
    facts = {"steps": steps, "lr": lr, "dropout": dropout, "validation_P@1": told}
    return Outcome(top, clock, facts | {"curve": curve.found})


def _try(prepared: Prepared, asked: Asked, lr: float, dropout: float) -> float:
    """P@1 on validation after a short run."""
    job, model = _job(prepared, asked, lr, dropout)
    fit(job, Budget(steps=asked.sweep_steps))
    return model.precision(_some(prepared))


def _some(prepared: Prepared) -> Examples:
    """So many of the points held out."""
    assert prepared.valid is not None  # a share of the points is held out
    order = torch.randperm(len(prepared.valid), generator=torch.Generator().manual_seed(0))
    return prepared.valid.subset(order[:JUDGED])


def _job(prepared: Prepared, asked: Asked, lr: float, dropout: float) -> tuple[Job, Model]:
    settings = Train(source=asked.source, seed=asked.seed, batches="random")
    settings = replace(settings, batch_size=asked.batch_size)
    job = make_job(prepared, settings)
    assert job.table is not None  # a bag's rows learn
    rows = BagRows(job.table.as_subclass(Tensor))
    scores = AllScores(rows.embed(prepared.lexicon.label_bags), dropout)
    blocks = Chain(AllLabels(prepared.train.labels), Hop(prepared.tokens), attrgetter("dst"))
    loader = Loader(job.loader.batch_sampler, blocks, job.loader.table, seed=settings.seed)
    loss = partial(decoupled_softmax, temperature=settings.temperature)

    def criterion(outputs: Tensor, batch: Batch) -> Tensor:
        return loss(outputs, batch.blocks[-1])

    objective = Objective(scores, criterion)
    optimizer = torch.optim.Adam(scores.parameters(), lr=lr, fused=True)
    parts = {"objective": objective, "loader": loader, "optimizer": optimizer}
    job = replace(job, evaluate=None, measure=None, **parts)
    return job, Model(prepared, scores, rows)
