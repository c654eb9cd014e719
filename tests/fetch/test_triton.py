"""Kernels that read rows give what their torch lines give, bit by bit, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.fetch.inplace import CacheView

triton = pytest.importorskip("triton", reason="needs the extra kernels, which is for Linux")

DTYPES = [
    torch.bool,
    torch.float16,
    torch.float32,
    torch.int64,
    torch.complex64,
    torch.complex128,
]
IDS = torch.tensor([3, 22, 0, 3, 15], dtype=torch.int32)


def fault() -> Tensor:
    return torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 33, 64, 130])
def test_rows_are_copied(dtype: torch.dtype, width: int) -> None:
    """``table[ids]`` for elements of 1 to 16 bytes, rows shorter and longer than a line.

    The table lies as it was made, one row further, and one element further, so that rows begin at
    line boundaries and off them; two programs share the rows, in order or not.
    """
    from shoal.fetch import _triton

    rows = torch.randint(2, (24, width + 1), generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = rows[:, :width].clone()
    for table, ids, slots in (
        (whole, IDS, None),
        (whole[1:], IDS.long(), torch.tensor([4, 3, 2, 1, 0])),
        (rows[:, 1:], IDS, None),
    ):
        out, seen = torch.empty((5, width), dtype=dtype), fault()
        _triton.copy_rows(table, ids, out, seen, slots, programs=2)
        expected = table[ids.long()]
        assert torch.equal(out if slots is None else out.flip(0), expected)
        assert int(seen) == 0


@pytest.mark.parametrize("width", [1, 33, 130])
def test_rows_of_two_memories_are_copied(width: int) -> None:
    """``cat([table, copies])[keys[ids]]``, whatever the table's lines and the order; hits are
    counted, and a wrong id reads the nearest row."""
    from shoal.fetch import _triton

    rows = torch.arange(25 * width).view(25, width).float()
    ids = torch.tensor([3, 18, 0, 18, 7, 99], dtype=torch.int32)
    for table in (rows[:20], rows[1:20], rows[:20].half()):
        held = -rows[20:].to(table.dtype)
        keys = torch.arange(len(table), dtype=torch.int32)
        keys[[3, 18]] = torch.tensor([len(table) + 4, len(table)], dtype=torch.int32)
        copies = CacheView(held, keys, torch.tensor(5), 0.5)
        at = keys[ids.long().clamp(0, len(table) - 1)].long()
        expected, hits = torch.cat([table, held])[at], int((at >= len(table)).sum())
        for slots in (None, torch.tensor([5, 4, 3, 2, 1, 0])):
            out, seen = torch.empty((6, width), dtype=table.dtype), fault()
            copies.hits.fill_(5)
            _triton.copy_rows(table, ids, out, seen, slots, programs=2, copies=copies)
            assert torch.equal(out if slots is None else out.flip(0), expected)
            assert int(seen) == 99 and int(copies.hits) == 5 + hits


def test_rows_of_any_shape_are_copied() -> None:
    """Numbers, matrices, rows without elements, and no rows."""
    from shoal.fetch import _triton

    for shape in ((), (3, 2), (0,)):
        table = torch.arange(24 * int(torch.Size(shape).numel())).view(24, *shape)
        for ids in (IDS, IDS[:0]):
            out = torch.empty((len(ids), *shape), dtype=torch.int64)
            _triton.copy_rows(table, ids, out, fault())
            assert torch.equal(out, table[ids.long()])


@pytest.mark.parametrize("wrong", [-1, 24, 2**40, -(2**63)])
def test_an_id_outside_reads_the_nearest_row_and_is_told(wrong: int) -> None:
    """No kernel reads outside of the table, each says which id was wrong."""
    from shoal.fetch import _triton

    table = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([2, wrong, 23])
    expected = table[ids.clamp(0, 23)]
    out, seen = torch.empty(3, 5), fault()
    _triton.copy_rows(table, ids, out, seen)
    assert torch.equal(out, expected) and int(seen) == wrong
    total, seen = torch.empty(1, 5), fault()
    _triton.sum_bags(table, ids, torch.tensor([0, 3]), torch.ones(3), total, seen)
    assert torch.equal(total[0], expected[0] + expected[1] + expected[2]) and int(seen) == wrong


def packed(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Random packed rows of bytes and what they stand for."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (n, width), dtype=torch.uint8, generator=generator)
    numbers = torch.randn(n, 2, generator=generator)
    rows = torch.cat([codes, numbers.view(torch.uint8)], 1)
    return rows, codes.float() * numbers[:, :1] + numbers[:, 1:]


def tables(width: int) -> list[tuple[Tensor, Tensor]]:
    """Tables that are read as floats, and their float rows."""
    rows = torch.randn(24, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    halves = [rows.half(), rows.bfloat16()]
    return [packed(24, width), *((half, half.float()) for half in halves)]


@pytest.mark.parametrize("width", [1, 3, 4, 129, 136])
def test_rows_are_dequantized(width: int) -> None:
    """Bytes, halves and bfloat16 come as their float32; four or two to a word, or one by one."""
    from shoal.fetch import _triton

    for table, floats in tables(width):
        for slots in (None, torch.tensor([4, 3, 2, 1, 0])):
            out = torch.empty(5, width)
            _triton.copy_rows(table, IDS, out, fault(), slots)
            assert torch.equal(out if slots is None else out.flip(0), floats[IDS.long()])


@pytest.mark.parametrize("width", [1, 3, 4, 33, 136])
def test_bags_are_summed_in_order(width: int) -> None:
    """Weighted sums equal ``index_add_`` of scaled rows: of floats, doubles, halves and bytes."""
    from shoal.fetch import _triton

    ids = torch.tensor([3, 22, 0, 3, 15, 7, 7, 1])
    offsets, owner = torch.tensor([0, 6, 6, 8]), torch.tensor([0] * 6 + [2] * 2)
    weights = torch.rand(8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = torch.randn(24, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for table, floats in [*tables(width), (rows, rows), (rows.float(), rows.float())]:
        w = weights.to(floats.dtype)
        out = torch.empty(3, width, dtype=floats.dtype)
        _triton.sum_bags(table, ids, offsets, w, out, fault(), programs=2)
        expected = torch.zeros_like(out).index_add_(0, owner, w[:, None] * floats[ids])
        assert torch.equal(out, expected)
