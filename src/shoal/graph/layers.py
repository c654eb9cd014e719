"""Models of one layer a hop: on sampled blocks while they train, on all nodes when they predict.

A layer is called as ``layer(block, rows)`` and computes the block's `dst` from rows of its `src`,
of which the first are those of `dst` itself. Any module that is called so will do
(:func:`stacked`). :func:`full_graph` runs the same layers over whole
neighborhoods, one layer after the other for all nodes that are asked for, so that each node is
computed once a layer (the inference of Hamilton, Ying, Leskovec, "Inductive representation learning
on large graphs", NeurIPS 2017, algorithm 1). Nodes that training never saw are computed like any
other, from their features and edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, expect_positive
from shoal.core.progress import progress
from shoal.core.sparse import matmul, unit
from shoal.sample.expand import expand
from shoal.sample.relabel import Scratch


@runtime_checkable
class Rows(Protocol):
    """Rows in host memory or in a file, read by id, such as ``shoal.fetch.disk.DiskRows``."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def gather(self, ids: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Rows `ids`, where these are."""
        ...


class Layered(nn.Module):
    """One layer a block, and one module between any two layers.

    Args:
        layers: called as ``layer(block, rows)``, input hop first.
        between: what every layer but the first sees its rows through, such as relu and dropout; a
            function of each row alone.

    Example:
        The layer of a mean without weights, twice:

        >>> from shoal.graph.sage import mean_over
        >>> class Mean(nn.Module):
        ...     def forward(self, block, rows):
        ...         return mean_over(block.csr, rows)
        >>> ring = Csr.from_lists([[1], [2], [0]], n_cols=3)
        >>> full_graph(Layered([Mean(), Mean()], nn.Identity()), ring, torch.eye(3)).argmax(1)
        tensor([2, 0, 1])
    """

    def __init__(self, layers: Sequence[nn.Module], between: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.between = between
        self.words: Csr | None = None

    def read_words(self, words: Csr | None) -> None:
        """Say whose words the first block of a batch lists; None where it is a hop of nodes.

        Args:
            words: ``[n, f]``, of :class:`~shoal.graph.features.WordRows`.
        """
        self.words = words

    def enter(
        self, rows: Float[Tensor, "s d"], ids: Int[Tensor, " s"], seeds: int = 0
    ) -> Float[Tensor, "s k"]:
        """What the first layer reads of the rows of nodes `ids`; here the rows themselves.

        Args:
            rows: of the table.
            ids: whose they are.
            seeds: how many of them, the first ones, are being learned.
        """
        return rows

    def leave(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """What is made of the last layer's rows, each by itself; here nothing."""
        return rows

    def below(self) -> Layered:
        """What lies below the last layer, of the same modules: its results are hidden vectors."""
        layers = list(self.layers)[:-1]
        return Part(layers, self, self.between if layers else nn.Identity())

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Compute the last block's `dst` from the rows of the first block's `src`.

        Raises:
            InputError: if there is not one block per layer, or a src does not begin with its dst.
        """
        n = len(self.layers)
        if self.words is not None:
            rows, blocks = self._summed(blocks[0], rows), blocks[1:]
        expect(
            len(blocks) == n, "blocks", f"one per layer, {n}", len(blocks), "sample so many hops"
        )
        ids = blocks[0].src if blocks else torch.arange(len(rows))
        rows = self.enter(rows, ids, len(blocks[-1].dst) if blocks else len(rows))
        for k, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            leads = block.dst_in_src
            expect(leads, f"blocks[{k}]", "dst_in_src", leads, "expand with dst_in_src=True")
            rows = layer(block, rows if k == 0 else self.between(rows))
        return self.leave(rows)

    def _summed(self, bags: Block, rows: Float[Tensor, "w d"]) -> Float[Tensor, "s d"]:
        """Rows of nodes from those of their words."""
        assert self.words is not None
        values = self.words.values
        if values is None:
            return matmul(bags.csr, rows, bags.back)
        weighed = bags.csr.with_values(values[bags.edges.to(values.device)])
        return matmul(weighed.to(rows.device), rows)


class Part(Layered):
    """Some layers of a network, of its own modules.

    Args:
        layers: of them.
        whole: the network.
        last: what is made of the last one's rows.
    """

    def __init__(self, layers: Sequence[nn.Module], whole: Layered, last: nn.Module) -> None:
        super().__init__(layers, whole.between)
        self.enter, self.leave = whole.enter, last.__call__


def widths(
    in_dim: int, hidden: int, out_dim: int, layers: int, dropout: float
) -> list[tuple[int, int]]:
    """Width of the input and of the output of each layer, input layer first.

    Raises:
        InputError: if a size is below 1 or `dropout` not in [0, 1).
    """
    sizes = {"in_dim": in_dim, "hidden": hidden, "out_dim": out_dim, "layers": layers}
    for name, size in sizes.items():
        expect_positive(name, size)
    expect(0 <= dropout < 1, "dropout", "a share in [0, 1)", dropout, "lower it")
    return list(pairwise([in_dim, *[hidden] * (layers - 1), out_dim]))


def stacked(
    layer: Callable[[int, int], nn.Module],
    in_dim: int,
    hidden: int,
    out_dim: int,
    layers: int = 2,
    dropout: float = 0.5,
) -> Layered:
    """A network of layers of one kind, relu and dropout between them.

    Args:
        layer: makes a layer from the widths of its input and its output; a class will do.
        in_dim: width of the input rows.
        hidden: width between layers.
        out_dim: width of the result: classes, or the length of an embedding.
        layers: how many hops, at least 1.
        dropout: share of hidden entries that is dropped while training, in [0, 1).

    Raises:
        InputError: if a size is out of range.

    Example:
        >>> from shoal.graph.sage import SageLayer
        >>> [layer.own.weight.shape[0] for layer in stacked(SageLayer, 4, 8, 2, layers=3).layers]
        [8, 8, 2]
    """
    sizes = widths(in_dim, hidden, out_dim, layers, dropout)
    between = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
    return Layered([layer(m, n) for m, n in sizes], between)


class LinkEncoder(nn.Module):
    """A network whose results are unit vectors; the last block, of pairs, is the loss's.

    Rows are scaled to length one as in line 7 of GraphSAGE's algorithm 1.

    Args:
        model: the network.
    """

    def __init__(self, model: Layered) -> None:
        super().__init__()
        self.model = model

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Embed the nodes of the last block's `src`."""
        return unit(self.model(blocks[:-1], rows))

    def embed(self, graph: Csr, rows: Float[Tensor, "n d"] | Rows) -> Float[Tensor, "n k"]:
        """Embed all nodes of a graph from whole neighborhoods."""
        return unit(full_graph(self.model, graph, rows))


class ConvLayer(nn.Module):
    """A layer of a PyTorch Geometric convolution, as it is, on blocks.

    The convolution is called as it calls itself bipartite: ``conv((x_src, x_dst), edge_index)``, or
    with the block's edges' rows as third argument. Convolutions that know neighbors and oneself
    apart are exact on blocks (SAGEConv, GATConv, GATv2Conv, GINConv, TransformerConv, …); those
    that read degrees off the edges they are given (GCNConv) see the block's.

    Args:
        conv: the convolution.
        edge_rows: features or weights of the edges, one row per entry of the Csr that is expanded;
            a plain or a unified tensor. The model's state does not hold them.

    Example:
        >>> class Sum(nn.Module):
        ...     def forward(self, x, edge_index):
        ...         return torch.zeros_like(x[1]).index_add_(0, edge_index[1], x[0][edge_index[0]])
        >>> ring = Csr.from_lists([[1], [2], [0]], n_cols=3)
        >>> full_graph(Layered([ConvLayer(Sum())], nn.Identity()), ring, torch.eye(3)).argmax(1)
        tensor([1, 2, 0])
    """

    def __init__(self, conv: nn.Module, edge_rows: Shaped[Tensor, "e ..."] | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.edge_rows = edge_rows

    def forward(self, block: Block, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Compute the block's `dst`."""
        both = rows, rows[: block.dst.numel()]
        if self.edge_rows is None:
            return self.conv(both, block.edge_index)
        return self.conv(both, block.edge_index, self.edge_rows[block.edges])


@torch.no_grad()
def full_graph(
    model: Layered,
    graph: Csr,
    features: Float[Tensor, "n d"] | Rows,
    ids: Int[Tensor, " b"] | None = None,
    entries: int = 2**18,
) -> Float[Tensor, "b k"]:
    """Compute nodes from all of their neighbors, layer by layer, without dropout.

    Equals ``model.eval()`` on blocks of full fan-out, but each node is computed once a layer rather
    than once for every batch that reads it. The model's mode is as before afterwards.

    Args:
        model: on any device.
        graph: row v lists the nodes that v reads from.
        features: one row per node; may stay on the host while the model is on an accelerator, or in
            a file, from which each part of the first layer reads its own.
        ids: the nodes that are asked for; None for all. Below the last layer only those are
            computed that they depend on.
        entries: edges that are taken together, and nodes besides; a node with more is taken alone.
            So the model's device holds about `entries` rows at a time (attention: one more an
            edge), the features' device two tables of those that are computed. The default, a
            quarter of a million, is 256 MiB of rows 256 floats wide.

    Returns:
        one row for each of `ids`, on the features' device; in host memory, if they are in a file.

    Raises:
        InputError: if the graph is not square, features do not match it, an id is out of range, or
            `entries` is below 1.

    Example:
        >>> from shoal.graph.sage import Sage
        >>> ring = Csr.from_lists([[1], [2], [0]], n_cols=3)
        >>> full_graph(Sage(4, 8, 2), ring, torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    n = graph.n_rows
    expect(graph.n_cols == n, "graph", "a square Csr", repr(graph), "pass a graph")
    expect(len(features) == n, "features", f"one row per node, {n}", len(features), "align them")
    expect_positive("entries", entries)
    if ids is not None:
        expect_ids("ids", ids, n)
    was_training = model.training
    model.eval()
    try:
        rows, known = features, torch.arange(n, device=graph.device)
        for k, wanted in enumerate(_wanted(graph, ids, len(model.layers))):
            read = model.enter if k == 0 else _row_wise(model.between)
            place = torch.zeros(n, dtype=torch.int64, device=graph.device)
            place[known] = torch.arange(len(known), device=graph.device)
            rows = _one_layer(model.layers[k], read, graph, (rows, place), wanted, entries)
            known = wanted
        home = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
        device = next((weights.device for weights in model.parameters()), home)
        wanted = known if ids is None else ids.to(known)
        if len(model.layers):
            wanted = torch.searchsorted(known, wanted)
        parts = []
        for some in wanted.split(entries):
            part = _taken(rows, some.to(home)).to(device)
            part = part if len(model.layers) else model.enter(part, some)
            parts.append(model.leave(part).to(home))
        return torch.cat(parts)
    finally:
        model.train(was_training)


def _wanted(graph: Csr, ids: Tensor | None, layers: int) -> list[Tensor]:
    """The nodes that each layer computes, input layer first, each list sorted."""
    if ids is None:
        return [torch.arange(graph.n_rows, device=graph.device)] * layers
    wanted = [ids.to(graph.device).long().unique()][:layers]
    for _ in range(layers - 1):
        read = graph.take(wanted[0])[0].long()
        wanted.insert(0, torch.cat([wanted[0], read]).unique())
    return wanted


def _one_layer(
    layer: nn.Module,
    read: Callable[[Tensor, Tensor], Tensor],
    graph: Csr,
    table: tuple[Tensor | Rows, Tensor],
    wanted: Tensor,
    entries: int,
) -> Tensor:
    """Apply one layer to the nodes `wanted`; node v's row is ``rows[place[v]]``."""
    rows, place = table
    home = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    device = next((weights.device for weights in layer.parameters()), home)
    result, done, scratch = None, 0, Scratch()
    for ids in progress(list(_parts(graph, wanted, entries)), "infer"):
        block = expand(graph, ids, dst_in_src=True, scratch=scratch)
        source = _taken(rows, place[block.src].to(home)).to(device)
        block = block.to(device)
        part = layer(block, read(source, block.src)).to(home)
        if result is None:
            result = part.new_empty(len(wanted), *part.shape[1:])
        result[done : done + len(ids)] = part
        done += len(ids)
    if result is None:  # no nodes: an empty block tells the width
        none = expand(graph, wanted, dst_in_src=True).to(device)
        return layer(none, read(_taken(rows, wanted.to(home)).to(device), none.src)).to(home)
    return result


def _row_wise(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda rows, ids: module(rows)


def _taken(rows: Tensor | Rows, ids: Tensor) -> Tensor:
    return rows.index_select(0, ids) if isinstance(rows, Tensor) else rows.gather(ids)


def _parts(graph: Csr, ids: Tensor, entries: int) -> Iterator[Tensor]:
    """Cut `ids` so that each part has about `entries` edges and nodes."""
    cost = graph.indptr[ids + 1] - graph.indptr[ids] + 1
    sizes = torch.bincount((cost.cumsum(0) - 1) // entries)
    return iter(ids.split(sizes[sizes > 0].tolist()))
