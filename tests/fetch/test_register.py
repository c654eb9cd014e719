"""Registration: every byte once, undone once, in the right order; by a stand-in for the driver."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import sys
import weakref
from pathlib import Path

import pytest
import torch

from shoal.fetch import register
from shoal.fetch.device_rows import device_view
from shoal.fetch.register import Registration, RegistrationRefused, bytes_of, registration, touch
from tests.fetch.standin import FAR, Driver

PAGE = mmap.PAGESIZE


def pages(count: int) -> torch.Tensor:
    """A tensor that begins and ends on a page's boundary, in memory that outlives it."""
    return torch.frombuffer(mmap.mmap(-1, count * PAGE), dtype=torch.uint8)


def test_views_of_one_storage_share_a_registration(driver: Driver) -> None:
    """Columns and later rows of one tensor are registered once, until the last of them ends."""
    rows = torch.ones(6, 4)
    views = [device_view(part, FAR) for part in (rows, rows[:, 2:], rows[:, :2], rows[3:])]
    assert driver.journal == ["register"] and len(driver.locked) == 1
    while len(views) > 1:
        views.pop()
        gc.collect()
        assert driver.journal == ["register"]
    views.clear()
    gc.collect()
    assert driver.journal == ["register", "synchronize", "unregister"] and not driver.locked
    held = device_view(rows, FAR)
    assert driver.journal[3:] == ["register"]
    del held


def test_storages_that_share_memory_register_each_byte_once(driver: Driver) -> None:
    """Arrays over one buffer, overlapping ones too: what is locked already is held on to."""
    whole = pages(4).numpy()
    parts = [torch.from_numpy(whole[first * PAGE : last * PAGE]) for first, last in PARTS]
    held = [registration(part.untyped_storage()) for part in parts]
    begin, _ = bytes_of(torch.from_numpy(whole).untyped_storage())
    assert driver.locked == {begin + PAGE: PAGE, begin: PAGE, begin + 2 * PAGE: 2 * PAGE}
    assert all(registration(part.untyped_storage()) in held for part in parts)
    del held[0]  # the others hold on to its page
    gc.collect()
    assert len(driver.locked) == 3
    held.clear()
    gc.collect()
    assert not driver.locked and driver.journal.count("unregister") == 3


PARTS = [(1, 2), (0, 4), (1, 3)]


def test_a_table_s_own_bytes_are_registered_and_no_more(driver: Driver) -> None:
    """Tables on one page do not collide, and memory beside them stays what it was."""
    page = pages(1).numpy()
    parts = [torch.from_numpy(page[a:b]) for a, b in ((0, 8), (8, 9), (16, 20))]
    held = [registration(part.untyped_storage()) for part in parts]
    begin, _ = bytes_of(parts[0].untyped_storage())
    assert len(set(held)) == 3
    assert driver.locked == {begin: 8, begin + 8: 1, begin + 16: 4}


def test_memory_outlives_its_registration(driver: Driver) -> None:
    """A view whose table is long gone still reads the rows: it holds their storage."""
    rows = torch.full((1 << 12, 64), 7.0)
    storage = weakref.ref(rows.untyped_storage())
    view = device_view(rows, torch.device("cpu"))
    del rows
    gc.collect()
    assert storage() is not None and bool((view == 7.0).all())
    del view
    gc.collect()
    assert storage() is None and not driver.locked


def test_large_storages_are_registered_in_chunks() -> None:
    """Chunks cover the memory without overlap, and a chunk refused undoes those before it."""
    storage = torch.zeros(9 * PAGE, dtype=torch.uint8).untyped_storage()
    driver = Driver()
    held = Registration(storage, driver, driver.synchronize, chunk_bytes=4 * PAGE)
    reach = sorted(driver.locked.items())
    assert [size for _, size in reach] == [4 * PAGE, 4 * PAGE, PAGE]
    assert reach[0][0] == storage.data_ptr()
    assert all(a + size == b for (a, size), (b, _) in itertools.pairwise(reach))
    del held
    assert not driver.locked
    small = Driver(room=7 * PAGE)
    with pytest.raises(RegistrationRefused, match=r"error 2, no more memory .* ulimit -l"):
        Registration(storage, small, small.synchronize, chunk_bytes=4 * PAGE)
    assert not small.locked and small.journal.count("unregister") == 1


def test_a_registration_that_fails_halfway_can_be_tried_again(driver: Driver) -> None:
    """What was refused for want of room is registered once there is room."""
    rows = torch.ones(PAGE)
    driver.room = PAGE
    with pytest.raises(RegistrationRefused):
        device_view(rows, FAR)
    driver.room = 1 << 40
    view = device_view(rows, FAR)
    assert len(driver.locked) == 1
    del view


def test_a_forked_child_leaves_the_pages_to_its_parent(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process than the one that registered, the end of a view undoes nothing."""
    view = device_view(torch.ones(4, 4), FAR)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        del view
        gc.collect()
    assert driver.journal == ["register"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are counted in /proc")
def test_touched_pages_are_resident_and_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Touching backs fresh memory by pages, before the driver would, and changes no byte."""
    monkeypatch.setattr(register, "_TOUCH_BYTES", 1 << 20)
    fresh = pages(4096)  # 16 MB, of which nothing is resident yet

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    before = resident()
    fresh[5] = 9
    touch(*bytes_of(fresh.untyped_storage()))
    assert resident() - before > 0.9 * fresh.numel()
    assert int(fresh.sum()) == int(fresh[5]) == 9


@pytest.mark.gpu
def test_registration_on_a_device() -> None:
    """The real driver registers, shows and releases pages; freed memory can be registered again."""
    for _ in range(3):
        rows = torch.arange(1 << 20, dtype=torch.float32).view(-1, 64)
        view = device_view(rows, torch.device("cuda", 0))
        ids = torch.randint(0, len(rows), (4096,))
        assert view.is_cuda and torch.equal(view[ids.cuda()].cpu(), rows[ids])
        del view, rows


@pytest.mark.gpu
def test_pages_that_tables_share_on_a_device() -> None:
    """Two columns, overlapping arrays and neighbors on one page: the real driver takes them all.

    What lies beside a registered table can still be copied to the device.
    """
    whole = pages(4).numpy()
    parts = [torch.from_numpy(whole[first * PAGE : last * PAGE]) for first, last in PARTS]
    small = [torch.from_numpy(whole[a:b]) for a, b in ((10, 90), (90, 200))]
    for part in [*parts, *small]:
        part[3] = 7
        assert int(device_view(part, torch.device("cuda", 0))[3]) == 7
    other = pages(3)
    table, beside = other[100:1100].numpy(), other[1100 : 2 * PAGE]
    view = device_view(torch.from_numpy(table), torch.device("cuda", 0))
    assert torch.equal(beside.cuda().cpu(), beside)
    del view
