"""Training classifiers after the encoder.

:class:`Classifiers` is what NGAME calls its fourth module (Dahiya et al., WSDM 2023): the encoder
is frozen, examples and labels are embedded once, and classifiers that begin as label embeddings
learn to rank. Which labels a batch scores is its block sampler's business alone: all of them
(:class:`AllLabels`), or a shortlist. The loader gathers no rows (:class:`NoGather`), since the loss
reads its own, chunk by chunk; but it holds the table, so that learning rate, checkpoint and resume
are those of any trainable table. A loss of cosines, such as NGAME's triplets, gets the rows of a
shortlist, which the loader gathers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from shoal.core import ranks
from shoal.core.block import Batch, Block
from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.objectives import Objective
from shoal.core.search import top_k
from shoal.core.sparse import unit
from shoal.data.texts import Examples
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdam, RowOptimizer
from shoal.rank.evaluate import validate
from shoal.rank.loss_skip import one_vs_all_loss
from shoal.rank.one_vs_all import Kind, OneVsAll
from shoal.sample.batches import refreshed
from shoal.sample.expand import ShortlistSampler
from shoal.training.callbacks import Callback
from shoal.training.job import Budget, Job, Progress
from shoal.training.loader import BatchSampler, BlockSampler, Loader
from shoal.training.loop import fit
from shoal.training.run import Run

Loss = Callable[[Tensor, Block], Tensor]


@dataclass(frozen=True)
class Classifiers:
    """How to train classifiers after the encoder.

    The defaults are by WordNet's validation split, where 3 and 10 epochs, a rate of 0.03 and other
    losses were tried (docs/LOG.md).

    Attributes:
        epochs: passes over the examples.
        lr: peak learning rate of the rows.
        loss: ``decoupled``, ``softmax`` or ``binary`` of :mod:`shoal.rank.loss_skip`; or a function
            of the cosines of examples and a shortlist's classifiers, which then rank by cosine.
        dropout: share of each embedding's entries that are zeroed while training, in [0, 1); 0.5 as
            in NGAME's published configuration of this stage.
        temperature: of the loss, where it is named.
        label_texts: take the labels' own texts as further examples (Jain et al., "Renée", MLSys
            2023).
        shortlist: makes the block sampler from the label matrix: by default all positives of a
            batch; :class:`AllLabels` scores every label.
        optimizer: makes the row optimizer from ``lr=``; RowAdagrad keeps one number per label.
    """

    epochs: int = 5
    lr: float = 0.01
    loss: Kind | Loss = "decoupled"
    dropout: float = 0.5
    temperature: float = 0.1
    label_texts: bool = True
    shortlist: Callable[[Csr], BlockSampler] = partial(ShortlistSampler, positives=None)
    optimizer: Callable[..., RowOptimizer] = RowAdam

    def fit(
        self,
        x: Float[Tensor, "n d"],
        labels: Float[Tensor, "l d"],
        truth: Csr,
        batches: Callable[[int, int], Any],
        *,
        held_out: tuple[Float[Tensor, "m d"], Examples] | None = None,
        evaluate_every: int = 1,
        warmup: int = 50,
        seed: int = 0,
        device: str | None = None,
        run: Run | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> tuple[Float[Tensor, "l d"], Progress]:
        """Train classifiers that begin as label embeddings.

        Processes that train together hold the rows and optimizer state of some labels each, where
        the loss has a name; all of them return all classifiers.

        Args:
            x: unit vectors of the training examples.
            labels: unit vectors of the labels.
            truth: ``[n, l]``, labels of the examples.
            batches: ``(n, seed)`` → a batch sampler, refreshed with the embeddings each epoch.
            held_out: embeddings of held-out examples, and these: what decides which epoch's
                classifiers are kept.
            evaluate_every: epochs between two evaluations.
            warmup: steps until the full learning rate.
            seed: of dropout, shortlists and batches.
            device: where products are computed; None stays in host memory.
            run: a folder of its own for checkpoints; None keeps none, and the last classifiers.
            resume: continue the run; where processes hold some labels each it begins anew.
            callbacks: as for :func:`shoal.fit`.

        Returns:
            the classifiers, and how far training came.
        """
        if self.label_texts:
            x, truth = torch.cat([x, labels.to(x)]), with_label_examples(truth)
        named = isinstance(self.loss, str)
        kind: Any = self.loss if named else "decoupled"
        # a loss of cosines gathers the rows of its shortlist, which must all be here
        make = OneVsAll.shard if named else OneVsAll.of
        settings: Any = {"kind": kind, "temperature": self.temperature}
        table = make(labels, self.optimizer(lr=self.lr), **settings)
        if table.sharded and run is not None:
            # checkpoints of these labels alone, in a folder that no resumed run takes for all
            run, resume = run.stage("part", {"processes": ranks.world_size()}, False), False
        seeds = batches(len(x), seed)

        def evaluate() -> dict[str, float]:
            assert held_out is not None
            x, examples = held_out
            if named:
                return validate(lambda k, drop: table.rank(x, k, drop.to(x.device)), examples)
            keys = unit(table.weights).to(x.device)
            return validate(lambda k, drop: top_k(x, keys, k, drop.to(x.device)), examples)

        job = classifier_job(
            table,
            x,
            seeds,
            self.shortlist(truth),
            loss=None if named else self.loss,  # pyright: ignore[reportArgumentType]
            dropout=self.dropout,
            warmup=warmup,
            seed=seed,
            refresh=lambda epoch: refreshed(seeds, lambda: x, epoch, batches, warm=0),
            evaluate=None if held_out is None else evaluate,
            evaluate_every=evaluate_every,
            device=device,
        )
        progress = fit(job, Budget(epochs=self.epochs), run, resume=resume, callbacks=callbacks)
        best = table.weights if run is None else run.load_model()["rows"]
        return table.joined(best) if named else unit(best), progress


@dataclass(frozen=True, eq=False)
class AllLabels:
    """A block sampler: seeds against all labels, with every known positive marked.

    Attributes:
        labels: points x labels, each pair once.

    Example:
        >>> labels = Csr.from_lists([[0, 3], [3], []], n_cols=4)
        >>> (block,) = AllLabels(labels)(torch.tensor([1, 2]), torch.Generator())
        >>> block.src.tolist(), block.mask().int().tolist()
        ([0, 1, 2, 3], [[0, 0, 0, 1], [0, 0, 0, 0]])
    """

    labels: Csr

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return one block."""
        edges, indptr = self.labels.edges(seeds)
        every = torch.arange(self.labels.n_cols, device=seeds.device)
        return [Block(seeds, every, indptr, self.labels.indices[edges].long(), edges)]


