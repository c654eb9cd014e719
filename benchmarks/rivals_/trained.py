"""Systems that train shoal's bag encoder: shoal itself, the literal NGAME, explicit mining.

NGAME as its authors publish it, scaled from their 300 epochs to those asked for: one positive a
point, hardest triplets, clusters whose size doubles; its head and fusion (stage M4) are left out,
so that its row says what the encoder alone is worth.

Explicit mining as ANCE has it (Xiong et al., ICLR 2021): random batches, and for each point its
hardest negatives in a global index of all labels that is made anew every epoch. The index is
faiss's inverted file, four times as fast as exact search here, so that more of its time goes into
steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from shoal.cli.recipes import recipe
from shoal.cli.settings import Train
from shoal.tasks.fusing import predictor_of
from shoal.tasks.prepared import Prepared, prepare
from torch import Generator, Tensor

from rivals_.common import TOP, VALID, Asked, Clock, Outcome, Skipped, without
from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.metrics import evaluate
from shoal.data.texts import Examples
from shoal.rank.predictor import BagRows, Labeler
from shoal.sample.expand import Chain, Hop, dst_then_src, expand
from shoal.sample.seeds import ClusterBatchSampler
from shoal.tasks.labels import make_job
from shoal.tasks.labels import train as shoal_train
from shoal.training.job import Budget, Job
from shoal.training.loader import Loader
from shoal.training.loop import fit
from shoal.training.run import Run

# Negatives mined a point, and positives a point as shoal's own recipe has them.
MINED, POSITIVES = 10, 2
# cells of the index that a search looks into
PROBED = 16
LRS = (0.03, 0.1, 0.3)
# Epochs of 300 at which NGAME's clusters double.
DOUBLINGS = (10, 20, 25, 50, 75, 100, 125, 150, 200)

Make = Callable[..., Job]


def shoal(asked: Asked, named: str = "shoal", **options: Any) -> Outcome:
    """``shoal train`` by a recipe but for `options`; reading data and judging are not counted."""
    clock, out = Clock(), asked.folder / "run"
    settings = recipe(named, asked.source, out=out, seed=asked.seed, **options)
    if asked.quick:
        settings = replace(settings, epochs=asked.epochs)
    begin = time.perf_counter(), time.process_time()
    told = shoal_train(settings)
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    judged = told["test_seconds"]  # wall alone is told: its share of CPU is that of the whole
    clock.add("train", wall - judged, cpu * (1 - judged / wall))
    with clock.stage("predict"):
        test = asked.data.test
        _, top = predictor_of(Run.open(out)).rank(test.texts, TOP, test.drop)
    rounds = [event for event in Run.open(out).log() if event["event"] == "validate"]
    curve = [(event["seconds"], round(event["valid_P@1"], 2)) for event in rounds]
    return Outcome(top, clock, {"steps": told["steps"], "curve": curve})


def ngame(asked: Asked) -> Outcome:
    """``shoal train --recipe ngame``: all of its stages, for as many epochs as the others."""
    return shoal(asked, "ngame", epochs=asked.epochs)


def ngame_literal(asked: Asked) -> Outcome:
    """NGAME's encoder as published."""
    make = partial(_literal_job, epochs=asked.epochs)
    settings = Train(source=asked.source, seed=asked.seed, loss="triplet", positives=1)
    settings = replace(settings, batch_size=asked.batch_size)
    return _encoder(asked, make, settings)


def _literal_job(prepared: Prepared, settings: Train, epochs: int) -> Job:
    job = make_job(prepared, replace(settings, batches="random"))
    batch = settings.batch_size or 1024
    sizes = curriculum(epochs, batch)
    sampler = ClusterBatchSampler(len(prepared.train), batch, sizes, settings.seed)
    job.loader.batch_sampler = sampler
    rows = _rows(job)

    def refresh(epoch: int) -> dict[str, Any]:
        sampler.set_epoch(epoch)
        if sampler.size_at(epoch) > 1:
            sampler.refresh(rows.embed(prepared.bags))
        return {"cluster_size": sampler.size}

    return replace(job, refresh=refresh, state={"batch_sampler": sampler})


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
    settings = Train(source=asked.source, seed=asked.seed, batches="random", batch_size=batch)
    return _encoder(asked, _explicit_job, settings, asked.minutes)


