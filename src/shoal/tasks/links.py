"""Predict links: a page from a graph to a trained encoder, of shoal's public names alone.

Seeds are the nodes that have a training link. A batch is a shortlist over the training links and
sampled neighborhoods of all its nodes, from which its own links are taken. An encoder makes unit
vectors of nodes; their inner products say who is linked with whom. Validation and test rank links
that are neither learned nor read against every node (:mod:`shoal.core.graph_metrics`).

    data = shoal.load_links("graph.npz")
    rows = shoal.feature_rows(data.features)
    encoder = shoal.LinkEncoder(shoal.Sage(rows.shape[1], 256, 256, layers=2, dropout=0.0))
    shoal.fit(build(data, encoder, rows), shoal.Budget(epochs=10))
    metrics(encoder.embed(data.graph, rows), data, "test")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import shoal

if TYPE_CHECKING:
    from torch import Tensor

# Links that are ranked, drawn at random where there are more: each is compared with every node.
RANKED = {"valid": 2_000, "test": 10_000}


def build(
    data: shoal.LinkData,
    encoder: shoal.LinkEncoder,
    rows: Any,
    *,
    table: Any = None,
    batch_size: int = 512,
    fanouts: Sequence[int | None] = (15, 10),
    lr: float = 0.01,
    negatives: Callable[..., Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
    batches: Callable[..., Any] | None = None,
    blocks: Callable[..., Any] | None = None,
    optimizer: Callable[..., Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    valid_every: int = 5,
) -> shoal.Job:
    """Put the parts of a link job together.

    Args:
        data: the links.
        encoder: of nodes; one layer per hop.
        rows: of all nodes, a tensor or a table in a file; or ``shoal.WordRows``, which are trained.
        table: what batches read them from; ``shoal.unified(rows)`` by default.
        batch_size: seeds per batch; all nodes with links, if they are fewer.
        fanouts: neighbors drawn per node, one number per layer, the seeds' own first.
        lr: peak learning rate; the default by validation links of coauthor-cs (docs/LOG.md).
        negatives: ``(links) -> block sampler`` of the pairs that are scored. By default a shortlist
            in which every other node of the batch is a negative: 20.7 MRR against 9.4 of five
            uniform ones per link, ``shoal.PairSampler`` (docs/LOG.md).
        loss: ``(outputs, batch) -> scalar``; by default softmax over the shortlist, or the loss
            that the `negatives` name as their own.
        batches: ``(n, batch_size, seed) -> batch sampler`` over the n nodes with links; random by
            default.
        blocks: ``(graph, fanouts) -> block sampler``; the neighbor sampler by default.
        optimizer: ``(parameters, lr=lr) -> optimizer``; Adam by default.
        seed: of batches, draws and dropout.
        device: where batches are handed over; None is the host.
        precision: of the forward pass, float32 or bfloat16.
        valid_every: epochs between two validations.
    """
    import torch

    linked = (data.train.degrees() > 0).nonzero().squeeze(1)
    seeds = (batches or shoal.RandomBatchSampler)(len(linked), min(batch_size, len(linked)), seed)
    pairs = (negatives or partial(shoal.ShortlistSampler, dst_in_src=True))(data.train)
    hops = shoal.LinkSampler(pairs, (blocks or shoal.NeighborSampler)(data.graph, fanouts))
    loader = shoal.Loader(
        shoal.Subset(linked, seeds),
        *shoal.reading(rows, hops, table),
        seed=seed,
        device=device,
    )
    criterion: Any = loss or getattr(pairs, "loss", shoal.link_softmax)()

    def evaluate() -> dict[str, float]:
        embedded = encoder.embed(data.graph, rows)
        return {f"valid_{name}": x for name, x in metrics(embedded, data, "valid").items()}

    return shoal.Job(
        shoal.Objective(encoder, criterion),
        loader,
        (optimizer or torch.optim.Adam)(encoder.parameters(), lr=lr),
        gradients=shoal.Gradients(precision=precision),
        seed=seed,
        evaluate=evaluate,
        evaluate_every=valid_every,
    )


def metrics(
    scores: Tensor | Callable[[Tensor], Tensor], data: shoal.LinkData, part: str
) -> dict[str, float]:
    """MRR, hits@k and AUC of the links of a part, in per cent.

    Args:
        scores: unit vectors of all nodes, made along ``data.graph``; or a function from sources to
            scores of all nodes, such as ``shoal.LinkScorer``.
        data: the links.
        part: valid or test; of more than :data:`RANKED` links a sample, always the same.
    """
    pairs = ranked(data, part, RANKED[part])
    return shoal.link_metrics(*shoal.link_ranks(scores, pairs, data.known))


def ranked(data: shoal.LinkData, part: str, most: int) -> Tensor:
    """Links of a part, sources above targets; of more than `most` a sample, always the same."""
    import torch

    pairs = getattr(data, part)
    if pairs.shape[1] <= most:
        return pairs
    order = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(0))
    return pairs[:, order[:most]]


@dataclass(frozen=True, kw_only=True)
class LinkSettings(shoal.GraphSettings):
    """Train an encoder of nodes that predicts the links of a graph."""

    heuristics: bool = True
    """Score pairs by what two nodes have in common, too, and print such scores beside."""

    def arguments(self) -> dict[str, Any]:
        """As of all graphs, and this one.

        Raises:
            InputError: if an object of the user's is not found.
        """
        return super().arguments() | {"heuristics": self.heuristics}


@shoal.task("links", LinkSettings, model="shoal.models.links:LinkModel")
def model_of(asked: LinkSettings) -> shoal.LinkModel:
    """The model that settings of the command ask for.

    Raises:
        InputError: if an object of the user's is not found.
    """
    return shoal.LinkModel(**asked.arguments())
