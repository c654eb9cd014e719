"""GraphSAGE over blocks: each hop mixes a node's row with the mean of its neighbors' rows.

Layer k of K computes, for every node v of its block's `dst` (Hamilton, Ying, Leskovec, "Inductive
representation learning on large graphs", NeurIPS 2017, algorithm 1, lines 4 and 5, mean aggregator)

    h_v <- W_own h_v + b + W_neighbors mean(h_u : u in N(v)),

which is the paper's ``W [h_v, h_N(v)]`` with W cut in two; relu and dropout follow on all layers
but the last. A node without neighbors has the mean zero. The paper's line 7, which scales every row
to length one, is left out: outputs of the last layer are logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal._checks import expect, expect_positive
from shoal.block import Block
from shoal.csr import Csr
from shoal.models.bag import matmul
from shoal.progress import progress


def mean_over(hop: Csr, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b d"]:
    """Average `rows` over the entries of each row of `hop`; zeros where it has none.

    Differentiable in `rows` any number of times. A column that stands twice counts twice.

    Example:
        >>> hop = Csr.from_lists([[0, 1], []], n_cols=2)
        >>> mean_over(hop, torch.tensor([[1.0], [4.0]])).tolist()
        [[2.5], [0.0]]
    """
    return matmul(hop, rows) / hop.degrees().clamp(min=1).unsqueeze(1)


class SageLayer(nn.Module):
    """One hop: ``W_own own + b + W_neighbors mean(rows)``."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_dim, out_dim)
        self.neighbors = nn.Linear(in_dim, out_dim, bias=False)

    def forward(
        self, hop: Csr, own: Float[Tensor, "b d"], rows: Float[Tensor, "s d"]
    ) -> Float[Tensor, "b k"]:
        """Combine the rows of a hop's nodes, `own`, with those that they read, `rows`."""
        return self.own(own) + self.neighbors(mean_over(hop, rows))


class Sage(nn.Module):
    """GraphSAGE with mean aggregation, one layer a block.

    Args:
        in_dim: width of the input rows.
        hidden: width between layers.
        out_dim: width of the result: classes, or the length of an embedding.
        layers: how many hops, at least 1; the paper uses 2.
        dropout: share of hidden entries that is dropped while training, in [0, 1). The default is
            that of Kipf and Welling's GCN (ICLR 2017, section 5.2), usual on citation graphs.

    Raises:
        InputError: if a size is below 1 or `dropout` out of range.

    Example:
        >>> ids = torch.arange(3)
        >>> star = Block(ids[:1], ids, torch.tensor([0, 2]), ids[1:], ids[1:], dst_in_src=True)
        >>> Sage(in_dim=4, hidden=8, out_dim=2, layers=1)([star], torch.ones(3, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, in_dim: int, hidden: int, out_dim: int, layers: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        sizes = {"in_dim": in_dim, "hidden": hidden, "out_dim": out_dim, "layers": layers}
        for name, size in sizes.items():
            expect_positive(name, size)
        expect(0 <= dropout < 1, "dropout", "a share in [0, 1)", dropout, "lower it")
        widths = [in_dim, *[hidden] * (layers - 1), out_dim]
        self.layers = nn.ModuleList(SageLayer(m, n) for m, n in pairwise(widths))
        self.between = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Compute the last block's `dst` from the rows of the first block's `src`.

        Raises:
            InputError: if there is not one block a layer, or one whose src does not begin with dst.
        """
        n = len(self.layers)
        expect(len(blocks) == n, "blocks", f"one a layer, {n}", len(blocks), "sample so many hops")
        for k, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            leads = block.dst_in_src
            expect(leads, f"blocks[{k}]", "dst_in_src", leads, "expand with dst_in_src=True")
            rows = rows if k == 0 else self.between(rows)
            rows = layer(block.csr, rows[: block.dst.numel()], rows)
        return rows


@torch.no_grad()
def full_graph(
    sage: Sage, graph: Csr, features: Float[Tensor, "n d"], chunk: int = 4096
) -> Float[Tensor, "n k"]:
    """Compute every node from all of its neighbors, layer by layer, without dropout.

    Equals ``sage.eval()`` on blocks of full fan-out, for nodes that training never saw too, but
    each node is computed once a layer rather than once for every batch that reads it. The model's
    mode is as before afterwards.

    Args:
        sage: the model, on any device.
        graph: row v lists the nodes that v reads from.
        features: one row a node; may stay on the host while the model is on an accelerator.
        chunk: nodes at a time. Besides two tables of all nodes on the features' device, the model's
            device holds the rows that one chunk touches. The default is a choice, not measured.

    Returns:
        ``[n, out_dim]`` on the features' device.

    Raises:
        InputError: if the graph is not square, features do not match it, or `chunk` is below 1.

    Example:
        >>> ring = Csr.from_lists([[1], [2], [0]], n_cols=3)
        >>> full_graph(Sage(4, 8, 2), ring, torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    n = graph.n_rows
    expect(graph.n_cols == n, "graph", "a square Csr", repr(graph), "pass a graph")
    expect(len(features) == n, "features", f"a row a node, {n}", len(features), "align them")
    expect_positive("chunk", chunk)
    was_training = sage.training
    sage.eval()
    try:
        rows = features
        for k, layer in enumerate(sage.layers):
            rows = _layer_of_all(layer, graph, rows if k == 0 else sage.between(rows), chunk)
        return rows
    finally:
        sage.train(was_training)


def _layer_of_all(layer: nn.Module, graph: Csr, rows: Tensor, chunk: int) -> Tensor:
    """Apply one layer to all nodes, `chunk` at a time, on the layer's device."""
    device = next(layer.parameters()).device
    parts = []
    for ids in progress(torch.arange(graph.n_rows, device=graph.device).split(chunk), "infer"):
        near = graph.rows(ids)
        src, local = near.indices.unique(return_inverse=True)
        hop = Csr(near.indptr, local, src.numel()).to(device)
        own, read = (rows.index_select(0, x.to(rows.device)).to(device) for x in (ids, src))
        parts.append(layer(hop, own, read).to(rows.device))
    return torch.cat(parts)
