"""The bag encoder: the normalized sum of the rows of a text's pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.core.block import Block
from shoal.core.sparse import matmul, unit


class BagEncoder(nn.Module):
    """Unit vectors of bags: the normalized sum of the rows of a text's pieces.

    It has no parameters of its own: the rows are those of a table and arrive with the batch. The
    sum and the mean have the same direction; a text without pieces stays the zero vector.

    Example:
        >>> ids = torch.tensor([0, 1])
        >>> bags = Block(ids[:1], ids, torch.tensor([0, 2]), ids, ids)
        >>> BagEncoder()([bags], torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist()
        [[0.6000..., 0.8000...]]
    """

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b d"]:
        """Embed the `dst` of the first block from the rows of its `src`."""
        hop = blocks[0]
        back = hop.back if rows.requires_grad or torch.is_grad_enabled() else None
        return unit(matmul(hop.csr, rows, back))
