"""PyTorch Geometric: its layers on shoal's blocks, shoal's sampler in its loaders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import ne
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.core.errors import InputError
from shoal.data.graphs import load_nodes
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
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


def drawn(loader: Any) -> list[list[int]]:
    """The edges of each batch of an epoch."""
    return [batch.e_id.tolist() for batch in loader]


@pytest.mark.parametrize("asked", [{}, {"shuffle": True}, {"num_workers": 2}, {"batch_size": 1}])
def test_every_epoch_draws_anew(asked: dict[str, Any]) -> None:
    """Also batches of one, and workers that live on; an epoch that is chosen comes again."""
    asked = {"num_neighbors": [2, 2], "batch_size": 20, "seed": 3} | asked
    if "num_workers" in asked:
        asked["persistent_workers"] = True
    loader = NeighborLoader(made(), **asked, generator=seeded())
    epochs = [drawn(loader) for _ in range(3)]
    assert all(map(ne, epochs, epochs[1:])) and epochs[0] != epochs[2]
    again = NeighborLoader(made(), **asked | {"num_workers": 0, "persistent_workers": False})
    again.set_epoch(2)
    if not asked.get("shuffle"):
        assert drawn(again) == epochs[2]


def test_links_draw_other_negatives_in_every_epoch() -> None:
    """Without shuffling too."""
    loader = LinkNeighborLoader(made(), [2], neg_sampling="binary", batch_size=100)

    def negatives() -> list[list[int]]:
        label = [(b, b.edge_label_index[:, b.edge_label == 0]) for b in loader]
        return torch.cat([b.n_id[ends] for b, ends in label], 1).tolist()

    assert negatives() != negatives()


def test_epochs_that_overlap_are_epochs_of_their_own() -> None:
    """Validation in the middle of an epoch, by the same sampler, changes none of its batches."""
    data, sampler = made(), PygSampler(made(), [2, 2])
    asked: dict[str, Any] = {"neighbor_sampler": sampler, "batch_size": 10, "seed": 0}
    alone = drawn(NeighborLoader(data, **asked))
    for workers in (0, 2):
        loader, other = (NeighborLoader(data, **asked, num_workers=w) for w in (workers, 0))
        found = []
        for batch in loader:
            found.append(batch.e_id.tolist())
            drawn(other)
        assert found == alone


def test_torchs_seed_decides_where_none_is_given() -> None:
    """As in PyG: torch.manual_seed makes draws repeatable, in shoal's loaders and in others."""
    from torch_geometric.loader import NodeLoader

    def epoch(seed: int, make: Callable[[], Any]) -> list[list[int]]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return drawn(make())

    data = made()
    for make in (
        lambda: NeighborLoader(data, [2], batch_size=20),
        lambda: NodeLoader(data, PygSampler(data, [2]), batch_size=20),
    ):
        assert epoch(0, make) == epoch(0, make) != epoch(1, make)
    loader = NodeLoader(data, PygSampler(data, [2]), batch_size=20)
    assert drawn(loader) != drawn(loader)


def test_a_seed_that_repeats_is_expanded_as_often() -> None:
    """Each time with its own draws, at its own place; the rows are the graph's, once and again."""
    data = made()
    seeds = torch.tensor([7, 3, 7, 7, 3])
    (batch,) = NeighborLoader(data, [2, 2], seeds, batch_size=5)
    assert batch.batch_size == 5 and torch.equal(batch.n_id[:5], seeds)
    assert torch.equal(batch.x, data.x[batch.n_id]) and torch.equal(batch.y, data.y[batch.n_id])
    assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    rest = batch.n_id[5:]
    assert len(rest.unique()) == len(rest) and not set(rest.tolist()) & {3, 7}
    degree = (data.edge_index[1].bincount()[seeds]).clamp(max=2)
    assert torch.equal(batch.edge_index[1].bincount(minlength=5)[:5], degree)
    draws = {tuple(batch.e_id[batch.edge_index[1] == at].tolist()) for at in (0, 2, 3)}
    assert len(draws) > 1  # node 7 has more than two neighbors


