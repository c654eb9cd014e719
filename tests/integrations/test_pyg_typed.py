"""PyG's loaders with shoal's sampler on typed nodes and edges, and in time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal.core.errors import InputError
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import unified
from shoal.integrations.pyg import LinkNeighborLoader, NeighborLoader, PygSampler

pyg = pytest.importorskip("torch_geometric", reason="needs the extra pyg")
from torch_geometric.data import Data, HeteroData  # noqa: E402
from torch_geometric.nn import HeteroConv, SAGEConv, to_hetero  # noqa: E402

# workers are forked beside torch's threads, and may be more than there are cores
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]
BUYS, BOUGHT = ("user", "buys", "item"), ("item", "bought", "user")
KNOWS, OF = ("user", "knows", "user"), ("tag", "of", "item")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shop() -> HeteroData:
    """Users and items with rows of different widths, tags without any, times of all edges."""
    data = HeteroData()
    generator = seeded()
    data["user"].x = torch.randn(40, 5, generator=generator)
    data["item"].x = torch.randn(30, 7, generator=generator)
    data["tag"].num_nodes = 9
    data["item"].y = torch.randint(2, (30,), generator=generator)
    for (src, name, dst), e in ((BUYS, 200), (KNOWS, 90), (OF, 60)):
        n, m = data[src].num_nodes, data[dst].num_nodes
        ends = (
            torch.randint(n, (e,), generator=generator),
            torch.randint(m, (e,), generator=generator),
        )
        data[src, name, dst].edge_index = torch.stack(ends)
        data[src, name, dst].time = torch.randint(100, (e,), generator=generator)
    data[BUYS].edge_attr = torch.randn(200, 3, generator=generator)
    data[BOUGHT].edge_index, data[BOUGHT].time = data[BUYS].edge_index.flip(0), data[BUYS].time
    return data


def check(batch: Any, data: Any) -> None:
    """Rows and edges of a batch are those of its ids."""
    for kind in data.node_types:
        assert "n_id" in batch[kind] and batch[kind].num_nodes == len(batch[kind].n_id)
        if "x" in data[kind]:
            assert torch.equal(batch[kind].x, data[kind].x[batch[kind].n_id])
    for kind in data.edge_types:
        edges, (row, col) = data[kind].edge_index[:, batch[kind].e_id], batch[kind].edge_index
        assert torch.equal(torch.stack([batch[kind[0]].n_id[row], batch[kind[2]].n_id[col]]), edges)
        assert torch.equal(batch[kind].time, data[kind].time[batch[kind].e_id])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("per_relation", [False, True])
def test_a_batch_holds_the_graphs_own_rows_and_edges(workers: int, per_relation: bool) -> None:
    """In place or by workers; no node draws more edges of a type than were asked for."""
    data, asked = shop(), {BUYS: [3, 2], BOUGHT: [1, 4], KNOWS: [2, 2], OF: [1, 3]}
    counts: Any = asked if per_relation else [3, 2]
    loader = NeighborLoader(data, counts, ("item", None), batch_size=8, num_workers=workers)
    batches = list(loader)
    seeds = torch.cat([batch["item"].n_id[: batch["item"].batch_size] for batch in batches])
    assert torch.equal(seeds, torch.arange(30))
    for batch in batches:
        check(batch, data)
        assert torch.equal(batch[BUYS].edge_attr, data[BUYS].edge_attr[batch[BUYS].e_id])
        for kind in data.edge_types:
            most = asked[kind] if per_relation else [3, 2]
            col, hops = batch[kind].edge_index[1], batch[kind].num_sampled_edges
            for k, part in zip(most, col.split(hops), strict=True):
                assert len(part) == 0 or part.bincount().max() <= k
        for kind in data.node_types:
            assert sum(batch[kind].num_sampled_nodes) == len(batch[kind].n_id)
    assert sum(len(batch[OF].e_id) for batch in batches) > 0


def test_epochs_and_workers() -> None:
    """A batch is a function of seed, epoch and number; loaders and samplers travel."""

    def drawn(loader: Any) -> list[list[int]]:
        return [batch[BUYS].e_id.tolist() for batch in loader]

    asked: dict[str, Any] = {"input_nodes": "item", "batch_size": 10, "seed": 3}
    loader = NeighborLoader(shop(), [2, 2], **asked)
    epochs = [drawn(loader) for _ in range(2)]
    assert epochs[0] != epochs[1]
    again = NeighborLoader(shop(), [2, 2], **asked, num_workers=2)
    assert [drawn(again) for _ in range(2)] == epochs
    sampler = pickle.loads(pickle.dumps(PygSampler(shop(), [2, 2])))
    shared = NeighborLoader(shop(), neighbor_sampler=sampler, **asked)
    assert drawn(shared) == epochs[0]
    links = LinkNeighborLoader(shop(), [2, 2], BUYS, neighbor_sampler=sampler, batch_size=50)
    assert len(list(links)) == 4


@pytest.mark.parametrize(
    "options", [{}, {"disjoint": True}, {"replace": True}, {"time_attr": "time"}]
)
def test_one_type_and_relation_is_the_homogeneous_graph(options: dict[str, Any]) -> None:
    """The same draws, ids and numbering, of nodes and of links with negatives."""
    edge_index = torch.randint(50, (2, 300), generator=seeded())
    time = torch.randint(9, (50,), generator=seeded(1))
    plain = Data(edge_index=edge_index, num_nodes=50, time=time)
    typed = HeteroData()
    typed["n"].num_nodes, typed["n"].time, typed["n", "to", "n"].edge_index = 50, time, edge_index
    asked: dict[str, Any] = {"num_neighbors": [4, 3], "batch_size": 20, "seed": 1} | options
    ones = NeighborLoader(plain, input_nodes=None, **asked)
    for one, other in zip(ones, NeighborLoader(typed, input_nodes="n", **asked), strict=True):
        assert torch.equal(one.n_id, other["n"].n_id)
        assert torch.equal(one.edge_index, other["n", "to", "n"].edge_index)
        assert torch.equal(one.e_id, other["n", "to", "n"].e_id)
    asked["neg_sampling"] = "triplet"
    if "time_attr" in asked:
        asked["edge_label_time"] = torch.full((300,), 5)
    links = LinkNeighborLoader(typed, edge_label_index=("n", "to", "n"), **asked)
    for one, other in zip(LinkNeighborLoader(plain, **asked), links, strict=True):
        assert torch.equal(one.n_id, other["n"].n_id)
        assert torch.equal(one.dst_neg_index, other["n"].dst_neg_index)


class Net(nn.Module):
    """Two layers, as PyG's documentation of to_hetero writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = SAGEConv((-1, -1), 8), SAGEConv((-1, -1), 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.first(x, edge_index).relu(), edge_index)


