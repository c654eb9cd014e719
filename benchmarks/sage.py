"""GraphSAGE on the WordNet graph: sampled neighborhoods against full-graph training.

Both train the same model on the same features and nodes, choose their best round by validation, and
are judged by exact layer-wise inference on all test nodes. The full graph takes one step an epoch,
as in full-batch training; it gets as many epochs as `--full-epochs` says and a learning rate of its
own, `--full-lr`, so that it is no weakened rival.

    python benchmarks/sage.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import shoal
from shoal.tasks import nodes

DEFAULT = shoal.NodeModel()


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
    data = shoal.load_nodes(asked.source)
    rows: list[dict[str, Any]] = []
    for seed in asked.seeds:
        features = shoal.feature_rows(data.features, seed)
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


def network(data: shoal.NodeData, features: Tensor, seed: int) -> shoal.Sage:
    """The default network, its weights drawn."""
    torch.manual_seed(seed)
    sizes = features.shape[1], DEFAULT.hidden, len(data.class_names)
    return shoal.Sage(*sizes, layers=len(DEFAULT.fanouts), dropout=DEFAULT.dropout)


def sampled(data: shoal.NodeData, features: Tensor, asked: argparse.Namespace, seed: int) -> float:
    """Shoal's node job, its best validation."""
    with TemporaryDirectory() as folder:
        run = shoal.Run.create(Path(folder) / "run", {})
        model = network(data, features, seed)
        job = nodes.build(data, model, features, seed=seed, valid_every=1)
        shoal.fit(job, shoal.Budget(epochs=asked.epochs), run)
        model.load_state_dict(run.load_model()["model"])
        return nodes.metrics(model, data, features, data.test)["accuracy"]


def full(data: shoal.NodeData, features: Tensor, asked: argparse.Namespace, seed: int) -> float:
    """Every step sees the whole graph and all training nodes; the best validated round counts."""
    model, layers = network(data, features, seed), len(DEFAULT.fanouts)
    optimizer = torch.optim.Adam(model.parameters(), lr=asked.full_lr)
    everyone = torch.arange(len(features))
    graph = data.graph
    whole = shoal.Block(
        everyone, everyone, graph.indptr, graph.indices, graph.indices, dst_in_src=True
    )
    best = (0.0, 0.0)
    for epoch in range(asked.full_epochs):
        logits = model([whole] * layers, features)[data.train]
        loss = functional.cross_entropy(logits, data.target[data.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (epoch + 1) % 10 == 0 or epoch + 1 == asked.full_epochs:
            both = (nodes.metrics(model, data, features, ids) for ids in (data.valid, data.test))
            best = max(best, tuple(found["accuracy"] for found in both))
            model.train()
    return best[1]


if __name__ == "__main__":
    main()
