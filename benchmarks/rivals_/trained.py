"""Systems that train shoal's bag encoder: shoal itself, the literal NGAME, explicit mining.

NGAME as its authors publish it, scaled from their 300 epochs to those asked for, is
examples/ngame.py; of the literal one classifiers and tree are left out, so that its row says what
the encoder alone is worth: one positive a point, hardest triplets, clusters whose size doubles.

Explicit mining as ANCE has it (Xiong et al., ICLR 2021): random batches, and for each point its
hardest negatives in a global index of all labels that is made anew every epoch. The index is
faiss's inverted file, four times as fast as exact search here, so that more of its time goes into
steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from labels_ import ALONE, Begun, precision
from torch import Generator, Tensor

import shoal
from rivals_.common import TOP, VALID, Asked, Clock, Outcome, Skipped, without
from shoal.data.splits import validation_split
from shoal.tasks.labels import Parts

# Negatives mined a point, and positives a point as shoal's own recipe has them.
MINED, POSITIVES = 10, 2
# cells of the index that a search looks into
PROBED = 16
LRS = (0.03, 0.1, 0.3)
# Epochs of 300 at which NGAME's clusters double.
DOUBLINGS = (10, 20, 25, 50, 75, 100, 125, 150, 200)

Make = Callable[[Begun], shoal.Job]
WORDLESS = tuple(ranker for ranker in shoal.RANKERS if not ranker.lexical)
ENCODER: dict[str, Any] = {"classifiers": None, "rankers": ALONE, "combiner": None}


def by_shoal(asked: Asked, **parts: Any) -> Outcome:
    """A default label model but for `parts`; reading data and evaluation are not counted."""
    clock, out = Clock(), asked.folder / "run"
    model = shoal.LabelModel(seed=asked.seed, **parts)
    none = asked.data.test.subset(torch.arange(0))
    with clock.stage("train"):
        epochs = asked.epochs if asked.quick else None
        result = model.fit(replace(asked.data, test=none), out=out, epochs=epochs)
    return _outcome(asked, clock, model.predictor, shoal.Run.open(out), {"steps": result.steps})


def ngame(asked: Asked) -> Outcome:
    """The published recipe with all of its stages, for as many epochs as the others."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    recipe = import_module("ngame")
    clock, run = Clock(), shoal.Run.create(asked.folder / "run", {})
    with clock.stage("train"):
        learned, held_out = validation_split(asked.data, 0.1, asked.seed)
        options: dict[str, Any] = {"classifier_epochs": asked.epochs} if asked.quick else {}
        numbers = recipe.Recipe(epochs=asked.epochs, seed=asked.seed, **options)
        predictor = recipe.train(asked.data, learned, held_out, run, numbers)
    return _outcome(asked, clock, predictor, run, {})


def _outcome(
    asked: Asked, clock: Clock, predictor: shoal.Predictor, run: shoal.Run, facts: dict[str, Any]
) -> Outcome:
    """Rank the test points, and draw the curve of the run's validations."""
    with clock.stage("predict"):
        test = asked.data.test
        _, top = predictor.rank(test.texts, TOP, test.drop)
    rounds = [event for event in run.log() if event["event"] == "validate"]
    curve = [(event["seconds"], round(event["valid_P@1"], 2)) for event in rounds]
    return Outcome(top, clock, facts | {"curve": curve})


def ngame_literal(asked: Asked) -> Outcome:
    """NGAME's encoder as published."""
    sizes = tuple(curriculum(asked.epochs, asked.batch_size))
    parts = Parts(
        batches=shoal.Clustered(asked.batch_size, sizes, warm_epochs=0),
        loss=shoal.hardest_triplets,
        positives=1,
        seed=asked.seed,
    )
    return _encoder(asked, Begun.job, parts)


def curriculum(epochs: int, batch: int) -> list[tuple[int, int]]:
    """NGAME's doublings within fewer epochs, the first one random: (epoch, cluster size)."""
    sizes = {0: 1}
    largest = batch & -batch  # the power of two that divides it
    for count, start in enumerate(DOUBLINGS, 1):
        sizes[max(1, round(start * epochs / 300))] = min(2**count, largest)
    return sorted(sizes.items())


