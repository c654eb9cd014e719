"""GraphSAGE on the WordNet graph: sampled neighborhoods against full-graph training.

Both train the same model on the same features and nodes, choose their best round by validation, and
are evaluated by exact layer-wise inference on all test nodes. The full graph takes one step per
epoch, as in full-batch training; it gets as many epochs as `--full-epochs` says and a learning rate
of its own, `--full-lr`, so that it is no weakened rival.

    python benchmarks/sage.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shoal.core.block import Block
from shoal.data.graphs import load_nodes
from shoal.data.nodes import NodeData
from shoal.graph.features import feature_rows
from shoal.graph.layers import full_graph
from shoal.graph.sage import Sage
from shoal.models.graphs import FANOUTS, HIDDEN
from shoal.models.nodes import NodeModel


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="wordnet-graph", help="or an .npz of plain arrays")
    parser.add_argument("--epochs", type=int, default=8, help="of sampled training")
    parser.add_argument("--full-epochs", type=int, default=120, help="of full-graph training")
    parser.add_argument("--full-lr", type=float, default=0.03, help="of full-graph training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, two full-graph epochs")
    asked = parser.parse_args()
    if asked.quick:
        asked.epochs, asked.full_epochs, asked.seeds = 1, 2, [0]
    data = load_nodes(asked.source)
    rows: list[dict[str, Any]] = []
    for seed in asked.seeds:
        features = feature_rows(data.features, seed)  # pyright: ignore[reportArgumentType]
        for system, train in (("sampled", sampled), ("full graph", full)):
            wall, cpu = time.perf_counter(), time.process_time()
            accuracy = train(data, features, asked, seed)
            row = {
                "system": system,
                "data": data.name,
                "seed": seed,
                "accuracy": round(accuracy, 2),
                "seconds": round(time.perf_counter() - wall, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
            }
            print(row, file=sys.stderr)
            rows.append(row)
    mean = {
        system: round(statistics.mean(r["accuracy"] for r in rows if r["system"] == system), 2)
        for system in ("sampled", "full graph")
    }
    print(json.dumps({"runs": rows, "mean_accuracy": mean}))


def sampled(data: NodeData, features: Tensor, asked: argparse.Namespace, seed: int) -> float:
    """Shoal's node model, its best validated round."""
    model = NodeModel(seed=seed, device="cpu", baselines=False)
    return model.fit(data, epochs=asked.epochs, valid_every=1).test["accuracy"]


def full(data: NodeData, features: Tensor, asked: argparse.Namespace, seed: int) -> float:
    """Every step sees the whole graph and all training nodes; the best validated round counts."""
    torch.manual_seed(seed)
    layers, hidden, classes = len(FANOUTS), HIDDEN, len(data.class_names)
    model = Sage(features.shape[1], hidden, classes, layers, NodeModel.dropout)
    optimizer = torch.optim.Adam(model.parameters(), lr=asked.full_lr)
    everyone = torch.arange(len(features))
    graph = data.graph
    whole = Block(everyone, everyone, graph.indptr, graph.indices, graph.indices, dst_in_src=True)
    best = (0.0, 0.0)
    for epoch in range(asked.full_epochs):
        logits = model([whole] * layers, features)[data.train]
        loss = functional.cross_entropy(logits, data.target[data.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (epoch + 1) % 10 == 0 or epoch + 1 == asked.full_epochs:
            valid = accuracy(model, data, features, data.valid)
            best = max(best, (valid, accuracy(model, data, features, data.test)))
    return best[1]


def accuracy(model: Sage, data: NodeData, features: Tensor, ids: Tensor) -> float:
    """Per cent of the nodes `ids` whose class has the highest logit."""
    logits = full_graph(model, data.graph, features)[ids]
    return 100 * float((logits.argmax(1) == data.target[ids]).float().mean())


if __name__ == "__main__":
    main()
