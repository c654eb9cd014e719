"""Sections about whole epochs: sampling, training, and what an epoch costs in CPU and joules."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from device_.here import Here, Row, joules, random_ids
from shoal.core.block import Batch
from shoal.core.csr import Csr
from shoal.data import graphs
from shoal.fetch.device_rows import device_view
from shoal.fetch.unified import unified
from shoal.graph.gat import Gat
from shoal.graph.sage import Sage
from shoal.sample.expand import NeighborSampler
from shoal.sample.fanout import draw
from shoal.training.loader import Loader

_WIDTH, _CLASSES, _FANOUTS = 256, 16, [15, 10]


def graph_here(here: Here) -> Csr:
    """web-Stanford where SHOAL_DATA has it, else the shipped WordNet graph."""
    path = Path(os.environ.get("SHOAL_DATA", "")) / "web-stanford" / "web-stanford.npz"
    return graphs.read(str(path) if path.is_file() else "wordnet-graph").graph


def sampling(here: Here) -> Iterator[Row]:
    """Sampled edges a second: on the host, and on the device over its own or the host's entries."""
    graph = graph_here(here)
    seeds = random_ids(graph.n_rows, 1024 if here.quick else 8192).unique()
    there = graph.to(here.device)
    graphs = {"host": graph, "device": there}
    if here.real:
        indices = device_view(graph.indices, here.device)
        graphs["device, entries on the host"] = Csr(there.indptr, indices, graph.n_cols)
    expected = draw(graph, seeds, 15, torch.Generator().manual_seed(0))[0]
    for name, on in graphs.items():
        ids = seeds.to(on.device)

        def sample(on: Csr = on, ids: Tensor = ids) -> Tensor:
            positions = draw(on, ids, 15, torch.Generator().manual_seed(0))[0]
            return on.indices.index_select(0, positions)

        same = torch.equal(draw(on, ids, 15, torch.Generator().manual_seed(0))[0].cpu(), expected)
        rate = len(expected) / here.seconds(sample) / 1e6
        yield {"graph on": name, "M edges/s": round(rate, 2), "as on the host": same}


def epochs(here: Here) -> Iterator[Row]:
    """GraphSAGE and GAT epochs: shoal's loader over a unified table, and PyG's over ``x[ids]``."""
    graph = graph_here(here)
    rows = torch.randn(graph.n_rows, _WIDTH, generator=torch.Generator().manual_seed(0))
    target = random_ids(_CLASSES, graph.n_rows)
    batches = 2 if here.quick else 40
    seeds = torch.randperm(graph.n_rows)[: batches * 1024]
    systems: dict[str, Callable[[], Iterator[Batch]]] = {
        "shoal": lambda: shoal_batches(here, graph, rows, target, seeds),
        "same sampler, x[ids], copy": lambda: plain_batches(here, graph, rows, target, seeds),
    }
    for name, make in {"GraphSAGE": Sage, "GAT": Gat}.items():
        for system, batches_of in systems.items():
            model = make(_WIDTH, 256, _CLASSES, len(_FANOUTS)).to(here.device)
            yield {"model": name, "system": system, **trained(here, model, batches_of, loss_of)}
            if here.late():
                return
    yield from pyg_epochs(here, graph, rows, target, seeds)


def loss_of(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch of shoal's."""
    assert batch.target is not None
    return functional.cross_entropy(model(batch.blocks, batch.src), batch.target)


def pyg_loss_of(model: torch.nn.Module, batch: Any) -> Tensor:
    """The loss of a batch of PyG's, whose seeds come first."""
    out = model(batch.x, batch.edge_index)[: batch.batch_size]
    return functional.cross_entropy(out, batch.y[: batch.batch_size])


def trained(
    here: Here,
    model: torch.nn.Module,
    batches: Callable[[], Iterator[Any]],
    loss_of: Callable[[torch.nn.Module, Any], Tensor],
) -> Row:
    """Train two epochs; of the second, seconds, CPU seconds, joules, and the share of waiting."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    row: Row = {}
    for _ in range(2):
        here.wait()
        energy, wall, cpu, waited = joules(), time.perf_counter(), time.process_time(), 0.0
        iterator = batches()
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            waited += time.perf_counter() - begin
            if batch is None:
                break
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        here.wait()
        wall = time.perf_counter() - wall
        row = {
            "seconds": round(wall, 3),
            "CPU s": round(time.process_time() - cpu, 3),
            "waiting for batches": round(waited / wall, 2),
        }
        row |= {f"J {k}": round(v - energy[k], 1) for k, v in joules().items() if k in energy}
    return row


def shoal_batches(
    here: Here, graph: Csr, rows: Tensor, target: Tensor, seeds: Tensor
) -> Iterator[Batch]:
    """Batches of shoal's loader over a unified table."""
    sampler = NeighborSampler(graph, _FANOUTS)
    device = here.device if here.real else None
    order = list(seeds.split(1024))
    return iter(Loader(order, sampler, unified(rows), target, seed=0, device=device))


def plain_batches(
    here: Here, graph: Csr, rows: Tensor, target: Tensor, seeds: Tensor
) -> Iterator[Batch]:
    """The same sampler; rows by ``x[ids]`` and a copy, in the loop's own thread."""
    sampler = NeighborSampler(graph, _FANOUTS)
    for index, ids in enumerate(seeds.split(1024)):
        blocks = tuple(sampler(ids, torch.Generator().manual_seed(index)))
        yield Batch(ids, blocks, rows[blocks[0].src], target[ids]).to(here.device)


def pyg_epochs(
    here: Here, graph: Csr, rows: Tensor, target: Tensor, seeds: Tensor
) -> Iterator[Row]:
    """PyG's own loader and layers, fed by shoal's sampler; its rows a plain tensor or unified."""
    from torch_geometric.data import Data
    from torch_geometric.nn import GAT, GraphSAGE

    from shoal.integrations.pyg import NeighborLoader

    edge_index = torch.stack([graph.indices.long(), graph.row_ids()])
    models: dict[str, Callable[..., torch.nn.Module]] = {
        "GraphSAGE": GraphSAGE,
        "GAT": partial(GAT, heads=8),
    }
    there = unified(rows, default_device=here.device if here.real else None)
    for name, make in models.items():
        for system, x in {"PyG, x[ids], copy": rows, "PyG, data.x unified": there}.items():
            data = Data(x=x, edge_index=edge_index, y=target)
            loader = NeighborLoader(data, _FANOUTS, input_nodes=seeds, batch_size=1024)

            def batches(loader: Any = loader) -> Iterator[Any]:
                return (batch.to(here.device) for batch in loader)

            model = make(_WIDTH, 256, 2, _CLASSES).to(here.device)
            yield {"model": name, "system": system, **trained(here, model, batches, pyg_loss_of)}
            if here.late():
                return
