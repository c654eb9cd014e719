"""Rows of bytes: near what they stand for, and read as their decoded rows would be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.fetch.gather import as_floats, gather_mean
from shoal.fetch.quantized import QuantizedRows
from tests.strategies import csrs

ROWS = (
    torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    * torch.logspace(-1, 1, 8)[:, None]
)


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_no_number_is_off_by_more_than_half_a_step(width: int, seed: int) -> None:
    """A step is a 255th of the row's own range; the least number of a row is exact."""
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    near = QuantizedRows.of(rows).gather(torch.arange(4))
    step = (rows.amax(1) - rows.amin(1)) / 255
    assert bool(((near - rows).abs() <= step[:, None] * 0.501 + 1e-6).all())


@given(csrs(min_rows=1, min_cols=1), st.booleans())
def test_means_are_those_of_the_decoded_rows(csr, int32: bool) -> None:
    """The fused mean of bags equals the mean of float rows, weighted or not."""
    table = QuantizedRows.of(ROWS[: csr.n_cols])
    decoded = table.gather(torch.arange(csr.n_cols))
    assert torch.equal(decoded, as_floats(table.packed))
    indices = csr.indices.int() if int32 else csr.indices
    bags = indices, csr.indptr, csr.values
    expected = gather_mean(decoded, *bags)
    torch.testing.assert_close(table.gather_mean(*bags), expected, rtol=1e-5, atol=2e-5)


def test_many_bags_are_shared_among_threads_with_equal_result() -> None:
    """More bags than a thread's share, read into a buffer or not: the same bits."""
    generator = torch.Generator().manual_seed(0)
    table = QuantizedRows.of(torch.randn(50, 12, generator=generator))
    indices = torch.randint(50, (3000,), generator=generator)
    offsets = torch.arange(0, 3001, 3)
    mean = table.gather_mean(indices, offsets)
    halves = [table.gather_mean(indices[i : i + 1500], offsets[:501]) for i in (0, 1500)]
    assert torch.equal(mean, torch.cat(halves))
    out = torch.empty(3000, 12)
    assert table.gather(indices, out) is out and torch.equal(out, table.gather(indices))


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Rows that are not finite, bytes without room for a scale, ids and bags that do not fit."""
    table = QuantizedRows.of(ROWS)
    with pytest.raises(InputError, match="rows: expected finite rows"):
        QuantizedRows.of(torch.tensor([[float("nan")]]))
    with pytest.raises(InputError, match=r"packed: expected uint8 \[n, d \+ 8\]"):
        QuantizedRows(torch.zeros(3, 7, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 8\), got 8"):
        table.gather(torch.tensor([8]))
    with pytest.raises(InputError, match=r"indices: expected ids in \[0, 8\), got -1"):
        table.gather_mean(torch.tensor([-1]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="offsets: expected 0 … 1"):
        table.gather_mean(torch.tensor([0]), torch.tensor([0, 2]))
