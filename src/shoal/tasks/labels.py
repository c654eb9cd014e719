"""The label job: an encoder of texts and labels, trained on shortlists, judged by exact search.

The flow, by name: a batch sampler chooses points; the shortlist is a hop over the label matrix; the
texts of both sides are a hop over the token matrix; a bag's rows are gathered from a table that
learns, a transformer reads the token ids; the loss reads the shortlist's block.
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
from shoal._checks import expect_positive
from shoal.block import Batch
from shoal.csr import Csr
from shoal.data import load
from shoal.data.texts import LabelData, Points, validation_split
from shoal.fetch.loader import Loader
from shoal.job import Job, Stateful
from shoal.losses import decoupled_softmax, hardest_triplets
from shoal.models.labeler import BagRows, Encoder, Labeler, Lexicon
from shoal.models.pretrained import TransformerVocabulary
from shoal.objectives import Objective, in_batch
from shoal.run import Run
from shoal.sample.expand import Chain, Hop, ShortlistSampler, dst_then_src
from shoal.sample.hardness import hard_negative_recall
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank, RandomBatchSampler
from shoal.settings import Cluster, Train
from shoal.tasks.common import autocast_pays, budget_of, finish, open_run
from shoal.tasks.encoders import Tokenize, bags_of, defaults_of, labeler_of, learner_of, tokenize_of
from shoal.tasks.fusing import Predictor, fuse_run, predictor_of
from shoal.train import fit

# Measured with bags on WordNet's validation split (docs/LOG.md).
EPOCHS = 6


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for training.

    Attributes:
        train: the points learned from.
        valid: the points held out from training, or None.
        lexicon: vocabulary and labels.
        tokens: token ids of the training points, then of the labels, one row a text.
    """

    train: Points
    valid: Points | None
    lexicon: Lexicon
    tokens: Csr

    @property
    def bags(self) -> Csr:
        """Token ids of the training points."""
        return _span(self.tokens, 0, len(self.train))


def prepare(data: LabelData, valid: float, seed: int, tokenize: Tokenize = bags_of) -> Prepared:
    """Hold out a validation share, make a vocabulary for what is left, and the token ids.

    Args:
        data: texts and labels.
        valid: share of the training points that is held out; 0 for none.
        seed: of that split.
        tokenize: how texts become token ids; by default a vocabulary is learned from them.
    """
    train, held = data.train, None
    if valid > 0:
        train, held = validation_split(data, valid, seed)
        held = held if len(held) else None  # all of them may be known from their reverse
    vocabulary, tokens = tokenize(train.texts, data.labels)
    label_tokens = _span(tokens, len(train), tokens.n_rows)
    return Prepared(train, held, Lexicon(vocabulary, data.labels, label_tokens), tokens)