def test_whole_neighborhoods_of_repeated_seeds() -> None:
    """With all neighbors each of them comes out as from the whole graph."""
    data, layers = made(), convs("sage")[0]
    expected = layers[1](layers[0](data.x, data.edge_index).relu(), data.edge_index)
    seeds = torch.tensor([9, 4, 9, 0, 4, 9])
    (batch,) = NeighborLoader(data, [-1, -1], seeds, batch_size=6)
    found = layers[1](layers[0](batch.x, batch.edge_index).relu(), batch.edge_index)
    torch.testing.assert_close(found[:6], expected[seeds])


@pytest.mark.parametrize("workers", [0, 2])
def test_pygs_imbalanced_sampler(workers: int) -> None:
    """It draws nodes with replacement, rare classes as often as others."""
    from torch_geometric.loader import ImbalancedSampler

    data = made()
    data.y = (torch.arange(60) < 6).long()  # one in ten
    sampler = ImbalancedSampler(data.y, num_samples=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loader = NeighborLoader(data, [2], batch_size=50, sampler=sampler, num_workers=workers)
        seen = torch.cat([batch.y[: batch.batch_size] for batch in loader])
    assert len(seen) == 400 and 0.4 < seen.float().mean() < 0.6


def test_it_is_pygs_own_class() -> None:
    """isinstance and subclasses work, arguments come in PyG's order."""
    from torch_geometric import loader as theirs

    class Mine(NeighborLoader):
        def filter_fn(self, out: Any) -> Any:
            return super().filter_fn(out).update({"mine": True})

    loader = Mine(made(), [2], torch.arange(10), None, True, batch_size=5)
    assert isinstance(loader, NeighborLoader) and isinstance(loader, theirs.NeighborLoader)
    assert loader.node_sampler.replace and len(loader) == 2
    assert all(batch.mine for batch in loader)
    assert loader(torch.tensor([3])).n_id[0] == 3  # a batch by hand, as PyG has it
    links = LinkNeighborLoader(made(), [2])
    assert isinstance(links, theirs.LinkNeighborLoader)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("cache", [False, True])
def test_layer_wise_inference(table: bool, cache: bool) -> None:
    """PyG's own models compute all nodes layer by layer, as from the whole graph."""
    from torch_geometric.nn import GraphSAGE

    data = made()
    torch.manual_seed(0)
    model = GraphSAGE(5, 8, 2, 3).eval()
    expected = model(data.x, data.edge_index)
    if table:
        data.x = TieredTable(data.x)
    loader = NeighborLoader(data, [-1], batch_size=16)
    torch.testing.assert_close(model.inference(loader, cache=cache), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["memory", "tiers", "disk"])
def test_tables_give_the_rows_of_a_batch(kind: str, workers: int, tmp_path: Path) -> None:
    """In host memory, in tiers or in a file, of nodes and of edges; a transform sees them cut."""
    data = made()
    np.save(tmp_path / "x.npy", data.x.numpy())
    path = tmp_path / "x.npy"
    made_by = {
        "memory": lambda: TieredTable(data.x),
        "tiers": lambda: TieredTable(path, data.edge_index[1].bincount(minlength=60), host_rows=9),
        "disk": lambda: DiskRows(path),
    }
    other = Data(x=made_by[kind](), edge_attr=TieredTable(data.edge_attr), y=data.y)
    other.edge_index = data.edge_index
    widths = []
    loader = NeighborLoader(
        other, [2, 2], batch_size=16, num_workers=workers,
        transform=lambda batch: batch.update({"wide": batch.x.shape[1]}),
    )  # fmt: skip
    for batch in loader:
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert batch.num_nodes == len(batch.n_id)
        widths.append(batch.wide)
    assert widths == [5] * 4 and loader.data.num_nodes == 60
    assert isinstance(other.x, TieredTable | DiskRows) and "num_nodes" not in other


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning")  # torch says that they are in beta
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo, torch.sparse_csc])
def test_a_sparse_matrix_in_place_of_edges(layout: torch.layout) -> None:
    """What ToSparseTensor makes gives batches with a matrix, and the same numbers."""
    from torch_geometric.transforms import ToSparseTensor

    data = made()
    data.edge_index = data.edge_index.unique(dim=1)  # a matrix holds each edge once
    data.edge_weight = torch.rand(data.num_edges, generator=seeded(1)) + 0.1
    del data.edge_attr
    conv = GraphConv(5, 3)
    expected = conv(data.x, data.edge_index, data.edge_weight)
    matrix = ToSparseTensor(attr="edge_weight", layout=torch.sparse_csr)(data.clone())
    matrix.adj_t = matrix.adj_t.to_sparse(layout=layout)
    for batch in NeighborLoader(matrix, [-1], torch.arange(60), batch_size=20):
        assert batch.adj_t.layout == layout and "edge_index" not in batch
        entries = batch.adj_t.to_sparse_coo().coalesce()
        found = conv(batch.x, entries.indices().flip(0), entries.values())
        torch.testing.assert_close(found[:20], expected[batch.n_id[:20]])
    links = next(iter(LinkNeighborLoader(matrix, [2], batch_size=30)))
    assert links.edge_label_index.shape == (2, 30)


