"""UnifiedTensor: a CPU tensor in place, whose row reads are shoal's and equal torch's."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from shoal._checks import InputError
from shoal.fetch import unified as module
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam, RowSGD
from tests.fetch.test_gather import tables
from tests.strategies import ids_below


@given(tables(), ids_below(10**6))
def test_every_spelling_of_a_read_is_plain_indexing(rows: Tensor, ids: Tensor) -> None:
    """x[ids], gather, index_select and embedding give the rows that a plain tensor gives."""
    table, ids = unified(rows), ids % len(rows)
    expected = rows[ids]
    reads = [
        table[ids],
        table[ids.int()],
        table[ids - len(rows)],  # negative ids count from the end
        table.gather(ids),
        table.gather(ids, torch.empty_like(expected)),
        table.index_select(0, ids),
        torch.index_select(table, 0, ids),
        torch.index_select(input=table, dim=0, index=ids),
    ]
    for read in reads:
        assert type(read) is Tensor and torch.equal(read, expected)
    square = ids.repeat(2).view(2, -1)
    assert torch.equal(table[square], rows[square])
    if rows.dim() == 2:
        assert torch.equal(functional.embedding(square, table), rows[square])
        assert torch.equal(functional.embedding(square, table, padding_idx=0), rows[square])


def test_reads_go_our_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook is what answers: without this the law above could pass by torch's own indexing."""
    calls: list[int] = []

    def counting(table: Tensor, ids: Tensor, out: Tensor | None = None) -> Tensor:
        calls.append(len(ids))
        return torch.index_select(table, 0, ids)

    monkeypatch.setattr(module, "gather_rows", counting)
    table, ids = unified(torch.ones(4, 2)), torch.tensor([1, 2, 3])
    _ = table[ids], table.index_select(0, ids), torch.index_select(table, 0, ids)
    functional.embedding(ids, table)
    assert calls == [3, 3, 3, 3]


def test_other_operations_are_torchs_and_give_plain_tensors() -> None:
    """Slices, masks, numbers, lists, arithmetic, writes and torch.gather behave as on a tensor."""
    rows = torch.arange(12.0).view(4, 3)
    table = unified(rows.clone())
    mask = torch.tensor([True, False, True, False])
    for index in (slice(1, 3), mask, 2, [0, 3], (torch.tensor([0, 1]), torch.tensor([2, 0])), None):
        assert type(table[index]) is Tensor and torch.equal(table[index], rows[index])
    assert torch.equal(table[torch.tensor(3)], rows[3])
    assert torch.equal(table.index_select(1, torch.tensor([2])), rows[:, 2:])
    assert torch.equal(torch.gather(table, 0, torch.tensor([[3, 2, 1]])), torch.tensor([[9, 7, 5]]))
    assert type(table + 1) is Tensor and torch.equal(table + 1, rows + 1)
    assert torch.equal(table @ table.T, rows @ rows.T)
    table[torch.tensor([0])] = 5.0
    assert table.gather(torch.tensor([0])).tolist() == [[5.0, 5.0, 5.0]]
    with pytest.raises(IndexError):
        table[torch.tensor([4])]


def test_rows_are_in_place() -> None:
    """The table and the tensor or array that it was made of are the same memory."""
    host = torch.zeros(3, 2)
    table = unified(host)
    assert isinstance(table, Tensor) and table.data_ptr() == host.data_ptr()
    assert table.device.type == "cpu" and table.shape == (3, 2)
    assert unified(table) is table
    array = np.zeros((3, 2), dtype=np.float32)
    unified(array)[0] = 1.0
    assert array[0].tolist() == [1.0, 1.0]


def test_a_gradient_still_flows_through_a_table_that_requires_one() -> None:
    """requires_grad_ leaves reads to torch, whose autograd knows them."""
    table = unified(torch.ones(3, 2)).requires_grad_()
    table[torch.tensor([1, 1])].sum().backward()
    assert table.grad is not None and table.grad.tolist() == [[0, 0], [2, 2], [0, 0]]


def test_large_gathers_reuse_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that nobody holds any more is where the next one is written; held ones are safe."""
    monkeypatch.setattr(module, "LENT_BYTES", 1)
    rows = torch.arange(40.0).view(10, 4)
    table = unified(rows)
    first = table[torch.arange(8)]
    second = table[torch.arange(2, 10)]
    assert torch.equal(first, rows[:8]) and torch.equal(second, rows[2:])
    where = first.data_ptr()
    del first
    assert table[torch.arange(5)].data_ptr() == where


def test_gather_mean_reads_the_table() -> None:
    """The fused mean is that of the function."""
    table = unified(torch.tensor([[1.0], [3.0]]))
    bags = torch.tensor([0, 1, 1]), torch.tensor([0, 2, 3])
    assert table.gather_mean(*bags).tolist() == [[2.0], [3.0]]
    assert table.gather_mean(*bags, torch.tensor([3.0, 1, 1])).tolist() == [[1.5], [3.0]]


# -- learning ------------------------------------------------------------------------------------


def test_update_is_the_optimizers_step() -> None:
    """update() moves the table's own memory as its optimizer would, doubles summed."""
    host = torch.ones(4, 2)
    table = unified(host, RowSGD(0.5))
    assert table.learns and not unified(torch.ones(1)).learns
    table.update(torch.tensor([2, 2]), torch.ones(2, 2))
    assert host.tolist() == [[1, 1], [1, 1], [0, 0], [1, 1]]
    frozen = unified(host)
    with pytest.raises(InputError, match="table: expected an optimizer"):
        frozen.update(torch.tensor([0]), torch.ones(1, 2))


