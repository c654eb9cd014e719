"""The classes behind :mod:`shoal.integrations.pyg`'s loaders; importing this needs PyG.

They are PyG's ``NeighborLoader`` and ``LinkNeighborLoader``: ``isinstance``, subclasses, layer-wise
``inference`` and everything that a script does with a loader are PyG's own. Three things are not.
The sampler is shoal's. Batches are numbered, and their draws are a function of (seed, epoch,
number); the epoch advances with each iteration. And attributes that PyG cannot cut, tables that lie
in several memories and torch's sparse matrices, are cut by a transform.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch_geometric.loader as theirs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data

from shoal.core.errors import expect
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.integrations.pyg import PygSampler, drawing_from, edges_of

_TABLES = (TieredTable, DiskRows)
# What PyG's loaders take, what it is by default, and what its compiled samplers alone do otherwise.
_DEFAULTS = {
    "time_attr": None,
    "input_time": None,
    "edge_label_time": None,
    "disjoint": False,
    "directed": True,
    "subgraph_type": "directional",
    "temporal_strategy": "uniform",
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
        tables: by the name of their attribute.
        adj_t: layout and values of the matrix that edges came from; None if they came as edges.
        then: the user's transform.
    """

    tables: dict[str, Any]
    adj_t: tuple[torch.layout, Tensor] | None
    then: Callable[[Any], Any] | None

    def __call__(self, batch: Any) -> Any:
        """Cut a batch."""
        for name, table in self.tables.items():
            batch[name] = table.gather(batch.e_id if _of_edges(name) else batch.n_id)
        if self.adj_t is not None:
            layout, values = self.adj_t
            n = batch.num_nodes
            matrix = torch.sparse_coo_tensor(batch.edge_index.flip(0), values[batch.e_id], (n, n))
            batch.adj_t = matrix.coalesce().to_sparse(layout=layout)
            del batch.edge_index
        return batch if self.then is None else self.then(batch)


class _Loader(DataLoader):
    """What both loaders add to PyG's."""

    def __init__(
        self,
        data: Any,
        num_neighbors: Sequence[int] | None = None,
        *args: Any,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        whole = seed is None or (isinstance(seed, int) and seed >= 0)
        expect(whole, "seed", "a whole number of at least 0, or None", seed, "raise it")
        asked = signature(super().__init__).bind(data, num_neighbors, *args, **options).arguments
        asked |= asked.pop("kwargs", {})
        _refuse(asked)
        data, asked["transform"] = _cuttable(data, asked.get("transform"))
        sampler = _sampler(data, asked)
        super().__init__(**asked | {"data": data, "neighbor_sampler": sampler})
        # torch lets nobody set it afterwards, and PyG leaves no room before
        vars(self)["dataset"] = Positions(len(self.dataset))  # pyright: ignore[reportArgumentType]
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
        data: a homogeneous ``Data``; its ``x`` may be a :class:`~shoal.UnifiedTensor` or a
            :class:`~shoal.TieredTable`, and it may have a sparse ``adj_t`` in place of edges.
        num_neighbors: as in :class:`~shoal.integrations.pyg.PygSampler`, and so are ``replace`` and
            ``weight_attr``; may be left out beside ``neighbor_sampler``.
        args: PyG's other arguments in its own order, ``input_nodes`` first.
        seed: of all draws; None takes ``torch.initial_seed()`` whenever an epoch begins, so that
            ``torch.manual_seed`` decides.
        options: and by name: ``input_nodes`` (ids, a mask, or None for all; repeats allowed),
            ``batch_size``, ``shuffle``, ``num_workers``, ``transform``, ``neighbor_sampler`` (a
            PygSampler that several loaders share), …

    Raises:
        InputError: if an argument asks for what only PyG's compiled samplers do, or as PygSampler.
    """


class LinkNeighborLoader(_Loader, theirs.LinkNeighborLoader):
    """PyG's ``LinkNeighborLoader`` with shoal's sampler.

    Args:
        data: as for :class:`NeighborLoader`. Edges that are to be predicted should not stand in it:
            ``RandomLinkSplit`` sees to that for validation and test, and for training with
            ``disjoint_train_ratio``.
        num_neighbors: as for :class:`NeighborLoader`.
        args: PyG's other arguments in its own order, ``edge_label_index`` first.
        seed: of all draws, negatives too; as for :class:`NeighborLoader`.
        options: and by name: ``edge_label_index`` (``[2, edges]``, or None for all),
            ``edge_label``, ``neg_sampling``, ``batch_size``, …

    Raises:
        InputError: as :class:`NeighborLoader`.
    """


def _sampler(data: Any, asked: dict[str, Any]) -> Any:
    """The sampler that is asked for: a new one, or one that was made before."""
    replace: bool = asked.get("replace", False)
    weight_attr: str | None = asked.get("weight_attr")
    counts, ready = asked["num_neighbors"], asked.get("neighbor_sampler")
    if ready is None:
        return PygSampler(data, counts, replace=replace, weight_attr=weight_attr)
    own = getattr(ready, "num_neighbors", counts)
    remedy = "leave it out: the sampler decides"
    same = counts is None or list(counts) == list(own)
    expect(same, "num_neighbors", f"{own}, as neighbor_sampler has it", counts, remedy)
    for name, value in (("replace", replace), ("weight_attr", weight_attr)):
        kept = getattr(ready, name, value)
        expect(not value or value == kept, name, f"{kept}, as the sampler has it", value, remedy)
    if isinstance(ready, PygSampler):
        want = f"one of {data.num_nodes} nodes and {data.num_edges} edges, as data"
        got = f"{ready.graph.n_rows} and {ready.graph.nnz}"
        fits = (ready.graph.n_rows, ready.graph.nnz) == (data.num_nodes, data.num_edges)
        expect(fits, "neighbor_sampler", want, got, "make it of the same data")
    return ready


def _refuse(asked: dict[str, Any]) -> None:
    """See that nothing is asked of what only PyG's own sampler does."""
    remedy = "leave it out, or install pyg-lib and use PyG's own loader"
    for name, default in _DEFAULTS.items():
        given = asked.get(name, default)
        value = getattr(given, "value", given)  # PyG's enumerations
        expect(value is default or value == default, name, f"its default, {default}", given, remedy)


def _cuttable(data: Any, transform: Any) -> tuple[Any, Any]:
    """The data without what PyG cannot cut, and a transform that does; a copy if there is any."""
    if not isinstance(data, Data):
        return data, transform
    tables = {name: x for name, x in data.to_dict().items() if isinstance(x, _TABLES)}
    matrix = data.get("adj_t") if "edge_index" not in data else None
    if not tables and matrix is None:
        return data, transform
    data = copy.copy(data)
    if "num_nodes" not in data and matrix is not None:
        data.num_nodes = matrix.shape[0]
    elif "num_nodes" not in data:
        lengths = [len(table) for name, table in tables.items() if not _of_edges(name)]
        if lengths:
            data.num_nodes = lengths[0]
    adj_t = None
    if matrix is not None:
        data.edge_index, values = edges_of(matrix)
        adj_t = matrix.layout, values
        del data.adj_t
    for name, table in tables.items():
        want = data.num_edges if _of_edges(name) else data.num_nodes
        whose = "an edge" if _of_edges(name) else "a node"
        expect(len(table) == want, name, f"a row {whose}, {want}", len(table), "align them")
    return data, Cut(tables, adj_t, transform)


def _of_edges(name: str) -> bool:
    """Whether an attribute belongs to edges, by PyG's own rule for names."""
    return "edge" in name
