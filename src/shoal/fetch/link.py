"""How many useful bytes a second a device can read of host rows, by their width and alignment.

A request on the bus carries up to a line of 128 bytes in sectors of 32, and 24 bytes of header, so
a row of w bytes that touches so many of each takes ``32·sectors + 24·lines`` bytes of the raw rate.
Published measurements on an A100 reach 0.82 to 0.88 of this (4-, 188- and 256-byte rows: dmlc/dgl
#6635 and #6645). The model knows no limit to requests in flight, which may bind below 128 bytes.
"""

from __future__ import annotations

import math

from shoal.core.errors import expect, expect_positive

RAW = {"gen4": 31.5e9, "gen5": 63e9}  # bytes a second of sixteen lanes, one way
_SECTOR, _LINE, _HEADER = 32, 128, 24


def link_rate(row_bytes: int, align: int = 128, raw: float = RAW["gen5"]) -> float:
    """Useful bytes a second of rows that begin at random multiples of `align`.

    Args:
        row_bytes: bytes a row, at least 1.
        align: a power of two from 1 to 128: the largest that divides all rows' addresses.
        raw: bytes a second that the bus carries, headers included.

    Raises:
        InputError: if the width or the alignment is out of range.

    Example:
        One line of four sectors and a header: 128 / (128 + 24) of the raw rate.

        >>> round(link_rate(128) / 63e9, 4) == round(128 / 152, 4)
        True
        >>> link_rate(128, align=4) < link_rate(128)
        True
    """
    expect_positive("row_bytes", row_bytes)
    power = align in [2**i for i in range(8)]
    expect(power, "align", "a power of two from 1 to 128", align, "pass 128 for whole lines")
    carried = _SECTOR * _touched(row_bytes, _SECTOR, align)
    carried += _HEADER * _touched(row_bytes, _LINE, align)
    return raw * row_bytes / carried


def _touched(row_bytes: int, unit: int, align: int) -> float:
    """Mean number of units that a row touches."""
    starts = range(0, unit, min(align, unit))
    return sum(math.ceil((start + row_bytes) / unit) for start in starts) / len(starts)
