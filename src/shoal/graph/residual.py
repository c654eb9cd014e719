"""The network of both tasks: deep without harm, on rows as they come, and on the classes of others.

    x   <- W_in (row - mean) / deviation + b + Σ W_class(c : c a known class of the node)
    x   <- x + layer(drop(relu(norm(x))))                          once per hop
    out  = W_out drop(relu(norm(x))) + b

A layer that has nothing to add leaves rows as they are, so that hops may be many and a node's own
row is never lost among its neighbors': what graphs want whose neighbors are unlike (Platonov,
Kuznedelev, Diskin, Babenko, Prokhorenkova, "A critical look at the evaluation of GNNs under
heterophily", ICLR 2023, whose GraphSAGE has the same parts; the order is that of He, Zhang, Ren,
Sun, "Identity mappings in deep residual networks", ECCV 2016).

Known classes are read like features (Shi, Huang, Feng, Zhong, Wang, Sun, "Masked label prediction",
IJCAI 2021): those of training nodes, but never of the seeds that a batch learns. Without hops the
network is a linear model or a perceptron of one hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.core.sparse import matmul
from shoal.graph.layers import Layered, Part

# Share of the batches that see no class: a graph may come without any.
_ALL_HIDDEN = 0.1


class ResidualLayer(nn.Module):
    """One hop: ``x + layer(drop(relu(norm(x))))``.

    Args:
        layer: from rows of some width to rows of the same width.
        width: of the rows.
        dropout: share of its inputs that is dropped while training.
    """

    def __init__(self, layer: nn.Module, width: int, dropout: float) -> None:
        super().__init__()
        self.layer = layer
        self.before = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, block: Block, rows: Float[Tensor, "s d"]) -> Float[Tensor, "b d"]:
        """Compute the block's `dst`, whose rows come first."""
        return rows[: block.dst.numel()] + self.layer(block, self.before(rows))


class ResidualNetwork(Layered):
    """A residual network on graphs, one layer per block.

    Args:
        layer: makes a layer from the widths of its input and output.
        in_dim: width of the input rows; None where rows are trained, and enter as they are.
        hidden: width of all layers.
        out_dim: width of the result: classes, or the length of an embedding.
        layers: how many hops; 0 is a perceptron of one hidden layer.
        dropout: share of hidden entries that is dropped while training, in [0, 1).
        classes: how many there are to be read; 0 reads none.

    Raises:
        InputError: if a size is out of range.

    Example:
        >>> from shoal.graph.sage import SageLayer
        >>> from shoal.graph.layers import full_graph
        >>> ring = Csr.from_lists([[1], [2], [0]], n_cols=3)
        >>> full_graph(ResidualNetwork(SageLayer, 4, 8, 2, layers=3), ring, torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        layer: Callable[[int, int], nn.Module],
        in_dim: int | None,
        hidden: int,
        out_dim: int,
        layers: int = 2,
        dropout: float = 0.5,
        classes: int = 0,
    ) -> None:
        for name, size in (("hidden", hidden), ("out_dim", out_dim)):
            expect_positive(name, size)
        expect(0 <= dropout < 1, "dropout", "a share in [0, 1)", dropout, "lower it")
        stack = [ResidualLayer(layer(hidden, hidden), hidden, dropout) for _ in range(layers)]
        super().__init__(stack, nn.Identity())
        self.scale = None if in_dim is None else Standardize(in_dim)
        self.inward = None if in_dim is None else nn.Linear(in_dim, hidden)
        self.of_class = nn.Parameter(torch.randn(classes, hidden) / hidden**0.5)
        norm, drop = nn.LayerNorm(hidden), nn.Dropout(dropout)
        self.outward = nn.Sequential(norm, nn.ReLU(), drop, nn.Linear(hidden, out_dim))
        self.known: Csr | None = None

    def below(self) -> Layered:
        """All but the last linear map."""
        return Part(list(self.layers), self, self.outward[:-1])

    def read_classes(self, known: Csr | None) -> None:
        """Name the known classes that are read from now on; None for none.

        Args:
            known: ``[n, classes]``, the classes of each node that are known.
        """
        self.known = known if len(self.of_class) else None

    def enter(
        self, rows: Float[Tensor, "s d"], ids: Int[Tensor, " s"], seeds: int = 0
    ) -> Float[Tensor, "s k"]:
        """Rows at the network's width, with known classes added; those of the seeds are hidden."""
        if self.scale is not None and self.inward is not None:
            rows = self.inward(self.scale(rows))
        if self.known is None or (self.training and float(torch.rand(())) < _ALL_HIDDEN):
            return rows
        classes = self.known.rows(ids.to(self.known.device)).to(rows.device)
        read = matmul(classes, self.of_class.to(rows.dtype))
        return rows + torch.cat([torch.zeros_like(read[:seeds]), read[seeds:]])

    def leave(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Logits, or embeddings."""
        return self.outward(rows)


class Standardize(nn.Module):
    """Columns at mean 0 and deviation 1, as measured once; until then as they come.

    Args:
        width: columns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def measure(self, rows: Float[Tensor, "n d"]) -> None:
        """Take mean and deviation of some rows; a column that never changes is only moved.

        Example:
            >>> scale = Standardize(2)
            >>> scale.measure(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
            >>> scale(torch.tensor([[2.0, 5.0], [3.0, 6.0]])).tolist()
            [[0.0, 0.0], [1.0, 1.0]]
        """
        self.mean.copy_(rows.mean(0))
        deviation = rows.std(0, correction=0)
        self.deviation.copy_(deviation.where(deviation > 1e-6, 1.0))

    def forward(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Standardize."""
        return (rows - self.mean.to(rows.dtype)) / self.deviation.to(rows.dtype)