@dataclass
class Mined:
    """Shortlists that hold each seed's mined negatives beside the positives drawn.

    Attributes:
        labels: points x labels.
        negatives: ``[n, k]``; -1 where there is none. Empty before the first search.
    """

    labels: Csr
    negatives: Tensor

    def __call__(self, seeds: Tensor, generator: Generator) -> list[Block]:
        """One induced block."""
        extra = self.negatives[seeds].flatten()
        extra = extra[extra >= 0]
        return [expand(self.labels, seeds, POSITIVES, generator, induced=True, extra=extra)]


def _explicit_job(prepared: Prepared, settings: Train, first: int = 1) -> Job:
    """Mine anew at the beginning of every epoch from the `first` on."""
    job = make_job(prepared, settings)
    points, n = prepared.train, len(prepared.train)
    mined = Mined(points.labels, torch.zeros(n, 0, dtype=torch.int64))
    blocks = Chain(mined, Hop(prepared.tokens), partial(dst_then_src, offset=n))
    batches = job.loader.batch_sampler
    loader = Loader(batches, blocks, job.loader.table, seed=settings.seed)
    bare = points.labels.with_values(None)
    known = bare.stack(points.drop.with_values(None))
    known = Csr.from_coo(known.row_ids() % n, known.indices.long(), bare.shape).coalesce()
    rows = _rows(job)

    def refresh(epoch: int) -> dict[str, Any]:
        batches.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        if epoch >= first:
            names = rows.embed(prepared.lexicon.label_bags)
            mined.negatives = mine(rows.embed(prepared.bags), names, known)
        return {"mined": mined.negatives.shape[1]}

    return replace(job, loader=loader, refresh=refresh)


def mine(points: Tensor, names: Tensor, known: Csr) -> Tensor:
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


def _encoder(asked: Asked, make: Make, settings: Train, minutes: float | None = None) -> Outcome:
    """Choose the learning rate on validation, train on all points, rank by the encoder.

    How long is told by CPU minutes, at the rate of a short run that mines from its start, or else
    by epochs.
    """
    clock = Clock()
    with clock.stage("tune"):
        held = prepare(asked.data, VALID, 0)
        tried = {lr: _try(held, asked, make, replace(settings, lr=lr)) for lr in LRS}
        lr = max(tried, key=lambda option: tried[option][0])
    budget = Budget(epochs=asked.epochs)
    if minutes is not None:
        mining = partial(make, first=0)
        rate = _try(held, asked, mining, replace(settings, lr=lr))[1]
        budget = Budget(steps=max(round(60 * minutes / rate), 1))
    with clock.stage("train"):
        prepared = prepare(asked.data, 0.0, asked.seed)
        job = make(prepared, replace(settings, lr=lr, valid=0.0))
        progress = fit(job, budget)
    with clock.stage("predict"):
        test = asked.data.test
        _, top = _labeler(prepared, job).rank(test.texts, TOP, test.drop)
    found = {lr: round(precision, 2) for lr, (precision, _) in tried.items()}
    facts = {"steps": progress.step, "batch_size": settings.batch_size, "lr": lr}
    return Outcome(top, clock, facts | {"validation_P@1": found})


def _try(prepared: Prepared, asked: Asked, make: Make, settings: Train) -> tuple[float, float]:
    """P@1 on validation after a short run, and CPU seconds a step."""
    job = make(prepared, settings)
    begin = time.process_time()
    # within an epoch, so that what its beginning costs is counted once
    steps = min(asked.sweep_steps, len(job.loader.batch_sampler))
    fit(job, Budget(steps=steps))
    seconds = (time.process_time() - begin) / steps
    assert prepared.valid is not None  # a share of the points is held out
    return _precision(_labeler(prepared, job), prepared.valid), seconds


def _precision(labeler: Labeler, points: Examples) -> float:
    _, top = labeler.rank(points.texts, 1, points.drop)
    return evaluate(top, points.labels, torch.ones(points.labels.n_cols), ks=(1,))["P@1"]


def _labeler(prepared: Prepared, job: Job) -> Labeler:
    return Labeler(prepared.lexicon, _rows(job))


def _rows(job: Job) -> BagRows:
    assert job.table is not None  # a bag's rows learn
    return BagRows(job.table.as_subclass(Tensor))
