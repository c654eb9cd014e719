"""Sampled edges a second on one core: Floyd in columns against its rivals, relabelling apart.

    python benchmarks/sampling.py [--data DIR] [--quick] [--typed]

DIR (by default what SHOAL_DATA names) holds ``web-stanford/web-stanford.npz`` (indptr, indices:
281,903 nodes, 2.3 million edges); without one, the shipped WordNet graph is sampled. A batch is
1024 or 8192 random nodes. Sampling turns node ids into positions of edges; relabelling turns those
edges' columns into distinct ids and local positions. Rivals answer the same question on the same
rows in the same run, in turn. One thread; times are CPU time, the median of the repeats.

With ``--typed`` the systems are graphs: the same nodes and edges as one relation, split into
several, disjoint, and with times; each draws its subgraphs as PyG's loaders do through shoal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.data import wordnet
from shoal.sample.expand import NeighborSampler
from shoal.sample.fanout import draw
from shoal.sample.relabel import Scratch, distinct
from shoal.sample.subgraph import Relation, Subgraph, TypedGraph, subgraph

SETTINGS = [(1024, [15]), (8192, [15]), (1024, [15, 10])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampled edges a second on one core.")
    parser.add_argument("--data", default=os.environ.get("SHOAL_DATA"), help="outside data sets")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--typed", action="store_true", help="typed graphs, in time, disjoint")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, graph = load(args.data)
    repeats = 5 if args.quick else 40
    result: dict[str, object] = {"benchmark": "sampling", "data": name}
    run = measure_typed if args.typed else measure
    for batch, fanouts in SETTINGS + [(8192, [15, 10])] * args.typed:
        result[f"batch {batch}, fanouts {fanouts}"] = run(graph, batch, fanouts, repeats)
    print(json.dumps(result))


def load(folder: str | None) -> tuple[str, Csr]:
    """The web graph from the outside data, or the graph that is shipped."""
    if not folder:
        return "wordnet-graph", wordnet.graph().graph
    arrays = np.load(Path(folder) / "web-stanford" / "web-stanford.npz")
    indptr = torch.from_numpy(arrays["indptr"]).long()
    indices = torch.from_numpy(arrays["indices"])
    return "web-stanford", Csr(indptr, indices, indptr.numel() - 1)


def measure(graph: Csr, batch: int, fanouts: list[int], repeats: int) -> dict[str, float]:
    """Time every system on the rows that real batches sample, and print a table."""
    generator = torch.Generator().manual_seed(0)
    numpy_generator = np.random.default_rng(0)
    place = Scratch().columns(graph)
    # One dict entry a system: a function of (rows, fan-out) or of (ids to number).
    samplers: dict[str, Callable[[Tensor, int], Tensor]] = {
        "sample: shoal": lambda rows, k: draw(graph, rows, k, generator)[0],
        "sample: random keys, torch": lambda rows, k: random_keys(graph, rows, k, generator),
        "sample: random keys, numpy": lambda rows, k: numpy_keys(graph, rows, k, numpy_generator),
    }
    numberers: dict[str, Callable[[Tensor], object]] = {
        "relabel: shoal": lambda ids: place.index_select(0, (distinct(ids, place), ids)[1]),
        "relabel: torch.unique": lambda ids: torch.unique(ids, return_inverse=True),
        "relabel: numpy.unique": lambda ids: np.unique(ids.numpy(), return_inverse=True),
    }
    sampler = NeighborSampler(graph, fanouts)
    times: dict[str, list[float]] = {name: [] for name in [*samplers, *numberers, "both: shoal"]}
    edges = []
    for repeat in range(repeats + 2):
        seeds = torch.randperm(graph.n_rows, generator=generator)[:batch]
        blocks = sampler(seeds, generator)[::-1]
        hops = list(zip(blocks, fanouts, strict=True))
        ids = [torch.cat([b.dst, graph.indices[b.edges].long()]) for b in blocks]
        runs: dict[str, Callable[[], object]] = {
            "both: shoal": lambda s=seeds: sampler(s, generator)
        }
        for name, sample in samplers.items():
            runs[name] = lambda f=sample, h=hops: [f(block.dst, k) for block, k in h]
        for name, number in numberers.items():
            runs[name] = lambda f=number, x=ids: [f(part) for part in x]
        spent = {name: cpu_seconds(run) for name, run in runs.items()}
        if repeat >= 2:  # the first rounds warm caches
            edges.append(sum(block.edges.numel() for block in blocks))
            for name, seconds in spent.items():
                times[name].append(seconds)
    return table(batch, fanouts, times, edges)


Ask = Callable[[Tensor, torch.Generator], Callable[[], Subgraph]]
"""How seeds, ids of the one graph, become a question that is then timed."""


def measure_typed(graph: Csr, batch: int, fanouts: list[int], repeats: int) -> dict[str, float]:
    """Time subgraphs of the same edges, typed and not, in turn, and print a table."""
    generator = torch.Generator().manual_seed(0)
    systems = typed_systems(graph, fanouts)
    times: dict[str, list[float]] = {name: [] for name in systems}
    edges: dict[str, list[int]] = {name: [] for name in systems}
    for repeat in range(repeats + 2):
        seeds = torch.randperm(graph.n_rows, generator=generator)[:batch]
        for name, ask in systems.items():
            question = ask(seeds, generator)
            start = time.process_time()
            found = question()
            spent = time.process_time() - start
            if repeat >= 2:
                times[name].append(spent)
                edges[name].append(sum(map(len, found.edges.values())))
    title = f"{batch} seeds, fan-outs {fanouts}"
    return {name: speed(title, name, times[name], edges[name]) for name in systems}


def typed_systems(graph: Csr, fanouts: list[int]) -> dict[str, Ask]:
    """By name, graphs of the same edges, asked for subgraphs."""
    n = graph.n_rows
    owner = graph.row_ids()
    one = TypedGraph.of({None: n}, {None: Relation(graph)})
    time_of = torch.arange(graph.nnz) - graph.indptr[owner]  # an entry is as old as it stands
    timed = TypedGraph.of({None: n}, {None: Relation(graph, times=time_of)})
    systems: dict[str, Ask] = {"one relation": asking(one, fanouts)}
    for k in (2, 4):  # nodes of one type, and edges of k relations among them
        systems[f"1 type, {k} relations"] = asking(split_edges(graph, k), fanouts)
    for k in (2, 3):  # nodes of k types, and a relation between any two
        typed = split_nodes(graph, k)
        systems[f"{k} types, {k * k} relations"] = asking(typed, fanouts)
    systems["disjoint"] = asking(one, fanouts, disjoint=True)
    for name, last in (("in time, uniform", False), ("in time, last", True)):
        systems[name] = asking(timed, fanouts, moment=20, last=last)
    return systems


def asking(
    graph: TypedGraph, fanouts: list[int], moment: int | None = None, **options: bool
) -> Ask:
    """Seeds of all k types; node v is number v // k of type v % k."""
    named = dict.fromkeys(graph.parts, fanouts)

    def ask(seeds: Tensor, generator: torch.Generator) -> Callable[[], Subgraph]:
        k = len(graph.counts)
        typed = {kind: seeds[seeds % k == i] // k for i, kind in enumerate(graph.counts)}
        times = None if moment is None else {None: torch.full_like(seeds, moment)}
        return partial(subgraph, graph, typed, named, generator, times=times, **options)

    return ask


def split_edges(graph: Csr, k: int) -> TypedGraph:
    """Each edge in one of k relations, at random."""
    which = torch.randint(k, (graph.nnz,), generator=torch.Generator().manual_seed(0))
    row, col = graph.row_ids(), graph.indices.long()
    relations = {
        i: Relation(Csr.from_coo(row[which == i], col[which == i], graph.shape)) for i in range(k)
    }
    return TypedGraph.of({None: graph.n_rows}, relations)


def split_nodes(graph: Csr, k: int) -> TypedGraph:
    """Nodes of k types, and for each pair of them the edges between."""
    row, col = graph.row_ids(), graph.indices.long()
    counts = {kind: len(range(kind, graph.n_rows, k)) for kind in range(k)}
    relations = {}
    for src, dst in product(range(k), repeat=2):
        here = (col % k == src) & (row % k == dst)
        shape = counts[dst], counts[src]
        csr = Csr.from_coo(row[here] // k, col[here] // k, shape)
        relations[src, dst] = Relation(csr, src, dst)
    return TypedGraph.of(counts, relations)


def random_keys(graph: Csr, rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The rival: a random key an entry, the k smallest of each row; short rows need no keys."""
    degrees = graph.indptr[rows + 1] - graph.indptr[rows]
    long = degrees > k
    short_positions, _ = graph.edges(rows[~long])
    positions, offsets = graph.edges(rows[long])
    owner = torch.arange(offsets.numel() - 1).repeat_interleave(offsets.diff())
    # One sort: the row is the whole part of the key, the random number its fraction.
    keys = owner + torch.rand(owner.numel(), dtype=torch.float64, generator=generator)
    order = keys.argsort()
    rank = torch.arange(owner.numel()) - offsets[owner]
    return torch.cat([short_positions, positions[order[rank < k]]])


def numpy_keys(graph: Csr, rows: Tensor, k: int, generator: np.random.Generator) -> Tensor:
    """The same rival in numpy, whose sort and generator are faster than torch's on a CPU."""
    degrees = graph.indptr[rows + 1] - graph.indptr[rows]
    long = degrees > k
    short_positions, _ = graph.edges(rows[~long])
    positions, offsets = graph.edges(rows[long])
    starts, lengths = offsets[:-1].numpy(), offsets.diff().numpy()
    owner = np.repeat(np.arange(lengths.size), lengths)
    order = np.argsort(owner + generator.random(owner.size))
    rank = np.arange(owner.size) - np.repeat(starts, lengths)
    return torch.cat([short_positions, positions[torch.from_numpy(order[rank < k])]])


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def table(
    batch: int, fanouts: list[int], times: dict[str, list[float]], edges: list[int]
) -> dict[str, float]:
    """Millions of edges a second by system."""
    title = f"{batch} seeds, fan-outs {fanouts}"
    return {name: speed(title, name, seconds, edges) for name, seconds in times.items()}


def speed(title: str, name: str, seconds: list[float], edges: list[int]) -> float:
    """Print and return millions of edges a second."""
    count, median = statistics.mean(edges), statistics.median(seconds)
    found = round(count / median / 1e6, 2)
    line = f"{title}: {name:28} {count:9,.0f} edges {median * 1e3:8.2f} ms {found:8.2f} M edges/s"
    print(line, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
