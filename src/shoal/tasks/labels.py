"""The label job: an encoder of texts and labels, trained on shortlists, judged by exact search.

The flow, by name: a batch sampler chooses points; the shortlist is a hop over the label matrix; the
texts of both sides are a hop over the token matrix; a bag's rows are gathered from a table that
learns, a transformer reads the token ids; the loss reads the shortlist's block.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shoal.cli.recipes import changed
from shoal.cli.settings import Cluster, Train
from shoal.core import metrics
from shoal.core.block import Batch, Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.core.files import folder_aside
from shoal.core.losses import decoupled_softmax, hardest_triplets, symmetric
from shoal.core.objectives import Objective, in_batch
from shoal.data import load_labels
from shoal.data.texts import LabelData
from shoal.rank.predictor import BagRows, Encoder, Labeler
from shoal.sample.expand import BlockSampler, Both, Chain, Hop, ShortlistSampler, dst_then_src
from shoal.sample.hardness import batch_hardness, hard_negative_recall
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank, RandomBatchSampler
from shoal.tasks import details
from shoal.tasks.batches import batch_sampler_of, renew, shortlist_of, with_scored
from shoal.tasks.common import (
    autocast_pays,
    budget_of,
    callbacks_of,
    finish,
    open_run,
    step_rule_of,
)
from shoal.tasks.encoders import Learner, defaults_of, labeler_of, learner_of, tokenize_of
from shoal.tasks.fusing import Predictor, forget_indexes, fuse_run, head_ranks, predictor_of
from shoal.tasks.heads import HeadPart, train_head, with_head
from shoal.tasks.prepared import Prepared, Side, prepare
from shoal.tasks.validation import validate
from shoal.text.pretrained import TransformerVocabulary
from shoal.training.gradients import Gradients
from shoal.training.job import Job, Stateful
from shoal.training.loader import Loader
from shoal.training.loop import fit
from shoal.training.run import Run

# Measured with bags on WordNet's validation split (docs/LOG.md).
EPOCHS = 6


def train(settings: Train) -> dict[str, Any]:
    """Run ``shoal train`` on labels: train, keep the best model, judge it on the test points.

    Returns:
        what the command prints: metrics in per cent, steps and seconds.

    Raises:
        InputError: for any bad setting or input; finished work stays.
    """
    run = open_run(settings)
    callbacks = callbacks_of(settings, run)
    forget_indexes(run)
    begin = time.monotonic()
    data = load_labels(settings.source)
    tokenize = tokenize_of(settings, run.folder / "tokens")
    prepared = prepare(data, settings.valid, settings.seed, tokenize)
    if not settings.resume:
        with folder_aside(run.folder / "lexicon") as folder:
            prepared.lexicon.save(folder)
    run.start({"data": data.name, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(prepared, settings)
    budget = budget_of(settings, EPOCHS)
    rule = step_rule_of(settings, job)
    progress = fit(job, budget, run, resume=settings.resume, step=rule, callbacks=callbacks)
    if head_ranks(settings, prepared.valid) and progress.stopped != "interrupt":
        stage = train_head(run, prepared, settings, progress.step)
        progress.stopped = stage.stopped if stage.stopped == "interrupt" else progress.stopped
    if settings.rank == "fused" and progress.stopped != "interrupt":
        fuse_run(run, data, prepared.train, prepared.valid, settings)
    result = finish(
        run,
        settings,
        progress,
        lambda: judge(predictor_of(run, settings.device), data, run),
        callbacks,
    )
    return result | ({} if settings.recipe == "shoal" else {"recipe": changed(settings)})


def make_job(prepared: Prepared, settings: Train) -> Job:
    """Put the parts of the label job together.

    Returns:
        what :func:`shoal.fit` trains; its table holds the rows of a bag, and its further
        table ``head`` the classifiers that are trained with them.

    Raises:
        InputError: if batch size, cluster size or another setting does not fit the data.
    """
    side = prepared.side(settings.side)
    n = side.truth.n_rows
    learner = learner_of(prepared.lexicon.vocabulary, side.tokens, n, settings)
    seeds = batch_sampler_of(n, settings, budget_of(settings, EPOCHS))
    hop, rows = Hop(side.tokens), partial(dst_then_src, offset=n)
    blocks: BlockSampler = Chain(shortlist_of(side.truth, settings), hop, rows)
    part = None
    if settings.head == "joint":
        part = HeadPart.of(_labeler(prepared, learner).label_embeddings, side.truth, settings)
        blocks = Both(blocks, part.blocks)
    mine = None if part is None else part.mine
    loader = Loader(
        seeds,
        blocks,
        learner.table,
        seed=settings.seed,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )
    bank = EmbeddingBank(n, learner.dim) if settings.bank else None
    embed = partial(_embed, learner.encoders, side, bank, settings.cluster_by)
    also: dict[str, Stateful] = {"batch_sampler": seeds}
    if bank is not None:
        also["bank"] = bank
    job = Job(
        Objective(learner.model, in_batch(_loss_of(settings, side.truth))),
        loader,
        learner.optimizer,
        Gradients(
            settings.accumulate,
            settings.clip,
            "bfloat16" if autocast_pays(settings.autocast, settings.device) else "float32",
            settings.chunk,
        ),
        warmup=defaults_of(settings).warmup,
        seed=settings.seed,
        refresh=partial(renew, seeds, embed, settings, warm=settings.warm_epochs, mine=mine),
        observe=None if bank is None else partial(_remember, bank),
        measure=partial(_hardness, -1 if part is None else -2),
        evaluate=None if prepared.valid is None else partial(_validate, prepared, learner),
        evaluate_every=settings.valid_every,
        state=also,
    )
    return job if part is None else with_head(job, part, settings)


def _loss_of(settings: Train, truth: Csr) -> Callable[[Tensor, Block], Tensor]:
    loss: Callable[[Tensor, Block], Tensor] = hardest_triplets
    if settings.loss == "softmax":
        relevance = None
        if settings.graded:
            good = truth.values is not None and bool((truth.values >= 0).all())
            want = "data whose labels have a relevance of at least 0"
            expect(good, "graded", want, "others", "leave it out")
            relevance = truth.values
        options = {"temperature": settings.temperature, "relevance": relevance}
        loss = partial(decoupled_softmax, **options)
    return symmetric(loss) if settings.symmetric else loss


def _embed(
    encoders: tuple[Encoder, ...], side: Side, bank: EmbeddingBank | None, by: str
) -> Float[Tensor, "n d"]:
    """By what seeds are clustered: fresh embeddings, or those that the last epoch left behind."""
    rows = encoders[0].embed(side.bags) if bank is None else bank.rows
    if by == "text":
        return rows
    return with_scored(rows, encoders[-1].embed(side.scored), side.truth)


def _hardness(place: int, batch: Batch, outputs: Float[Tensor, "n d"]) -> dict[str, float]:
    """How hard the shortlist's negatives are; it is the block at that place of the batch's."""
    return batch_hardness(outputs, batch.blocks[place])


def _remember(bank: EmbeddingBank, batch: Batch, outputs: Float[Tensor, "n d"]) -> None:
    bank.write(batch.seeds, outputs[: len(batch.seeds)])


def _labeler(prepared: Prepared, learner: Learner) -> Labeler:
    # a new one each time, since it keeps the embeddings that it made
    return Labeler(prepared.lexicon, *learner.encoders)


def _validate(prepared: Prepared, learner: Learner) -> dict[str, float]:
    assert prepared.valid is not None
    rank = partial(_labeler(prepared, learner).rank, prepared.valid.texts)
    return validate(rank, prepared.valid)


def judge(predictor: Predictor, data: LabelData, run: Run | None = None) -> dict[str, float]:
    """Metrics on the test points, in per cent; filter pairs are taken out of the predictions.

    Args:
        predictor: ranks labels.
        data: its test points are judged.
        run: whose record is told what is behind the metrics; None tells none.

    Raises:
        InputError: if the data has other labels than the model.
    """
    test = data.test
    k = min(5, len(data.labels))
    scores, top = (x.cpu() for x in predictor.rank(test.texts, k, test.drop))
    if run is not None:
        details.record(run, data, scores, top)
    inverse = metrics.inverse_propensity(data.train.labels)
    return metrics.evaluate(top, test.labels, inverse, ks=[x for x in (1, 3, 5) if x <= k])


def cluster(settings: Cluster) -> dict[str, Any]:
    """Run ``shoal cluster``: sizes, seconds, and how hard the batches' negatives are.

    Returns:
        what the command prints.

    Raises:
        InputError: for any bad setting or input.
    """
    expect_positive("dim", settings.dim)
    data = load_labels(settings.source)
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
