"""The classes behind :mod:`shoal.integrations.pyg`'s loaders; importing this needs PyG.

They are PyG's ``NeighborLoader`` and ``LinkNeighborLoader``: ``isinstance``, subclasses, layer-wise
``inference`` and everything that a script does with a loader are PyG's own. Three things are not.
The sampler is shoal's. Batches are numbered, and their draws are a function of (seed, epoch,
number); the epoch advances with each iteration. And attributes that PyG cannot cut, tables that lie
in several memories and torch's sparse matrices, are cut by a transform.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch_geometric.loader as theirs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data, HeteroData

from shoal.core.errors import expect
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.integrations.pyg import PygSampler, drawing_from
from shoal.integrations.pyg_data import (
    edges_of,
    ends_of,
    entries_of,
    label_of,
    node_counts,
    relation_names,
    store_of,
    times_of,
)

_TABLES = (TieredTable, DiskRows)
# What both of PyG's loaders and the sampler take, and what it is by default.
_LAW = {
    "replace": False,
    "weight_attr": None,
    "time_attr": None,
    "temporal_strategy": "uniform",
    "disjoint": False,
    "subgraph_type": "directional",
}


@dataclass(frozen=True)
class Numbered:
    """The positions of a batch, and the stream of its draws: (seed, epoch, number)."""

    index: Any
    stream: tuple[int, int, int]


class Positions(Dataset):
    """``range(n)`` that hands on what it is asked for, a whole batch at once."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        """How many there are."""
        return self.n

    def __getitem__(self, index: Any) -> Any:
        """What was asked for."""
        return index

    __getitems__ = __getitem__  # torch's DataLoader asks so for a batch


@dataclass(frozen=True)
class Numbering:
    """Batches of positions that are numbered; each iteration is the loader's next epoch."""

    batches: Any
    loader: _Loader

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Numbered]:
        """Begin the next epoch with the first batch: torch may ask for iterators that it drops.

        Yields:
            positions with the stream of their draws.
        """
        loader = self.loader
        seed = torch.initial_seed() if loader.seed is None else loader.seed
        epoch, loader.epoch = loader.epoch, loader.epoch + 1
        for k, index in enumerate(self.batches):
            yield Numbered(index, (seed, epoch, k))


@dataclass(frozen=True)
class Cut:
    """A transform of batches: tables become the rows of the batch, and edges a matrix.

    Attributes:
        tables: by the type of their nodes or edges and the name of their attribute.
        matrices: layout and values of the matrices that edges came from, by the edges' type.
        then: the user's transform.
    """

    tables: dict[tuple[Any, str], Any]
    matrices: dict[Any, tuple[torch.layout, Tensor]]
    then: Callable[[Any], Any] | None

    def __call__(self, batch: Any) -> Any:
        """Cut a batch."""
        for (kind, name), table in self.tables.items():
            store = store_of(batch, kind)
            ids = store.get("e_id") if _of_edges(kind, name) else store.n_id
            store[name] = None if ids is None else table.gather(ids)  # as PyG does without e_id
        for kind, (layout, values) in self.matrices.items():
            store = store_of(batch, kind)
            ends, shape = store.edge_index.flip(0), store.size()[::-1]
            matrix = torch.sparse_coo_tensor(ends, values[store.e_id], shape)
            store.adj_t = matrix.coalesce().to_sparse(layout=layout)
            del store.edge_index
        return batch if self.then is None else self.then(batch)