class Conv(nn.Module):
    """The same by HeteroConv."""

    def __init__(self, kinds: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HeteroConv({kind: SAGEConv((-1, -1), width) for kind in kinds}) for width in (8, 2)
        )

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> dict[str, Tensor]:
        for i, layer in enumerate(self.layers):
            x = {kind: rows.relu() if i else rows for kind, rows in x.items()}
            x = {**x, **layer(x, edges)} if i == 0 else layer(x, edges)
        return x


def featured() -> HeteroData:
    data = shop()
    data["tag"].x = torch.eye(9)
    return data


@pytest.mark.parametrize("kind", ["to_hetero", "HeteroConv"])
def test_relational_models(kind: str) -> None:
    """With all neighbors a batch gives the whole graph's rows; by sampled ones it trains."""
    data = featured()
    data[("item", "in", "tag")].edge_index = data[OF].edge_index.flip(0)
    data[("item", "in", "tag")].time = data[OF].time
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = to_hetero(Net(), data.metadata()) if kind == "to_hetero" else Conv(data.edge_types)
        with torch.no_grad():
            expected = model(data.x_dict, data.edge_index_dict)["item"]  # also makes lazy weights
    ids = torch.tensor([4, 0, 29])
    (batch,) = NeighborLoader(data, [-1, -1], ("item", ids), batch_size=3)
    found = model(batch.x_dict, batch.edge_index_dict)["item"][:3]
    torch.testing.assert_close(found, expected[ids])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    loader = NeighborLoader(data, [4, 4], "item", batch_size=15, shuffle=True, seed=0)
    for _ in range(10):
        total = 0.0
        for batch in loader:
            size = batch["item"].batch_size
            out = model(batch.x_dict, batch.edge_index_dict)["item"][:size]
            loss = nn.functional.cross_entropy(out, batch["item"].y[:size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.7 * losses[0]


def test_tables_of_each_type(tmp_path: Path) -> None:
    """In host memory, in tiers and in a file, of nodes and of edges; PyG counts their rows."""
    data, other = featured(), featured()
    np.save(tmp_path / "items.npy", data["item"].x.numpy())
    other["user"].x = unified(data["user"].x)
    other["item"].x = TieredTable(tmp_path / "items.npy", host_rows=9)
    other["tag"].x = DiskRows(
        tmp_path / "items.npy",
    )
    other["tag"].x = TieredTable(data["tag"].x)
    other[BUYS].edge_attr = TieredTable(data[BUYS].edge_attr)
    for workers in (0, 2):
        for batch in NeighborLoader(other, [3, 2], "item", batch_size=16, num_workers=workers):
            check(batch, data)
            assert torch.equal(batch[BUYS].edge_attr, data[BUYS].edge_attr[batch[BUYS].e_id])
    assert isinstance(other["item"].x, TieredTable) and "num_nodes" not in other["item"]


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning")
def test_sparse_matrices_in_place_of_edges() -> None:
    """What ToSparseTensor makes of each relation gives batches with matrices of the same edges."""
    from torch_geometric.transforms import ToSparseTensor

    data = featured()
    for kind in data.edge_types:
        data[kind].edge_index = data[kind].edge_index.unique(dim=1)  # a matrix holds an edge once
        for name in ("time", "edge_attr"):
            data[kind].pop(name, None)
    layout: Any = torch.sparse_csr  # PyG's annotation says int
    matrix = ToSparseTensor(layout=layout)(data.clone())
    for batch in NeighborLoader(matrix, [-1, -1], ("item", torch.arange(10)), batch_size=10):
        for kind in data.edge_types:
            row, col = batch[kind].adj_t.to_sparse_coo().coalesce().indices().flip(0)
            ends = batch[kind[0]].n_id[row], batch[kind[2]].n_id[col]
            found = set(zip(*(x.tolist() for x in ends), strict=True))
            assert found <= set(map(tuple, data[kind].edge_index.T.tolist())) and found


def test_a_type_of_which_nothing_is_said() -> None:
    """Its nodes are those that its edges show; batches have their ids alone."""
    data = HeteroData()
    data["a"].x = torch.randn(4, 2)
    data["b", "to", "a"].edge_index = torch.tensor([[0, 7, 2], [1, 1, 3]])
    (batch,) = NeighborLoader(data, [-1], "a", batch_size=4)
    assert batch["b"].n_id.tolist() == [0, 7, 2] and "x" not in batch["b"]
    assert batch["b", "to", "a"].edge_index.tolist() == [[0, 1, 2], [1, 1, 3]]


def in_time(batch: Any, data: Any, seed_time: Tensor, at: str) -> int:
    """See that no edge, or no node, is later than its tree's seed; returns how many were seen."""
    seen = 0
    for kind in data.edge_types if at == "edges" else data.node_types:
        if "time" not in data[kind]:
            continue
        if at == "edges":
            tree = batch[kind[2]].batch[batch[kind].edge_index[1]]
            assert torch.equal(tree, batch[kind[0]].batch[batch[kind].edge_index[0]])
        else:
            tree = batch[kind].batch
        assert (batch[kind].time <= seed_time[tree]).all()
        seen += len(tree)
    return seen


@pytest.mark.filterwarnings("ignore:Cannot convert to bidirectional:UserWarning")  # tags have none
@pytest.mark.parametrize("strategy", ["uniform", "last"])
@pytest.mark.parametrize("kind", ["directional", "bidirectional", "induced"])
def test_nothing_comes_from_the_future(strategy: str, kind: str) -> None:
    """Edges by their own times, of whatever subgraph; seeds have times of their own."""
    data, times = shop(), torch.randint(100, (30,), generator=seeded(3))
    loader = NeighborLoader(
        data, [4, 4], "item", times, batch_size=10, time_attr="time", subgraph_type=kind,
        temporal_strategy=strategy,
    )  # fmt: skip
    seen = 0
    for batch in loader:
        assert torch.equal(batch["item"].seed_time, times[batch["item"].input_id])
        if kind == "bidirectional":
            assert (
                batch[BUYS]
                .edge_index.flip(0)
                .unique(dim=1)
                .equal(batch[BOUGHT].edge_index.unique(dim=1))
            )
            continue
        seen += in_time(batch, data, batch["item"].seed_time, "edges")
    assert seen > 50 or kind == "bidirectional"


@pytest.mark.parametrize("link", [False, True])
def test_times_of_nodes(link: bool) -> None:
    """Seeds have their own by default; types without any are of all times."""
    data = shop()
    for kind in data.edge_types:
        del data[kind].time
    data["user"].time = torch.rand(40, generator=seeded(4))
    data["item"].time = torch.rand(30, generator=seeded(5))
    asked: dict[str, Any] = {"num_neighbors": [-1, -1], "time_attr": "time", "batch_size": 10}
    if link:
        label_time = torch.full((200,), 0.7)
        asked |= {"edge_label_index": BUYS, "edge_label_time": label_time}
        loader = LinkNeighborLoader(data, neg_sampling="binary", **asked)
    else:
        loader = NeighborLoader(data, input_nodes="item", **asked)
    tags = 0
    for batch in loader:
        seed_time = (
            batch[BUYS].edge_label_time if link else data["item"].time[batch["item"].input_id]
        )
        if not link:
            assert in_time(batch, data, seed_time, "nodes") > 0
        else:  # seeds are given, the nodes that they found are not late
            for kind in ("user", "item"):
                found = batch[kind].time[batch[kind].num_sampled_nodes[0] :]
                assert (found <= 0.7).all()
            late = data["user"].time[batch["user"].n_id[batch[BUYS].edge_label_index[0]]] > 0.7
            assert not late[10:].any()  # negatives
        tags += len(batch["tag"].n_id)
    assert tags > 0


def test_the_last_are_the_latest() -> None:
    """Of a node's neighbors at its time, the k that came last."""
    edge_index = torch.stack([torch.arange(1, 9), torch.zeros(8, dtype=torch.int64)])
    order = torch.randperm(8, generator=seeded())
    data = Data(edge_index=edge_index[:, order], num_nodes=9, time=torch.arange(8)[order])
    data.time = torch.arange(8)[order]
    (batch,) = NeighborLoader(
        data, [3], torch.tensor([0]), input_time=[5], time_attr="time", temporal_strategy="last"
    )
    assert sorted(batch.n_id[batch.edge_index[0]].tolist()) == [4, 5, 6]  # times 3, 4 and 5


def test_disjoint_trees() -> None:
    """A node stands in each tree by itself, and both ends of an edge in one."""
    data = featured()
    (batch,) = NeighborLoader(data, [3, 3], "item", batch_size=30, disjoint=True)
    check(batch, data)
    assert torch.equal(batch["item"].batch[:30], torch.arange(30))
    for kind in data.node_types:
        pairs = torch.stack([batch[kind].batch, batch[kind].n_id])
        assert pairs.unique(dim=1).shape == pairs.shape
    for kind in data.edge_types:
        row, col = batch[kind].edge_index
        assert torch.equal(batch[kind[0]].batch[row], batch[kind[2]].batch[col])


@pytest.mark.parametrize("mode", [None, "binary", "triplet"])
@pytest.mark.parametrize("disjoint", [False, True])
def test_links_of_one_relation(mode: str | None, disjoint: bool) -> None:
    """Positives are the seeds' own edges, negatives as many; trees of a pair have one number."""
    data = shop()
    asked: dict[str, Any] = {"batch_size": 50, "neg_sampling": mode, "disjoint": disjoint}
    for batch in LinkNeighborLoader(data, [3, 2], BUYS, **asked):
        check(batch, data)
        seeds = data[BUYS].edge_index[:, batch[BUYS].input_id]
        if mode == "triplet":
            ends = batch["user"].src_index, batch["item"].dst_pos_index
            assert batch["item"].dst_neg_index.shape == (50,)
        else:
            ends = batch[BUYS].edge_label_index[:, :50]
            whole = 100 if mode else 50
            assert batch[BUYS].edge_label_index.shape == (2, whole)
        found = batch["user"].n_id[ends[0]], batch["item"].n_id[ends[1]]
        assert torch.equal(torch.stack(found), seeds)
        if disjoint:
            assert torch.equal(batch["user"].batch[ends[0]], batch["item"].batch[ends[1]])


def test_pygs_own_loaders_and_counts_take_the_sampler() -> None:
    """A sampler of typed nodes in PyG's NodeLoader, with a default for types that are not named."""
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import NumNeighbors

    data = shop()
    # PyG learns that it is one of its samplers where it is made
    sampler: Any = PygSampler(data, NumNeighbors({BUYS: [1, 0]}, default=[0, 2]))
    for batch in NodeLoader(data, sampler, ("item", None), batch_size=10):
        check(batch, data)
        assert batch[BUYS].edge_index[1].bincount().max() == 1
        assert batch[KNOWS].num_sampled_edges[0] == 0 < batch[KNOWS].num_sampled_edges[1]


def test_both_ways_on_one_type() -> None:
    """Sampled edges and their reverses, each once, with the ids of those that were drawn."""
    edge_index = torch.randint(50, (2, 300), generator=seeded())
    data = Data(edge_index=edge_index, num_nodes=50)
    for batch in NeighborLoader(data, [3, 2], batch_size=20, subgraph_type="bidirectional"):
        pairs = batch.edge_index.unique(dim=1)
        assert pairs.shape == batch.edge_index.shape
        assert torch.equal(pairs, batch.edge_index.flip(0).unique(dim=1))
        drawn = edge_index[:, batch.e_id]
        ends = batch.n_id[batch.edge_index]
        assert ((ends == drawn) | (ends.flip(0) == drawn)).all()


def test_weights_of_some_relations() -> None:
    """Edges of weight zero are never drawn; relations without weights are drawn uniformly."""
    data = shop()
    data[BUYS].w = (torch.arange(200) % 2).float()
    (batch,) = NeighborLoader(data, [100], "item", batch_size=30, weight_attr="w")
    assert torch.equal(batch[BUYS].e_id.sort().values, torch.arange(1, 200, 2))
    assert len(batch[OF].e_id) == 60


def spoilt(change: Callable[[HeteroData], object]) -> HeteroData:
    data = shop()
    change(data)
    return data


def load(change: Callable[[HeteroData], object] = lambda _: None, /, **options: Any) -> Any:
    asked: dict[str, Any] = {"num_neighbors": [2], "input_nodes": "item", "batch_size": 30}
    return lambda: next(iter(NeighborLoader(spoilt(change), **asked | options)))


def links(**options: Any) -> Any:
    asked: dict[str, Any] = {"num_neighbors": [2], "edge_label_index": BUYS, "batch_size": 30}
    return lambda: next(iter(LinkNeighborLoader(shop(), **asked | options)))


def late(data: HeteroData) -> None:
    data[BUYS].edge_index[0, 5] = 40


def cut(data: HeteroData) -> None:
    data[KNOWS].time = data[KNOWS].time[:-1]


def nan(data: HeteroData) -> None:
    for kind in data.edge_types:
        data[kind].time = data[kind].time.float()
    data[KNOWS].time[3] = float("nan")


NOW: dict[str, Any] = {"time_attr": "time", "input_time": torch.zeros(30)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            load(late),
            r"data\[\('user', 'buys', 'item'\)\].edge_index\[0\]: expected ids in \[0, 40\)",
        ),
        (
            load(lambda d: d["tag"].update({"num_nodes": 3})),
            r"'of', 'item'\)\].edge_index\[0\]: expec",
        ),
        (
            load(nan, **NOW),
            r"'knows', 'user'\)\].time: expected finite times, got NaN or infinity; ",
        ),
        (
            load(cut, **NOW),
            r"'knows', 'user'\)\].time: expected one time an edge, \[90\], got \(89,",
        ),
        (
            load(lambda d: d[OF].pop("time"), **NOW),
            r"'of', 'item'\)\].time: expected times, as other",
        ),
        (
            load(lambda d: d["tag"].update({"time": torch.zeros(9)}), **NOW),
            "time: expected .* not of",
        ),
        (load(time_attr="when"), "when: expected times of nodes or of edges, got none; set them"),
        (load(time_attr="time"), "times of seeds: expected times, got none; pass input_time or"),
        (load(input_time=torch.zeros(30)), "input_time: expected time_attr beside it, got none"),
        (
            load(**NOW | {"input_time": torch.zeros(29)}),
            r"input_time: expected one time a seed, \[30",
        ),
        (
            load(**NOW | {"input_time": [float("nan")] * 30}),
            "input_time: expected finite times, got",
        ),
        (
            load(input_nodes="shop"),
            r"input_nodes: expected \(type, ids\) or a type among .* got shop",
        ),
        (
            load(input_nodes=None),
            r"input_nodes: expected \(type, ids\) or a type among .* got None",
        ),
        (load(input_nodes=torch.arange(3)), r"input_nodes: expected .* got Tensor; name one"),
        (
            load(input_nodes=("item", torch.tensor([30]))),
            r"seeds of item: expected ids in \[0, 30\)",
        ),
        (
            load(num_neighbors={BUYS: [2]}),
            r"num_neighbors: expected a list for \('user', 'knows', 'user'\), got none; add it",
        ),
        (
            load(num_neighbors={("a", "b", "c"): [2]}),
            "num_neighbors: expected types of edges among",
        ),
        (
            load(num_neighbors={1: [2]}),
            "num_neighbors: expected a list for each type of edges, got",
        ),
        (
            load(num_neighbors={BUYS: [2], BOUGHT: [2], KNOWS: [2, 2], OF: [1]}),
            r"num_neighbors: expected as many hops for each, got \[1, 2\]; fill up",
        ),
        (load(weight_attr="w"), "w: expected one weight an edge, got none; set it in data"),
        (
            load(lambda d: d[OF].pop("edge_index")),
            r"'of', 'item'\)\]: expected an edge_index of shape",
        ),
        (
            load(lambda d: d["tag"].update({"num_nodes": None, "y": torch.zeros(9)})),
            r"data\['tag'\].num_nodes: expected a number, got no x",
        ),
        (
            links(edge_label_index=("user", "sells", "item")),
            "edge_label_index: expected .* got .*sells",
        ),
        (links(edge_label_index=None), "edge_label_index: expected .* got None; name one"),
        (links(time_attr="time"), "edge_label_time: expected times beside time_attr, got none"),
        (links(edge_label_time=torch.zeros(200)), "edge_label_time: expected time_attr beside it"),
        (
            links(disjoint=True, neg_sampling={"mode": "binary", "amount": 0.5}),
            "neg_sampling: expected a whole number of negatives a tree, got 0.5; round it",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call: Callable[[], object], message: str) -> None:
    """Ids, times, seeds, counts and weights that cannot be meant."""
    with pytest.raises(InputError, match=message) as found:
        call()
    assert "\n" not in str(found.value)
