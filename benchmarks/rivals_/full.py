"""The exact softmax over all labels, on the bag encoder that the mini-batches train.

One classifier a label, beginning as the embedding of the label's text, and a dense step of Adam:
every batch scores every label, and nothing is sampled. The loss is shoal's own decoupled softmax
(Gupta et al., ICLR 2024) over the whole row. Learning rate and dropout are chosen on validation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import attrgetter
from time import perf_counter
from typing import Any

import torch
from labels_ import Begun, precision
from torch import Tensor, nn
from torch.nn import functional

from rivals_.common import TOP, VALID, Asked, Clock, Outcome
from shoal import (
    BagSum,
    Block,
    Budget,
    Callback,
    Chain,
    Examples,
    Hop,
    Job,
    Loader,
    Objective,
    Random,
    fit,
    top_k,
)
from shoal.core.block import Batch
from shoal.data.splits import validation_split
from shoal.rank.classifiers import AllLabels
from shoal.tasks.labels import Parts

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

    begun: Begun
    scores: AllScores

    def rank(self, points: Examples, k: int) -> Tensor:
        """The best labels of points."""
        encoder, classifiers = self.begun.encoder, self.scores.classifiers.detach()
        embedded = encoder.embed(encoder.documents(points.texts))
        return top_k(embedded, classifiers, k, points.drop)[1]


@dataclass
class Curve(Callback):
    """P@1 of held-out points against seconds of training, those of judging left out."""

    model: Model
    points: Examples
    every: int
    since: float = field(default_factory=perf_counter)
    found: list[tuple[float, float]] = field(default_factory=list)

    def step(self, progress: Any, metrics: dict[str, Any]) -> None:
        """Judge every so many steps."""
        if progress.step % self.every == 0:
            now = perf_counter()
            value = precision(self.model.rank(self.points, 1), self.points)
            self.found.append((round(now - self.since, 1), round(value, 2)))
            self.since += perf_counter() - now


def full_softmax(asked: Asked) -> Outcome:
    """Choose on validation, then train on the other points and draw the curve on validation.

    The points held out stay so: they are what the curve is read from.
    """
    clock = Clock()
    with clock.stage("tune"):
        tried = {option: _try(asked, *option) for option in OPTIONS}
        lr, dropout = max(tried, key=lambda option: tried[option])
    with clock.stage("train"):
        job, model, held_out = _job(asked, asked.seed, lr, dropout)
        steps = asked.epochs * job.steps_per_epoch
        curve = Curve(model, held_out, max(steps // POINTS, 1))
        fit(job, Budget(steps=steps), callbacks=[curve])
    with clock.stage("predict"):
        top = model.rank(asked.data.test, TOP)
    told = {f"lr {a}, dropout {b}": round(p, 2) for (a, b), p in tried.items()}
    facts = {"steps": steps, "lr": lr, "dropout": dropout, "validation_P@1": told}
    return Outcome(top, clock, facts | {"curve": curve.found})


def _try(asked: Asked, lr: float, dropout: float) -> float:
    """P@1 on validation after a short run."""
    job, model, held_out = _job(asked, 0, lr, dropout)
    fit(job, Budget(steps=asked.sweep_steps))
    return precision(model.rank(held_out, 1), held_out)


def _job(asked: Asked, seed: int, lr: float, dropout: float) -> tuple[Job, Model, Examples]:
    """What is trained, what ranks, and so many of the points held out."""
    learned, held_out = validation_split(asked.data, VALID, seed)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    parts = Parts(batches=Random(asked.batch_size), seed=seed)
    begun = Begun.of(parts, learned, asked.data.labels)
    job = begun.job()
    scores = AllScores(begun.predictor.label_embeddings, dropout)
    blocks = Chain(AllLabels(learned.labels), Hop(begun.tokens), attrgetter("dst"))
    loader = Loader(job.loader.batch_sampler, blocks, job.loader.table, seed=seed)

    def criterion(outputs: Tensor, batch: Batch) -> Tensor:
        return parts.loss(outputs, batch.blocks[-1])

    optimizer = torch.optim.Adam(scores.parameters(), lr=lr, fused=True)
    changed = {"objective": Objective(scores, criterion), "loader": loader}
    job = replace(job, measure=None, optimizer=optimizer, **changed)
    return job, Model(begun, scores), held_out.subset(order[:JUDGED])