def _span(csr: Csr, start: int, stop: int) -> Csr:
    """Rows `start` to `stop` in the same memory, so that what is mapped stays so."""
    first, last = int(csr.indptr[start]), int(csr.indptr[stop])
    return Csr(csr.indptr[start : stop + 1] - first, csr.indices[first:last], csr.n_cols)


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
    tokenize = tokenize_of(settings, run.folder / "tokens")
    prepared = prepare(data, settings.valid, settings.seed, tokenize)
    if not settings.resume:
        prepared.lexicon.save(run.folder / "lexicon")
    run.write("start", {"data": data.name, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(prepared, settings)
    progress = fit(job, budget_of(settings, EPOCHS), run, resume=settings.resume)
    if settings.rank == "fused" and progress.stopped != "interrupt":
        held_out, words, seed = prepared.valid, settings.words, settings.seed
        fuse_run(run, data, prepared.train, held_out, words=words, seed=seed)
    return finish(run, settings, progress, lambda: judge(predictor_of(run, settings.device), data))


def make_job(prepared: Prepared, settings: Train) -> Job:
    """Put the parts of the label job together.

    Returns:
        what :func:`~shoal.train.fit` trains; its table holds the rows of a bag.

    Raises:
        InputError: if batch size, cluster size or another setting does not fit the data.
    """
    n = len(prepared.train)
    learner = learner_of(prepared.lexicon.vocabulary, prepared.tokens, n, settings)
    seeds = _batch_sampler(n, settings)
    shortlist = ShortlistSampler(prepared.train.labels, settings.positives)
    blocks = Chain(shortlist, Hop(prepared.tokens), partial(dst_then_src, offset=n))
    loader = Loader(
        seeds,
        blocks,
        learner.table,
        seed=settings.seed,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )
    loss = {
        "softmax": partial(decoupled_softmax, temperature=settings.temperature),
        "triplet": hardest_triplets,
    }[settings.loss]
    also: dict[str, Stateful] = {"batch_sampler": seeds}
    bank = EmbeddingBank(n, learner.dim) if settings.bank else None
    if bank is not None:
        also["bank"] = bank
    valid = prepared.valid
    return Job(
        Objective(learner.model, in_batch(loss)),
        loader,
        learner.optimizer,
        clip=settings.clip,
        accumulate=settings.accumulate,
        warmup=defaults_of(settings).warmup,
        autocast=autocast_pays(settings.autocast, settings.device),
        chunk=settings.chunk,
        seed=settings.seed,
        refresh=partial(_refresh, seeds, prepared.bags, learner.encoders[0], bank, settings),
        observe=None if bank is None else partial(_remember, bank),
        evaluate=None
        if valid is None
        else partial(_validate, prepared.lexicon, learner.encoders, valid),
        evaluate_every=settings.valid_every,
        also=also,
    )


def _batch_sampler(n: int, settings: Train) -> ClusterBatchSampler | RandomBatchSampler:
    size = settings.batch_size or defaults_of(settings).batch_size
    if settings.batches == "random":
        return RandomBatchSampler(n, size, settings.seed)
    return ClusterBatchSampler(n, size, settings.cluster_size, settings.seed)


def _refresh(
    seeds: ClusterBatchSampler | RandomBatchSampler,
    bags: Csr,
    encoder: Encoder,
    bank: EmbeddingBank | None,
    settings: Train,
    epoch: int,
) -> dict[str, Any]:
    """Cluster anew where it is due: fresh embeddings, or those that the last epoch left behind."""
    seeds.set_epoch(epoch)
    age = epoch - settings.warm_epochs
    if isinstance(seeds, RandomBatchSampler) or age < 0 or age % settings.refresh_every:
        return {"cluster_size": getattr(seeds, "size", 1)}
    rows = encoder.embed(bags) if bank is None else bank.rows
    seeds.refresh(rows)
    return {"cluster_size": seeds.size}


def _remember(bank: EmbeddingBank, batch: Batch, outputs: Float[Tensor, "n d"]) -> None:
    bank.write(batch.seeds, outputs[: len(batch.seeds)])


def _validate(lexicon: Lexicon, encoders: tuple[Encoder, ...], valid: Points) -> dict[str, float]:
    labeler = Labeler(lexicon, *encoders)
    k = min(5, len(lexicon.labels))
    _, top = labeler.rank(valid.texts, k, valid.drop)
    inverse = torch.ones(valid.labels.n_cols)
    result = metrics.evaluate(top, valid.labels, inverse, ks=(1, k))
    return {f"valid_{name}": result[name] for name in ("P@1", f"P@{k}", f"R@{k}")}


def judge(predictor: Predictor, data: LabelData) -> dict[str, float]:
    """Metrics on the test points, in per cent; filter pairs are taken out of the predictions.

    Raises:
        InputError: if the data has other labels than the model.
    """
    test = data.test
    k = min(5, len(data.labels))
    _, top = predictor.rank(test.texts, k, test.drop)
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
        bags = labeler.lexicon.vocabulary.documents(data.train.texts)
    else:
        prepared = prepare(data, 0.0, settings.seed)
        bags = prepared.bags
        vocabulary = prepared.lexicon.vocabulary
        assert not isinstance(vocabulary, TransformerVocabulary)  # prepare makes bags
        rows = vocabulary.first_rows(prepared.tokens, settings.dim, settings.seed)
        labeler = Labeler(prepared.lexicon, BagRows(rows.to(settings.device)))
    points = labeler.encoder.embed(bags)
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