def learned() -> UnifiedTensor:
    table = unified(torch.ones(4, 2), RowAdam(0.1))
    table.update(torch.tensor([1, 3]), torch.ones(2, 2))
    return table


def test_copies_and_pickles_learn_on_alike_and_apart() -> None:
    """deepcopy, pickle and torch.save keep rows and optimizer state, and share nothing."""
    table = learned()
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    again = [
        copy.deepcopy(table),
        pickle.loads(pickle.dumps(table)),
        torch.load(file, weights_only=False),
    ]
    table.update(torch.tensor([3]), torch.ones(1, 2))
    for other in again:
        assert type(other) is UnifiedTensor and torch.equal(other + 0, learned() + 0)
        other.update(torch.tensor([3]), torch.ones(1, 2))
        assert torch.equal(other + 0, table + 0)


def test_shared_memory_is_the_tables_memory() -> None:
    """After share_memory_ reads, writes and updates all see the shared rows."""
    table = learned().share_memory_()
    assert table.is_shared()
    table.update(torch.tensor([0]), torch.ones(1, 2))
    assert torch.equal(table[torch.arange(4)], table + 0)
    assert float((table + 0)[0, 0]) == pytest.approx(0.9)


# -- files ---------------------------------------------------------------------------------------


def test_open_maps_npy_and_safetensors(tmp_path: Path) -> None:
    """Rows come back from both formats, and writing to the table leaves the file alone."""
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "rows.npy", rows.numpy())
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    save_file({"a": rows.bfloat16(), "b": rows}, tmp_path / "two.safetensors")
    ids = torch.tensor([5, 0, 5])
    for path in (tmp_path / "rows.npy", tmp_path / "rows.safetensors"):
        table = unified(path)
        assert torch.equal(table[ids], rows[ids])
        table[0] = 0.0
        assert torch.equal(unified(path)[ids], rows[ids])
    two = unified(tmp_path / "two.safetensors", name="a")
    assert torch.equal(two[ids], rows[ids].bfloat16())


def test_a_memory_map_is_taken_in_place(tmp_path: Path) -> None:
    """A numpy memory map with mode "c" is a table; a read-only one is refused with the remedy."""
    np.save(tmp_path / "rows.npy", np.arange(6.0).reshape(3, 2))
    table = unified(np.load(tmp_path / "rows.npy", mmap_mode="c"))
    assert table[torch.tensor([2])].tolist() == [[4.0, 5.0]]
    with pytest.raises(InputError, match='read-only one; open the map with mode="c"'):
        unified(np.load(tmp_path / "rows.npy", mmap_mode="r"))


def test_bad_files_are_named(tmp_path: Path) -> None:
    """Missing, foreign, truncated and ambiguous files: one line that names the file."""
    with pytest.raises(InputError, match=r"absent.npy: expected a file .* got nothing there"):
        unified(tmp_path / "absent.npy")
    (tmp_path / "rows.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"expected a .npy or .safetensors file, got .csv"):
        unified(tmp_path / "rows.csv")
    np.save(tmp_path / "rows.npy", np.ones((50, 4)))
    save_file({"a": torch.ones(50, 4), "b": torch.ones(2)}, tmp_path / "rows.safetensors")
    with pytest.raises(InputError, match=r"expected name, one of \['a', 'b'\], got None"):
        unified(tmp_path / "rows.safetensors")
    for name in ("rows.npy", "rows.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(InputError, match=f"{name}: expected a whole"):
            unified(path, name="a")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"words.npy: expected a whole .npy file of numbers"):
        unified(tmp_path / "words.npy")


@pytest.mark.usefixtures("unchecked")
def test_rows_that_are_not_host_rows_are_refused() -> None:
    """Rows elsewhere, or a lone number."""
    with pytest.raises(InputError, match=r"rows: expected host memory, got meta"):
        unified(torch.empty(3, device="meta"))
    with pytest.raises(InputError, match="rows: expected at least one axis"):
        unified(torch.tensor(1.0))


# -- a device ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_cuda_ids_give_cuda_rows(tmp_path: Path) -> None:
    """Every spelling of a read gives the host's rows, on the device of the ids."""
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        rows = torch.randint(0, 2, (1000, 33)).to(dtype)
        ids = torch.randint(0, 1000, (500,))
        table = unified(rows)
        there = ids.cuda()
        reads = [table[there], table.gather(there), table.index_select(0, there)]
        for read in [*reads, functional.embedding(there, table)]:
            assert read.is_cuda and torch.equal(read.cpu(), rows[ids])
    np.save(tmp_path / "rows.npy", np.ones((10, 4)))
    staged = unified(tmp_path / "rows.npy").gather(torch.tensor([3]).cuda())
    assert staged.is_cuda and staged.tolist() == [[1.0] * 4]


@pytest.mark.gpu
def test_updates_from_the_device_are_read_by_the_device() -> None:
    """A row moved by a device's gradient is what the device reads next."""
    table = unified(torch.ones(8, 2), RowSGD(1.0))
    ids = torch.tensor([5, 1]).cuda()
    assert table[ids].tolist() == [[1, 1], [1, 1]]
    table.update(ids, torch.ones(2, 2).cuda())
    assert table[ids].tolist() == [[0, 0], [0, 0]]
