"""Csr: every reading and reshaping agrees with the dense matrix, with empty rows and doubles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from tests.strategies import csrs, ids_below


@given(csrs())
def test_coo_round_trip(csr: Csr) -> None:
    """Rows and columns of the entries rebuild the matrix, whatever order they come in."""
    order = torch.randperm(csr.nnz, generator=torch.Generator().manual_seed(0))
    values = None if csr.values is None else csr.values[order]
    again = Csr.from_coo(csr.row_ids()[order], csr.indices[order], csr.shape, values)
    torch.testing.assert_close(again.to_dense(), csr.to_dense())


@given(csrs())
def test_transpose_is_dense_transpose_and_sorted(csr: Csr) -> None:
    """transpose() is the transposed matrix, and twice it is the matrix with sorted rows."""
    torch.testing.assert_close(csr.transpose().to_dense(), csr.to_dense().T)
    twice = csr.transpose().transpose()
    torch.testing.assert_close(twice.to_dense(), csr.to_dense())
    key = twice.row_ids() * max(csr.n_cols, 1) + twice.indices
    assert bool((key.diff() >= 0).all())


@pytest.mark.parametrize("n_cols", [2**15, 2**15 + 1])
def test_transpose_around_the_narrowest_integers(n_cols: int) -> None:
    """The highest column that int16 holds, and the first that it does not."""
    columns = torch.tensor([n_cols - 1, 5, n_cols - 1, 32_000])
    back = Csr(torch.tensor([0, 2, 4]), columns, n_cols).transpose()
    rows = [back.take(torch.tensor([i]))[0].tolist() for i in (5, 32_000, n_cols - 1)]
    assert rows == [[0], [1], [0, 1]]


@given(csrs())
def test_coalesce_sums_doubles(csr: Csr) -> None:
    """After coalesce() every (row, column) stands once; values are summed, plain entries kept."""
    once = csr.coalesce()
    key = once.row_ids() * max(csr.n_cols, 1) + once.indices
    assert bool((key.diff() > 0).all())
    dense = csr.to_dense()
    expected = dense if csr.values is not None else (dense > 0).float()
    torch.testing.assert_close(once.to_dense(), expected)


@given(csrs(min_rows=1), ids_below(10**6))
def test_rows_and_take_read_the_same_entries(csr: Csr, ids: Tensor) -> None:
    """rows(ids) is dense[ids]; take(ids) and edges(ids) are its ragged form."""
    ids = ids % csr.n_rows
    part = csr.rows(ids)
    torch.testing.assert_close(part.to_dense(), csr.to_dense()[ids])
    columns, offsets = csr.take(ids)
    assert torch.equal(columns, part.indices) and torch.equal(offsets, part.indptr)
    positions, _ = csr.edges(ids)
    assert torch.equal(csr.indices[positions], columns)


@given(csrs(min_rows=1, min_cols=1))
def test_find_agrees_with_dense(csr: Csr) -> None:
    """find() says of every cell whether it is an entry, and where."""
    once = csr.coalesce()
    row = torch.arange(csr.n_rows).repeat_interleave(csr.n_cols)
    col = torch.arange(csr.n_cols).repeat(csr.n_rows)
    hit, at = once.find(row, col)
    expected = torch.zeros(csr.shape, dtype=torch.bool)
    expected[once.row_ids(), once.indices.long()] = True
    assert torch.equal(hit.reshape(csr.shape), expected)
    assert torch.equal(once.indices[at[hit]].long(), col[hit])


@given(csrs(), csrs())
def test_stack_is_dense_cat(top: Csr, below: Csr) -> None:
    """stack() puts one matrix under the other."""
    width = max(top.n_cols, below.n_cols)
    top = Csr(top.indptr, top.indices, width)
    below = Csr(below.indptr, below.indices, width)
    expected = torch.cat([top.to_dense(), below.to_dense()])
    torch.testing.assert_close(top.stack(below).to_dense(), expected)


@given(csrs())
def test_scipy_and_dense_round_trip(csr: Csr) -> None:
    """scipy and dense forms come back as the same matrix."""
    pytest.importorskip("scipy")
    torch.testing.assert_close(Csr.from_scipy(csr.to_scipy()).to_dense(), csr.to_dense())
    torch.testing.assert_close(Csr.from_dense(csr.to_dense()).to_dense(), csr.to_dense())


def test_save_and_open_map_the_same_matrix(tmp_path) -> None:
    """open() returns what save() wrote, for both index widths and with or without values."""
    for dtype in (torch.int32, torch.int64):
        for values in (None, torch.tensor([0.5, 2.0, 3.0])):
            indices = torch.tensor([1, 0, 3], dtype=dtype)
            csr = Csr(torch.tensor([0, 2, 2, 3]), indices, 4, values)
            csr.save(tmp_path / "c")
            again = Csr.open(tmp_path / "c")
            assert again.indices.dtype == dtype and again.shape == (3, 4)
            torch.testing.assert_close(again.to_dense(), csr.to_dense())


def test_open_names_what_is_wrong(tmp_path) -> None:
    """A missing folder, a foreign file, a truncated array: each one line that names the path."""
    with pytest.raises(InputError, match="nothing there"):
        Csr.open(tmp_path / "absent")
    csr = Csr(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), 4)
    csr.save(tmp_path)
    whole = (tmp_path / "indices.npy").read_bytes()
    (tmp_path / "indices.npy").write_bytes(whole[:-8])
    with pytest.raises(InputError, match="whole saved Csr"):
        Csr.open(tmp_path)
    (tmp_path / "indices.npy").write_bytes(whole)
    (tmp_path / "csr.json").write_text('{"format": "other/9", "values": false}')
    with pytest.raises(InputError, match="other/9"):
        Csr.open(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_bad_entries_are_refused() -> None:
    """Ids out of range, a falling indptr, mismatched lengths: InputError names the argument."""
    ids = torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"col: expected ids in \[0, 1\), got 1"):
        Csr.from_coo(ids, ids, (2, 1))
    with pytest.raises(InputError, match="indptr: expected a sequence that never falls"):
        Csr(torch.tensor([0, 2, 1, 2]), ids, 2).validate()
    with pytest.raises(InputError, match="values: expected one per entry"):
        Csr(torch.tensor([0, 2]), ids, 2, torch.ones(3))
    with pytest.raises(InputError, match=r"ids in \[0, 1\), got -1"):
        Csr(torch.tensor([0, 2]), ids, 2).rows(torch.tensor([-1]))


def test_edge_index_holds_in_neighbors() -> None:
    """PyG's (source, target): row v of the Csr lists the sources of the edges into v."""
    csr = Csr.from_edge_index(torch.tensor([[0, 1, 0], [2, 2, 1]]), 3)
    assert csr.take(torch.tensor([2]))[0].tolist() == [0, 1]
