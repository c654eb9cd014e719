"""The label job: an encoder of texts and labels, trained on shortlists, judged by exact search.

The flow, by name: a batch sampler chooses points; the shortlist is a hop over the label matrix; the
bags of both sides are a hop over the token matrix; their rows are gathered from a table that
learns; the loss reads the shortlist's block.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoal import metrics
from shoal._checks import expect, expect_positive
from shoal.block import Batch
from shoal.csr import Csr
from shoal.data import load
from shoal.data.texts import LabelData, Points, validation_split
from shoal.fetch.loader import Loader
from shoal.fetch.unified import UnifiedTensor
from shoal.fetch.update import RowAdam
from shoal.job import Job, Stateful
from shoal.losses import decoupled_softmax, hardest_triplets
from shoal.models.bag import BagEncoder
from shoal.models.labeler import Labeler, Lexicon, embed
from shoal.models.vocabulary import learn, random_rows
from shoal.objectives import Objective, in_batch
from shoal.run import Run
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
from shoal.sample.hardness import hard_negative_recall
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank, RandomBatchSampler
from shoal.settings import Cluster, Train
from shoal.tasks.common import autocast_pays, budget_of, finish, open_run
from shoal.train import fit

# Defaults measured on WordNet's validation split (docs/LOG.md).
BATCH_SIZE, LEARNING_RATE, EPOCHS = 1024, 0.1, 6


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for training.

    Attributes:
        train: the points learned from.
        valid: the points held out from training, or None.
        lexicon: vocabulary and labels.
        bags: of the training points, one row each.
    """

    train: Points
    valid: Points | None
    lexicon: Lexicon
    bags: Csr


def prepare(data: LabelData, valid: float, seed: int) -> Prepared:
    """Hold out a validation share, learn the vocabulary of what is left, and make the bags.

    Args:
        data: texts and labels.
        valid: share of the training points that is held out; 0 for none.
        seed: of that split.
    """
    train, held = data.train, None
    if valid > 0:
        train, held = validation_split(data, valid, seed)
        held = held if len(held) else None  # all of them may be known from their reverse
    documents, labels = train.texts.all(), data.labels.all()
    vocabulary = learn(documents + labels)
    lexicon = Lexicon(vocabulary, data.labels, vocabulary.bags(labels))
    return Prepared(train, held, lexicon, vocabulary.bags(documents))


