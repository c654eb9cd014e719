"""UnifiedTensor: a CPU tensor in place, whose row reads are shoal's and equal torch's."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from shoal.core.errors import InputError
from shoal.fetch import unified as module
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam, RowSGD
from tests.fetch.standin import Driver, far
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


def test_one_door_for_everything() -> None:
    """New settings make another table over the same rows; none return the table itself."""
    host = torch.zeros(3, 2)
    table = unified(host, RowSGD(0.5))
    assert table.is_unified and unified(table) is table
    other = unified(table, default_device="meta", propagates=True)
    assert other is not table and other.data_ptr() == host.data_ptr()
    assert other.optimizer is table.optimizer and table.default_device is None and other.propagates
    assert unified(table, RowSGD(0.1)).optimizer is not table.optimizer


def test_a_leaf_stays_a_leaf_and_a_parameter_a_parameter() -> None:
    """What wanted a gradient still does, in modules too; a result of others is refused."""
    leaf = torch.ones(3, 2, requires_grad=True)
    assert unified(leaf).requires_grad and unified(leaf).is_leaf
    with pytest.raises(InputError, match=r"rows: expected a leaf of autograd"):
        unified(leaf * 2)
    layer = nn.Embedding(3, 2)
    layer.weight = unified(layer.weight)  # pyright: ignore[reportAttributeAccessIssue]
    (weight,) = layer.parameters()
    assert type(weight) is UnifiedTensor and isinstance(weight, nn.Parameter)
    wrapped = nn.Parameter(unified(torch.ones(3, 2)), requires_grad=False)
    assert type(wrapped) is UnifiedTensor and not wrapped.requires_grad
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert isinstance(copied, nn.Parameter) and copied.requires_grad
        assert type(copied) is UnifiedTensor and torch.equal(copied + 0, weight + 0)


def test_a_state_dict_is_plain_tensors_on_disk() -> None:
    """A module with a unified parameter saves what plain torch loads, and loads it again."""
    layer, other = nn.Embedding(3, 2), nn.Embedding(3, 2)
    layer.weight = unified(layer.weight)  # pyright: ignore[reportAttributeAccessIssue]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert type(state["weight"]) is Tensor
    other.weight = unified(other.weight)  # pyright: ignore[reportAttributeAccessIssue]
    other.load_state_dict(state)
    assert torch.equal(other.weight + 0, layer.weight + 0)
    assert type(copy.deepcopy(other).weight) is UnifiedTensor


def test_detached_it_is_the_same_table() -> None:
    """detach() shares rows, settings and lent memory, and forgets the gradient."""
    table = unified(nn.Parameter(torch.ones(3, 2)))
    other = table.detach()
    assert type(other) is UnifiedTensor and not other.requires_grad
    assert not isinstance(other, nn.Parameter) and other.data_ptr() == table.data_ptr()
    other[0] = 5.0
    assert table[torch.tensor([0])].tolist() == [[5.0, 5.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_factories(dtype: torch.dtype) -> None:
    """empty, zeros and full make tables of any dtype and shape, with the door's settings."""
    zeros = UnifiedTensor.zeros(3, 2, dtype=dtype, optimizer=RowSGD(0.5))
    full = UnifiedTensor.full(3, value=7, dtype=dtype, default_device="meta")
    assert zeros.trainable and zeros.dtype == dtype and zeros.tolist() == [[0, 0]] * 3
    assert full.tolist() == [7, 7, 7] and full.default_device == torch.device("meta")
    assert UnifiedTensor.empty(0, 5).shape == (0, 5)
    with pytest.raises(InputError, match="shape: expected sizes of at least 0"):
        UnifiedTensor.empty(3, -1)


def test_freed_tables_lend_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table as large as one that was dropped is made in its memory; one in use is left alone."""
    monkeypatch.setattr(module, "LENT_BYTES", 1 << 10)
    first, second = UnifiedTensor.full(64, 8, value=1), UnifiedTensor.zeros(64, 8)
    where = first.data_ptr()
    assert second.data_ptr() != where
    del first
    third = UnifiedTensor.full(64, 8, value=2)
    assert third.data_ptr() == where and float(second.sum()) == 0 and float(third.mean()) == 2


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
    assert table.trainable and not unified(torch.ones(1)).trainable
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


def read_in_a_child(table: UnifiedTensor, answers: Any) -> None:
    answers.put(table[torch.tensor([3, 0])].tolist())


def test_a_forked_child_reads_and_leaves_the_driver_alone(driver: Driver) -> None:
    """After a fork the child reads the rows, and its end gives no page back."""
    table = unified(torch.arange(8.0).view(4, 2))
    table.gather(far(torch.tensor([1])))
    answers = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=read_in_a_child, args=(table, answers)
    )
    child.start()
    child.join()
    assert child.exitcode == 0 and answers.get() == [[6.0, 7.0], [0.0, 1.0]]
    assert driver.journal == ["register"] and len(driver.locked) == 1


class Picked(Dataset[Tensor]):
    """Rows of a table, as a plain torch data set reads them."""

    def __init__(self, table: UnifiedTensor) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Tensor:
        return self.table[torch.tensor([index])]


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_read_the_rows(start: str) -> None:
    """torch's DataLoader gets the same rows from a worker, however it is started."""
    rows = torch.arange(12.0).view(6, 2)
    table = unified(rows, default_device="cuda")  # which a worker leaves alone
    loader = DataLoader(Picked(table), batch_size=4, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat([batch.squeeze(1) for batch in loader]), rows)


