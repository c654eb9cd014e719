"""The model of the bus: its table, and what it must do whatever the width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.plan.rows import RAW, link_rate

WIDTHS = [4, 32, 64, 128, 256, 400, 512, 1024, 4096]
ALIGNED = [4.5, 36, 46, 53, 53, 49, 53, 53, 53]  # GB/s of a Gen5 bus, rows on lines
ANYWHERE = [4.5, 23, None, 40, 45, 48, 49, 51, 52.5]  # rows on multiples of 4 bytes


def test_the_table() -> None:
    """Widths from one number to a page, worked out by hand."""
    for width, aligned, anywhere in zip(WIDTHS, ALIGNED, ANYWHERE, strict=True):
        assert link_rate(width) / 1e9 == pytest.approx(aligned, abs=0.5)
        if anywhere is not None:
            assert link_rate(width, align=4) / 1e9 == pytest.approx(anywhere, abs=0.5)


@pytest.mark.parametrize(("width", "measured"), [(188, 18.97), (4, 1.84), (256, 19.1)])
def test_published_measurements_reach_most_of_it(width: int, measured: float) -> None:
    """An A100 on Gen4 (dmlc/dgl #6635, #6645) lies at 0.82 to 0.88 of the model."""
    reached = measured * 1e9 / link_rate(width, align=4, raw=RAW["gen4"])
    assert 0.815 < reached < 0.885


@given(st.integers(1, 10_000), st.sampled_from([2**i for i in range(7)]))
def test_alignment_never_costs(width: int, align: int) -> None:
    """Rows on coarser boundaries are at least as fast, and none beats sectors without waste."""
    assert link_rate(width, align) <= link_rate(width, 2 * align) * (1 + 1e-12)
    assert link_rate(width) <= RAW["gen5"] * 128 / 152 * (1 + 1e-12)


@pytest.mark.usefixtures("unchecked")
def test_bad_numbers_are_named() -> None:
    """No width, and an alignment that is no power of two."""
    with pytest.raises(InputError, match="row_bytes: expected a whole number of at least 1"):
        link_rate(0)
    with pytest.raises(InputError, match="align: expected a power of two from 1 to 128, got 12"):
        link_rate(4, align=12)
