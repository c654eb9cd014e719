"""Registration: once a storage, undone once, in the right order; by a stand-in for the driver."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref

import pytest
import torch
from torch import Tensor

from shoal.fetch import register
from shoal.fetch.register import DeviceRows, Registration, RegistrationRefused, device_view


class Driver:
    """Stands in for torch.cuda: keeps a journal, and registers until `room` bytes are locked."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.locked: dict[int, int] = {}
        self.journal: list[str] = []

    def cudaHostRegister(self, pointer: int, nbytes: int, flags: int) -> int:
        assert flags == 3 and nbytes > 0
        self.journal.append("register")
        for start, size in self.locked.items():
            if pointer < start + size and start < pointer + nbytes:
                return 712  # already registered
        if sum(self.locked.values()) + nbytes > self.room:
            return 2  # out of memory
        self.locked[pointer] = nbytes
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        self.journal.append("unregister")
        del self.locked[pointer]
        return 0

    def synchronize(self) -> None:
        self.journal.append("synchronize")


def see(interface: register._Interface, device: torch.device) -> Tensor:
    """Stands in for torch: a tensor over the memory that the interface describes, holding it."""
    about = interface.__cuda_array_interface__
    width = int(about["typestr"][2:])
    steps = [step // width for step in about["strides"]]
    last = sum((size - 1) * step for size, step in zip(about["shape"], steps, strict=True))
    memory = (ctypes.c_char * (width * (last + 1))).from_address(about["data"][0])
    memory.held = interface
    flat = torch.frombuffer(memory, dtype=register._SAME_WIDTH[width])
    return flat.as_strided(about["shape"], steps)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A stand-in driver; the CPU plays the device."""
    driver = Driver()
    monkeypatch.setattr(register, "_as_device_tensor", see)
    monkeypatch.setattr(register, "_cudart", lambda: driver)
    monkeypatch.setattr(register, "_synchronize", driver.synchronize)
    monkeypatch.setattr(register, "_stage", lambda table, ids: table[ids].clone())
    return driver


CPU = torch.device("cpu")
IDS = torch.tensor([3, 0, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_the_view_is_the_tables_memory(driver: Driver, dtype: torch.dtype) -> None:
    """Rows, columns of rows and later rows are seen in place, for every width of element."""
    rows = (torch.arange(40) % 2).view(5, 8).to(dtype)
    for table in (rows, rows[:, 2:7], rows[1:], rows.T[:4]):
        reads = DeviceRows(table)
        assert torch.equal(reads.gather(IDS), table[IDS])
        out = torch.empty_like(table[IDS])
        assert torch.equal(reads.gather(IDS, out), out) and torch.equal(out, table[IDS])
    view = device_view(rows, CPU)
    rows[0, 0] = 1
    assert bool(view[0, 0] == 1) and driver.journal.count("register") >= 1


def test_registered_once_and_undone_once_after_a_synchronise(driver: Driver) -> None:
    """Views of one storage share a registration; the last of them ends it, when work has ended."""
    rows = torch.ones(6, 4)
    first, second = DeviceRows(rows), DeviceRows(rows[2:])
    for _ in range(2):
        first.gather(IDS), second.gather(IDS)
    assert driver.journal == ["register"] and len(driver.locked) == 1
    del first
    gc.collect()
    assert driver.journal == ["register"]
    kept = device_view(rows, CPU)
    second.forget()
    gc.collect()
    assert driver.journal == ["register"]
    del kept
    gc.collect()
    assert driver.journal == ["register", "synchronize", "unregister"] and not driver.locked
    second.gather(IDS)
    assert driver.journal[3:] == ["register"]


def test_memory_outlives_its_registration(driver: Driver) -> None:
    """A view whose table is long gone still reads the rows: it holds their storage."""
    rows = torch.full((1 << 12, 64), 7.0)
    storage = weakref.ref(rows.untyped_storage())
    view = device_view(rows, CPU)
    del rows
    gc.collect()
    assert storage() is not None and bool((view == 7.0).all())
    del view
    gc.collect()
    assert storage() is None and not driver.locked


def test_large_storages_are_registered_in_chunks() -> None:
    """Chunks cover the storage without overlap, and a chunk refused undoes those before it."""
    storage = torch.zeros(100, dtype=torch.uint8).untyped_storage()
    driver = Driver()
    registration = Registration(storage, driver, driver.synchronize, chunk_bytes=30)
    assert sorted(driver.locked.values()) == [10, 30, 30, 30]
    assert min(driver.locked) == storage.data_ptr()
    del registration
    assert not driver.locked
    small = Driver(room=70)
    with pytest.raises(RegistrationRefused, match="40 bytes: error 2"):
        Registration(storage, small, small.synchronize, chunk_bytes=40)
    assert not small.locked and small.journal.count("unregister") == 1


def test_refusal_falls_back_to_staging_with_one_warning(driver: Driver) -> None:
    """A driver that says no costs speed and one warning, not rows."""
    driver.room = 8
    rows = torch.arange(20.0).view(5, 4)
    reads = DeviceRows(rows)
    with pytest.warns(UserWarning, match="staged through pinned memory .* error 2"):
        assert torch.equal(reads.gather(IDS), rows[IDS])
    out = torch.empty(3, 4)
    assert torch.equal(reads.gather(IDS, out), out) and torch.equal(out, rows[IDS])
    assert driver.journal == ["register"]


def test_mapped_and_empty_rows_are_never_registered(driver: Driver) -> None:
    """Registering a mapped file would read all of it; the driver takes no empty range."""
    rows = torch.arange(20.0).view(5, 4)
    assert torch.equal(DeviceRows(rows, mapped=True).gather(IDS), rows[IDS])
    assert DeviceRows(rows[:0]).gather(IDS[:0]).shape == (0, 4)
    assert driver.journal == []


def test_elements_without_an_integer_of_their_width_are_staged(driver: Driver) -> None:
    """complex128 has no spelling in the protocol: staged, and said so."""
    rows = torch.ones(5, 2, dtype=torch.complex128)
    with pytest.warns(UserWarning, match="no way to show torch.complex128"):
        assert torch.equal(DeviceRows(rows).gather(IDS), rows[IDS])


def test_a_forked_child_leaves_the_pages_to_its_parent(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process than the one that registered, the end of a view undoes nothing."""
    view = device_view(torch.ones(4, 4), CPU)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        del view
        gc.collect()
    assert driver.journal == ["register"]


@pytest.mark.gpu
def test_registration_on_a_device() -> None:
    """The real driver registers, shows and releases pages; freed memory can be registered again."""
    for _ in range(3):
        rows = torch.arange(1 << 20, dtype=torch.float32).view(-1, 64)
        view = device_view(rows, torch.device("cuda", 0))
        ids = torch.randint(0, len(rows), (4096,))
        assert view.is_cuda and torch.equal(view[ids.cuda()].cpu(), rows[ids])
        del view, rows
