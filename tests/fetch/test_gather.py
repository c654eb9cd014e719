"""Gathers: equal to plain indexing for every dtype and shape, and lent memory is never shared."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.errors import InputError
from shoal.fetch.gather import Buffers, gather_mean, gather_rows
from tests.strategies import csrs, ids_below

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    """Rows of any dtype: numbers, vectors of odd widths, matrices, empty rows, every other row."""
    n = draw(st.integers(1, 9))
    shape = draw(st.sampled_from([(), (1,), (7,), (3, 2), (0,)]))
    step = draw(st.integers(1, 2))
    rows = torch.arange(n * step * max(int(np.prod(shape)), 1)) * 37 % 11
    rows = rows[: n * step * int(np.prod(shape))].reshape(n * step, *shape)
    return rows.to(draw(st.sampled_from(DTYPES)))[::step]


@given(tables(), ids_below(10**6), st.sampled_from([torch.int32, torch.int64]), st.booleans())
def test_gather_is_indexing(
    table: Tensor, ids: Tensor, dtype: torch.dtype, given_out: bool
) -> None:
    """gather_rows(table, ids) is table[ids], in a fresh tensor or in the caller's."""
    ids = (ids % len(table)).to(dtype)
    expected = table[ids.long()]
    out = torch.empty_like(expected) if given_out else None
    rows = gather_rows(table, ids, out)
    assert torch.equal(rows, expected) and rows.dtype == table.dtype
    assert out is None or rows.data_ptr() == out.data_ptr()


def test_gather_reads_a_memory_map(tmp_path) -> None:
    """Rows of a mapped file are gathered like rows in memory."""
    rows = np.arange(600, dtype=np.float32).reshape(100, 6)
    np.save(tmp_path / "rows.npy", rows)
    table = torch.from_numpy(np.load(tmp_path / "rows.npy", mmap_mode="c"))
    ids = torch.tensor([99, 0, 42, 42])
    assert gather_rows(table, ids).numpy().tolist() == rows[[99, 0, 42, 42]].tolist()


def test_gather_drops_the_gradient() -> None:
    """Rows of a table that requires a gradient come as leaves without one."""
    table = torch.ones(3, 2, requires_grad=True)
    assert not gather_rows(table, torch.tensor([1])).requires_grad


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("out", [None, torch.empty(1, 2)])
def test_bad_ids_are_named(out: Tensor | None) -> None:
    """An id out of range, negative or of another type: InputError names ids."""
    table = torch.ones(3, 2)
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 3\), got 3"):
        gather_rows(table, torch.tensor([3]), out)
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 3\), got -1"):
        gather_rows(table, torch.tensor([-1]), out)
    with pytest.raises(InputError, match="ids: expected a 1-d int32 or int64 tensor, got 1-d"):
        gather_rows(table, torch.tensor([1.0]), out)


@pytest.mark.usefixtures("unchecked")
def test_an_out_that_does_not_fit_is_refused() -> None:
    """Torch would resize `out` with a warning; we name both shapes, or both dtypes, instead."""
    table, ids = torch.ones(3, 2), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"out: expected \(2, 2\) torch.float32, got \(3, 2\)"):
        gather_rows(table, ids, torch.empty(3, 2))
    with pytest.raises(InputError, match=r"got .* torch\.float64"):
        gather_rows(table, ids, torch.empty(2, 2, dtype=torch.float64))


# -- bags --------------------------------------------------------------------------------------


@given(csrs(min_rows=1, min_cols=1), st.sampled_from([torch.float32, torch.float64]))
def test_gather_mean_is_its_composition(csr, dtype: torch.dtype) -> None:
    """The fused mean is: gather, scale, add up, divide; empty bags are zeros."""
    table = torch.randn(csr.n_cols, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    weights = None if csr.values is None else csr.values.to(dtype)
    w = torch.ones(csr.nnz, dtype=dtype) if weights is None else weights
    scaled = table[csr.indices.long()] * w[:, None]
    total = torch.zeros(csr.n_rows, 3, dtype=dtype).index_add_(0, csr.row_ids(), scaled)
    mass = torch.zeros(csr.n_rows, dtype=dtype).index_add_(0, csr.row_ids(), w)
    expected = total / mass.clamp(min=1e-30)[:, None]
    torch.testing.assert_close(
        gather_mean(table, csr.indices, csr.indptr, weights), expected, atol=1e-6, rtol=1e-5
    )


def test_bags_without_weight_are_zeros() -> None:
    """A bag whose weights are all zero averages nothing: zeros, not NaN."""
    weights = torch.tensor([0.0, 0.0, 2.0])
    mean = gather_mean(torch.ones(2, 2), torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3]), weights)
    assert mean.tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.usefixtures("unchecked")
def test_bad_bags_are_named() -> None:
    """Offsets that do not span the entries, ids out of range, weights that do not match."""
    table, ids = torch.ones(3, 2), torch.tensor([0, 2])
    for offsets in ([0, 1], [0, 3], [1, 2], [0, 2, 1, 2], []):
        with pytest.raises(InputError, match="offsets: expected 0 … 2, never falling"):
            gather_mean(table, ids, torch.tensor(offsets, dtype=torch.int64))
    with pytest.raises(InputError, match=r"indices: expected ids in \[0, 3\), got 5"):
        gather_mean(table, torch.tensor([5]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="weights: expected one per entry"):
        gather_mean(table, ids, torch.tensor([0, 2]), torch.ones(3))


# -- lent memory ---------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=12))
def test_lent_tensors_never_overlap(requests: list[tuple[int, bool]]) -> None:
    """Whatever is kept and whatever is dropped, no two live tensors share memory."""
    buffers = Buffers(keep=2)
    held: list[Tensor] = []
    for number, (size, keep) in enumerate(requests):
        lent = buffers.empty((size,), torch.int32).fill_(number)
        held.append(lent[: size // 2] if keep else torch.full((size,), number))
        del lent
    for number, (tensor, _) in enumerate(zip(held, requests, strict=True)):
        assert bool((tensor == number).all())


def test_a_view_keeps_lent_memory_alive_and_its_end_returns_it() -> None:
    """Memory comes back when the last view, cast or autograd node over it is gone, not before."""
    buffers = Buffers()
    lent = buffers.empty((64, 64), torch.bfloat16).fill_(1)
    where = lent.data_ptr()
    leaf = lent[3:].float().requires_grad_()
    loss = (leaf * lent[3:]).sum()  # autograd saves the lent rows
    del lent
    assert buffers.empty((64, 64), torch.bfloat16).data_ptr() != where
    loss.backward()
    assert float(leaf.grad.sum()) == 61 * 64
    del loss
    gc.collect()
    again = [buffers.empty((64, 64), torch.bfloat16) for _ in range(2)]
    assert where in [tensor.data_ptr() for tensor in again]


def test_lending_warns_of_nothing() -> None:
    """A lent tensor is writable and of any dtype; torch has no complaint about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in DTYPES:
            assert Buffers().empty((3, 5), dtype).fill_(1).sum() == 15