def test_loaders_share_a_sampler() -> None:
    """One copy of the graph for training, validation and PyG's own loaders and data modules."""
    from torch_geometric.loader import NeighborLoader as Theirs

    data = made()
    sampler = PygSampler(data, [2, 2], weight_attr="edge_weight")
    mine = NeighborLoader(data, neighbor_sampler=sampler, batch_size=20)
    theirs = Theirs(data, [2, 2], neighbor_sampler=sampler, batch_size=20)
    links = LinkNeighborLoader(data, [2, 2], neighbor_sampler=sampler, batch_size=20)
    assert mine.node_sampler is theirs.node_sampler is links.link_sampler is sampler
    for loader in (mine, theirs):
        assert sum(batch.batch_size for batch in loader) == 60
    sampler.num_neighbors = [1]
    assert all(batch.edge_index[1].bincount().max() == 1 for batch in mine)


def test_the_usual_script_for_inference() -> None:
    """PyG's example of GraphSAGE: a loader over a shallow copy whose features are then dropped."""
    data = made()
    loader = NeighborLoader(copy.copy(data), [-1], input_nodes=None, batch_size=16)
    del loader.data.x, loader.data.y
    loader.data.num_nodes = data.num_nodes
    loader.data.n_id = torch.arange(data.num_nodes)
    conv = SAGEConv(5, 3)
    parts = [conv(data.x[b.n_id], b.edge_index)[: b.batch_size] for b in loader]
    torch.testing.assert_close(torch.cat(parts), conv(data.x, data.edge_index))


def lightning_batches(*loaders: Any) -> list[list[int]]:
    """The edges of each batch of two epochs in Lightning's Trainer."""
    import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]
    from torch_geometric.nn import GraphSAGE

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = GraphSAGE(5, 8, 2, 2), []

        def training_step(self, batch: Any, index: int) -> Tensor:
            self.seen.append(batch.e_id.tolist())
            out = self.net(batch.x, batch.edge_index)[: batch.batch_size]
            return nn.functional.cross_entropy(out, batch.y[: batch.batch_size])

        def validation_step(self, batch: Any, index: int) -> None:
            pass

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, *loaders)  # fmt: skip
    return module.seen


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_lightning_takes_loaders_and_samplers() -> None:
    """A loader as it is; PyG's data module with shoal's sampler. Epochs draw anew."""
    from torch_geometric.data.lightning import LightningNodeData

    data = made()
    loaders = [NeighborLoader(data, [2, 2], batch_size=20) for _ in range(2)]
    seen = lightning_batches(*loaders)
    assert len(seen) == 6 and seen[:3] != seen[3:]
    data.train_mask = torch.arange(60) < 40
    data.val_mask = data.test_mask = ~data.train_mask
    sampler = PygSampler(data, [2, 2])
    module = LightningNodeData(data, loader="neighbor", node_sampler=sampler, batch_size=20)
    assert len(lightning_batches(module)) == 4


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
def test_accelerate_takes_loaders() -> None:
    """Rebuilt by it, a loader gives the graph's rows, and other draws in every epoch."""
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]

    data = made()
    loader = Accelerator(cpu=True).prepare(NeighborLoader(data, [2, 2], batch_size=20))
    assert sum(batch.batch_size for batch in loader) == 60
    assert all(torch.equal(batch.x, data.x[batch.n_id]) for batch in loader)
    assert drawn(loader) != drawn(loader)


