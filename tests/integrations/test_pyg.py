"""PyTorch Geometric: its layers on shoal's blocks, shoal's sampler in its loaders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.core.errors import InputError
from shoal.data.graphs import load_nodes
from shoal.fetch.unified import unified
from shoal.graph.layers import ConvLayer, Layered, full_graph
from shoal.integrations.pyg import (
    LinkNeighborLoader,
    NeighborLoader,
    PygSampler,
    graph_of,
)
from shoal.sample.expand import NeighborSampler

pyg = pytest.importorskip("torch_geometric", reason="needs the extra pyg")
from torch_geometric.data import Data, HeteroData  # noqa: E402
from torch_geometric.nn import GATConv, GraphConv, SAGEConv  # noqa: E402

# workers are forked beside torch's threads, and may be more than there are cores
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(n: int = 60, e: int = 300) -> Data:
    """A directed multigraph with edge rows, edge weights and two classes; node 0 has no edge."""
    edge_index = torch.randint(1, n, (2, e), generator=seeded())
    x, rows = (torch.randn(k, 5, generator=seeded(k)) for k in (n, e))
    weight = torch.rand(e, generator=seeded(1)) + 0.1
    y = torch.randint(2, (n,), generator=seeded(2))
    return Data(x=x, edge_index=edge_index, edge_attr=rows, edge_weight=weight, y=y)


def convs(kind: str) -> tuple[list[nn.Module], str | None]:
    """Two PyG layers, and which of the data's edge rows they read."""
    torch.manual_seed(0)
    if kind == "sage":
        return [SAGEConv(5, 4), SAGEConv(4, 3)], None
    if kind == "weights":
        return [GraphConv(5, 4), GraphConv(4, 3)], "edge_weight"
    return [GATConv(5, 2, heads=2, edge_dim=5), GATConv(4, 3, edge_dim=5)], "edge_attr"


@pytest.mark.parametrize("kind", ["sage", "weights", "gat"])
def test_layers_on_blocks_are_the_full_graphs(kind: str) -> None:
    """SAGE, weighted and attention layers with edge rows: blocks and inference equal PyG's pass."""
    data = made()
    layers, name = convs(kind)
    rows = None if name is None else data[name]
    hidden = layers[0](data.x, data.edge_index, *([] if rows is None else [rows])).relu()
    expected = layers[1](hidden, data.edge_index, *([] if rows is None else [rows]))

    graph, order = graph_of(data)
    of_entries = None if rows is None else unified(rows[order])
    model = Layered([ConvLayer(conv, of_entries) for conv in layers], nn.ReLU())
    seeds = torch.tensor([7, 0, 33])
    blocks = NeighborSampler(graph, [None, None])(seeds, seeded())
    torch.testing.assert_close(model(blocks, data.x[blocks[0].src]), expected[seeds])
    torch.testing.assert_close(full_graph(model, graph, data.x, entries=50), expected)
    assert of_entries is None or not any("rows" in key for key in model.state_dict())


