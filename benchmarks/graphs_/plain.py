"""Plain PyG networks, logistic regression and a perceptron, each at its best validation.

All train full-graph by Adam until :data:`PATIENCE` epochs bring no better validation, the best
epoch is kept. Each is tried at several settings with the first seed, and the best on validation is
taken. Products with the graph are PyG's own by a CSR matrix, ten times as fast here as edge by
edge, and sparse features are read sparse.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, embedding_bag
from torch_geometric.nn import (  # pyright: ignore[reportMissingImports]
    GATConv,
    GCNConv,
    SimpleConv,
)

from shoal import Csr, NodeData, node_metrics
from shoal.graph.baselines import side_by_side
from shoal.graph.features import WIDTH
from shoal.graph.propagate import averaging, neighbor_means, word_means

PATIENCE, EPOCHS = 100, 500


@dataclass(frozen=True)
class Setting:
    """What is tried: width, dropout, weight decay and rate."""

    hidden: int = 64
    dropout: float = 0.5
    decay: float = 5e-4
    lr: float = 0.01


WIDE = Setting(hidden=256, decay=5e-5)
CONVOLUTIONS = (Setting(), Setting(dropout=0.2, decay=0.0), WIDE)
ATTENTION = (Setting(dropout=0.6, lr=0.005), Setting(dropout=0.2, decay=5e-5))
BASELINES = (Setting(), Setting(decay=0.0))


class Inward(nn.Module):
    """A linear map of features, dense or sparse; dropout comes first."""

    def __init__(self, in_dim: int, out_dim: int, drop: float, bias: bool = True) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(in_dim, out_dim, bias=bias), drop

    def forward(self, rows: Any) -> Tensor:
        """``x W``."""
        if isinstance(rows, Tensor):
            return self.linear(dropout(rows, self.drop, self.training))
        values = dropout(rows.values, self.drop, self.training)
        bags = rows.indices.long(), self.linear.weight.T, rows.indptr.long()
        found = embedding_bag(
            *bags, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        return found if self.linear.bias is None else found + self.linear.bias


class Network(nn.Module):
    """Two layers; the first map of features is apart, so that they may be sparse."""

    def __init__(self, kind: str, in_dim: int, classes: int, asked: Setting) -> None:
        super().__init__()
        self.kind, self.drop, width = kind, asked.dropout, asked.hidden
        self.enter = Inward(in_dim, classes if kind == "linear" else width, asked.dropout)
        if kind == "sage":  # of means, mapped first: the same sum, and less of it
            self.mean, self.near = SimpleConv(aggr="mean"), Inward(in_dim, width, asked.dropout)
            self.second = nn.ModuleList([nn.Linear(width, classes) for _ in range(2)])
        if kind == "gcn":
            self.convs = nn.ModuleList([GCNConv(width, x, cached=True) for x in (width, classes)])
            self.convs[0].lin = nn.Identity()
        if kind == "gat":
            given: dict[str, Any] = {"dropout": asked.dropout}
            first: Any = GATConv(width, width // 8, 8, **given)
            first.lin = nn.Identity()
            last = GATConv(width, classes, 8, concat=False, **given)
            self.convs = nn.ModuleList([first, last])
        if kind == "perceptron":
            self.leave = nn.Linear(width, classes)

    def forward(self, rows: Any, edges: Any) -> Tensor:
        """Logits of all nodes."""
        found = self.enter(rows)
        if self.kind == "linear":
            return found
        if self.kind == "sage":
            found = found + self.mean(self.near(rows), edges)
        elif self.kind in ("gcn", "gat"):
            found = self.convs[0](found, edges)
        found = found.relu() if self.kind != "gat" else nn.functional.elu(found)
        found = dropout(found, self.drop, self.training)
        if self.kind == "sage":
            own, near = self.second
            return own(found) + self.mean(near(found), edges)
        return self.leave(found) if self.kind == "perceptron" else self.convs[1](found, edges)


def inputs(data: NodeData, kind: str) -> tuple[Any, Any, int]:
    """Features as a kind of model reads them, edges, and how wide the features are."""
    features, graph = data.features, data.graph
    assert features is not None
    if isinstance(features, Csr) and features.n_cols <= WIDTH:
        features = features.to_dense().float()
    if kind in ("linear", "perceptron"):
        mean = averaging(graph)
        if isinstance(features, Tensor):
            rows: Any = torch.cat(neighbor_means(mean, _even(features), 1), 1)
        else:
            rows = side_by_side([_even(features), word_means(mean, _even(features))])
        return rows, None, rows.shape[1]
    edge_index = torch.stack([graph.indices.long(), graph.row_ids()])
    if kind == "gat":
        return _even(features), edge_index, features.shape[1]
    ones, shape = torch.ones(graph.nnz), graph.shape
    ends = graph.indptr.long(), graph.indices.long()
    return _even(features), torch.sparse_csr_tensor(*ends, ones, shape), features.shape[1]


def _even(features: Any) -> Any:
    """Rows of counts that sum to one, as PyG's NormalizeFeatures; others at mean 0, deviation 1."""
    if isinstance(features, Tensor):
        if features.shape[1] > WIDTH and bool((features >= 0).all()):
            return features / features.sum(1, keepdim=True).clamp(min=1e-12)
        return (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    values = torch.ones(features.nnz) if features.values is None else features.values.float()
    total = torch.zeros(features.n_rows).index_add_(0, features.row_ids(), values)
    return features.with_values(values / total.clamp(min=1e-12)[features.row_ids()])


def trained(
    kind: str, data: NodeData, asked: Setting, seed: int, minutes: float
) -> tuple[dict[str, float], float, int]:
    """Metrics on test at the best validation, that validation, and epochs."""
    rows, edges, width = inputs(data, kind)
    torch.manual_seed(seed)
    network = Network(kind, width, len(data.class_names), asked)
    steps = torch.optim.Adam(network.parameters(), asked.lr, weight_decay=asked.decay)
    best, kept, since, epoch, begin = -1.0, None, 0, 0, time.process_time()
    while since < PATIENCE and epoch < EPOCHS and time.process_time() - begin < 60 * minutes:
        network.train()
        steps.zero_grad()
        logits = network(rows, edges)
        cross_entropy(logits[data.train], data.target[data.train]).backward()
        steps.step()
        network.eval()
        with torch.no_grad():
            logits = network(rows, edges)
        found = next(iter(node_metrics(logits[data.valid], data.target[data.valid]).values()))
        epoch, since = epoch + 1, since + 1
        if found > best:
            best, since, kept = found, 0, copy.deepcopy(logits[data.test])
    assert kept is not None
    return node_metrics(kept, data.target[data.test]), best, epoch


def tuned(
    kind: str, load: Callable[[int], NodeData], seeds: Sequence[int], minutes: float
) -> dict[str, Any]:
    """Results over seeds at the setting of the best validation, and the CPU time of each part."""
    grids = {"gat": ATTENTION, "linear": BASELINES, "perceptron": BASELINES}
    grid, begin, data = grids.get(kind, CONVOLUTIONS), time.process_time(), load(seeds[0])
    if kind == "perceptron":
        grid = tuple(Setting(128, x.dropout, x.decay, x.lr) for x in grid)
    asked = max(grid, key=lambda x: trained(kind, data, x, seeds[0], minutes)[1])
    tuning, begin = time.process_time() - begin, time.process_time()
    found = [trained(kind, load(seed), asked, seed, minutes) for seed in seeds]
    seconds = (time.process_time() - begin) / len(seeds)
    return {
        "test": [x[0] for x in found],
        "valid": [x[1] for x in found],
        "epochs": [x[2] for x in found],
        "setting": vars(asked),
        "tune_cpu_seconds": round(tuning, 1),
        "cpu_seconds": round(seconds, 1),
    }
