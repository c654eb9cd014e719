"""Node classification: fit, evaluate, predict, encode, save; :func:`shoal.open` opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.data.graphs import load_nodes, read
from shoal.data.nodes import NodeData
from shoal.graph.features import row_width
from shoal.graph.layers import Layered, full_graph
from shoal.models.graphs import GraphModel, flat_if, one_or_many
from shoal.tasks import nodes
from shoal.training.job import Job


@dataclass(frozen=True)
class NodePrediction:
    """A class of a node.

    Attributes:
        label: the class's number.
        name: its name.
        score: its probability; those of a node sum to one where it has one class.
    """

    label: int
    name: str
    score: float


@dataclass(eq=False, kw_only=True)
class NodeModel(GraphModel):
    """Classes of nodes, from their features and those of their neighbors.

    Example:
        Two groups of nodes, each linked among themselves, told apart by one feature:

        >>> from types import SimpleNamespace
        >>> n = torch.arange(40)
        >>> edges = torch.stack([n, (n + 2) % 40])
        >>> data = SimpleNamespace(edge_index=edges, x=torch.eye(2)[n % 2], y=n % 2, num_nodes=40)
        >>> model = NodeModel(hidden=8, fanouts=(2,), batch_size=8, device="cpu")
        >>> model.fit(data, epochs=30).test
        {'accuracy': 100.0}
        >>> model.predict(7)[0].label, [row[0].label for row in model.predict([2, 3])]
        (1, [0, 1])
    """

    task: ClassVar[str] = "nodes"
    dropout: float = 0.5
    lr: float = 0.03

    def predict(
        self,
        nodes: int | list[int] | Int[Tensor, " b"] | None = None,
        data: Any = None,
        k: int = 1,
        threshold: float | None = None,
    ) -> Any:
        """The k best classes of nodes, also of ones that training never saw, best first.

        Args:
            nodes: ids, or one id; None for all nodes.
            data: another graph with the same features, which needs no classes; the one that the
                model was fitted on by default.
            k: classes per node; all where there are fewer.
            threshold: only classes of at least this probability.

        Returns:
            a list of :class:`NodePrediction` per node; for one id, its list alone.

        Raises:
            InputError: if the model is not fitted, the graph has other features, an id is out of
                range or k is below 1.
        """
        expect_positive("k", k)
        network = self._fitted()
        graph, rows = self._graph(data)
        ids, one = one_or_many(nodes, graph.n_rows)
        logits = full_graph(network, graph, rows, ids)  # pyright: ignore[reportArgumentType]
        shares = logits.sigmoid() if self._about["several"] else logits.softmax(1)
        names = self._about["classes"]
        best = shares.topk(min(k, len(names)), dim=1)
        rows = [
            [NodePrediction(c, names[c], s) for s, c in zip(scores, classes, strict=True)]
            for scores, classes in zip(*(x.tolist() for x in best), strict=True)
        ]
        least = -1.0 if threshold is None else threshold
        return flat_if(one, [[x for x in row if x.score >= least] for row in rows])

    def encode(self, nodes: Any = None, data: Any = None) -> Float[Tensor, "b d"]:
        """What the last layer reads of nodes: hidden vectors, or of one layer alone the rows.

        Args:
            nodes: as for :meth:`predict`, and so is `data`; one id gives one row.
            data: as above.

        Raises:
            InputError: as :meth:`predict`.
        """
        network = self._fitted()
        graph, rows = self._graph(data)
        ids, _ = one_or_many(nodes, graph.n_rows)
        layers = list(network.layers)[:-1]  # pyright: ignore[reportArgumentType, reportCallIssue]
        if not layers:
            return rows[ids] if isinstance(rows, Tensor) else rows.gather(ids)
        # of the network's own modules, in eval mode meanwhile as full_graph has them
        training, between = network.training, network.between
        try:
            below = Layered(layers, between).eval()  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                hidden = full_graph(below, graph, rows, ids)
                return between(hidden.to(next(network.parameters()).device)).to(hidden.device)  # pyright: ignore
        finally:
            network.train(training)

    def _graph(self, data: Any) -> tuple[Csr, Any]:
        """A graph to predict on, which needs no classes, and its rows."""
        if data is None:
            loaded = self._loaded()
            return loaded.graph, self._rows_for(loaded)
        found = data if isinstance(data, NodeData) else read(data)
        return found.graph, self._rows_for(found)

    def _load(self, source: Any) -> NodeData:
        return load_nodes(source)

    def _facts(self, data: NodeData) -> dict[str, Any]:
        width = {"features": data.features.shape[1], "width": row_width(data.features)}
        return width | {"classes": list(data.class_names), "several": data.multi_label}

    def _made(self, width: int) -> nn.Module:
        return self._network(width, len(self._about["classes"]))

    def _job(self, data: NodeData, rows: Any, table: Any, options: Mapping[str, Any]) -> Job:
        return nodes.build(data, self._fitted(), rows, table=table, **options)  # pyright: ignore[reportArgumentType]

    def _seeds(self, data: NodeData) -> tuple[Tensor, Any]:
        return data.train, self.fanouts

    def _metrics(self, data: NodeData) -> dict[str, float]:
        network, rows = self._fitted(), self._rows_for(data)
        want, got = len(self._about["classes"]), len(data.class_names)
        expect(got == want, data.name, f"the model's {want} classes", got, "use data of its kind")
        return nodes.metrics(network, data, rows, data.test)  # pyright: ignore[reportArgumentType]