@dataclass(frozen=True, eq=False)
class NoGather:
    """A block sampler behind an empty input hop, so that a loader gathers no rows for it.

    Attributes:
        inner: whose blocks follow the empty one.
    """

    inner: BlockSampler

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return an empty block, then those of the inner sampler."""
        none, zero = seeds[:0], seeds.new_zeros(1)
        return [Block(none, none, zero, none, none), *self.inner(seeds, generator)]


def with_label_examples(labels: Csr) -> Csr:
    """The labels of points, then of the labels' own texts, each of which has that label alone.

    Label-text augmentation (Jain et al., "Renée", MLSys 2023): row ``n + l`` is label l seen as a
    point; put the label embeddings under those of the points.

    Example:
        >>> with_label_examples(Csr.from_lists([[1], [0, 1]], n_cols=2)).to_dense().tolist()
        [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    each = torch.arange(labels.n_cols, device=labels.device)
    values = None
    if labels.values is not None:
        values = torch.ones(labels.n_cols, dtype=labels.values.dtype, device=labels.device)
    indptr = torch.arange(labels.n_cols + 1, device=labels.device)
    return labels.stack(Csr(indptr, each.to(labels.indices.dtype), labels.n_cols, values))


def classifier_job(
    classifiers: OneVsAll,
    x: Float[Tensor, "n d"],
    seeds: BatchSampler,
    blocks: BlockSampler,
    *,
    loss: Callable[[Tensor, Block], Tensor] | None = None,
    dropout: float = 0.5,
    warmup: int = 50,
    seed: int = 0,
    refresh: Callable[[int], dict[str, Any]] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 1,
    prefetch: int = 2,
    device: torch.device | str | None = None,
) -> Job:
    """Make the job that trains a head on fixed embeddings; :func:`shoal.training.loop.fit` runs it.

    Args:
        classifiers: what is trained, in place.
        x: embeddings of the points, in the order of the label matrix that `blocks` reads.
        seeds: chooses points.
        blocks: chooses the labels that they score: :class:`AllLabels` or a shortlist.
        loss: of the cosines of points and classifiers in a shortlist, such as
            :func:`~shoal.core.losses.lowest_triplets`; None trains by the head's own loss.
        dropout: share of each embedding's entries that are zeroed while training, in [0, 1); 0.5
            as in NGAME's published configuration of the classifiers' stage.
        warmup: steps until the full learning rate.
        seed: of dropout and the shortlists.
        refresh: see :class:`~shoal.training.job.Job`, as `evaluate` and `evaluate_every`.
        evaluate: the validation metrics.
        evaluate_every: epochs between two of them.
        prefetch: batches of seeds and labels made ahead of the step.
        device: where products are computed; None stays in host memory.

    Raises:
        InputError: if a setting is out of range or widths differ.
    """
    expect(0 <= dropout < 1, "dropout", "a share in [0, 1)", dropout, "try 0.5")
    width = classifiers.table.shape[1]
    got = tuple(x.shape)
    expect(x.dim() == 2 and x.shape[1] == width, "x", f"rows of {width}", got, "align it")
    points = x if x.is_cuda else unified(x)
    hops = NoGather(blocks) if loss is None else blocks
    criterion = partial(_criterion, classifiers) if loss is None else partial(_by_cosine, loss)
    loader = Loader(seeds, hops, classifiers.table, seed=seed, prefetch=prefetch, device=device)
    state: dict[str, Any] = {"batch_sampler": seeds} if hasattr(seeds, "state_dict") else {}
    return Job(
        Objective(_Rows(), partial(criterion, points, dropout)),
        loader,
        warmup=warmup,
        seed=seed,
        refresh=refresh,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        state=state,
    )


class _Rows(nn.Module):
    """Hands on the rows that were gathered; nothing dense is trained."""

    def forward(self, blocks: Sequence[Block], rows: Tensor) -> Tensor:
        return rows


def _criterion(
    classifiers: OneVsAll, points: Tensor, dropout: float, rows: Tensor, batch: Batch
) -> Tensor:
    return one_vs_all_loss(classifiers, _seen(points, dropout, batch), batch.blocks[-1], rows)


def _by_cosine(
    loss: Callable[[Tensor, Block], Tensor],
    points: Tensor,
    dropout: float,
    rows: Tensor,
    batch: Batch,
) -> Tensor:
    scores = unit(_seen(points, dropout, batch)) @ unit(rows).T
    return loss(scores, batch.blocks[-1])


def _seen(points: Tensor, dropout: float, batch: Batch) -> Tensor:
    x = points[batch.seeds]
    if not dropout:
        return x
    if ranks.world_size() == 1:
        return functional.dropout(x, dropout)
    # the loss is every process's, of the same points: they are masked alike
    (seed,) = ranks.agreed([float(torch.randint(2**31, ()))])
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        return functional.dropout(x, dropout)
