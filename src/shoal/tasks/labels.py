"""The label job on one page: from texts and labels to a predictor.

A batch sampler chooses examples; the shortlist is a hop over the label matrix; the texts of both
sides are a hop over the token matrix; a bag's rows are gathered from a trainable table, a
transformer reads the token ids; the loss reads the shortlist's block. Then classifiers are trained
on the frozen encoder, and a combiner learns on held-out examples what each ranker is worth.

Copy this page to bend it: everything it uses is public.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import shoal
from shoal.tasks import named, task
from shoal.tasks.settings import From, Int, Table, Text, Training

# Measured with bags on WordNet's validation split (docs/LOG.md).
EPOCHS = 6
# Fewer held-out examples than this teach a combiner noise: the encoder then ranks alone.
FEWEST = 40
# So many are enough; where a share of the examples is less, others are held out in turn.
ENOUGH = 1000
# folder, in a run of several folds, of the training on all examples
ALL = "all"


@dataclass(frozen=True, eq=False)
class Parts:
    """The objects of which a label model is made; the defaults are what measured best.

    Attributes:
        encoder: how to begin an encoder, or a trained one to go on with.
        batches: (number of examples, seed) → batch sampler; None for clusters of 64 in batches as
            large as the encoder is best trained with.
        loss: of the scores of a batch's examples and labels, and their shortlist.
        positives: labels drawn per example for the shortlist.
        gradients: how the gradient of a step is made.
        step: makes a step rule from the job; None follows the schedule.
        classifiers: trained after the encoder; None for none.
        rankers: find labels; without a combiner, the first of them alone.
        combiner: learns on held-out examples what the rankers are worth; None for none.
        seed: of everything random.
    """

    encoder: Any = field(default_factory=lambda: shoal.BagEncoder())
    batches: Callable[[int, int], Any] | None = None
    loss: Callable[..., Any] = field(
        default_factory=lambda: partial(shoal.decoupled_softmax, temperature=0.1)
    )
    positives: int = 2
    gradients: Any = field(default_factory=lambda: shoal.Gradients())
    step: Callable[[Any], Any] | None = None
    classifiers: Any | None = field(default_factory=lambda: shoal.Classifiers())
    rankers: Sequence[Any] = field(default_factory=lambda: shoal.RANKERS)
    combiner: Any | None = field(default_factory=lambda: shoal.NetworkCombiner())
    seed: int = 0

    def batch_sampler(self) -> Callable[[int, int], Any]:
        """The batches asked for, or the default of the encoder."""
        return self.batches or shoal.Clustered(self.encoder.batch_size)


def build(
    parts: Parts,
    encoder: shoal.TextEncoder,
    tokens: shoal.Csr,
    truth: shoal.Csr,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    device: str | None = None,
) -> shoal.Job:
    """The job that trains an encoder.

    Args:
        parts: batches, loss and the like.
        encoder: begun by ``parts.encoder``.
        tokens: token ids of the n examples, then of the labels.
        truth: ``[n, l]``, labels of the examples.
        evaluate: validation metrics.
        evaluate_every: epochs between two validations.
        device: where batches are handed over; None leaves them in host memory.
    """
    n, batches = truth.n_rows, parts.batch_sampler()
    seeds = batches(n, parts.seed)
    shortlist = shoal.ShortlistSampler(truth, parts.positives)
    blocks = shoal.Chain(shortlist, shoal.Hop(tokens), partial(shoal.dst_then_src, offset=n))
    documents = tokens.span(0, n)

    def embed() -> Any:  # by all processes that train together
        return shoal.spread(lambda start, stop: encoder.embed(documents.span(start, stop)), n)

    def refresh(epoch: int) -> dict[str, Any]:
        return shoal.refreshed(seeds, embed, epoch, batches)

    return shoal.Job(
        shoal.Objective(encoder.module, shoal.in_batch(parts.loss)),
        shoal.Loader(seeds, blocks, encoder.table, seed=parts.seed, device=device),
        encoder.optimizer,
        gradients=parts.gradients,
        warmup=parts.encoder.warmup,
        seed=parts.seed,
        refresh=refresh,
        measure=lambda batch, outputs: shoal.batch_hardness(outputs, batch.blocks[-1]),
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        state={"batch_sampler": seeds} if hasattr(seeds, "state_dict") else {},
    )


def train(
    data: shoal.LabelData,
    folds: Sequence[shoal.Fold],
    run: shoal.Run,
    parts: Parts | None = None,
    *,
    budget: shoal.Budget | None = None,
    resume: bool = False,
    evaluate_every: int = 5,
    callbacks: Callable[[str], Sequence[shoal.Callback]] = lambda stage: (),
    device: str = "cpu",
) -> tuple[shoal.Predictor, shoal.Progress]:
    """Train a predictor of labels.

    Of one fold the encoder and the classifiers are kept, and the combiner learns from what that
    fold holds out. With several, each has an encoder and classifiers of its own, the combiner
    learns from what all of them hold out, and then both are trained on all examples.

    Args:
        data: all training examples, and the labels.
        folds: at least one.
        run: keeps checkpoints and the log.
        parts: objects to train with.
        budget: how long the encoder is trained; 6 epochs by default. Minutes are shared by all.
        resume: continue the run.
        evaluate_every: epochs between two validations.
        callbacks: of each stage by its name: ``encoder`` and ``classifiers``, of further folds
            ``encoder, fold 2`` and so on, and in the end ``encoder, all``.
        device: where to compute.

    Returns:
        the predictor, and how far training came: an interrupt leaves an encoder alone.
    """
    parts = Parts() if parts is None else parts
    count = sum(0 if fold.held_out is None else len(fold.held_out) for fold in folds)
    combines = parts.combiner is not None and count >= FEWEST
    if parts.combiner is not None and not combines:
        said = "%d held-out examples, %d are needed to weigh rankers: the encoder ranks alone, "
        said += "and scores are cosines, no probabilities"
        logging.getLogger("shoal").warning(said, count, FEWEST)
        parts = replace(parts, combiner=None, classifiers=None, rankers=(shoal.EncoderRanker(),))
        folds = folds[:1]
    limits = budget or shoal.Budget(epochs=EPOCHS)
    if limits.minutes is not None and len(folds) > 1:
        limits = replace(limits, minutes=limits.minutes / (len(folds) + 1))
    stages = Stages(data, parts, limits, resume, evaluate_every, device)
    base, weights, progress = stages.train(folds[0], run, callbacks)
    if progress.stopped == "interrupt":
        return base, progress
    if not combines:
        return shoal.with_known(base, parts.rankers, data.train, weights), progress
    if progress.stopped == "patience":  # the others have nobody to tell them when
        stages = replace(stages, limits=shoal.Budget(steps=progress.step))
    seen: shoal.Evidence | None = None
    for i, fold in enumerate(folds):
        if i > 0:
            settings = {"encoder_steps": progress.step}
            stage = run.stage(f"fold-{i + 1}", settings, resume)
            base, weights, more = stages.train(fold, stage, _of(f"fold {i + 1}", callbacks))
            progress.seconds += more.seconds
            if more.stopped == "interrupt":
                progress.stopped = "interrupt"
                return base, progress
        if fold.held_out is not None and len(fold.held_out):
            begin = time.monotonic()
            found = shoal.evidence(
                base, parts.rankers, fold.train, fold.held_out, weights, parts.seed
            )
            seen = found if seen is None else seen.stack(found)
            progress.seconds += time.monotonic() - begin
    if len(folds) > 1:
        stage = run.stage(ALL, {"encoder_steps": progress.step}, resume)
        base, weights, more = stages.train(shoal.Fold(data.train, None), stage, _of(ALL, callbacks))
        progress.seconds += more.seconds
        if more.stopped == "interrupt":
            progress.stopped = "interrupt"
            return base, progress
    assert seen is not None and parts.combiner is not None
    begin = time.monotonic()
    predictor = shoal.fit_ensemble(
        base, parts.rankers, parts.combiner, seen, data.train, weights, parts.seed
    )
    seconds = time.monotonic() - begin
    progress.seconds += seconds
    told = {"held_out": count, "folds": len(folds), "ensemble_seconds": round(seconds, 3)}
    run.write("ensemble", told)
    return predictor, progress


def _of(
    name: str, callbacks: Callable[[str], Sequence[shoal.Callback]]
) -> Callable[[str], Sequence[shoal.Callback]]:
    return lambda stage: callbacks(f"{stage}, {name}")


@dataclass(frozen=True, eq=False)
class Stages:
    """How the encoder and then the classifiers are trained on a fold.

    Attributes:
        data: all training examples, and the labels.
        parts: objects to train with.
        limits: how long the encoder is trained.
        resume: continue where a run stands.
        evaluate_every: epochs between two validations.
        device: where to compute.
    """

    data: shoal.LabelData
    parts: Parts
    limits: shoal.Budget
    resume: bool
    evaluate_every: int
    device: str

    def train(
        self, fold: shoal.Fold, run: shoal.Run, callbacks: Callable[[str], Sequence[shoal.Callback]]
    ) -> tuple[shoal.Predictor, Any, shoal.Progress]:
        """A predictor by the encoder alone, classifiers or None, and how far training came."""
        parts, train, held_out = self.parts, fold.train, fold.held_out
        on = None if self.device == "cpu" else self.device
        labels, tokens_at = self.data.labels, run.folder / "tokens"
        described = train.describing(labels)
        encoder, tokens = parts.encoder.begin(
            train.texts, described, seed=parts.seed, device=self.device, folder=tokens_at
        )
        label_tokens = tokens.span(len(train), tokens.n_rows)
        alone = (shoal.EncoderRanker(),)
        shoal.Predictor(encoder, labels, label_tokens, alone).expect_read(train.texts)

        def validate() -> dict[str, float]:
            # a new predictor each time, since it keeps the label embeddings that it made
            now = shoal.Predictor(encoder, labels, label_tokens, alone)
            assert held_out is not None
            return shoal.validate(partial(now.rank, held_out.texts), held_out)

        check = None if held_out is None else validate
        job = build(parts, encoder, tokens, train.labels, check, self.evaluate_every, on)
        progress = shoal.fit(
            job,
            self.limits,
            run,
            resume=self.resume,
            step=None if parts.step is None else parts.step(job),
            callbacks=callbacks("encoder"),
        )
        encoder = encoder.load_trained(run.load_model())
        # known labels say how rare each is, which PSP needs of an encoder that ranks alone, too
        truth = self.data.train.labels
        predictor = shoal.Predictor(encoder, labels, label_tokens, alone, truth=truth)
        if progress.stopped == "interrupt" or parts.classifiers is None:
            return predictor, None, progress
        weights, stage = parts.classifiers.fit(
            encoder.embed(tokens.span(0, len(train))),
            predictor.label_embeddings,
            train.labels,
            parts.batch_sampler(),
            held_out=held_out and (predictor.encode(held_out.texts), held_out),
            evaluate_every=self.evaluate_every,
            warmup=parts.encoder.warmup,
            seed=parts.seed,
            device=on,
            run=run.stage("classifiers", {"encoder_steps": progress.step}, self.resume),
            resume=self.resume,
            callbacks=callbacks("classifiers"),
        )
        progress.seconds += stage.seconds
        run.write("classifiers", {"classifier_seconds": round(stage.seconds, 3)})
        if stage.stopped == "interrupt":
            progress.stopped = "interrupt"
        return predictor, weights, progress


# -- the command -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The encoder of texts and labels."""

    encoder: str = "bag"
    """bag, a Hugging Face encoder by its folder or hub name, or module:name of your own."""
    dim: Int = None
    """Width of a bag's vectors; 256 by default. A transformer has a width of its own."""
    max_length: Int = None
    """Tokens of a text that a transformer reads; 128 by default."""
    lora: Int = None
    """Train low-rank adapters of this rank in place of a transformer's weights."""
    from_: From = None
    """Start with the weights and vocabulary of this trained run or export."""


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Batches and loss."""

    batches: str = "ngame"
    """ngame (clusters of examples hard for one another), random, or module:name of your own."""
    cluster_size: Int = None
    """Examples per cluster of ngame batches, a divisor of the batch size; 64 by default."""
    positives: int = 2
    """Labels drawn per example for a batch."""
    loss: Text = None
    """Loss of a batch as module:name; by default the decoupled softmax."""


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """How labels are ranked in the end."""

    valid: float = 0.1
    """Share of the training examples held out, for validation and to weigh rankers; in turn, where
    that is less than a thousand. 0 for none."""
    rank: str = "ensemble"
    """ensemble (all rankers), encoder or classifiers alone, or module:name of your own rankers."""
    rare: float = 0.0
    """Let the ensemble weigh rare labels more: power of the inverse propensity; 1 is for PSP@k."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings(Training):
    """Train on texts with labels: predict, for a text, the labels that fit it."""

    table: Table = Table()
    encoder: EncoderSettings = EncoderSettings()
    batches: BatchSettings = BatchSettings()
    ranking: RankSettings = RankSettings()

    def fit_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :meth:`LabelModel.fit`."""
        return super().fit_arguments() | {"valid": self.ranking.valid}


@task("labels", LabelSettings, model="shoal.models.labels:LabelModel")
def model_of(settings: LabelSettings) -> shoal.LabelModel:
    """The model that the command's settings describe.

    Raises:
        InputError: if an option does not belong to the encoder or the batches that are asked for.
    """
    encoder, ranking = encoder_of(settings), settings.ranking
    given: dict[str, Any] = {"encoder": encoder, "positives": settings.batches.positives}
    given["batches"] = batches_of(settings, encoder.batch_size)
    if settings.batches.loss is not None:
        given["loss"] = named(settings.batches.loss, "loss")
    if settings.step != "schedule":
        spectral = settings.step == "spectral"
        given["step"] = shoal.spectral_step if spectral else named(settings.step, "step")
    alone = {"encoder": [shoal.EncoderRanker()], "classifiers": [shoal.ClassifierRanker()]}
    if ranking.rank in alone:
        _belongs(ranking.rare == 0, "rare", "--rank ensemble", ranking.rank)
        given |= {"rankers": alone[ranking.rank], "combiner": None}
        given |= {"classifiers": None} if ranking.rank == "encoder" else {}
    else:
        given["combiner"] = shoal.NetworkCombiner(rare=ranking.rare)
        own = ranking.rank != "ensemble"
        given |= {"rankers": named(ranking.rank, "rank")} if own else {}
    return shoal.LabelModel(seed=settings.seed, device=settings.device, **given)


def encoder_of(settings: LabelSettings) -> Any:
    """The encoder's specification, or the trained encoder to start with."""
    asked = settings.encoder
    rate: dict[str, Any] = {} if settings.lr is None else {"lr": settings.lr}
    if asked.from_ is not None:
        own = ("dim", "max_length", "lora")
        for name in own:
            _belongs(getattr(asked, name) is None, name, "an encoder begun anew", "--from")
        encoder = shoal.open(asked.from_, device=settings.device).encoder
        return replace(encoder, spec=replace(encoder.spec, **rate))
    if asked.encoder == "bag":
        for name in ("max_length", "lora"):
            _belongs(getattr(asked, name) is None, name, "a transformer", "--encoder bag")
        rate |= {} if asked.dim is None else {"dim": asked.dim}
        return shoal.BagEncoder(**rate)
    _belongs(asked.dim is None, "dim", "--encoder bag", asked.encoder)
    if ":" in asked.encoder:
        return named(asked.encoder, "encoder")(**rate)
    given: dict[str, Any] = {"max_length": asked.max_length, "lora": asked.lora}
    rate |= {name: value for name, value in given.items() if value is not None}
    return shoal.TransformerEncoder(asked.encoder, **rate)


def batches_of(settings: LabelSettings, usual: int) -> Any:
    """The batches that are asked for; `usual` is the batch size of the encoder."""
    asked, size = settings.batches, settings.batch_size
    size = usual if size is None else size
    if asked.batches == "ngame":
        # a smaller batch than one cluster is one cluster
        cluster = min(64, max(size, 1)) if asked.cluster_size is None else asked.cluster_size
        return shoal.Clustered(size, cluster)
    _belongs(asked.cluster_size is None, "cluster_size", "--batches ngame", asked.batches)
    return shoal.Random(size) if asked.batches == "random" else named(asked.batches, "batches")


def _belongs(ok: bool, option: str, owner: str, got: str) -> None:
    if not ok:
        flag = option.replace("_", "-")
        raise shoal.InputError(f"--{flag}: expected an option of {owner}, got {got}; leave it out")
