"""Training a head on fixed embeddings with the one loop: :func:`head_job` makes the job for it.

What NGAME calls its fourth module (Dahiya et al., WSDM 2023): the encoder is frozen, points and
labels are embedded once, and classifiers that begin as label embeddings learn to rank. Which labels
a batch scores is its block sampler's business alone: all of them (:class:`AllLabels`), or the
shortlist of a sampler of :mod:`shoal.sample.expand`. The loader gathers no rows (:class:`Apart`),
since the head reads its own, chunk by chunk; but it holds the table, so that learning rate,
checkpoint and resume are those of any table that learns. A loss that is not the head's own, such as
NGAME's triplets, gets the cosines of a shortlist, whose rows the loader gathers.
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

from shoal.core.block import Batch, Block
from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.objectives import Objective
from shoal.core.sparse import unit
from shoal.fetch.unified import unified
from shoal.rank.head import Head
from shoal.rank.loss_skip import head_loss
from shoal.training.job import Job
from shoal.training.loader import BatchSampler, BlockSampler, Loader


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
class Apart:
    """A block sampler behind an empty input hop, so that a loader gathers no rows for it.

    Attributes:
        inner: whose blocks follow the empty one.
    """

    inner: BlockSampler

    def __call__(self, seeds: Int[Tensor, " b"], generator: Generator) -> list[Block]:
        """Return an empty block, then those of the inner sampler."""
        none, zero = seeds[:0], seeds.new_zeros(1)
        return [Block(none, none, zero, none, none), *self.inner(seeds, generator)]


def with_label_points(labels: Csr) -> Csr:
    """The labels of points, then of the labels' own texts, each of which has that label alone.

    Label-text augmentation (Jain et al., "Renée", MLSys 2023): row ``n + l`` is label l seen as a
    point; put the label embeddings under those of the points.

    Example:
        >>> with_label_points(Csr.from_lists([[1], [0, 1]], n_cols=2)).to_dense().tolist()
        [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    each = torch.arange(labels.n_cols, device=labels.device)
    values = None
    if labels.values is not None:
        values = torch.ones(labels.n_cols, dtype=labels.values.dtype, device=labels.device)
    indptr = torch.arange(labels.n_cols + 1, device=labels.device)
    return labels.stack(Csr(indptr, each.to(labels.indices.dtype), labels.n_cols, values))


def head_job(
    head: Head,
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
        head: what is trained, in place.
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
    width = head.table.shape[1]
    got = tuple(x.shape)
    expect(x.dim() == 2 and x.shape[1] == width, "x", f"rows of {width}", got, "align it")
    points = x if x.is_cuda else unified(x)
    hops = Apart(blocks) if loss is None else blocks
    criterion = partial(_criterion, head) if loss is None else partial(_by_cosine, loss)
    loader = Loader(seeds, hops, head.table, seed=seed, prefetch=prefetch, device=device)
    also: dict[str, Any] = {"batch_sampler": seeds} if hasattr(seeds, "state_dict") else {}
    return Job(
        Objective(_Rows(), partial(criterion, points, dropout)),
        loader,
        warmup=warmup,
        seed=seed,
        refresh=refresh,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        state=also,
    )


class _Rows(nn.Module):
    """Hands on the rows that were gathered; nothing dense is trained."""

    def forward(self, blocks: Sequence[Block], rows: Tensor) -> Tensor:
        return rows


def _criterion(head: Head, points: Tensor, dropout: float, rows: Tensor, batch: Batch) -> Tensor:
    return head_loss(head, _seen(points, dropout, batch), batch.blocks[-1], rows)


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
    return functional.dropout(x, dropout) if dropout else x
