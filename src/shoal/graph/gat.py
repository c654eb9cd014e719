"""Graph attention over blocks: weights of neighbors are computed from their rows.

Layer k computes, for every node i of its block's `dst` and each of H heads (Veličković et al.,
"Graph Attention Networks", ICLR 2018, equations 1 to 4),

    h_i  <- Σ_{j in N(i) ∪ {i}} alpha_ij W h_j,
    alpha_ij = softmax_j( LeakyReLU( a_own · W h_i + a_neighbor · W h_j ) ),

which is the paper's ``a · [W h_i, W h_j]`` with a cut in two. Heads are joined end to end between
layers (equation 5) and averaged in the last one (equation 6). As in the paper a node attends to
itself exactly once, whether or not the graph has a loop there. The second version (Brody, Alon,
Yahav, "How attentive are graph attention networks?", ICLR 2022, equation 7) lets what a node
attends to depend on the node:

    alpha_ij = softmax_j( a · LeakyReLU( W_own h_i + W h_j ) ).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shoal.core.block import Block
from shoal.core.errors import expect, expect_positive
from shoal.graph.layers import Layered, widths

_SLOPE = 0.2  # of the LeakyReLU, section 2.1


def softmax_over(
    scores: Float[Tensor, "e h"], row: Int[Tensor, " e"], n: int
) -> Float[Tensor, "e h"]:
    """Softmax over the entries of each row, column by column.

    Args:
        scores: one row per entry.
        row: which of the `n` rows each entry belongs to, in any order.
        n: rows.

    Example:
        >>> scores = torch.tensor([[0.0], [5.0], [0.0]])
        >>> softmax_over(scores, torch.tensor([0, 1, 0]), n=2).flatten().tolist()
        [0.5, 1.0, 0.5]
    """
    at = row.unsqueeze(1).expand_as(scores)
    largest = scores.new_full((n, scores.shape[1]), -torch.inf)
    # a constant in each row changes no softmax: no gradient is lost with it
    largest = largest.scatter_reduce(0, at, scores.detach(), "amax")
    weights = (scores - largest[row]).exp()
    return weights / weights.new_zeros(largest.shape).index_add(0, row, weights)[row]


class GatLayer(nn.Module):
    """One hop of attention.

    Args:
        in_dim: width of the rows.
        head_dim: width of a head.
        heads: how many.
        joined: heads end to end, ``heads * head_dim`` wide; else their mean, `head_dim` wide.
        dropout: share of the attention's weights that is dropped while training.
        second: whether it is the second version.
    """

    def __init__(
        self,
        in_dim: int,
        head_dim: int,
        heads: int,
        joined: bool,
        dropout: float,
        second: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.joined = heads, joined
        self.value = nn.Linear(in_dim, heads * head_dim, bias=False)
        # the second version has a matrix where the first has a vector a head
        self.query = nn.Linear(in_dim, heads * head_dim, bias=False) if second else None
        self.own = None if second else nn.Parameter(torch.empty(heads, head_dim))
        self.neighbor = nn.Parameter(torch.empty(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim if joined else head_dim))
        self.drop = nn.Dropout(dropout)
        other = self.own if self.query is None else self.query.weight
        assert other is not None
        for weight in (self.value.weight, other, self.neighbor):
            nn.init.xavier_uniform_(weight)

    def forward(self, block: Block, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Let the block's `dst`, whose rows come first, attend to what they read and themselves."""
        b = block.dst.numel()
        row, col = block.csr.row_ids(), block.indices.long()
        itself = torch.arange(b, device=row.device)
        other = row != col
        row, col = torch.cat([row[other], itself]), torch.cat([col[other], itself])
        values = self.value(rows).unflatten(1, (self.heads, -1))
        if self.query is None:
            own, neighbor = (values[:b] * self.own).sum(2), (values * self.neighbor).sum(2)
            scores = functional.leaky_relu(own[row] + neighbor[col], _SLOPE)
        else:
            query = self.query(rows[:b]).unflatten(1, (self.heads, -1))
            both = functional.leaky_relu(query[row] + values[col], _SLOPE)
            scores = (both * self.neighbor).sum(2)
        weights = self.drop(softmax_over(scores, row, b))
        seen = weights.unsqueeze(2) * values[col]
        result = values.new_zeros(b, *values.shape[1:]).index_add(0, row, seen)
        return (result.flatten(1) if self.joined else result.mean(1)) + self.bias


class Gat(Layered):
    """A graph attention network, one layer per block.

    Args:
        in_dim: width of the input rows.
        hidden: width between layers, all heads together; a multiple of `heads`.
        out_dim: width of the result: classes, or the length of an embedding.
        layers: how many hops, at least 1; the paper uses 2.
        heads: how many per layer; the paper uses 8.
        dropout: share of hidden entries, and of the attention's weights, that is dropped while
            training, in [0, 1); 0.5 as in :class:`~shoal.graph.sage.Sage`, the paper uses 0.6.

    Raises:
        InputError: if a size is below 1, `heads` do not divide `hidden`, or `dropout` does not
            fit.

    Example:
        >>> ids = torch.arange(3)
        >>> star = Block(ids[:1], ids, torch.tensor([0, 2]), ids[1:], ids[1:], dst_in_src=True)
        >>> Gat(in_dim=4, hidden=8, out_dim=2, layers=1, heads=2)([star], torch.ones(3, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int,
        out_dim: int,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.5,
    ) -> None:
        sizes = widths(in_dim, hidden, out_dim, layers, dropout)
        expect_positive("heads", heads)
        good = hidden % heads == 0
        expect(good, "hidden", f"a multiple of the {heads} heads", hidden, "round it")
        stack = [GatLayer(m, n // heads, heads, True, dropout) for m, n in sizes[:-1]]
        stack.append(GatLayer(sizes[-1][0], out_dim, heads, False, dropout))
        super().__init__(stack, nn.Sequential(nn.ELU(), nn.Dropout(dropout)))