@pytest.mark.extras  # workers that start from nothing import torch
def test_loaders_travel_to_spawned_workers(tmp_path: Path) -> None:
    """With rows that lie in a file, of which the workers map their own."""
    data = made()
    np.save(tmp_path / "x.npy", data.x.numpy())
    for x in (unified(tmp_path / "x.npy"), TieredTable(tmp_path / "x.npy", host_rows=5)):
        other = Data(x=x, edge_index=data.edge_index)
        loader = NeighborLoader(
            other, [2], batch_size=30, num_workers=2, multiprocessing_context="spawn", seed=0
        )
        found = list(loader)
        assert [b.e_id.tolist() for b in found] == drawn(
            NeighborLoader(data, [2], batch_size=30, seed=0)
        )
        assert all(torch.equal(b.x, data.x[b.n_id]) for b in found)


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


def short() -> Data:
    """A table that lacks a row."""
    return Data(x=TieredTable(torch.ones(59, 1)), edge_index=made().edge_index, num_nodes=60)


def _many(**options: Any) -> Callable[[], object]:
    return lambda: NeighborLoader(made(), [2], batch_size=4, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: graph_of(HeteroData()), "data: expected a homogeneous Data"),
        (lambda: PygSampler(HeteroData(), [2]), "data: expected some edges"),
        (lambda: PygSampler(Data(x=torch.ones(2, 1)), [2]), "data: expected an edge_index"),
        (
            lambda: PygSampler((1, 2), [2]),
            "data: expected an edge_index .* got tuple; set it, in a",
        ),
        (lambda: PygSampler(made(), []), "num_neighbors: expected a list of whole numbers"),
        (lambda: PygSampler(made(), [2.5]), "num_neighbors: expected a list of whole numbers"),
        (lambda: PygSampler(made(), 5), "num_neighbors: expected a list of whole numbers"),
        (lambda: PygSampler(made(), {"to": [2]}), "num_neighbors: expected a list of whole"),
        (lambda: PygSampler(made(), [2, -3]), "num_neighbors: expected a list of whole numbers"),
        (lambda: NeighborLoader(made()), "num_neighbors: expected a list .* got None"),
        (lambda: NeighborLoader(Data(adj_t=torch.eye(3)), [2]), "adj_t: expected a sparse tensor"),
        (_many(neighbor_sampler=PygSampler(made(), [3])), r"num_neighbors: expected \[3\], as nei"),
        (
            _many(neighbor_sampler=PygSampler(made(), [2]), replace=True),
            "replace: expected False, as",
        ),
        (
            _many(neighbor_sampler=PygSampler(made(9, 9), [2])),
            "neighbor_sampler: expected one of 60",
        ),
        (_many(seed=-1), "seed: expected a whole number of at least 0"),
        (lambda: PygSampler(made(), [2], weight_attr="w"), r"w: expected one weight an edge"),
        (
            _many(neighbor_sampler=PygSampler(made(), [2]), disjoint=True),
            "disjoint: expected False, as",
        ),
        (_many(subgraph_type="all"), "subgraph_type: expected one of directional, bidirectional, "),
        (_many(temporal_strategy="first"), "temporal_strategy: expected one of uniform, last, got"),
        (_many(temporal_strategy="last"), "temporal_strategy: expected times, got none"),
        (lambda: NeighborLoader(short(), [2]), "x: expected a row a node, 60, got 59; align"),
        (lambda: next(iter(_many(input_nodes=torch.tensor([60]))())), r"ids in \[0, 60\), got 60"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    """Other graphs, counts, weights, samplers, tables and options."""
    with pytest.raises(InputError, match=message):
        call()
