"""PyTorch Geometric's loaders without its compiled samplers: shoal draws the neighbors.

PyG's own ``NeighborLoader`` and ``LinkNeighborLoader`` raise ImportError where pyg-lib is not
installed, and pyg-lib is not on PyPI. :class:`PygSampler` answers what PyG asks of a sampler
(``torch_geometric.sampler.BaseSampler``), in plain torch. ``NeighborLoader`` and
``LinkNeighborLoader`` are PyG's own classes with that sampler in them, under the names that scripts
import already (:mod:`shoal.integrations._pyg`, which needs PyG as soon as it is imported). Models,
transforms, workers and the layout of a batch are PyG's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from shoal.sample.fanout import draw
from shoal.sample.relabel import Scratch, distinct

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
    edge_index = getattr(data, "edge_index", None)
    adj_t = getattr(data, "adj_t", None)
    if edge_index is None and adj_t is not None:
        edge_index = edges_of(adj_t)[0]
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or len(edge_index) != 2:
        want = "a homogeneous Data with an edge_index of shape [2, edges]"
        fail("data", want, type(data).__name__, "convert it, as HeteroData.to_homogeneous does")
    row, col = edge_index.cpu().long()
    n = int(data.num_nodes)
    graph = Csr.from_coo(col, row, (n, n), torch.arange(len(row)))
    assert graph.values is not None
    return graph.with_values(None), graph.values


def edges_of(adj_t: Any) -> tuple[Int[Tensor, "2 e"], Tensor]:
    """Edges and values of the transposed adjacency matrix that PyG's ``ToSparseTensor`` makes.

    Args:
        adj_t: a sparse tensor of torch's, of any layout; entry (v, u) is an edge from u to v.

    Raises:
        InputError: if it is another kind of matrix.

    Example:
        >>> edges_of(torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_coo())
        (tensor([[1],
                [0]]), tensor([2.]))
    """
    sparse = isinstance(adj_t, Tensor) and adj_t.layout != torch.strided
    remedy = "make it by ToSparseTensor(layout=torch.sparse_csr), or keep edge_index"
    expect(sparse, "adj_t", "a sparse tensor of torch's", type(adj_t).__name__, remedy)
    entries = adj_t.cpu().to_sparse_coo().coalesce()
    return entries.indices().flip(0), entries.values()


class PygSampler:
    """Sampled neighborhoods for PyG's ``NodeLoader`` and ``LinkLoader``.

    As in PyG each node is expanded once, at the hop at which it first appears, so a batch is one
    subgraph for all layers; a seed that stands several times in a batch is expanded as often, each
    time with draws of its own. In shoal's loaders the draws of a batch are a function of the seed,
    the epoch and the batch's number, so any number of workers gives the same batches. In others
    they come from torch's global stream, as those of PyG's own sampler do.

    Args:
        data: a homogeneous ``Data``.
        num_neighbors: edges drawn a node, one number a hop, the seeds' own hop first; -1 for all.
        replace: draw with replacement.
        weight_attr: the name of the data's edge weights, to draw in proportion to them.

    Raises:
        InputError: if `data` is not homogeneous, there is no hop, or the weights are missing.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        weight_attr: str | None = None,
    ) -> None:
        graph, self.edge_permutation = graph_of(data)
        self.num_neighbors = num_neighbors
        if weight_attr is not None:
            weights = getattr(data, weight_attr, None)
            if not isinstance(weights, Tensor) or weights.shape != graph.indices.shape:
                got = getattr(weights, "shape", weights)
                fail(weight_attr, f"one weight an edge, [{graph.nnz}]", got, "set it in data")
            graph = graph.with_values(weights.cpu()[self.edge_permutation])
        self.graph, self.replace, self.weight_attr = graph, replace, weight_attr
        self.scratch = Scratch()
        _import("torch_geometric.sampler").BaseSampler.register(PygSampler)

    @property
    def num_neighbors(self) -> list[int]:
        """Edges drawn a node, one number a hop; -1 for all."""
        return self._num_neighbors

    @num_neighbors.setter
    def num_neighbors(self, counts: Sequence[int]) -> None:
        values = getattr(counts, "values", counts)  # of PyG's NumNeighbors
        whole = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        good = whole and all(isinstance(k, Integral) and int(k) >= -1 for k in values)
        want = "a list of whole numbers, one a hop, -1 for all"
        expect(good, "num_neighbors", want, counts, "pass [15, 10], say")
        self._num_neighbors = [int(k) for k in values]

    def sample_from_nodes(self, inputs: Any, **_: Any) -> Any:
        """Sample around the nodes of a ``NodeSamplerInput``.

        Returns:
            a ``SamplerOutput`` whose nodes begin with the seeds.

        Raises:
            InputError: if a seed is out of range or has a time.
        """
        _no_time(inputs)
        out = self._sample(inputs.node, _generator())
        out.metadata = (inputs.input_id, None)
        return out

    def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> Any:
        """Sample around both ends of the edges of an ``EdgeSamplerInput``, negatives besides.

        Returns:
            a ``SamplerOutput`` with the labels or triplets that ``LinkLoader`` unpacks.

        Raises:
            InputError: if an edge has a time or an end out of range.
        """
        _no_time(inputs)
        generator = _generator()
        edge_sample = _import("torch_geometric.sampler.neighbor_sampler").edge_sample
        with torch.random.fork_rng(devices=[]):  # PyG draws negatives from torch's global stream
            torch.manual_seed(generator.initial_seed())
            return edge_sample(
                inputs,
                lambda seeds, _: self._sample(seeds, generator),
                self.graph.n_rows,
                disjoint=False,
                neg_sampling=neg_sampling,
            )

    def _sample(self, seeds: Int[Tensor, " b"], generator: Generator) -> Any:
        """One subgraph: hop after hop, the nodes that the hop before brought."""
        graph, nodes = self.graph, seeds.long()
        expect_ids("input_nodes", nodes, graph.n_rows)
        place, begin = self.scratch.columns(graph), 0
        known = distinct(nodes, place)
        # where each of them stands: a seed that repeats is found where it stands first
        first = torch.full_like(known, len(nodes))
        number = place.index_select(0, nodes).long()
        first = first.scatter_reduce_(0, number, torch.arange(len(nodes)), "amin")
        rows, cols, edges, node_counts = [], [], [], [len(nodes)]
        for count in self.num_neighbors:
            front = nodes[begin:]
            drawn, indptr = draw(
                graph,
                front,
                None if count < 0 else count,
                generator,
                replace=self.replace,
                weighted=self.weight_attr is not None,
            )
            sources = graph.indices.index_select(0, drawn).long()
            before, known = len(known), distinct(torch.cat([known, sources]), place)
            owner = torch.arange(begin, begin + len(front))
            cols.append(owner.repeat_interleave(indptr.diff()))
            edges.append(drawn)
            nodes, begin = torch.cat([nodes, known[before:]]), len(nodes)
            stands = torch.cat([first, torch.arange(len(seeds), len(nodes))])
            rows.append(stands.index_select(0, place.index_select(0, sources).long()))
            node_counts.append(len(nodes) - begin)
        return _import("torch_geometric.sampler").SamplerOutput(
            node=nodes,
            row=torch.cat(rows),
            col=torch.cat(cols),
            edge=torch.cat(edges),
            num_sampled_nodes=node_counts,
            num_sampled_edges=[len(drawn) for drawn in edges],
        )


def _generator() -> Generator:
    """The randomness of the batch at hand."""
    stream = _STREAM.get()
    if stream is None:
        return Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_()))
    (word,) = np.random.SeedSequence(stream).generate_state(1, np.uint64)
    return Generator().manual_seed(int(word >> 1))


def _no_time(inputs: Any) -> None:
    remedy = "sample without times, or install pyg-lib and use PyG's own loader"
    expect(inputs.time is None, "time", "none", "times of seeds", remedy)


def _import(name: str) -> Any:
    return require(name, "torch_geometric", "pyg")