class _Loader(DataLoader):
    """What both loaders add to PyG's."""

    _seeds: str  # PyG's names of the arguments that hold them and their times
    _seed_times: str
    input_data: Any

    def __init__(
        self,
        data: Any,
        num_neighbors: Any = None,
        *args: Any,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        whole = seed is None or (isinstance(seed, int) and seed >= 0)
        expect(whole, "seed", "a whole number of at least 0, or None", seed, "raise it")
        asked = signature(super().__init__).bind(data, num_neighbors, *args, **options).arguments
        asked |= asked.pop("kwargs", {})
        if not asked.pop("directed", True):  # its former name
            asked["subgraph_type"] = "induced"
        data, asked["transform"] = _cuttable(data, asked.get("transform"))
        _expect_type(self._seeds, asked.get(self._seeds), data)
        asked[self._seed_times] = _seed_times(self._seed_times, asked)
        sampler = _sampler(data, asked)
        super().__init__(**asked | {"data": data, "neighbor_sampler": sampler})
        n = len(self.dataset)  # pyright: ignore[reportArgumentType]
        if self.input_data.time is not None:
            times_of(self._seed_times, self.input_data.time, n, "a seed")
        # torch lets nobody set it afterwards, and PyG leaves no room before
        vars(self)["dataset"] = Positions(n)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; without a call it is the next one."""
        self.epoch = epoch

    @property
    def _index_sampler(self) -> Any:
        return Numbering(super()._index_sampler, self)

    def collate_fn(self, index: Any) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sample a subgraph for a batch of positions."""
        ours = super().collate_fn  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(index, Numbered):  # called as loader(index), or rebuilt by a library
            return ours(index)
        with drawing_from(index.stream):
            return ours(index.index)


class NeighborLoader(_Loader, theirs.NeighborLoader):
    """PyG's ``NeighborLoader`` with shoal's sampler.

    Args:
        data: a ``Data`` or ``HeteroData``; the ``x`` of each type may be a
            :class:`~shoal.UnifiedTensor` or a :class:`~shoal.TieredTable`, and a sparse ``adj_t``
            may stand in place of edges.
        num_neighbors: as in :class:`~shoal.integrations.pyg.PygSampler`, and so are ``replace``,
            ``weight_attr``, ``time_attr``, ``temporal_strategy``, ``disjoint`` and
            ``subgraph_type``; may be left out beside ``neighbor_sampler``.
        args: PyG's other arguments in its own order, ``input_nodes`` first.
        seed: of all draws; None takes ``torch.initial_seed()`` whenever an epoch begins, so that
            ``torch.manual_seed`` decides.
        options: and by name: ``input_nodes`` (ids, a mask, or None for all; of a ``HeteroData`` a
            type, or a type and one of these; repeats allowed), ``input_time`` (the seeds' times, by
            default those of the nodes), ``batch_size``, ``shuffle``, ``num_workers``,
            ``transform``, ``neighbor_sampler`` (a PygSampler that several loaders share), …

    Raises:
        InputError: if seeds or their times are not of the data, or as PygSampler.
    """

    _seeds, _seed_times = "input_nodes", "input_time"


class LinkNeighborLoader(_Loader, theirs.LinkNeighborLoader):
    """PyG's ``LinkNeighborLoader`` with shoal's sampler.

    Args:
        data: as for :class:`NeighborLoader`. Edges that are to be predicted should not stand in it:
            ``RandomLinkSplit`` sees to that for validation and test, and for training with
            ``disjoint_train_ratio``.
        num_neighbors: as for :class:`NeighborLoader`.
        args: PyG's other arguments in its own order, ``edge_label_index`` first.
        seed: of all draws, negatives too; as for :class:`NeighborLoader`.
        options: and by name: ``edge_label_index`` (``[2, edges]``, or None for all;
            of a ``HeteroData`` a type of edges, or a type and these), ``edge_label``,
            ``edge_label_time`` (needed beside ``time_attr``), ``neg_sampling``, ``batch_size``, …

    Raises:
        InputError: as :class:`NeighborLoader`.
    """

    _seeds, _seed_times = "edge_label_index", "edge_label_time"


def _expect_type(name: str, given: Any, data: Any) -> None:
    """See that the seeds of a ``HeteroData`` are of a type that is there."""
    if not isinstance(data, HeteroData):
        return
    nodes = {*data.node_types, *(end for kind in data.edge_types for end in ends_of(kind))}
    kind, alone = given, True  # a type alone means all of its nodes or edges
    if isinstance(given, tuple | list) and not all(isinstance(x, str) for x in given):
        kind, alone = given[0], False
    if name == "input_nodes":
        kind = kind[0] if isinstance(kind, list | tuple) else kind
        among, good = sorted(nodes), isinstance(kind, str) and kind in nodes
    else:
        among = data.edge_types
        triple = isinstance(kind, list | tuple) and len(kind) in (2, 3)
        known = data._to_canonical(*kind) in among if triple and alone else False
        good = known or (triple and not alone and {*ends_of(kind)} <= nodes)
    want = f"(type, ids) or a type among {among}"
    expect(good, name, want, type(kind).__name__ if isinstance(kind, Tensor) else kind, "name one")


def _seed_times(name: str, asked: dict[str, Any]) -> Tensor | None:
    """The times that are given to seeds; those of nodes have a default, those of links have not."""
    given, timed = asked.get(name), asked.get("time_attr") is not None
    remedy = "name the data's times"
    expect(given is None or timed, name, "time_attr beside it", "none", remedy)
    needed = timed and name == "edge_label_time"
    want = "times beside time_attr"
    expect(given is not None or not needed, name, want, "none", "pass the links' times")
    return None if given is None else torch.as_tensor(given)


def _sampler(data: Any, asked: dict[str, Any]) -> Any:
    """The sampler that is asked for: a new one, or one that was made before."""
    law = {name: asked.get(name, default) for name, default in _LAW.items()}
    counts, ready = asked["num_neighbors"], asked.get("neighbor_sampler")
    if ready is None:
        return PygSampler(data, counts, **law)
    remedy = "leave it out: the sampler decides"
    own = getattr(ready, "num_neighbors", counts)
    same = counts is None or counts == own or list(counts) == list(own)
    expect(same, "num_neighbors", f"{own}, as neighbor_sampler has it", counts, remedy)
    for name, value in law.items():
        value, kept = getattr(value, "value", value), getattr(ready, name, value)
        same = value in (_LAW[name], kept)
        expect(same, name, f"{kept}, as the sampler has it", value, remedy)
    if isinstance(ready, PygSampler):
        edges = {name: edges_of(data, name) for name in relation_names(data)}
        sizes = node_counts(data, edges), {name: x.shape[1] for name, x in edges.items()}
        graph = ready.graph
        own_sizes = graph.counts, {name: part.nnz for name, part in graph.parts.items()}
        nodes, entries = (sum(x.values()) for x in sizes)
        got = " and ".join(str(sum(x.values())) for x in own_sizes)
        want = f"one of {nodes} nodes and {entries} edges, by type as in data"
        expect(sizes == own_sizes, "neighbor_sampler", want, got, "make it of the same data")
    return ready


def _cuttable(data: Any, transform: Any) -> tuple[Any, Any]:
    """The data without what PyG cannot cut, and a transform that does; a copy if there is any."""
    if not isinstance(data, Data | HeteroData):
        return data, transform
    kinds = [None] if isinstance(data, Data) else [*data.node_types, *data.edge_types]
    found = [(k, name, x) for k in kinds for name, x in store_of(data, k).to_dict().items()]
    tables = {(k, name): x for k, name, x in found if isinstance(x, _TABLES)}
    sparse = [
        k for k, name, _ in found if name == "adj_t" and "edge_index" not in store_of(data, k)
    ]
    if not tables and not sparse:
        return data, transform
    data, matrices = copy.copy(data), {}
    for kind in sparse:
        store = store_of(data, kind)
        if kind is None and "num_nodes" not in store:
            store.num_nodes = store.adj_t.shape[0]
        matrix = store.adj_t
        store.edge_index, values = entries_of(matrix)
        matrices[kind] = matrix.layout, values
        del store.adj_t
    for (kind, name), table in tables.items():
        store, of_edges = store_of(data, kind), _of_edges(kind, name)
        if not of_edges and "num_nodes" not in store:
            store.num_nodes = len(table)
        want = store.num_edges if of_edges else store.num_nodes
        whose = f"a row {'an edge' if of_edges else 'a node'}, {want}"
        expect(len(table) == want, label_of(kind, name), whose, len(table), "align them")
    return data, Cut(tables, matrices, transform)


def _of_edges(kind: Any, name: str) -> bool:
    """Whether an attribute belongs to edges: by its store, or by PyG's own rule for names."""
    return isinstance(kind, tuple) or (kind is None and "edge" in name)
