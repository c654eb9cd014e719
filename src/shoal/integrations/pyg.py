"""PyTorch Geometric's loaders without its compiled samplers: shoal draws the neighbors.

PyG's own ``NeighborLoader`` and ``LinkNeighborLoader`` raise ImportError where pyg-lib is not
installed, and pyg-lib is not on PyPI. :class:`PygSampler` answers what PyG asks of a sampler
(``torch_geometric.sampler.BaseSampler``), in plain torch; :func:`NeighborLoader` and
:func:`LinkNeighborLoader` put it into PyG's ``NodeLoader`` and ``LinkLoader`` under the names that
scripts import already. Models, transforms, workers and the layout of a batch are PyG's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import expect, expect_ids, fail
from shoal.sample.fanout import draw
from shoal.sample.relabel import Scratch, distinct


def graph_of(data: Any) -> tuple[Csr, Int[Tensor, " e"]]:
    """The in-neighbor lists of a PyG ``Data``, and which of its edges each entry is.

    Returns:
        row v of the matrix lists the sources of v's incoming edges; entry i is edge ``order[i]`` of
        ``data.edge_index``, so ``data.edge_attr[order]`` are the rows of the matrix's entries.

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
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or len(edge_index) != 2:
        want = "a homogeneous Data with an edge_index of shape [2, edges]"
        fail("data", want, type(data).__name__, "convert it, as HeteroData.to_homogeneous does")
    row, col = edge_index.cpu().long()
    n = int(data.num_nodes)
    graph = Csr.from_coo(col, row, (n, n), torch.arange(len(row)))
    assert graph.values is not None
    return graph.with_values(None), graph.values


class PygSampler:
    """Sampled neighborhoods for PyG's ``NodeLoader`` and ``LinkLoader``.

    As in PyG each node is expanded once, at the hop at which it first appears, so a batch is one
    subgraph for all layers. What a batch draws is a function of the seed, the epoch and its own
    seeds alone: any number of workers gives the same batches.

    Args:
        data: a homogeneous ``Data``.
        num_neighbors: edges drawn a node, one number a hop, the seeds' own hop first; -1 for all.
        replace: draw with replacement.
        weight_attr: the name of the data's edge weights, to draw in proportion to them.
        seed: of all draws.

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
        seed: int = 0,
    ) -> None:
        good = isinstance(num_neighbors, Sequence) and len(num_neighbors) > 0
        want = "a list of numbers, one a hop"
        expect(good, "num_neighbors", want, num_neighbors, "pass [15, 10], say")
        self.fanouts = [None if k < 0 else int(k) for k in num_neighbors]
        graph, self.edge_permutation = graph_of(data)
        if weight_attr is not None:
            weights = getattr(data, weight_attr, None)
            if not isinstance(weights, Tensor) or weights.shape != graph.indices.shape:
                got = getattr(weights, "shape", weights)
                fail(weight_attr, f"one weight an edge, [{graph.nnz}]", got, "set it in data")
            graph = graph.with_values(weights.cpu()[self.edge_permutation])
        self.graph, self.replace, self.weighted = graph, replace, weight_attr is not None
        self.seed, self.scratch = seed, Scratch()
        # in shared memory, so that workers which live on through epochs see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        _import("torch_geometric.sampler").BaseSampler.register(PygSampler)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for batches that come again in the same order, as without shuffling."""
        self._epoch.fill_(epoch)

    def sample_from_nodes(self, inputs: Any, **_: Any) -> Any:
        """Sample around the nodes of a ``NodeSamplerInput``.

        Returns:
            a ``SamplerOutput`` whose nodes begin with the seeds.

        Raises:
            InputError: if a seed is out of range or stands twice, or has a time.
        """
        _no_time(inputs)
        out = self._sample(inputs.node, self._generator(inputs.node))
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
        generator = self._generator(torch.cat([inputs.row, inputs.col]))
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

    def _generator(self, ids: Tensor) -> Generator:
        """The randomness of a batch, from the seed, the epoch and the batch's seeds."""
        key = torch.cat([torch.tensor([self.seed, int(self._epoch)]), ids.long()])
        word = blake2b(key.numpy().tobytes(), digest_size=8).digest()
        return Generator().manual_seed(int.from_bytes(word, "little") >> 1)

    def _sample(self, seeds: Int[Tensor, " b"], generator: Generator) -> Any:
        """One subgraph: hop after hop, the nodes that the hop before brought."""
        graph, nodes = self.graph, seeds.long()
        expect_ids("input_nodes", nodes, graph.n_rows)
        place, begin = self.scratch.columns(graph), 0
        once = torch.equal(distinct(nodes, place), nodes)
        expect(once, "input_nodes", "distinct nodes in a batch", "a node twice", "use .unique()")
        rows, cols, edges, node_counts = [], [], [], [len(nodes)]
        for fanout in self.fanouts:
            front = nodes[begin:]
            drawn, indptr = draw(
                graph, front, fanout, generator, replace=self.replace, weighted=self.weighted
            )
            sources = graph.indices.index_select(0, drawn).long()
            known, nodes = len(nodes), distinct(torch.cat([nodes, sources]), place)
            rows.append(place.index_select(0, sources).long())
            owner = torch.arange(begin, begin + len(front))
            cols.append(owner.repeat_interleave(indptr.diff()))
            edges.append(drawn)
            node_counts.append(len(nodes) - known)
            begin = known
        return _import("torch_geometric.sampler").SamplerOutput(
            node=nodes,
            row=torch.cat(rows),
            col=torch.cat(cols),
            edge=torch.cat(edges),
            num_sampled_nodes=node_counts,
            num_sampled_edges=[len(drawn) for drawn in edges],
        )


