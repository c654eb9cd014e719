"""PyTorch Geometric's loaders without its compiled samplers: shoal draws the neighbors.

PyG's own ``NeighborLoader`` and ``LinkNeighborLoader`` raise ImportError where pyg-lib is not
installed, and pyg-lib is not on PyPI. :class:`PygSampler` answers what PyG asks of a sampler
(``torch_geometric.sampler.BaseSampler``), in plain torch. ``NeighborLoader`` and
``LinkNeighborLoader`` are PyG's own classes with that sampler in them, under the names that scripts
import already (:mod:`shoal.integrations._pyg`, which needs PyG as soon as it is imported). Models,
transforms, workers and the layout of a batch are PyG's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import expect, expect_ids, fail
from shoal.integrations.pyg_data import is_typed, read, times_of
from shoal.sample.subgraph import TypedGraph, subgraph

if TYPE_CHECKING:
    from shoal.integrations._pyg import LinkNeighborLoader as LinkNeighborLoader
    from shoal.integrations._pyg import NeighborLoader as NeighborLoader

# Where the draws of the batch at hand come from; set by a loader that numbers its batches.
_STREAM: ContextVar[tuple[int, int, int] | None] = ContextVar("stream", default=None)


def __getattr__(name: str) -> Any:
    """Import the loaders when they are asked for, and PyG with them.

    Raises:
        AttributeError: if there is no such name.
        InputError: if torch_geometric is not installed.
    """
    if name not in ("NeighborLoader", "LinkNeighborLoader"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import("torch_geometric.loader")
    from shoal.integrations import _pyg

    return getattr(_pyg, name)


@contextmanager
def drawing_from(stream: tuple[int, int, int]) -> Iterator[None]:
    """Let samplers draw from a stream: (seed, epoch, number of the batch), all at least 0.

    Yields:
        nothing.
    """
    before = _STREAM.set(stream)
    try:
        yield
    finally:
        _STREAM.reset(before)


def graph_of(data: Any) -> tuple[Csr, Int[Tensor, " e"]]:
    """The in-neighbor lists of a PyG ``Data``, and which of its edges each entry is.

    Returns:
        row v of the matrix lists the sources of v's incoming edges; entry i is edge ``order[i]`` of
        ``data.edge_index``, so ``data.edge_attr[order]`` are the rows of the matrix's entries.
        Without an edge_index the edges are the entries of ``data.adj_t``.

    Raises:
        InputError: if `data` is heterogeneous, has no edge_index, or an id is out of range.

    Example:
        >>> from types import SimpleNamespace
        >>> edge_index = torch.tensor([[0, 2, 1], [1, 1, 0]])
        >>> graph, order = graph_of(SimpleNamespace(edge_index=edge_index, num_nodes=3))
        >>> graph.take(torch.arange(3)), order.tolist()
        ((tensor([1, 0, 2]), tensor([0, 1, 3, 3])), [2, 0, 1])
    """
    if is_typed(data):
        remedy = "convert it, as HeteroData.to_homogeneous does"
        fail("data", "a homogeneous Data", type(data).__name__, remedy)
    found = read(data)
    return found.relations[None].csr, found.order[None]


class PygSampler:
    """Sampled neighborhoods for PyG's ``NodeLoader`` and ``LinkLoader``.

    As in PyG each node is expanded once, at the hop at which it first appears, so a batch is one
    subgraph for all layers; a seed that stands several times in a batch is expanded as often, each
    time with draws of its own. In shoal's loaders the draws of a batch are a function of the seed,
    the epoch and the batch's number, so any number of workers gives the same batches. In others
    they come from torch's global stream, as those of PyG's own sampler do.

    Args:
        data: a ``Data`` or ``HeteroData``.
        num_neighbors: edges drawn a node, one number a hop, the seeds' own hop first; -1 for all.
            For a ``HeteroData`` each type of edges draws so many, or a dict has a list for each.
        replace: draw with replacement.
        weight_attr: the name of the edges' weights, to draw in proportion to them; types of edges
            without any are drawn uniformly.
        time_attr: the name of times of nodes, or of edges. Nothing that is later than a seed is
            found around it; nodes of types without times are of all times. Batches are disjoint.
        temporal_strategy: ``"uniform"``, or ``"last"`` for the latest neighbors.
        disjoint: give each seed a tree that shares no node with others; ``batch`` numbers them.
        subgraph_type: ``"directional"`` for the edges that were drawn, ``"bidirectional"`` for
            their reverses too, by PyG's rule, ``"induced"`` for all between the nodes.

    Raises:
        InputError: if an argument is none of these, or `data` has no such weights or times.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        *,
        replace: bool = False,
        weight_attr: str | None = None,
        time_attr: str | None = None,
        temporal_strategy: str = "uniform",
        disjoint: bool = False,
        subgraph_type: Any = "directional",
    ) -> None:
        strategies = ("uniform", "last")
        self.temporal_strategy = _choice("temporal_strategy", temporal_strategy, strategies)
        kinds = ("directional", "bidirectional", "induced")
        self.subgraph_type = _choice("subgraph_type", subgraph_type, kinds)
        remedy = "name the times by time_attr, or leave it out"
        strange = self.temporal_strategy == "last" and time_attr is None
        expect(not strange, "temporal_strategy", "times", "none", remedy)
        found = read(data, weight_attr, time_attr)
        self.typed = is_typed(data)
        self.graph = TypedGraph.of(found.counts, found.relations)
        self.node_times = found.node_times
        self.edge_permutation = found.order if self.typed else found.order[None]
        self.num_neighbors = num_neighbors
        self.replace, self.weight_attr = replace, weight_attr
        self.time_attr, self.disjoint = time_attr, disjoint or time_attr is not None
        _import("torch_geometric.sampler").BaseSampler.register(PygSampler)

    @property
    def num_neighbors(self) -> Any:
        """Edges drawn a node, one number a hop, perhaps by type of edges; -1 for all."""
        return self._num_neighbors

    @num_neighbors.setter
    def num_neighbors(self, counts: Any) -> None:
        self._num_neighbors, by_name = _fanouts(counts, list(self.graph.parts))
        self.fanouts = {
            name: [None if k < 0 else k for k in counts] for name, counts in by_name.items()
        }

    def sample_from_nodes(self, inputs: Any, **_: Any) -> Any:
        """Sample around the nodes of a ``NodeSamplerInput``.

        Returns:
            a ``SamplerOutput`` or ``HeteroSamplerOutput`` whose nodes begin with the seeds.

        Raises:
            InputError: if a seed is out of range, or its time is missing.
        """
        kind, seeds, times = inputs.input_type, inputs.node.long(), inputs.time
        if times is None and kind in self.node_times:
            expect_ids("input_nodes", seeds, self.graph.counts[kind])
            times = self.node_times[kind][seeds]
        out = self._sample({kind: seeds}, None if times is None else {kind: times}, _generator())
        out.metadata = (inputs.input_id, inputs.time)
        return self._both_ways(out)

    def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> Any:
        """Sample around both ends of the edges of an ``EdgeSamplerInput``, negatives besides.

        Returns:
            an output with the labels or triplets that ``LinkLoader`` unpacks.

        Raises:
            InputError: if an end is out of range, or an edge's time is missing.
        """
        amount = getattr(neg_sampling, "amount", 1)
        whole = not self.disjoint or float(amount).is_integer()
        remedy = "round it: PyG numbers trees so"
        expect(whole, "neg_sampling", "a whole number of negatives a tree", amount, remedy)
        generator = _generator()
        edge_sample = _import("torch_geometric.sampler.neighbor_sampler").edge_sample

        def sample(seeds: Any, times: Any) -> Any:
            if not self.typed:
                seeds, times = {None: seeds}, None if times is None else {None: times}
            return self._sample(seeds, times, generator)

        with torch.random.fork_rng(devices=[]):  # PyG draws negatives from torch's global stream
            torch.manual_seed(generator.initial_seed())
            out = edge_sample(
                inputs,
                sample,
                self.graph.counts if self.typed else self.graph.counts[None],
                disjoint=self.disjoint,
                node_time=self.node_times if self.typed else self.node_times.get(None),
                neg_sampling=neg_sampling,
            )
        return self._both_ways(out)

    def _sample(
        self, seeds: dict[Any, Tensor], times: dict[Any, Tensor] | None, generator: Generator
    ) -> Any:
        """One subgraph in PyG's words."""
        timed, remedy = self.time_attr is not None, "pass input_time or edge_label_time"
        if not timed:
            remedy = "name the data's times by time_attr, or leave them out"
        want, got = ("times", "none") if timed else ("no times", "times")
        expect(timed == (times is not None), "times of seeds", want, got, remedy)
        if times is not None:
            sizes = {kind: len(ids) for kind, ids in seeds.items()}
            times = {k: times_of("times of seeds", x, sizes[k], "a seed") for k, x in times.items()}
        found = subgraph(
            self.graph,
            seeds,
            self.fanouts,
            generator,
            replace=self.replace,
            disjoint=self.disjoint,
            times=times,
            last=self.temporal_strategy == "last",
            induced=self.subgraph_type == "induced",
        )
        hops = self.subgraph_type != "induced"  # the other edges are of no hop
        parts = {
            "node": found.nodes,
            "row": found.sources,
            "col": found.targets,
            "edge": found.edges,
            "batch": found.trees,
            "num_sampled_nodes": found.node_counts if hops else None,
            "num_sampled_edges": found.edge_counts if hops else None,
        }
        sampler = _import("torch_geometric.sampler")
        if self.typed:
            return sampler.HeteroSamplerOutput(**parts)
        alone = {name: None if x is None else x[None] for name, x in parts.items()}
        return sampler.SamplerOutput(**alone)

    def _both_ways(self, out: Any) -> Any:
        """The edges' reverses too, if they are asked for, as PyG adds them."""
        return out.to_bidirectional() if self.subgraph_type == "bidirectional" else out


