"""What rows of a table mean as floats, whatever they are stored as.

Rows of uint8 are *packed*: d codes q, then the bytes of two float32 numbers, and x = q·scale + bias
(torch's and FBGEMM's "fused 8-bit rowwise" layout). Rows of 16-bit floats are their float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

TAIL = 8  # bytes behind the codes of a packed row: scale and bias


def as_floats(
    rows: Shaped[Tensor, "s w"], out: Float[Tensor, "s d"] | None = None
) -> Float[Tensor, "s d"]:
    """Return rows as float32, doubles as they are; each step of ``q·scale + bias`` is rounded.

    Example:
        >>> numbers = torch.tensor([[0.5, 1.0]]).view(torch.uint8)
        >>> as_floats(torch.cat([torch.tensor([[0, 4]], dtype=torch.uint8), numbers], 1))
        tensor([[1., 3.]])
    """
    if rows.dtype != torch.uint8:
        return rows if rows.dtype == torch.float64 else rows.float()
    # a copy even of one row, whose numbers may begin at any byte
    numbers = rows[:, -TAIL:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    codes = rows[:, :-TAIL]
    floats = codes.float() if out is None else out.copy_(codes)
    return floats.mul_(numbers[:, :1]).add_(numbers[:, 1:])


def float_width(table: Shaped[Tensor, "n w"]) -> int:
    """Columns of the table's rows as floats."""
    return table.shape[1] - (TAIL if table.dtype == torch.uint8 else 0)
