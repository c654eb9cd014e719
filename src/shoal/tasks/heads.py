"""One-vs-all classifiers as a part of the label job: after the encoder, or together with it.

``--head frozen`` is NGAME's last stage (Dahiya et al., WSDM 2023): the best encoder embeds points
and labels once, and classifiers that begin as label embeddings learn to rank. It is a run of its
own, in the folder ``head`` of the run, so that it is stopped and resumed as any run is.

``--head joint`` trains both in every step, which the authors left undone: the encoder's in-batch
loss plus the head's, whose gradient flows on into the encoder (as in Renée, Jain et al., MLSys
2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from shoal.cli.settings import Train
from shoal.core.block import Batch
from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.losses import lowest_triplets
from shoal.core.search import top_k
from shoal.core.sparse import unit
from shoal.data.texts import Examples
from shoal.fetch.update import RowAdam
from shoal.rank.head import Head
from shoal.rank.head_job import AllLabels, head_job, with_label_points
from shoal.rank.loss_skip import head_loss
from shoal.rank.predictor import Labeler
from shoal.sample.expand import BlockSampler, ShortlistSampler
from shoal.sample.mined import MinedShortlist
from shoal.tasks.batches import HEAD_SHARES, batch_sampler_of, renew
from shoal.tasks.encoders import defaults_of, labeler_of
from shoal.tasks.prepared import Prepared
from shoal.tasks.validation import validate
from shoal.training.job import Budget, Job, Progress, Stateful
from shoal.training.loop import fit
from shoal.training.run import Run

# Hard labels a point that a search over the head brings into its batch.
_MINED = 10


@dataclass(frozen=True, eq=False)
class HeadPart:
    """A head, and the labels that it scores in a batch.

    Attributes:
        head: the classifiers.
        blocks: chooses the labels.
        truth: those of the training points.
    """

    head: Head
    blocks: BlockSampler
    truth: Csr

    @staticmethod
    def of(embeddings: Float[Tensor, "l d"], truth: Csr, settings: Train) -> HeadPart:
        """Classifiers that begin as label embeddings, and the labels that were asked for."""
        optimizer = RowAdam(lr=settings.head_lr)
        kind = settings.head_loss
        kind = "decoupled" if kind == "triplet" else kind  # has a loss of its own, see frozen_job
        head = Head.of(embeddings, optimizer, kind, temperature=settings.temperature)
        blocks: dict[str, Callable[[Csr], BlockSampler]] = {
            "batch": partial(ShortlistSampler, positives=None),
            "mined": MinedShortlist,
            "all": AllLabels,
        }
        return HeadPart(head, blocks[settings.head_negatives](truth), truth)

    @property
    def also(self) -> dict[str, Stateful]:
        """What a checkpoint holds of it besides the classifiers."""
        return {"mined": self.blocks} if isinstance(self.blocks, MinedShortlist) else {}

    @property
    def mine(self) -> Callable[[Tensor], None] | None:
        """Finds hard labels by embeddings of all points; None where nothing is mined."""
        return self._mine if isinstance(self.blocks, MinedShortlist) else None

    def _mine(self, rows: Float[Tensor, "n d"]) -> None:
        assert isinstance(self.blocks, MinedShortlist)
        k = min(_MINED, self.truth.n_cols)
        self.blocks.refresh(top_k(rows, self.head.weights.to(rows.device), k, self.truth)[1])


# -- after the encoder ---------------------------------------------------------------------------


def train_head(run: Run, prepared: Prepared, settings: Train, encoder_steps: int) -> Progress:
    """Train classifiers on the embeddings of a run's best encoder, in the run's folder ``head``.

    Args:
        run: whose encoder is trained.
        prepared: the data that it was trained on.
        settings: of the whole job; ``resume`` continues where this stage was stopped.
        encoder_steps: how long the encoder was trained. A head on an earlier encoder is of no use
            any more, and begins anew.
    """
    labeler = labeler_of(run, settings.device)
    x = labeler.encoder.embed(prepared.bags)
    job = frozen_job(labeler, x, prepared, settings)
    folder, about = run.folder / "head", {"encoder_steps": encoder_steps}
    last = Run(folder, about).last
    resume = settings.resume and last.exists() and Run.open(folder).settings == about
    if not resume:
        last.unlink(missing_ok=True)
    stage = Run.open(folder) if resume else Run.create(folder, about)
    return fit(job, Budget(epochs=settings.head_epochs), stage, resume=resume)


def frozen_job(
    labeler: Labeler, x: Float[Tensor, "n d"], prepared: Prepared, settings: Train
) -> Job:
    """The job of :func:`train_head`: batches of clusters of the points as they are embedded.

    Args:
        labeler: the encoder; its label embeddings are where classifiers begin.
        x: embeddings of the training points; those of the labels' texts follow if they are asked.
        prepared: the data.
        settings: of the whole job.
    """
    truth = prepared.train.labels
    if settings.head_texts:
        x, truth = torch.cat([x, labeler.label_embeddings.to(x)]), with_label_points(truth)
    part = HeadPart.of(labeler.label_embeddings, truth, settings)
    budget = Budget(epochs=settings.head_epochs)
    seeds = batch_sampler_of(len(x), settings, budget, HEAD_SHARES)
    valid, evaluate, by_cosine = prepared.valid, None, settings.head_loss == "triplet"
    if valid is not None:
        held_out = labeler.encode(valid.texts)
        evaluate = partial(_validate, part.head, by_cosine, held_out, valid)
    job = head_job(
        part.head,
        x,
        seeds,
        part.blocks,
        loss=lowest_triplets if by_cosine else None,
        dropout=settings.head_dropout,
        warmup=defaults_of(settings).warmup,
        seed=settings.seed,
        refresh=partial(renew, seeds, lambda: x, settings, warm=0, mine=part.mine),
        evaluate=evaluate,
        evaluate_every=settings.valid_every,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )
    return replace(job, state={**job.state, **part.also})


def _validate(head: Head, by_cosine: bool, x: Tensor, valid: Examples) -> dict[str, float]:
    keys = (unit(head.weights) if by_cosine else head.weights).to(x.device)
    return validate(lambda k, drop: top_k(x, keys, k, drop.to(x.device)), valid)


# -- together with it ----------------------------------------------------------------------------


def with_head(job: Job, part: HeadPart, settings: Train) -> Job:
    """Train a head together with what an encoder's job trains.

    Args:
        job: its criterion reads the last block but one, the shortlist; the last is the head's.
        part: joins as the table ``head``.
        settings: of the whole job.
    """
    criterion = partial(_both, job.objective.criterion, part.head, settings.head_dropout)
    return replace(
        job,
        objective=replace(job.objective, criterion=criterion),
        state={**job.state, **part.also},
        tables={"head": part.head.table},
    )


def _both(
    criterion: Callable[[Tensor, Batch], Tensor],
    head: Head,
    dropout: float,
    outputs: Float[Tensor, "n d"],
    batch: Batch,
) -> Float[Tensor, ""]:
    points = functional.dropout(outputs[: len(batch.seeds)], dropout)
    alone = criterion(outputs, replace(batch, blocks=batch.blocks[:-1]))
    return alone + head_loss(head, points, batch.blocks[-1])


# -- what came of it -----------------------------------------------------------------------------


def classifiers_of(run: Run, device: str = "cpu") -> Float[Tensor, "l d"] | None:
    """The best classifiers of a run; None if it has no head. Those that rank by cosine are unit.

    Raises:
        InputError: if it should have one and its training has not come that far.
    """
    folder = run.folder / "head"
    if run.settings.get("head", "none") == "none":
        return None
    if folder.is_dir():
        rows = Run.open(folder).load_model()["rows"]
    else:  # trained with the encoder, or exported
        tables = run.load_model().get("tables", {})
        expect("head" in tables, str(run.folder), "a trained head", "none", "resume the run")
        rows = tables["head"]
    return (unit(rows) if run.settings.get("head_loss") == "triplet" else rows).to(device)
