"""GraphSAGE or GAT through PyG's NodeLoader and through shoal's: batches a second, and accuracy.

Both sides draw neighbors by shoal's sampler, since PyG's own needs pyg-lib. The rivals are PyG's
NodeLoader, whose rows come by ``torch.index_select``, with PyG's layers as its documentation has it
(``trim_to_layer``), and called bipartite, so that the first layer computes no node that the second
does not read: the better one, to which all else is compared. A node is expanded once there and once
a hop in shoal's blocks, so shoal reads more edges; edges a batch are printed.

    python benchmarks/pyg.py [--data DIR] [--quick] [--ahead] [--no-accuracy] [--model gat]

DIR (by default what SHOAL_DATA names) holds ``web-stanford`` (rows 256 wide are made up, a tenth of
the nodes are seeds) and ``coauthor-physics`` (features projected to 256; accuracy over five seeds).
Systems take turns; the least of the turns counts. `--ahead` lets one worker process of PyG's and
one thread of shoal's make batches beside the step, for two free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data  # pyright: ignore[reportMissingImports]
from torch_geometric.nn import GATConv, SAGEConv  # pyright: ignore[reportMissingImports]
from torch_geometric.utils import trim_to_layer  # pyright: ignore[reportMissingImports]

from shoal import (
    Csr,
    Gat,
    Loader,
    NeighborSampler,
    RandomBatchSampler,
    Sage,
    node_cross_entropy,
    unified,
)
from shoal.data import graphs
from shoal.data.graphs import load_nodes
from shoal.graph.features import feature_rows
from shoal.graph.layers import ConvLayer, Layered, full_graph
from shoal.integrations.pyg import NeighborLoader
from shoal.sample.seeds import Subset

FANOUTS, HIDDEN, WIDTH, HEADS = [15, 10], 256, 256, 4
BETWEEN = {"sage": nn.ReLU(), "gat": nn.ELU()}


@dataclass(frozen=True)
class Task:
    """A graph with rows and classes; `test` is empty where the classes are made up."""

    name: str
    graph: Csr
    rows: Tensor
    target: Tensor
    train: Tensor
    test: Tensor

    @property
    def data(self) -> Data:
        """The same for PyG."""
        edge_index = torch.stack([self.graph.indices.long(), self.graph.row_ids()])
        return Data(x=self.rows, edge_index=edge_index, y=self.target)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.target.max()) + 1


Parts = dict[str, float]
Step = Callable[[], tuple[Tensor, int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("SHOAL_DATA"), help="outside data sets")
    parser.add_argument("--model", choices=("sage", "gat"), default="sage")
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--quick", action="store_true", help="few batches, one short seed")
    parser.add_argument("--ahead", action="store_true", help="make batches beside the step")
    parser.add_argument("--no-accuracy", action="store_true", help="throughput alone")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=12, help="a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of a run that is judged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    asked = parser.parse_args()
    if asked.quick:
        asked.batches, asked.turns, asked.epochs, asked.seeds = 2, 1, 1, [0]
    if not asked.data:
        print(json.dumps({"benchmark": "pyg", "skipped": "no --data"}))
        return
    result: dict[str, Any] = {"benchmark": "pyg", "model": asked.model, "ahead": asked.ahead}
    for task in (GRAPHS[name](Path(asked.data)) for name in asked.graphs):
        result[task.name] = throughput(task, asked)
        if len(task.test) and not asked.no_accuracy:
            result[f"accuracy on {task.name}"] = accuracies(task, asked)
    print(json.dumps(result))


def web_stanford(folder: Path) -> Task:
    graph = graphs.read(folder / "web-stanford" / "web-stanford.npz").graph
    generator, n = torch.Generator().manual_seed(0), graph.n_rows
    rows = torch.randn(n, WIDTH, generator=generator)
    target = torch.randint(40, (n,), generator=generator)
    train = torch.randperm(n, generator=generator)[: n // 10]
    return Task("web-stanford", graph, rows, target, train, train[:0])


def coauthor_physics(folder: Path) -> Task:
    data = load_nodes(str(folder / "coauthor-physics" / "coauthor-physics.npz"))
    assert data.features is not None
    rows = feature_rows(data.features, seed=0)
    return Task(data.name, data.graph, rows, data.target, data.train, data.test)


GRAPHS: dict[str, Callable[[Path], Task]] = {
    "web-stanford": web_stanford,
    "coauthor-physics": coauthor_physics,
}


# -- the systems: a model, and batches that know how to compute its loss -------------------------


def convs(kind: str, classes: int) -> list[nn.Module]:
    """PyG's layers of a model."""
    if kind == "sage":
        return [SAGEConv(WIDTH, HIDDEN), SAGEConv(HIDDEN, classes)]
    joined = GATConv(WIDTH, HIDDEN // HEADS, heads=HEADS)
    return [joined, GATConv(HIDDEN, classes, heads=HEADS, concat=False)]


class PygModel(nn.Module):
    """PyG's two layers on a NodeLoader's batch."""

    def __init__(self, kind: str, classes: int, bipartite: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(convs(kind, classes))
        self.between, self.bipartite = BETWEEN[kind], bipartite

    def forward(self, batch: Any) -> Tensor:
        """Logits of the seeds."""
        x, edge_index = batch.x, batch.edge_index
        nodes, edges = batch.num_sampled_nodes, batch.num_sampled_edges
        for k, conv in enumerate(self.layers):
            x, hops = x if k == 0 else self.between(x), len(edges) - k
            if self.bipartite:
                read = edge_index[:, : sum(edges[:hops])]
                x = conv((x, x[: sum(nodes[:hops])]), read)
            else:
                x, edge_index, _ = trim_to_layer(k, nodes, edges, x, edge_index)
                x = conv(x, edge_index)
        return x[: batch.batch_size]


def pyg(
    task: Task, seed: int, asked: Any, table: Tensor, bipartite: bool = True
) -> tuple[nn.Module, Callable[[], Any]]:
    data, model = task.data, PygModel(asked.model, task.classes, bipartite)
    data.x = table
    workers = {"num_workers": 1, "persistent_workers": True} if asked.ahead else {}
    loader = NeighborLoader(
        data, FANOUTS, task.train, batch_size=asked.batch_size, shuffle=True, seed=seed, **workers
    )

    def losses() -> Iterator[Step]:
        for batch in loader:
            yield lambda b=batch: (
                cross_entropy(model(b), b.y[: b.batch_size]), len(b.n_id), b.edge_index.shape[1]
            )  # fmt: skip

    return model, losses


def shoals(
    task: Task, seed: int, asked: Any, model: Layered
) -> tuple[nn.Module, Callable[[], Any]]:
    positions = RandomBatchSampler(len(task.train), asked.batch_size, seed)
    sampler = NeighborSampler(task.graph, FANOUTS)
    prefetch = 2 if asked.ahead else 0
    loader = Loader(
        Subset(task.train, positions), sampler, task.rows, task.target, seed=seed, prefetch=prefetch
    )

    def losses() -> Iterator[Step]:
        for batch in loader:
            edges = sum(block.indices.numel() for block in batch.blocks)
            yield lambda b=batch, e=edges: (
                node_cross_entropy(model(b.blocks, b.src), b), len(b.src), e
            )  # fmt: skip

    return model, losses


def on_blocks(layers: Iterable[nn.Module], between: nn.Module) -> Layered:
    """PyG's layers on shoal's blocks."""
    return Layered([ConvLayer(conv) for conv in layers], between)


def own(kind: str, classes: int) -> Layered:
    """The same layers as shoal has them."""
    if kind == "sage":
        return Sage(WIDTH, HIDDEN, classes, dropout=0.0)
    return Gat(WIDTH, HIDDEN, classes, heads=HEADS, dropout=0.0)


SYSTEMS: dict[str, Callable[[Task, int, Any], tuple[nn.Module, Callable[[], Any]]]] = {
    "PyG NodeLoader": lambda t, s, a: pyg(t, s, a, t.rows),
    "PyG NodeLoader, as documented": lambda t, s, a: pyg(t, s, a, t.rows, bipartite=False),
    "PyG NodeLoader, unified x": lambda t, s, a: pyg(t, s, a, unified(t.rows)),
    "shoal Loader, PyG layers": lambda t, s, a: shoals(
        t, s, a, on_blocks(convs(a.model, t.classes), BETWEEN[a.model])
    ),
    "shoal Loader, shoal layers": lambda t, s, a: shoals(t, s, a, own(a.model, t.classes)),
}


# -- throughput ---------------------------------------------------------------------------------


def throughput(task: Task, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds a batch, end to end, the least of the turns; and the share of gathering rows."""
    made = {name: make(task, 0, asked) for name, make in SYSTEMS.items()}
    wall: dict[str, list[float]] = {name: [] for name in made}
    cpu: dict[str, list[float]] = {name: [] for name in made}
    load: dict[str, list[float]] = {name: [] for name in made}
    sizes: dict[str, tuple[float, float]] = {}
    for turn in range(asked.turns + 1):
        for name, (model, losses) in made.items():
            begin, spent = time.perf_counter(), time.process_time()
            counts = [train_step(model, None, step) for step in islice(losses(), asked.batches)]
            if turn:  # the first turn warms up
                wall[name].append((time.perf_counter() - begin) / len(counts))
                cpu[name].append((time.process_time() - spent) / len(counts))
            begin = time.perf_counter()
            loaded = sum(1 for _ in islice(losses(), asked.batches))
            load[name] += [(time.perf_counter() - begin) / loaded] if turn else []
            rows, edges = zip(*counts, strict=True)
            sizes[name] = statistics.mean(rows), statistics.mean(edges)
    gather = gather_seconds(task, asked)
    base, told = min(wall["PyG NodeLoader"]), {}
    print(f"{task.name}, {asked.batch_size} seeds, fan-outs {FANOUTS}", file=sys.stderr)
    for name in made:
        plain = name.startswith("PyG") and not name.endswith("unified x")
        seconds = gather["index_select" if plain else "unified"]
        told[name] = {
            "ms_a_batch": round(1e3 * min(wall[name]), 2),
            "cpu_ms_a_batch": round(1e3 * min(cpu[name]), 2),
            "ms_loading_alone": round(1e3 * min(load[name]), 2),
            "times_pyg": round(base / min(wall[name]), 3),
            "gather_share": round(seconds / min(wall[name]), 3),
            "rows": round(sizes[name][0]),
            "edges": round(sizes[name][1]),
        }
        print(f"  {name:30} {told[name]}", file=sys.stderr)
    return told


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, step: Step
) -> tuple[int, int]:
    """Forward and backward, and a move where there is an optimizer; rows and edges of the batch."""
    loss, rows, edges = step()
    model.zero_grad()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return rows, edges


def gather_seconds(task: Task, asked: argparse.Namespace) -> Parts:
    """The least time of reading a batch's rows, either way, from the same ids."""
    seeds = task.train[: asked.batch_size]
    sampler, table = NeighborSampler(task.graph, FANOUTS), unified(task.rows)
    ids = sampler(seeds, torch.Generator().manual_seed(0))[0].src
    reads = {
        "index_select": lambda: torch.index_select(task.rows, 0, ids),
        "unified": lambda: table.gather(ids),
    }
    least = dict.fromkeys(reads, float("inf"))
    for _ in range(3 + 4 * asked.turns):
        for name, read in reads.items():
            begin = time.perf_counter()
            read()
            least[name] = min(least[name], time.perf_counter() - begin)
    return least


# -- accuracy -----------------------------------------------------------------------------------


def accuracies(task: Task, asked: argparse.Namespace) -> dict[str, Any]:
    """Accuracy on the test nodes from whole neighborhoods, in per cent, over the seeds."""
    found: dict[str, list[float]] = {}
    for seed in asked.seeds:
        for name in ("PyG NodeLoader", "shoal Loader, PyG layers", "shoal Loader, shoal layers"):
            torch.manual_seed(seed)
            model, losses = SYSTEMS[name](task, seed, asked)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
            for _ in range(asked.epochs):
                for step in losses():
                    train_step(model, optimizer, step)
            found.setdefault(name, []).append(judge(task, model))
            print(f"  seed {seed} {name:30} {found[name][-1]:.2f}", file=sys.stderr)
    return {
        name: {
            "mean": round(statistics.mean(values), 2),
            "spread": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            "seeds": [round(x, 2) for x in values],
        }
        for name, values in found.items()
    }


@torch.no_grad()
def judge(task: Task, model: nn.Module) -> float:
    if isinstance(model, PygModel):
        model = on_blocks(model.layers, model.between)
    assert isinstance(model, Layered)
    logits = full_graph(model, task.graph, task.rows, task.test)
    return 100 * float((logits.argmax(1) == task.target[task.test]).float().mean())


if __name__ == "__main__":
    main()
