"""How rows lie in the lines of the bus, and in which words to read them.

A device asks for host memory in lines of 128 bytes, so a row that begins inside of a line costs a
request more than one that begins with it, unless the lanes that read it begin with the line, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = 128  # bytes of a request on the bus
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Words:
    """A table as integers.

    Attributes:
        table: the first word of row 0, as a tensor for its pointer.
        width: words of a row that are read by lanes.
        stride: words from row to row.
        phase: words from the last line boundary to row 0.
        lanes: words that are asked for together.
        lines: how often, to cover a row.
        aligned: whether the lanes begin at the boundary before the row.
    """

    table: Tensor
    width: int
    stride: int
    phase: int
    lanes: int
    lines: int
    aligned: bool


def words(table: Tensor, size: int, tail: int = 0) -> Words:
    """Lay rows out in words of `size` bytes, without the last `tail` bytes of each."""
    item = table.element_size()
    n, row = len(table), math.prod(table.shape[1:]) * item
    step = table.stride(0) * item
    flat = torch.as_strided(table, (n, row // item), (step // item, 1), table.storage_offset())
    width, line = (row - tail) // size, LINE // size
    phase = table.data_ptr() % LINE // size
    whole = phase == 0 and step % LINE == 0
    aligned = width >= line and not whole
    lanes = min(line, _power_of_two(width))
    lines = -(-(width + (line - 1) * aligned) // lanes)
    view = flat.view(_WORDS[size])
    return Words(view, width, step // size, phase, lanes, lines, aligned)


def word_size(*tensors: Tensor, largest: int = 8) -> int:
    """Bytes of the widest integer that divides the rows and the addresses of all tensors."""
    sizes = [largest]
    for tensor in tensors:
        item = tensor.element_size()
        row = math.prod(tensor.shape[1:]) * item
        sizes += [row, tensor.stride(0) * item, tensor.storage_offset() * item, tensor.data_ptr()]
    return math.gcd(*sizes)


def _power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()