def train(settings: Train) -> dict[str, Any]:
    """Run ``shoal train`` on labels: train, keep the best model, judge it on the test points.

    Returns:
        what the command prints: metrics in per cent, steps and seconds.

    Raises:
        InputError: for any bad setting or input; finished work stays.
    """
    run = open_run(settings)
    begin = time.monotonic()
    data = load(settings.source)
    prepared = prepare(data, settings.valid, settings.seed)
    if not settings.resume:
        prepared.lexicon.save(run.folder / "lexicon")
    run.write("start", {"data": data.name, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(prepared, settings)
    progress = fit(job, budget_of(settings, EPOCHS), run, resume=settings.resume)
    return finish(run, settings, progress, lambda: judge(labeler_of(run, settings.device), data))


def make_job(prepared: Prepared, settings: Train) -> Job:
    """Put the parts of the label job together.

    Returns:
        what :func:`~shoal.train.fit` trains; its table holds the rows.

    Raises:
        InputError: if batch size, cluster size or another setting does not fit the data.
    """
    bags = prepared.bags.stack(prepared.lexicon.label_bags)
    rows = random_rows(bags, settings.dim, settings.seed)
    table = UnifiedTensor.of(rows, RowAdam(lr=settings.lr or LEARNING_RATE))
    n = prepared.bags.n_rows
    seeds = _batch_sampler(n, settings)
    shortlist = ShortlistSampler(prepared.train.labels, settings.positives)
    blocks = Chain(shortlist, Hop(bags), partial(dst_then_src, offset=n))
    loader = Loader(
        seeds,
        blocks,
        table,
        seed=settings.seed,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )
    loss = {
        "softmax": partial(decoupled_softmax, temperature=settings.temperature),
        "triplet": hardest_triplets,
    }[settings.loss]
    also: dict[str, Stateful] = {"batch_sampler": seeds}
    bank = EmbeddingBank(n, settings.dim) if settings.bank else None
    if bank is not None:
        also["bank"] = bank
    valid = prepared.valid
    return Job(
        Objective(BagEncoder(), in_batch(loss)),
        loader,
        clip=settings.clip,
        accumulate=settings.accumulate,
        autocast=autocast_pays(settings.autocast, settings.device),
        seed=settings.seed,
        refresh=partial(_refresh, seeds, prepared.bags, table, bank, settings),
        observe=None if bank is None else partial(_remember, bank),
        evaluate=None if valid is None else partial(_validate, prepared.lexicon, table, valid),
        evaluate_every=settings.valid_every,
        also=also,
    )


def _batch_sampler(n: int, settings: Train) -> ClusterBatchSampler | RandomBatchSampler:
    size = settings.batch_size or BATCH_SIZE
    if settings.batches == "random":
        return RandomBatchSampler(n, size, settings.seed)
    return ClusterBatchSampler(n, size, settings.cluster_size, settings.seed)


def _refresh(
    seeds: ClusterBatchSampler | RandomBatchSampler,
    bags: Csr,
    table: UnifiedTensor,
    bank: EmbeddingBank | None,
    settings: Train,
    epoch: int,
) -> dict[str, Any]:
    """Cluster anew where it is due: fresh embeddings, or those that the last epoch left behind."""
    seeds.set_epoch(epoch)
    age = epoch - settings.warm_epochs
    if isinstance(seeds, RandomBatchSampler) or age < 0 or age % settings.refresh_every:
        return {"cluster_size": getattr(seeds, "size", 1)}
    rows = embed(bags, table.as_subclass(Tensor)) if bank is None else bank.rows
    seeds.refresh(rows)
    return {"cluster_size": seeds.size}


def _remember(bank: EmbeddingBank, batch: Batch, outputs: Float[Tensor, "n d"]) -> None:
    bank.write(batch.seeds, outputs[: len(batch.seeds)])


def _validate(lexicon: Lexicon, table: UnifiedTensor, valid: Points) -> dict[str, float]:
    labeler = Labeler(lexicon, table.as_subclass(Tensor))
    k = min(5, len(lexicon.labels))
    _, top = labeler.rank(valid.texts.all(), k, valid.drop)
    inverse = torch.ones(valid.labels.n_cols)
    result = metrics.evaluate(top, valid.labels, inverse, ks=(1, k))
    return {f"valid_{name}": result[name] for name in ("P@1", f"P@{k}", f"R@{k}")}


def labeler_of(run: Run, device: str = "cpu") -> Labeler:
    """The best model of a run, on `device`.

    Raises:
        InputError: if the folder does not hold a whole run of the label job.
    """
    lexicon, state = Lexicon.open(run.folder / "lexicon"), run.load_model()
    expect("rows" in state, str(run.folder), "a run on labels", "another", "name another folder")
    return Labeler(lexicon, state["rows"].to(device))


def judge(labeler: Labeler, data: LabelData) -> dict[str, float]:
    """Metrics on the test points, in per cent; filter pairs are taken out of the predictions.

    Raises:
        InputError: if the data has other labels than the model.
    """
    test = data.test
    k = min(5, len(data.labels))
    _, top = labeler.rank(test.texts.all(), k, test.drop)
    inverse = metrics.inverse_propensity(data.train.labels)
    return metrics.evaluate(top.cpu(), test.labels, inverse, ks=[x for x in (1, 3, 5) if x <= k])


def cluster(settings: Cluster) -> dict[str, Any]:
    """Run ``shoal cluster``: sizes, seconds, and how hard the batches' negatives are.

    Returns:
        what the command prints.

    Raises:
        InputError: for any bad setting or input.
    """
    expect_positive("dim", settings.dim)
    data = load(settings.source)
    if settings.run is not None:
        labeler = labeler_of(Run.open(settings.run), settings.device)
        bags = labeler.lexicon.vocabulary.bags(data.train.texts.all())
    else:
        prepared = prepare(data, 0.0, settings.seed)
        bags = prepared.bags
        everything = bags.stack(prepared.lexicon.label_bags)
        rows = random_rows(everything, settings.dim, settings.seed)
        labeler = Labeler(prepared.lexicon, rows.to(settings.device))
    points = embed(bags, labeler.rows)
    n = len(points)
    clustered = ClusterBatchSampler(n, settings.batch_size, settings.cluster_size, settings.seed)
    begin = time.monotonic()
    clustered.refresh(points)
    seconds = time.monotonic() - begin
    truth = data.train.labels.to(settings.device)
    recall = partial(
        hard_negative_recall,
        points,
        labeler.label_embeddings,
        truth,
        shortlist=ShortlistSampler(truth),
        sample=settings.sample,
        seed=settings.seed,
    )
    random = RandomBatchSampler(n, settings.batch_size, settings.seed)
    return {
        "data": data.name,
        "points": n,
        "clusters": -(-n // settings.cluster_size),
        "cluster_size": settings.cluster_size,
        "batch_size": settings.batch_size,
        "seconds": round(seconds, 3),
        "hard_negative_recall": {
            name: {f"k={k}": round(100 * share, 3) for k, share in recall(batches=it).items()}
            for name, it in (("random", random), ("clustered", clustered))
        },
    }
