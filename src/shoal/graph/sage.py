"""GraphSAGE over blocks: each hop mixes a node's row with the mean of its neighbors' rows.

Layer k of K computes, for every node v of its block's `dst` (Hamilton, Ying, Leskovec, "Inductive
representation learning on large graphs", NeurIPS 2017, algorithm 1, lines 4 and 5, mean aggregator)

    h_v <- W_own h_v + b + W_neighbors mean(h_u : u in N(v)),

which is the paper's ``W [h_v, h_N(v)]`` with W cut in two; relu and dropout follow on all layers
but the last. A node without neighbors has the mean zero. The paper's line 7, which scales every row
to length one, is left out: outputs of the last layer are logits.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.sparse import matmul
from shoal.graph.layers import Layered, widths


def mean_over(hop: Csr, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b d"]:
    """Average `rows` over the entries of each row of `hop`; zeros where it has none.

    Differentiable in `rows` any number of times. A column that stands twice counts twice.

    Example:
        >>> import torch
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

    def forward(self, block: Block, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Combine the rows of the block's `dst`, which come first, with those that they read."""
        own = rows[: block.dst.numel()]
        return self.own(own) + self.neighbors(mean_over(block.csr, rows))


class GcnLayer(nn.Module):
    """One hop: ``W mean(rows of the node and of its neighbors) + b``.

    The graph convolution of Kipf and Welling (ICLR 2017) with a mean in place of its symmetric
    weights, which need degrees that a sampled block does not have (Hamilton, Ying, Leskovec,
    equation 2).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.both = nn.Linear(in_dim, out_dim)

    def forward(self, block: Block, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Combine the rows of the block's `dst`, which come first, with those that they read."""
        own, degrees = rows[: block.dst.numel()], block.csr.degrees().unsqueeze(1)
        return self.both((own + matmul(block.csr, rows)) / (degrees + 1))


class Sage(Layered):
    """GraphSAGE with mean aggregation, one layer per block.

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
        >>> import torch
        >>> ids = torch.arange(3)
        >>> star = Block(ids[:1], ids, torch.tensor([0, 2]), ids[1:], ids[1:], dst_in_src=True)
        >>> Sage(in_dim=4, hidden=8, out_dim=2, layers=1)([star], torch.ones(3, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(
        self, in_dim: int, hidden: int, out_dim: int, layers: int = 2, dropout: float = 0.5
    ) -> None:
        sizes = widths(in_dim, hidden, out_dim, layers, dropout)
        between = nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        super().__init__([SageLayer(m, n) for m, n in sizes], between)