def explicit(asked: Asked, equal_memory: bool = False) -> Outcome:
    """Random batches and mined negatives, for the CPU time that shoal's encoder took to train.

    At equal memory a batch encodes as many texts, mined ones included, as shoal's does at most.
    """
    if find_spec("faiss") is None:
        raise Skipped("no faiss: pip install 'shoal[rivals]'")
    batch = asked.batch_size
    if equal_memory:
        batch = max(batch * (1 + POSITIVES) // (1 + POSITIVES + MINED), 1)
    parts = Parts(batches=shoal.Random(batch), seed=asked.seed)
    return _encoder(asked, _explicit_job, parts, asked.minutes)


@dataclass
class Mined:
    """Shortlists that hold each seed's mined negatives beside the positives drawn.

    Attributes:
        labels: points x labels.
        negatives: ``[n, k]``; -1 where there is none. Empty before the first search.
    """

    labels: shoal.Csr
    negatives: Tensor

    def __call__(self, seeds: Tensor, generator: Generator) -> list[shoal.Block]:
        """One induced block."""
        extra = self.negatives[seeds].flatten()
        extra = extra[extra >= 0]
        return [shoal.expand(self.labels, seeds, POSITIVES, generator, induced=True, extra=extra)]


def mining(begun: Begun) -> tuple[shoal.Job, Mined]:
    """The encoder's job with mined negatives in its shortlists, which are still to be found."""
    job, n = begun.job(), len(begun.train)
    mined = Mined(begun.train.labels, torch.zeros(n, 0, dtype=torch.int64))
    blocks = shoal.Chain(mined, shoal.Hop(begun.tokens), partial(shoal.dst_then_src, offset=n))
    batches, seed = job.loader.batch_sampler, begun.parts.seed
    return replace(job, loader=shoal.Loader(batches, blocks, job.loader.table, seed=seed)), mined


def _explicit_job(begun: Begun, first: int = 1) -> shoal.Job:
    """Mine anew at the beginning of every epoch from the `first` on."""
    job, mined = mining(begun)
    points, n, batches = begun.train, len(begun.train), job.loader.batch_sampler
    bare = points.labels.with_values(None)
    known = bare.stack(points.drop.with_values(None))
    known = shoal.Csr.from_coo(known.row_ids() % n, known.indices.long(), bare.shape).coalesce()

    def refresh(epoch: int) -> dict[str, Any]:
        batches.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        if epoch >= first:
            names = begun.encoder.embed(begun.names)
            mined.negatives = mine(begun.encoder.embed(begun.documents), names, known)
        return {"mined": mined.negatives.shape[1]}

    return replace(job, refresh=refresh)


def mine(points: Tensor, names: Tensor, known: shoal.Csr) -> Tensor:
    """The labels nearest to each point that are none of its own, by an approximate index."""
    import faiss  # pyright: ignore[reportMissingImports]

    d = names.shape[1]
    cells = max(len(names) // 100, 1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.nprobe = 5, min(PROBED, cells)
    index.train(names.numpy())
    index.add(names.numpy())
    most = MINED + int(known.degrees().clamp(max=MINED).max())
    found = torch.from_numpy(index.search(points.numpy(), most)[1])
    return without(found, known, MINED)


def _encoder(asked: Asked, make: Make, parts: Parts, minutes: float | None = None) -> Outcome:
    """Choose the learning rate on validation, train on all points, rank by the encoder.

    How long is told by CPU minutes, at the rate of a short run that mines from its start, or else
    by epochs.
    """
    clock, data = Clock(), asked.data

    def with_rate(lr: float) -> Parts:
        return replace(parts, encoder=replace(parts.encoder, lr=lr))

    with clock.stage("tune"):
        split = validation_split(data, VALID, 0)
        tried = {lr: _try(split, asked, make, with_rate(lr)) for lr in LRS}
        lr = max(tried, key=lambda option: tried[option][0])
    budget = shoal.Budget(epochs=asked.epochs)
    if minutes is not None:
        rate = _try(split, asked, partial(_explicit_job, first=0), with_rate(lr))[1]
        budget = shoal.Budget(steps=max(round(60 * minutes / rate), 1))
    with clock.stage("train"):
        begun = Begun.of(with_rate(lr), data.train, data.labels)
        progress = shoal.fit(make(begun), budget)
    with clock.stage("predict"):
        _, top = begun.predictor.rank(data.test.texts, TOP, data.test.drop)
    found = {lr: round(value, 2) for lr, (value, _) in tried.items()}
    facts = {"steps": progress.step, "batches": repr(parts.batches), "lr": lr}
    return Outcome(top, clock, facts | {"validation_P@1": found})


def _try(
    split: tuple[shoal.Examples, shoal.Examples], asked: Asked, make: Make, parts: Parts
) -> tuple[float, float]:
    """P@1 on validation after a short run, and CPU seconds a step."""
    learned, held_out = split
    begun = Begun.of(parts, learned, asked.data.labels)
    job = make(begun)
    begin = time.process_time()
    # within an epoch, so that what its beginning costs is counted once
    steps = min(asked.sweep_steps, len(job.loader.batch_sampler))
    shoal.fit(job, shoal.Budget(steps=steps))
    seconds = (time.process_time() - begin) / steps
    _, top = begun.predictor.rank(held_out.texts, 1, held_out.drop)
    return precision(top, held_out), seconds