def plain_script(loader: Any, epochs: int = 2) -> list[Tensor]:
    """A user's PyG training, as its documentation writes it; returns the final weights."""
    torch.manual_seed(0)
    first, last = SAGEConv(5, 8), SAGEConv(8, 2)
    both = [*first.parameters(), *last.parameters()]
    optimizer = torch.optim.Adam(both, lr=0.01)
    for _ in range(epochs):
        for batch in loader:
            hidden = first(batch.x, batch.edge_index).relu()
            out = last(hidden, batch.edge_index)[: batch.batch_size]
            loss = nn.functional.cross_entropy(out, batch.y[: batch.batch_size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [x.detach().clone() for x in both]


def test_the_two_lines_change_no_number() -> None:
    """Unchanged model code trains to the same weights on a unified data.x, with 0 or 2 workers."""
    asked: dict[str, Any] = {"num_neighbors": [4, 3], "batch_size": 16, "shuffle": True}
    data, other = made(), made()
    other.x = unified(other.x)
    found = []
    for source, workers in ((data, 0), (other, 0), (other, 2)):
        loader = NeighborLoader(source, **asked, num_workers=workers, generator=seeded())
        found.append(plain_script(loader))
    assert all(
        torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_the_graphs_own_rows_and_edges(workers: int) -> None:
    """Rows, edge rows, edges of a batch are those of its ids; seeds come first, fan-outs hold."""
    data = made()
    data.x = unified(data.x)
    loader = NeighborLoader(data, [3, 2], torch.arange(40), batch_size=16, num_workers=workers)
    batches = list(loader)
    assert torch.equal(torch.cat([b.n_id[: b.batch_size] for b in batches]), torch.arange(40))
    for batch in batches:
        assert torch.equal(batch.x, made().x[batch.n_id])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert len(batch.e_id.unique()) == len(batch.e_id)
        assert batch.edge_index[1].bincount().max() == 3
        assert sum(batch.num_sampled_nodes) == len(batch.n_id)
        assert sum(batch.num_sampled_edges) == len(batch.e_id) > 0


def test_whole_neighborhoods_give_the_full_graphs_rows() -> None:
    """With all neighbors a batch's seeds come out as from the whole graph."""
    data = made()
    layers, _ = convs("sage")
    expected = layers[1](layers[0](data.x, data.edge_index).relu(), data.edge_index)
    (batch,) = NeighborLoader(data, [-1, -1], torch.tensor([7, 0, 33]), batch_size=3)
    found = layers[1](layers[0](batch.x, batch.edge_index).relu(), batch.edge_index)
    torch.testing.assert_close(found[:3], expected[torch.tensor([7, 0, 33])])


def test_epochs_and_seeds_draw_anew() -> None:
    """The same batch draws the same edges, unless the epoch or the seed is another."""
    data, asked = made(), {"num_neighbors": [3], "batch_size": 60}

    def edges(loader: Any) -> list[int]:
        return next(iter(loader)).e_id.tolist()

    loader = NeighborLoader(data, **asked)
    first = edges(loader)
    assert edges(loader) == first != edges(NeighborLoader(data, **asked, seed=1))
    loader.node_sampler.set_epoch(1)
    assert edges(loader) != first


def test_weights_are_chances() -> None:
    """Edges of weight zero are never drawn, and all others can be."""
    data = made()
    data.edge_weight[::2] = 0
    loader = NeighborLoader(data, [100], batch_size=60, weight_attr="edge_weight")
    drawn = next(iter(loader)).e_id.sort().values
    assert torch.equal(drawn, torch.arange(1, 300, 2))


@pytest.mark.parametrize("mode", ["binary", "triplet"])
def test_links_and_negatives(mode: str) -> None:
    """Positives are the seeds' own edges, negatives as many as asked; workers change nothing."""
    data = made()
    asked: dict[str, Any] = {"num_neighbors": [3], "batch_size": 50, "neg_sampling": mode}
    loaders = (LinkNeighborLoader(data, **asked, num_workers=workers) for workers in (0, 2))
    batches = [next(iter(loader)) for loader in loaders]
    (batch, again), seeds = batches, data.edge_index[:, :50]
    assert torch.equal(batch.n_id, again.n_id) and torch.equal(batch.x, data.x[batch.n_id])
    if mode == "binary":
        assert batch.edge_label.tolist() == [1] * 50 + [0] * 50
        found = batch.n_id[batch.edge_label_index[:, :50]]
    else:
        assert batch.dst_neg_index.shape == (50,)
        found = batch.n_id[torch.stack([batch.src_index, batch.dst_pos_index])]
    assert torch.equal(found, seeds)


def test_it_is_one_of_pygs_samplers() -> None:
    """PyG's own checks take it for a BaseSampler."""
    from torch_geometric.sampler import BaseSampler

    assert isinstance(PygSampler(made(), [2]), BaseSampler)


def test_data_is_read_as_it_is(tmp_path: Path) -> None:
    """A Data and the file that its tensors are saved to give the same graph, classes and split."""
    data = made()
    parts = torch.arange(60).split([40, 10, 10])
    for name, part in zip(("train_mask", "val_mask", "test_mask"), parts, strict=True):
        data[name] = torch.zeros(60, dtype=torch.bool).index_fill(0, part, True)
    save_file(data.to_dict(), tmp_path / "made.safetensors")
    for found in (load_nodes(data), load_nodes(tmp_path / "made.safetensors")):
        assert torch.equal(found.target, data.y)
        assert isinstance(found.features, Tensor) and torch.equal(found.features, data.x)
        assert torch.equal(found.graph.indices, graph_of(data)[0].indices)
        assert all(map(torch.equal, (found.train, found.valid, found.test), parts))
    with pytest.raises(InputError, match="data: expected a homogeneous Data"):
        load_nodes(HeteroData())


def _many(**options: Any) -> Callable[[], object]:
    return lambda: NeighborLoader(made(), [2], batch_size=4, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PygSampler(HeteroData(), [2]), "data: expected a homogeneous Data"),
        (lambda: PygSampler(Data(x=torch.ones(2, 1)), [2]), "data: expected a homogeneous Data"),
        (lambda: PygSampler(made(), []), "num_neighbors: expected a list of numbers"),
        (lambda: PygSampler(made(), [2], weight_attr="w"), r"w: expected one weight an edge"),
        (_many(disjoint=True), "disjoint: expected its default, False, got True; leave it out"),
        (_many(subgraph_type="induced"), "subgraph_type: expected its default, directional"),
        (lambda: next(iter(_many(input_nodes=torch.tensor([1, 1]))())), "got a node twice"),
        (lambda: next(iter(_many(input_nodes=torch.tensor([60]))())), r"ids in \[0, 60\), got 60"),
    ],
)
def test_what_it_does_not_do_is_named(call: Callable[[], object], message: str) -> None:
    """Other graphs, missing weights, options of the compiled sampler, seeds twice: one line."""
    with pytest.raises(InputError, match=message):
        call()
