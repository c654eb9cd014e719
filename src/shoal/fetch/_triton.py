"""Kernels with which a device reads rows of host memory: copied, dequantized, or summed by bag.

Rows that lie in host memory cross the bus in lines of 128 bytes, and a read that straddles a line
costs two requests. So the lanes of a row begin at the line's boundary before the row and those
outside the row are masked (after DGL's aligned kernel, dmlc/dgl #3254); rows shorter than a line
take one lane a word. Words are the widest integers, up to 8 bytes, that divide a row's length and
its address: one kernel serves all dtypes of 1 to 16 bytes and any width. Rows of bytes and of
16-bit floats are read four and two to a word, so that a warp still asks for whole lines.

The grid is capped and its programs loop: a gather occupies a few multiprocessors, which is all that
the bus can feed, and the rest compute. An id outside the table reads the nearest row, and is
written to `fault` (:class:`~shoal.fetch.inplace.Bounds`).

Every kernel equals the torch line in its docstring bit by bit, in Triton's interpreter and on an
H200; products are rounded before they are added there, too (no fused multiply-adds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from shoal.fetch.gather import TAIL
from shoal.fetch.inplace import CacheView

# × 128 threads, and the most where copies serve some rows. On an H200, 40 read sorted rows of 512
# bytes as fast as 80 or 160 (46 GB/s) and let 94 % of the read hide behind a product of matrices,
# of which 80 hid nothing (docs/LOG.md).
PROGRAMS, MOST_PROGRAMS = 40, 160
_TILE = 1024  # words that a program asks for at once
_EXACT: dict[str, bool] = {"enable_fp_fusion": False}  # round products before they are added
_UNROLL = 4  # rows of a bag that are asked for before the first is added

_LINE = 128  # bytes of a request on the bus
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

COPY = tl.constexpr(0)
FLOAT = tl.constexpr(1)
BYTE = tl.constexpr(2)
HALF = tl.constexpr(3)
BFLOAT = tl.constexpr(4)
_KINDS = {
    torch.float32: FLOAT,
    torch.float64: FLOAT,
    torch.uint8: BYTE,
    torch.float16: HALF,
    torch.bfloat16: BFLOAT,
}


def copy_rows(
    table: Tensor,
    ids: Tensor,
    out: Tensor,
    fault: Tensor,
    slots: Tensor | None = None,
    programs: int | None = None,
    copies: CacheView | None = None,
) -> None:
    """Write rows; equivalent to ``out[slots] = table[ids.clamp(0, n - 1)]``.

    With copies, ``torch.cat([table, copies.rows])[copies.keys[ids.clamp(0, n - 1)]]``, and the rows
    that come from copies are added to their hits. Where `out` is of another dtype, rows are written
    as float32: those of uint8 are packed, d codes q, then float32 scale and bias, and each is
    ``(q[ids].float() * scale[ids, None]) + bias[ids, None]``.

    Args:
        table: ``[n, ...]``, each row contiguous; ``[n, d]``, packed ``[n, d + 8]``, to be widened.
        ids: int32 or int64 ``[s]``.
        out: ``[s, ...]``, contiguous, of the table's dtype or float32.
        fault: int64 ``[1]``, overwritten by an id that is outside the table.
        slots: where each row goes; in order if None.
        programs: how many at most run at once; by default as many as keep the bus busy.
        copies: of some of the rows, in the device's own memory; only of a table's own dtype.
    """
    if programs is None:
        # with copies more, so that as many requests as ever are on the bus at a time
        share = 0.0 if copies is None else copies.share
        programs = round(PROGRAMS / max(1 - share, PROGRAMS / MOST_PROGRAMS))
    if out.dtype == table.dtype:
        size = word_size(table, out, *([] if copies is None else [copies.rows]))
        kind, per, laid, target = COPY, 1, words(table, size), words(out, size).table
    else:
        size, per, tail = _float_words(table)
        kind, laid, target = _KINDS[table.dtype], words(table, size, tail), out
    held, keys, hits = laid.table, ids, fault
    if copies is not None:
        held, keys, hits = words(copies.rows, size).table, copies.keys, copies.hits
    rows = max(1, _TILE // (laid.lanes * per))
    if len(ids) and laid.width:
        _rows[(min(programs, triton.cdiv(len(ids), rows)),)](
            *(laid.table, held, keys, hits, ids, ids if slots is None else slots, target, fault),
            *(len(table), len(ids), laid.width, laid.stride, laid.phase, laid.lines),
            LANES=laid.lanes,
            ROWS=rows,
            PER=per,
            KIND=kind.value,
            ALIGN=laid.aligned,
            SORTED=slots is not None,
            HELD=copies is not None,
            **_EXACT,
        )


def sum_bags(
    table: Tensor,
    ids: Tensor,
    offsets: Tensor,
    weights: Tensor,
    out: Tensor,
    fault: Tensor,
    programs: int = PROGRAMS,
) -> None:
    """Write the weighted sum of each bag, its entries added in order.

    Equivalent to ``torch.zeros(b, d).index_add_(0, bag_of_entry, weights[:, None] * rows)`` with
    ``rows = table[ids].float()`` (dequantized as by :func:`copy_rows`; float64 stays float64).

    Args:
        table: float ``[n, d]`` of 16, 32 or 64 bits, or packed uint8 ``[n, d + 8]``.
        ids: int32 or int64 ``[e]``.
        offsets: ``[b + 1]``; bag i is ``ids[offsets[i]:offsets[i + 1]]``.
        weights: ``[e]``, of the dtype of `out`.
        out: float32 or, for a table of float64, float64 ``[b, d]``, contiguous.
        fault: as for :func:`copy_rows`.
        programs: as for :func:`copy_rows`.
    """
    size, per, tail = _float_words(table)
    laid = words(table, size, tail)
    bags = max(1, _TILE // (_UNROLL * laid.lanes * per))
    blocks = triton.cdiv(laid.width, laid.lanes)
    tiles = triton.cdiv(len(out), bags) * blocks
    if tiles:
        _bags[(min(programs, tiles),)](
            *(laid.table, ids, offsets, weights, out, fault),
            *(len(table), len(out), tiles, laid.width, laid.stride, blocks),
            LANES=laid.lanes,
            BAGS=bags,
            UNROLL=_UNROLL,
            PER=per,
            KIND=_KINDS[table.dtype].value,
            **_EXACT,
        )


def probe(device: torch.device) -> bool:
    """Whether a tiny gather on `device` gives what torch gives."""
    rows = torch.arange(6, dtype=torch.int32, device=device).view(3, 2)
    ids = torch.tensor([2, 0], device=device)
    out, fault = torch.empty_like(rows[:2]), torch.zeros(1, dtype=torch.int64, device=device)
    copy_rows(rows, ids, out, fault)
    return torch.equal(out, rows[ids])


def _float_words(table: Tensor) -> tuple[int, int, int]:
    """Bytes of a word, elements of a word, and bytes behind the row, of rows read as floats."""
    item = table.element_size()
    size = 4 if item < 4 and word_size(table, largest=4) == 4 else item
    return size, size // item, TAIL if table.dtype == torch.uint8 else 0


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
    width, line = (row - tail) // size, _LINE // size
    phase = table.data_ptr() % _LINE // size
    whole = phase == 0 and step % _LINE == 0
    aligned = width >= line and not whole
    lanes = min(line, triton.next_power_of_2(max(width, 1)))
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


@triton.jit
@no_type_check
def _row(ids, entry, mask, fault, n):
    """The rows of entries, limited to the table; one that is outside is written to `fault`."""
    row = tl.load(ids + entry, mask=mask, other=0).to(tl.int64)
    inside = tl.minimum(tl.maximum(row, 0), n - 1)
    tl.store(fault + tl.zeros_like(entry), row, mask=mask & (row != inside))
    return inside


@triton.jit
@no_type_check
def _number(table, at, mask):
    """A float32 that lies in four bytes or in one word at `at`."""
    if table.dtype.element_ty == tl.uint8:
        bits = tl.zeros_like(at).to(tl.int32)
        for i in tl.static_range(4):
            bits |= tl.load(table + at + i, mask=mask, other=0).to(tl.int32) << (8 * i)
    else:
        bits = tl.load(table + at, mask=mask, other=0)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _floats(words, PER: tl.constexpr, KIND: tl.constexpr):
    """The elements in words ``[…, L]``, as ``[…, L, PER]``: integers or floats."""
    parts = tl.expand_dims(words, -1)
    if PER > 1:
        parts = parts >> (tl.arange(0, PER) * (32 // PER))[None, None, :]
    if KIND == FLOAT:
        if words.dtype == tl.int64:
            parts = parts.to(tl.float64, bitcast=True)
        else:
            parts = parts.to(tl.float32, bitcast=True)
    elif KIND == BYTE:
        parts = (parts & 255).to(tl.float32)
    elif KIND == HALF:
        parts = parts.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif KIND == BFLOAT:
        parts = (parts.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return parts


@triton.jit(do_not_specialize=["n", "count", "phase"])
@no_type_check
def _rows(
    table,
    held,
    keys,
    hits,
    ids,
    slots,
    out,
    fault,
    n,
    count,
    width,
    stride,
    phase,
    lines,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    PER: tl.constexpr,
    KIND: tl.constexpr,
    ALIGN: tl.constexpr,
    SORTED: tl.constexpr,
    HELD: tl.constexpr,
):
    lane = tl.arange(0, LANES)[None, :]
    part = tl.arange(0, PER)[None, None, :]
    served = tl.zeros([ROWS], dtype=tl.int64)
    for begin in range(tl.program_id(0) * ROWS, count, tl.num_programs(0) * ROWS):
        entry = begin + tl.arange(0, ROWS)
        inside = entry < count
        row = _row(ids, entry, inside, fault, n)
        far = inside
        if HELD:
            copy = tl.load(keys + row, mask=inside, other=0).to(tl.int64) - n
            far = inside & (copy < 0)
            served += (copy >= 0).to(tl.int64)
        first = row * stride
        place = entry.to(tl.int64)
        if SORTED:
            place = tl.load(slots + entry, mask=inside, other=0).to(tl.int64)
        shift = tl.zeros_like(first)
        if ALIGN:
            shift = (first + phase) % LANES
        if KIND == BYTE:
            tail = first + width
            scale = _number(table, tail, inside)[:, None, None]
            bias = _number(table, tail + 4 // PER, inside)[:, None, None]
        for line in range(lines):
            column = line * LANES + lane - shift[:, None]
            within = (column >= 0) & (column < width)
            here = within & inside[:, None]
            read = tl.load(table + first[:, None] + column, mask=within & far[:, None], other=0)
            if HELD:
                near = here & (copy >= 0)[:, None]
                read |= tl.load(held + copy[:, None] * width + column, mask=near, other=0)
            values = _floats(read, PER, KIND)
            if KIND == BYTE:
                values = values * scale + bias
            target = (place[:, None] * width + column)[:, :, None] * PER + part
            tl.store(out + target, values, mask=here[:, :, None])
    if HELD:
        tl.atomic_add(hits, tl.sum(served))


@triton.jit(do_not_specialize=["n", "count", "tiles"])
@no_type_check
def _bags(
    table,
    ids,
    offsets,
    weights,
    out,
    fault,
    n,
    count,
    tiles,
    width,
    stride,
    blocks,
    LANES: tl.constexpr,
    BAGS: tl.constexpr,
    UNROLL: tl.constexpr,
    PER: tl.constexpr,
    KIND: tl.constexpr,
):
    part = tl.arange(0, PER)[None, None, :]
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        bag = (tile // blocks) * BAGS + tl.arange(0, BAGS)
        column = ((tile % blocks) * LANES + tl.arange(0, LANES))[None, :]
        inside = bag < count
        begin = tl.load(offsets + bag, mask=inside, other=0).to(tl.int64)
        end = tl.load(offsets + bag + 1, mask=inside, other=0).to(tl.int64)
        total = tl.zeros([BAGS, LANES, PER], dtype=weights.dtype.element_ty)
        for step in range(0, tl.max(end - begin), UNROLL):
            for ahead in tl.static_range(UNROLL):
                entry = begin + step + ahead
                some = entry < end
                first = _row(ids, entry, some, fault, n) * stride
                mask = some[:, None] & (column < width)
                read = tl.load(table + first[:, None] + column, mask=mask, other=0)
                values = _floats(read, PER, KIND)
                if KIND == BYTE:
                    scale = _number(table, first + width, some)[:, None, None]
                    bias = _number(table, first + width + 4 // PER, some)[:, None, None]
                    values = values * scale + bias
                weight = tl.load(weights + entry, mask=some, other=0)[:, None, None]
                total += tl.where(some[:, None, None], weight * values, 0)
        target = (bag.to(tl.int64)[:, None] * width + column)[:, :, None] * PER + part
        tl.store(out + target, total, mask=(inside[:, None] & (column < width))[:, :, None])
