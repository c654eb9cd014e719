"""Floyd's algorithm on a device: the subsets of all rows in one launch.

A program holds the subsets of some rows in registers, one lane a slot, and compares each new number
with all slots at once. The numbers are those of :class:`~shoal.sample.counter.CounterRandom`, so
the result is that of :func:`~shoal.sample.fanout.by_columns`, bit by bit, in Triton's interpreter
and on an H200.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.sample.counter import GAMMA, MIX_1, MIX_2, signed

_LANES = 512  # slots that a program holds: four per thread
_EXACT: dict[str, bool] = {"enable_fp_fusion": False}  # each product is rounded, as in torch
_GAMMA, _MIX_1, _MIX_2 = tl.constexpr(GAMMA), tl.constexpr(MIX_1), tl.constexpr(MIX_2)


def subsets(start: Tensor, degrees: Tensor, offsets: Tensor, fanout: int, key: int) -> Tensor:
    """Draw a subset of each row; equivalent to ``by_columns(…, fanout, CounterRandom(key))``."""
    positions = torch.empty(int(offsets[-1]), dtype=torch.int64, device=start.device)
    lanes = triton.next_power_of_2(max(fanout, 1))
    rows = max(1, _LANES // lanes)
    if len(positions):
        _subsets[(triton.cdiv(len(start), rows),)](
            *(start, degrees, offsets, positions, len(start), fanout, signed(key + GAMMA)),
            LANES=lanes,
            ROWS=rows,
            **_EXACT,
        )
    return positions


@triton.jit
@no_type_check
def _right(z, BY: tl.constexpr):
    """Shift right and fill with zeros."""
    return (z >> BY) & ((1 << (64 - BY)) - 1)


@triton.jit
@no_type_check
def _below(first, at, bound):
    """CounterRandom.below: `first` is the key and one gamma."""
    z = at * _GAMMA + first
    z = (z ^ _right(z, 30)) * _MIX_1
    z = (z ^ _right(z, 27)) * _MIX_2
    z = z ^ _right(z, 31)
    uniform = _right(z, 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    return (uniform * bound.to(tl.float64)).to(tl.int64)


@triton.jit(do_not_specialize=["count", "first"])
@no_type_check
def _subsets(
    start,
    degrees,
    offsets,
    positions,
    count,
    fanout,
    first,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.arange(0, LANES)[None, :]
    inside = row < count
    degree = tl.load(degrees + row, mask=inside, other=0)
    long = degree > fanout
    chosen = tl.zeros([ROWS, LANES], dtype=tl.int64) + slot
    chosen = tl.where(long[:, None], -1, chosen)
    for turn in range(0, fanout):
        last = degree - fanout + turn
        number = _below(first, row * fanout + turn, last + 1)
        taken = tl.max((chosen == number[:, None]).to(tl.int32), axis=1) > 0
        number = tl.where(taken, last, number)
        here = long[:, None] & (slot == turn)
        chosen = tl.where(here, number[:, None], chosen)
    begin = tl.load(start + row, mask=inside, other=0)
    target = tl.load(offsets + row, mask=inside, other=0)
    mask = inside[:, None] & (slot < tl.minimum(degree, fanout)[:, None])
    tl.store(positions + target[:, None] + slot, begin[:, None] + chosen, mask=mask)
