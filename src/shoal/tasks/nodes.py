"""Classify nodes: a page from a graph to a trained network, of shoal's public names alone.

Seeds are the training nodes. Each reads its sampled neighborhood, several hops deep; a network of
one layer per hop makes class logits of it. Validation and prediction compute nodes from all of
their neighbors, layer by layer.

    data = shoal.load("graph.npz")
    rows = shoal.feature_rows(data.features)
    network = shoal.Sage(rows.shape[1], 256, len(data.class_names), layers=2)
    job = build(data, network, rows)
    shoal.fit(job, shoal.Budget(epochs=10))
    metrics(network, data, rows, data.test)

:class:`shoal.ResidualNetwork` learns more in deeper networks, :class:`shoal.WordRows` reads wide
sparse features as they are; :class:`shoal.NodeModel` uses both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import shoal

if TYPE_CHECKING:
    from torch import Tensor


def build(
    data: shoal.NodeData,
    network: shoal.Layered,
    rows: Any,
    *,
    table: Any = None,
    batch_size: int = 512,
    fanouts: Sequence[int | None] = (15, 10),
    lr: float = 0.03,
    loss: Callable[..., Tensor] | None = None,
    batches: Callable[..., Any] | None = None,
    blocks: Callable[..., Any] | None = None,
    optimizer: Callable[..., Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    valid_every: int = 5,
) -> shoal.Job:
    """Put the parts of a node job together.

    Args:
        data: the graph.
        network: one layer per hop, as wide at its end as there are classes.
        rows: of all nodes, which validation reads: a tensor, a table in a file, or
            ``shoal.WordRows``, which are trained.
        table: what batches read them from; ``shoal.unified(rows)`` by default.
        batch_size: seeds per batch; all training nodes, if they are fewer.
        fanouts: neighbors drawn per node, one number per layer, the seeds' own first; None takes
            all. Without any the network reads the seeds alone.
        lr: peak learning rate; the default by validation on the WordNet graph (docs/LOG.md): rows
            of length one want it large.
        loss: ``(outputs, batch) -> scalar``; cross-entropy by default, binary for nodes of several
            classes.
        batches: ``(n, batch_size, seed) -> batch sampler`` over the n training nodes; random by
            default.
        blocks: ``(graph, fanouts) -> block sampler``; the neighbor sampler by default.
        optimizer: ``(parameters, lr=lr) -> optimizer``; Adam by default.
        seed: of batches, draws and dropout.
        device: where batches are handed over; None is the host.
        precision: of the forward pass, float32 or bfloat16.
        valid_every: epochs between two validations.
    """
    import torch

    size = min(batch_size, len(data.train))
    seeds = (batches or shoal.RandomBatchSampler)(len(data.train), size, seed)
    hops = (blocks or shoal.NeighborSampler)(data.graph, fanouts) if len(fanouts) else None
    loader = shoal.Loader(
        shoal.Subset(data.train, seeds),
        *shoal.reading(rows, hops, table),
        data.target,
        seed=seed,
        device=device,
    )
    one, several = shoal.node_cross_entropy, shoal.node_binary_cross_entropy
    loss = loss or (several if data.multi_label else one)
    return shoal.Job(
        shoal.Objective(network, loss),
        loader,
        (optimizer or torch.optim.Adam)(network.parameters(), lr=lr),
        gradients=shoal.Gradients(precision=precision),
        seed=seed,
        evaluate=lambda: {f"valid_{k}": x for k, x in metrics(network, data, rows).items()},
        evaluate_every=valid_every,
    )


def metrics(
    network: shoal.Layered, data: shoal.NodeData, rows: Any, nodes: Tensor | None = None
) -> dict[str, float]:
    """Accuracy and the like (:func:`shoal.core.graph_metrics.node_metrics`), in per cent.

    Args:
        network: in any mode.
        data: the graph.
        rows: of all nodes.
        nodes: which are classified; those for validation by default.
    """
    nodes = data.valid if nodes is None else nodes
    logits = shoal.full_graph(network, data.graph, rows, nodes)
    return shoal.node_metrics(logits, data.target[nodes].to(logits.device))


@dataclass(frozen=True, kw_only=True)
class NodeSettings(shoal.GraphSettings):
    """Train a network that classifies the nodes of a graph."""

    read_classes: bool = True
    """Read the known classes of neighbors, never a node's own."""
    both_ways: bool = False
    """Read edges in both directions, not only as they are stored."""
    baselines: bool = True
    """Also train simple models, print them beside the network, and pool them with it."""

    def arguments(self) -> dict[str, Any]:
        """As of all graphs, and these.

        Raises:
            InputError: if an object of the user's is not found.
        """
        names = ("read_classes", "both_ways", "baselines")
        return super().arguments() | {name: getattr(self, name) for name in names}


@shoal.task("nodes", NodeSettings, model="shoal.models.nodes:NodeModel")
def model_of(asked: NodeSettings) -> shoal.NodeModel:
    """The model that settings of the command ask for.

    Raises:
        InputError: if an object of the user's is not found.
    """
    return shoal.NodeModel(**asked.arguments())