def NeighborLoader(
    data: Any,
    num_neighbors: Sequence[int],
    input_nodes: Any = None,
    *,
    replace: bool = False,
    weight_attr: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Make PyG's ``NodeLoader`` with shoal's sampler, in place of PyG's ``NeighborLoader``.

    Args:
        data: a homogeneous ``Data``; its ``x`` may be a :class:`~shoal.UnifiedTensor`.
        num_neighbors: as in :class:`PygSampler`, and so are the three after `input_nodes`.
        input_nodes: the nodes that are seeds: ids, a mask, or None for all.
        replace: draw with replacement.
        weight_attr: the name of the data's edge weights.
        seed: of all draws.
        options: all else that ``NodeLoader`` takes: ``batch_size``, ``shuffle``, ``num_workers``,
            ``transform``, …

    Returns:
        a ``torch_geometric.loader.NodeLoader``.

    Raises:
        InputError: if torch_geometric is not installed, or as :class:`PygSampler`.
    """
    _refuse(options)
    sampler = PygSampler(data, num_neighbors, replace=replace, weight_attr=weight_attr, seed=seed)
    return _import("torch_geometric.loader").NodeLoader(data, sampler, input_nodes, **options)


def LinkNeighborLoader(
    data: Any,
    num_neighbors: Sequence[int],
    edge_label_index: Any = None,
    *,
    replace: bool = False,
    weight_attr: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Make PyG's ``LinkLoader`` with shoal's sampler, in place of PyG's ``LinkNeighborLoader``.

    Args:
        data: a homogeneous ``Data`` whose ``edge_index`` passes messages. Edges that are to be
            predicted should not stand in it: ``RandomLinkSplit`` sees to that for validation and
            test, and for training with ``disjoint_train_ratio``.
        num_neighbors: as in :class:`PygSampler`, and so are the three after `edge_label_index`.
        edge_label_index: the edges that are seeds, ``[2, edges]``; None for all.
        replace: draw with replacement.
        weight_attr: the name of the data's edge weights.
        seed: of all draws, negatives too.
        options: all else that ``LinkLoader`` takes: ``edge_label``, ``neg_sampling``,
            ``neg_sampling_ratio``, ``batch_size``, …

    Returns:
        a ``torch_geometric.loader.LinkLoader``.

    Raises:
        InputError: if torch_geometric is not installed, or as :class:`PygSampler`.
    """
    _refuse(options)
    sampler = PygSampler(data, num_neighbors, replace=replace, weight_attr=weight_attr, seed=seed)
    return _import("torch_geometric.loader").LinkLoader(data, sampler, edge_label_index, **options)


# What PyG's loaders take, what it is by default, and what its compiled samplers alone do otherwise.
_DEFAULTS = {
    "time_attr": None,
    "input_time": None,
    "edge_label_time": None,
    "neighbor_sampler": None,
    "disjoint": False,
    "directed": True,
    "subgraph_type": "directional",
    "temporal_strategy": "uniform",
}


def _refuse(options: dict[str, Any]) -> None:
    """Take out what only PyG's own sampler reads, if it asks for nothing."""
    options.pop("is_sorted", None)  # a hint about the order of edges, which shoal sorts anyway
    for name, default in _DEFAULTS.items():
        given = options.pop(name, default)
        value = getattr(given, "value", given)  # PyG's enumerations
        remedy = "leave it out, or install pyg-lib and use PyG's own loader"
        expect(value == default, name, f"its default, {default}", given, remedy)


def _no_time(inputs: Any) -> None:
    remedy = "sample without times, or install pyg-lib and use PyG's own loader"
    expect(inputs.time is None, "time", "none", "times of seeds", remedy)


def _import(name: str) -> Any:
    return require(name, "torch_geometric", "pyg")
