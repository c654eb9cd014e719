"""Node classification: fit, evaluate, predict, encode, save; :func:`shoal.open` opens it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import expect_positive
from shoal.core.graph_metrics import node_metrics
from shoal.core.state import part
from shoal.data.graph import GraphData
from shoal.data.graphs import load_nodes, read
from shoal.data.nodes import NodeData, class_names_of, in_classes, target_of
from shoal.graph.features import WordRows
from shoal.graph.layers import Layered, full_graph
from shoal.models.base import Fitting
from shoal.models.graphs import GraphModel, one_or_many
from shoal.models.notebook import answers_of_nodes
from shoal.models.pool import Pool, View, restored, trained_pool
from shoal.tasks import nodes
from shoal.training.job import Job
from shoal.training.run import Run

_log = logging.getLogger(__name__)
WHOLE_NODES, WHOLE_EDGES = 2**15, 2**21
"""Up to so many a graph is read as a whole."""
DEPTH, WHOLE_HIDDEN = 2, 64
"""Layers on a whole graph, and their width."""


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

    @property
    def title(self) -> str:
        """How it is shown: its name."""
        return self.name


@dataclass(eq=False, kw_only=True)
class NodeModel(GraphModel):
    """Classes of nodes, from their features and neighbors, and from the classes of neighbors.

    A graph of up to 32,768 nodes and two million edges is read as a whole: every step sees all
    neighbors, hidden layers are 64 wide. Larger ones are sampled, 256 wide.

    Attributes:
        read_classes: read the classes of training nodes as features of these, but never of the
            nodes that a batch learns. A graph that is predicted without any is classified less
            well; turn it off where the classes of neighbors will never be known.
        both_ways: read edges in both directions. Otherwise a node reads along stored edges, as a
            citation is of the paper that it cites; a warning says so where most have no reverse.
        baselines: also train a linear model and a perceptron on features and neighbor means, one on
            features averaged far and wide where few classes are known, on a whole graph a deeper
            network, and let classes spread along the edges. Their results
            stand in the fit's details; predictions are the pool of all, weighed on the nodes for
            validation.

    Example:
        Two groups of nodes, each linked among themselves, told apart by one feature:

        >>> from types import SimpleNamespace
        >>> n = torch.arange(40)
        >>> edges = torch.stack([n, (n + 2) % 40])
        >>> data = SimpleNamespace(edge_index=edges, x=torch.eye(2)[n % 2], y=n % 2, num_nodes=40)
        >>> model = NodeModel(hidden=8, fanouts=(2,), batch_size=8, device="cpu")
        >>> model.fit(data, epochs=30).test
        {'ROC_AUC': 100.0, 'accuracy': 100.0, 'macro_F1': 100.0}
        >>> model.predict(7)[0].label, [row[0].label for row in model.predict([2, 3])]
        (1, [0, 1])
    """

    task: ClassVar[str] = "nodes"
    dropout: float = 0.5
    lr: float = 0.01
    read_classes: bool = True
    both_ways: bool = False
    baselines: bool = True
    _pool: Pool | None = field(default=None, init=False, repr=False)

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
        self._fitted()
        graph, rows, features = self._graph(data)
        ids, one = one_or_many(nodes, graph.n_rows)
        logits = self._logits(graph, rows, features, ids)
        shares = logits.sigmoid() if self._about["several"] else logits.softmax(1)
        names = self._about["classes"]
        best = shares.topk(min(k, len(names)), dim=1)
        rows = [
            [NodePrediction(c, names[c], s) for s, c in zip(scores, classes, strict=True)]
            for scores, classes in zip(*(x.tolist() for x in best), strict=True)
        ]
        least = -1.0 if threshold is None else threshold
        found = [[x for x in row if x.score >= least] for row in rows]
        return answers_of_nodes(found, ids, one, probabilities=True)

    def encode(self, nodes: Any = None, data: Any = None) -> Float[Tensor, "b d"]:
        """Hidden vectors of nodes, of which the last linear layer makes logits.

        Args:
            nodes: as for :meth:`predict`, and so is `data`; one id gives one row.
            data: as above.

        Raises:
            InputError: as :meth:`predict`.
        """
        network: Any = self._fitted()
        graph, rows, _ = self._graph(data)
        ids, _ = one_or_many(nodes, graph.n_rows)
        training = network.training
        try:
            return full_graph(network.eval().below(), graph, rows, ids)
        finally:
            network.train(training)

    def _graph(self, data: Any) -> tuple[Csr, Any, Any]:
        """A graph to predict on, its rows and features; its known classes are read.

        Classes are known where the graph says that nodes are for training.
        """
        loaded = self._loaded() if data is None else data
        if data is not None:
            graph = data if isinstance(data, NodeData) else read(data)
            loaded = self._as_fitted(self._directed(graph))
        self._read_classes(loaded)
        return loaded.graph, self._rows_for(loaded), loaded.features

    def _logits(self, graph: Csr, rows: Any, features: Any, ids: Tensor) -> Tensor:
        """Scores of nodes: of the network, or pooled."""
        network: Any = self._fitted()
        logits = full_graph(network, graph, rows, ids)
        if self._pool is None:
            return logits
        view = View(graph, features, rows, network.known)
        return self._pool(logits, view, ids, self._about["several"])

    def _compare(self, rows: Any, fitting: Fitting, run: Run) -> dict[str, Any]:
        network, data = self._body(), self._data
        if not self.baselines or not isinstance(rows, Tensor | WordRows):  # in a file
            return {}
        view = View(data.graph, data.features, rows, network.known)
        whole = None in self._network_sizes()["fanouts"] and self.fanouts is None

        def logits(ids: Tensor) -> Tensor:
            return full_graph(network, data.graph, self._rows_for(data), ids)

        deep, seed = (self._deep if whole else None), self.seed
        self._pool, lines = trained_pool(data, view, logits, deep, fitting, run, seed)
        return {"compared": Columns(lines)}

    def _deep(self) -> Layered:
        """The network with twice the hops."""
        about = self._about
        classes = about["network"]["classes"]
        return self._network(about["width"], len(about["classes"]), classes, times=2)

    def _state(self) -> dict[str, Any]:
        return super()._state() | ({} if self._pool is None else {"pool": self._pool.state()})

    def _take(self, state: Mapping[str, Any]) -> None:
        super()._take(state)
        classes = len(self._about["classes"])
        pooled = part(state, "pool") if "pool" in state else None
        self._pool = None if pooled is None else restored(pooled, self._deep, classes)

    def _read_classes(self, data: NodeData | GraphData) -> None:
        """Let the network read the classes of a graph's training nodes."""
        if not self._about.get("network", {}).get("classes"):
            return
        classes, n = len(self._about["classes"]), data.graph.n_rows
        if isinstance(data, NodeData):
            known = known_classes(data.target, data.train, classes)
        elif data.y is not None and "train" in data.parts:
            train = data.parts["train"]
            ids = train.nonzero().squeeze(1) if train.dtype == torch.bool else train
            target = target_of(data.y)
            own, names = data.class_names or class_names_of(target), self._about["classes"]
            known = known_classes(in_classes(target, own, names, data.name), ids, classes)
        else:
            known = Csr.from_lists([[]] * n, n_cols=classes)
        self._body().read_classes(known)

    def _load(self, source: Any) -> NodeData:
        return self._directed(load_nodes(source, self.seed))

    def _as_fitted(self, data: Any) -> Any:
        """The same with classes numbered as the model's."""
        data = super()._as_fitted(data)
        if not isinstance(data, NodeData):
            return data
        names = tuple(self._about["classes"])
        target = in_classes(data.target, data.class_names, names, data.name)
        return replace(data, target=target, class_names=names)

    def _directed(self, data: Any) -> Any:
        """The graph as nodes read it: along stored edges, or both ways."""
        if self.both_ways:
            return replace(data, graph=data.graph.both_ways())
        alone, edges = data.graph.one_way(), data.graph.nnz
        if 2 * alone > edges:
            _log.warning(
                "%s: %d of %d edges have no reverse, and a node reads along stored edges only; "
                "both_ways=True (--both-ways) reads them in both directions",
                data.name,
                alone,
                edges,
            )
        return data

    def _sizes(self, data: NodeData) -> dict[str, Any]:
        sizes, own = super()._sizes(data), (self.fanouts, self.batch_size, self.host_rows)
        classes = len(data.class_names) if self.read_classes else 0
        small = data.graph.n_rows <= WHOLE_NODES and data.graph.nnz <= WHOLE_EDGES
        if small and all(x is None for x in own):
            # classes that are learned are hidden: half of them, so that the others can be read
            seeds = len(data.train)
            seeds = -(-seeds // 2) if classes else seeds
            sizes |= {"fanouts": [None] * DEPTH, "batch_size": seeds}
            sizes |= {"hidden": WHOLE_HIDDEN if self.hidden is None else self.hidden}
        return sizes | {"classes": classes}

    def _facts(self, data: NodeData) -> dict[str, Any]:
        facts = super()._facts(data)
        return facts | {"classes": list(data.class_names), "several": data.multi_label}

    def _made(self, width: int | None) -> nn.Module:
        classes = self._about.get("network", {}).get("classes", 0)
        return self._network(width, len(self._about["classes"]), classes)

    def _job(self, data: NodeData, rows: Any, table: Any, options: Mapping[str, Any]) -> Job:
        self._read_classes(data)
        return nodes.build(data, self._fitted(), rows, table=table, **options)  # pyright: ignore[reportArgumentType]

    def _seeds(self, data: NodeData) -> Tensor:
        return data.train

    def _metrics(self, data: NodeData) -> dict[str, float]:
        rows = self._rows_for(data)
        self._read_classes(data)
        logits = self._logits(data.graph, rows, data.features, data.test)
        return node_metrics(logits, data.target[data.test].to(logits.device))


def known_classes(
    target: Int[Tensor, " n"] | Bool[Tensor, "n c"], nodes: Int[Tensor, " m"], classes: int
) -> Csr:
    """The classes of some nodes as a matrix, of which all other rows are empty.

    Example:
        >>> known_classes(torch.tensor([1, 0, 1]), torch.tensor([0, 1]), 2).to_dense().tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    if target.dim() == 2:
        row, col = target[nodes].nonzero().unbind(1)
        return Csr.from_coo(nodes[row], col, (len(target), classes))
    nodes = nodes[target[nodes] >= 0]
    return Csr.from_coo(nodes, target[nodes], (len(target), classes))