def _generator() -> Generator:
    """The randomness of the batch at hand."""
    stream = _STREAM.get()
    if stream is None:
        return Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    (word,) = np.random.SeedSequence(stream).generate_state(1, np.uint64)
    return Generator().manual_seed(int(word >> 1))


def _fanouts(counts: Any, names: list[Any]) -> tuple[Any, dict[Any, list[int]]]:
    """What was asked for, as a list or a dict, and the list of each type of edges."""
    default = getattr(counts, "default", None)
    values = counts if isinstance(counts, Mapping) else getattr(counts, "values", counts)
    if not isinstance(values, Mapping) or names == [None]:
        values = _whole(values)
        return values, dict.fromkeys(names, values)
    string = _import("torch_geometric.typing").EdgeTypeStr
    try:
        by_name = {string(name).to_tuple(): _whole(x) for name, x in values.items()}
    except (ValueError, TypeError) as error:
        fail("num_neighbors", "a list for each type of edges", error, f"name {names}")
    for name in by_name:
        expect(name in names, "num_neighbors", f"types of edges among {names}", name, "drop it")
    if default is not None:
        by_name = dict.fromkeys(names, _whole(default)) | by_name
    for name in names:
        remedy = "add it; zeros leave it out"
        expect(name in by_name, "num_neighbors", f"a list for {name}", "none", remedy)
    hops = sorted({len(x) for x in by_name.values()})
    expect(len(hops) == 1, "num_neighbors", "as many hops for each", hops, "fill up with zeros")
    return by_name, by_name


def _whole(counts: Any) -> list[int]:
    """Counts of neighbors, one a hop."""
    several = isinstance(counts, Sequence) and not isinstance(counts, str) and len(counts) > 0
    good = several and all(isinstance(k, Integral) and int(k) >= -1 for k in counts)
    want = "a list of whole numbers, one a hop, -1 for all"
    expect(good, "num_neighbors", want, counts, "pass [15, 10], say")
    return [int(k) for k in counts]


def _choice(name: str, given: Any, among: tuple[str, ...]) -> str:
    """One of some words, or PyG's enumeration of it."""
    value = getattr(given, "value", given)
    expect(value in among, name, f"one of {', '.join(among)}", given, "name one of them")
    return value


def _import(name: str) -> Any:
    return require(name, "torch_geometric", "pyg")
