"""What PyG's ``Data`` and ``HeteroData`` say of nodes, edges, weights and times.

A ``Data`` is read as a ``HeteroData`` of one type of nodes and one of edges, both named None.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, fail
from shoal.sample.subgraph import Relation


@dataclass(frozen=True, eq=False)
class Read:
    """A graph as samplers need it.

    Attributes:
        counts: how many nodes of each type there are.
        relations: for each type of edges the in-neighbor lists of its targets.
        order: entry i of a relation is edge ``order[name][i]`` of the data.
        node_times: by type, where times are those of nodes.
    """

    counts: dict[Any, int]
    relations: dict[Any, Relation]
    order: dict[Any, Int[Tensor, " e"]]
    node_times: dict[Any, Shaped[Tensor, " n"]]


def read(data: Any, weight_attr: str | None = None, time_attr: str | None = None) -> Read:
    """Read a ``Data`` or ``HeteroData``.

    Args:
        data: nodes and edges.
        weight_attr: the name of the edges' weights; relations without any are drawn uniformly.
        time_attr: the name of the times of nodes, which types may lack, or of all edges.

    Raises:
        InputError: if ids, weights or times cannot be those of the data.
    """
    edges = {name: edges_of(data, name) for name in relation_names(data)}
    expect(len(edges) > 0, "data", "some edges", type(data).__name__, "give it an edge_index")
    counts = node_counts(data, edges)
    weights = _weights(data, weight_attr, edges)
    node_times, edge_times = _times(data, time_attr, counts, edges)
    relations, order = {}, {}
    for name, edge_index in edges.items():
        src, dst = ends_of(name)
        row, col = edge_index
        for ids, kind, end in ((row, src, 0), (col, dst, 1)):
            expect_ids(f"{label_of(name, 'edge_index')}[{end}]", ids, counts[kind])
        times = edge_times.get(name)
        if src in node_times:
            times = node_times[src][row]
        first = torch.arange(len(row)) if times is None else times.argsort(stable=True)
        csr = Csr.from_coo(col[first], row[first], (counts[dst], counts[src]), first)
        assert csr.values is not None
        order[name] = csr.values
        weight = weights.get(name)
        csr = csr.with_values(None if weight is None else weight[order[name]])
        times = None if times is None else times[order[name]]
        relations[name] = Relation(csr, src, dst, times)
    return Read(counts, relations, order, node_times)


def relation_names(data: Any) -> list[Any]:
    """The types of edges; None for the only one of a ``Data``."""
    return list(data.edge_types) if is_typed(data) else [None]


def is_typed(data: Any) -> bool:
    """Whether it is a ``HeteroData``."""
    return hasattr(data, "edge_types")


def ends_of(name: Any) -> tuple[Any, Any]:
    """The types of nodes that an edge comes from and leads to."""
    return (None, None) if name is None else (name[0], name[-1])


def store_of(data: Any, kind: Any) -> Any:
    """The attributes of a type of nodes or edges."""
    return data if kind is None else data[kind]


def edges_of(data: Any, name: Any) -> Int[Tensor, "2 e"]:
    """Sources and targets of the edges of a type, from ``edge_index`` or else ``adj_t``.

    Raises:
        InputError: if there is neither.
    """
    store = store_of(data, name)
    edge_index, adj_t = getattr(store, "edge_index", None), getattr(store, "adj_t", None)
    if edge_index is None and adj_t is not None:
        return entries_of(adj_t)[0]
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or len(edge_index) != 2:
        want = "an edge_index of shape [2, edges]"
        got = type(data).__name__ if edge_index is None else getattr(edge_index, "shape", "others")
        fail(label_of(name), want, got, "set it, in a Data or HeteroData")
    return edge_index.cpu().long()


def entries_of(adj_t: Any) -> tuple[Int[Tensor, "2 e"], Tensor]:
    """Edges and values of the transposed adjacency matrix that PyG's ``ToSparseTensor`` makes.

    Args:
        adj_t: a sparse tensor of torch's, of any layout; entry (v, u) is an edge from u to v.

    Raises:
        InputError: if it is another kind of matrix.

    Example:
        >>> entries_of(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_coo())
        (tensor([[1],
                [0]]), tensor([2.]))
    """
    sparse = isinstance(adj_t, Tensor) and adj_t.layout != torch.strided
    remedy = "make it by ToSparseTensor(layout=torch.sparse_csr), or keep edge_index"
    expect(sparse, "adj_t", "a sparse tensor of torch's", type(adj_t).__name__, remedy)
    entries = adj_t.cpu().to_sparse_coo().coalesce()
    return entries.indices().flip(0), entries.values()


def node_counts(data: Any, edges: Mapping[Any, Int[Tensor, "2 e"]]) -> dict[Any, int]:
    """How many nodes of each type there are.

    A type that has no attribute at all has as many as its edges show.

    Raises:
        InputError: if a type's attributes do not tell.
    """
    if not is_typed(data):
        return {None: int(data.num_nodes)}
    counts = dict.fromkeys(data.node_types, 0)
    for name, edge_index in edges.items():
        for kind, ids in zip(ends_of(name), edge_index, strict=True):
            shown = int(ids.max()) + 1 if len(ids) else 0
            counts[kind] = max(counts.get(kind, 0), shown)
    for kind in data.node_types:
        store = data[kind]
        if len(store):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where PyG cannot tell, the error below does
                told = store.num_nodes
            label = label_of(kind, "num_nodes")
            expect(told is not None, label, "a number", "no x that tells it", f"set {label}")
            counts[kind] = int(told)
    return counts


def _weights(
    data: Any, attr: str | None, edges: Mapping[Any, Int[Tensor, "2 e"]]
) -> dict[Any, Shaped[Tensor, " e"]]:
    """The weights of the relations that have any."""
    if attr is None:
        return {}
    found = _having(data, attr, edges)
    expect(len(found) > 0, attr, "one weight an edge", "none", "set it in data")
    for name, x in found.items():
        want = f"one weight an edge, [{edges[name].shape[1]}]"
        good = isinstance(x, Tensor) and x.shape == edges[name][0].shape
        expect(good, label_of(name, attr), want, getattr(x, "shape", x), "set it in data")
    return {name: x.cpu() for name, x in found.items()}


def _times(
    data: Any,
    attr: str | None,
    counts: Mapping[Any, int],
    edges: Mapping[Any, Int[Tensor, "2 e"]],
) -> tuple[dict[Any, Shaped[Tensor, " n"]], dict[Any, Shaped[Tensor, " e"]]]:
    """The times of the nodes or of the edges, by type; one of the two is empty."""
    if attr is None:
        return {}, {}
    of_nodes, of_edges = _having(data, attr, counts), _having(data, attr, edges)
    if not is_typed(data) and of_nodes:  # one value, of either: PyG's rule for names decides a tie
        length, n, e = len(of_nodes[None]), counts[None], edges[None].shape[1]
        drop = of_edges if length == n and (n != e or "edge" not in attr) else of_nodes
        drop.clear()
    want = "times of nodes or of edges"
    expect(bool(of_nodes or of_edges), attr, want, "none", "set them in data")
    expect(not (of_nodes and of_edges), attr, f"{want}, not of both", "both", "rename those of one")
    for name in edges if of_edges else ():
        remedy = "set them; what always was has the earliest time"
        expect(name in of_edges, label_of(name, attr), "times, as other edges have", "none", remedy)
    return (
        {k: times_of(label_of(k, attr), x, counts[k], "a node") for k, x in of_nodes.items()},
        {
            k: times_of(label_of(k, attr), x, edges[k].shape[1], "an edge")
            for k, x in of_edges.items()
        },
    )


def times_of(label: str, times: Any, n: int, whose: str) -> Shaped[Tensor, " n"]:
    """Times in int64, or in float64 without NaN.

    Args:
        label: what to call them in an error.
        times: a vector of numbers, in any unit.
        n: how many there must be.
        whose: what has one: ``"a node"``, say.

    Raises:
        InputError: if they are not ``n`` finite numbers.

    Example:
        >>> times_of("time", torch.tensor([3, 1], dtype=torch.int16), 2, "a node")
        tensor([3, 1])
    """
    real = isinstance(times, Tensor) and not times.is_complex() and times.dtype != torch.bool
    shape = tuple(getattr(times, "shape", ())) if real else type(times).__name__
    expect(real and shape == (n,), label, f"one time {whose}, [{n}]", shape, "align them")
    if not times.is_floating_point():
        return times.cpu().long()
    remedy = "drop what has no time, or give it the earliest one"
    expect(bool(times.isfinite().all()), label, "finite times", "NaN or infinity", remedy)
    return times.cpu().double()


def _having(data: Any, attr: str, kinds: Mapping[Any, Any]) -> dict[Any, Any]:
    """The attribute of each type that has it."""
    known = [None, *getattr(data, "node_types", ()), *getattr(data, "edge_types", ())]
    found = {kind: getattr(store_of(data, kind), attr, None) for kind in kinds if kind in known}
    return {kind: x for kind, x in found.items() if x is not None}


def label_of(kind: Any, attr: str | None = None) -> str:
    """How a user writes it."""
    if kind is None:
        return attr or "data"
    return f"data[{kind!r}]" + (f".{attr}" if attr else "")