def test_shared_memory_is_the_tables_memory() -> None:
    """After share_memory_ reads, writes and updates all see the shared rows."""
    table = learned().share_memory_()
    assert table.is_shared()
    table.update(torch.tensor([0]), torch.ones(1, 2))
    assert torch.equal(table[torch.arange(4)], table + 0)
    assert float((table + 0)[0, 0]) == pytest.approx(0.9)


def test_sharing_moves_the_rows_and_what_devices_see(driver: Driver) -> None:
    """A device that saw the old memory sees the new one, and the old one is given back."""
    table, ids = unified(torch.zeros(4, 2)), far(torch.tensor([1]))
    table.gather(ids)
    table.share_memory_()
    table[torch.tensor([1])] = torch.ones(1, 2)
    assert table.gather(ids).cpu().tolist() == [[1.0, 1.0]]
    gc.collect()
    assert driver.journal == ["register", "synchronize", "unregister", "register"] or (
        driver.journal == ["register", "synchronize", "synchronize", "unregister", "register"]
    )


def test_a_table_dropped_while_a_device_reads_is_freed_last(driver: Driver) -> None:
    """Wait for the device, give the pages back, free the memory: in this order."""
    rows = torch.zeros(1 << 10, 64)
    storage = weakref.ref(rows.untyped_storage())
    table = unified(rows)
    table.gather(far(torch.tensor([1])))  # which may still be running
    freed_at: list[int] = []
    weakref.finalize(rows.untyped_storage(), lambda: freed_at.append(len(driver.journal)))
    del table, rows
    gc.collect()
    assert driver.journal == ["register", "synchronize", "unregister"]
    assert storage() is None and freed_at == [3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise is Linux's")
def test_advice_is_passed_on_or_refused_by_name(tmp_path: Path) -> None:
    """What madvise knows changes no row; CUDA's words and unknown ones say what to do instead."""
    np.save(tmp_path / "rows.npy", np.arange(6.0).reshape(3, 2))
    tables = unified(torch.arange(6.0).double().view(3, 2)), unified(tmp_path / "rows.npy")
    for word in ("normal", "random", "sequential", "willneed", "hugepages", "populate"):
        tables[0].advise(word)
    for word in ("random", "willneed"):
        tables[1].advise(word)
    assert torch.equal(tables[0] + 0, tables[1] + 0)
    with pytest.raises(InputError, match=r"advice: expected rows in memory, got a mapped file"):
        tables[1].advise("populate")
    with pytest.raises(InputError, match=r"got CUDA's read_mostly; keep hot rows on the device"):
        tables[0].advise("read_mostly")
    with pytest.raises(InputError, match=r"advice: expected one of .* got 'fast'"):
        tables[0].advise("fast")


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
    with pytest.raises(InputError, match=r"expected a .npy, .npz or .safetensors file, got .csv"):
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
    """Rows elsewhere or sparse, a lone number, and what holds no numbers."""
    with pytest.raises(InputError, match=r"rows: expected host memory, got meta"):
        unified(torch.empty(3, device="meta"))
    with pytest.raises(InputError, match="rows: expected at least one axis"):
        unified(torch.tensor(1.0))
    with pytest.raises(InputError, match=r"rows: expected a dense tensor, got torch\.sparse_coo"):
        unified(torch.eye(3).to_sparse())
    with pytest.raises(InputError, match="rows: expected a tensor, an array or a path, got list"):
        unified([[1.0]])
    with pytest.raises(InputError, match="rows: expected an array of numbers, got object"):
        unified(np.array([{}]))


@pytest.mark.usefixtures("unchecked")
def test_a_bad_write_writes_nothing() -> None:
    """An id out of range behind good ones, another shape or dtype: the table is as before."""
    table, ids = UnifiedTensor.zeros(5, 2), torch.tensor([0, 1, 5])
    for add in (False, True):
        for index, rows, message in (
            (ids, torch.ones(3, 2), r"ids: expected ids in \[0, 5\), got 5"),
            (ids - 1, torch.ones(3, 2), r"ids: expected ids in \[0, 5\), got -1"),
            (ids[:2], torch.ones(2, 3), r"rows: expected \(2, 2\) torch.float32, got \(2, 3\)"),
            (ids[:2], torch.ones(2, 2).long(), r"rows: expected .*, got \(2, 2\) torch.int64"),
        ):
            with pytest.raises(InputError, match=message):
                table.put(index, rows, add)
            assert not table.any()
    with pytest.raises(InputError, match="ids: expected a 1-d int32 or int64 tensor, got list"):
        table.gather([1])


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
