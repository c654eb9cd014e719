"""Host memory that devices may read, registered where it lies and given back once.

``cudaHostRegister`` locks pages and lets every device map them; nothing is copied. The bytes of a
table are registered and no more: two tables may share a page, but the driver refuses a byte twice,
and refuses to copy memory that begins inside of what is registered and ends outside, so that a
neighbor on a page that was registered whole could no longer be moved to a device. What is
registered already is only held on to, so two views of one tensor and two arrays over one buffer
work.

Pages are touched first, by several threads: the driver faults them in one by one while it holds its
lock (0.27 s a GiB on an H200's host, 0.06 s when they were touched before, docs/results/device.md).
Assumption: host and device address of registered memory are the same, as under unified addressing
on 64-bit Linux. The order of calls is tested against a stand-in for the driver, too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import expect, fail
from shoal.fetch.threads import for_each

Range = tuple[int, int]  # first address and the one behind the last

_PORTABLE_MAPPED = 1 | 2  # any context may use the pages; the device may address them
_CHUNK_BYTES = 64 << 30  # recent drivers refuse single calls of 512 GiB and more
_TOUCH_BYTES = 64 << 20  # one thread's piece: long enough that sharing out costs nothing
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: fault pages in, change nothing
_REASONS = {
    1: "the driver cannot map this kind of memory",
    2: "no more memory may be locked: see ulimit -l; Windows and WSL lock half of it at most",
    712: "another library has registered these pages",
    801: "this device, MIG slice or driver does not map host memory",
}


# numbers of madvise(2)
_MADVISE = {"normal": 0, "random": 1, "sequential": 2, "willneed": 3, "hugepages": 14}
# PyTorch-Direct passed cudaMemAdvise on to managed memory, whose pages migrate; registered pages
# never do, so CUDA's advice has no place here
_REFUSED = {
    "read_mostly": "keep hot rows on the device with shoal.TieredTable",
    "preferred_location": "keep hot rows on the device with shoal.TieredTable",
    "accessed_by": "leave it out: every device maps registered rows",
}


class RegistrationRefused(RuntimeError):
    """The driver did not take the pages; the message says why."""


class Registration:
    """Memory that is registered until the last user of this object is gone.

    They are unregistered once: after all work of the devices has ended, never in a forked child,
    and before their storage is freed, which is held until then.

    Args:
        storage: the host memory.
        cudart: ``torch.cuda.cudart()``, or what stands in for it.
        synchronize: waits for all devices.
        others: registrations that hold a part of it; they live as long as this one.
        chunk_bytes: largest piece for one call of the driver.

    Raises:
        RegistrationRefused: if a piece is refused; those before it are unregistered again.
    """

    def __init__(
        self,
        storage: torch.UntypedStorage,
        cudart: Any,
        synchronize: Callable[[], None],
        others: Sequence[Registration] = (),
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        self._others = tuple(others)
        self.bytes = bytes_of(storage)
        done: list[int] = []
        try:
            for begin, end in _free(self.bytes, [other.bytes for other in others]):
                touch(begin, end)
                for first, last in _cut(begin, end, chunk_bytes):
                    _register(cudart, first, last - first)
                    done.append(first)
        except BaseException:
            _unregister(cudart, lambda: None, done, storage, os.getpid())
            raise
        end_ = weakref.finalize(self, _unregister, cudart, synchronize, done, storage, os.getpid())
        end_.atexit = False  # the process's end frees the pages; the driver may be gone by then

    def covers(self, wanted: Range) -> bool:
        """Whether these bytes are all registered."""
        return self.bytes[0] <= wanted[0] and wanted[1] <= self.bytes[1]


_LIVE: weakref.WeakSet[Registration] = weakref.WeakSet()
_LOCK = threading.Lock()


def registration(storage: torch.UntypedStorage) -> Registration:
    """Return what keeps `storage` registered for as long as it is held.

    Raises:
        RegistrationRefused: if the driver does not take it.
    """
    begin, end = bytes_of(storage)
    with _LOCK:
        near = [one for one in _LIVE if one.bytes[0] < end and begin < one.bytes[1]]
        for one in near:
            if one.covers((begin, end)):
                return one
        made = Registration(storage, _cudart(), synchronize, near)
        _LIVE.add(made)
        return made


def bytes_of(storage: torch.UntypedStorage) -> Range:
    """Where a storage lies."""
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


def pages_of(begin: int, end: int) -> Range:
    """The pages that bytes lie on.

    Example:
        >>> pages_of(mmap.PAGESIZE + 1, mmap.PAGESIZE + 2) == (mmap.PAGESIZE, 2 * mmap.PAGESIZE)
        True
    """
    size = mmap.PAGESIZE
    return begin // size * size, -(-end // size) * size


def touch(begin: int, end: int) -> None:
    """Let the system back the pages of these bytes with memory now; no byte changes.

    On all of torch's threads. Where the system has no such call (before Linux 5.14, elsewhere)
    nothing happens: the pages are faulted in when they are read.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)

    def populate(first: int, last: int) -> None:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _POPULATE_WRITE)

    for_each(populate, _cut(*pages_of(begin, end), _TOUCH_BYTES))


def madvise(table: Tensor, advice: str, mapped: bool = False) -> None:
    """Tell the system how a table in host memory will be read.

    Args:
        table: rows in host memory.
        advice: ``populate`` backs all pages with memory now (not those of a mapped file, which it
            would copy); ``hugepages`` asks for pages of 2 MB, before they are touched; ``random``,
            ``sequential``, ``willneed`` and ``normal`` steer the reading ahead of a mapped file.
        mapped: whether the rows belong to a mapped file.

    Raises:
        InputError: for CUDA's advice and unknown words, each with what to do instead.
    """
    known = [*_MADVISE, "populate"]
    if advice in _REFUSED:
        fail("advice", f"one of {known}", f"CUDA's {advice}", _REFUSED[advice])
    expect(advice in known, "advice", f"one of {known}", repr(advice), "choose one")
    begin, end = pages_of(*bytes_of(table.untyped_storage()))
    if advice == "populate":
        expect(not mapped, "advice", "rows in memory", "a mapped file", 'use "willneed"')
        touch(begin, end)
    elif sys.platform.startswith("linux"):
        # advice about whole pages: those that the table shares with others at its ends are left out
        begin += mmap.PAGESIZE * (begin < table.untyped_storage().data_ptr())
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(max(end - begin, 0)), _MADVISE[advice])


def synchronize() -> None:
    """Wait for all work of all CUDA devices."""
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def _cudart() -> Any:
    return torch.cuda.cudart()


def _register(cudart: Any, pointer: int, nbytes: int) -> None:
    error = int(cudart.cudaHostRegister(pointer, nbytes, _PORTABLE_MAPPED))
    if error:
        reason = _REASONS.get(error, "see the driver's list of errors")
        raise RegistrationRefused(f"cudaHostRegister of {nbytes} bytes: error {error}, {reason}")


def _unregister(
    cudart: Any,
    synchronize: Callable[[], None],
    pointers: list,
    storage: torch.UntypedStorage,
    pid: int,
) -> None:
    """Undo a registration; `storage` is only held, so that its memory outlives the call.

    It runs wherever a table dies. To check what is in `pointers`, ints, the tests' type checker
    would draw a random number there.
    """
    if os.getpid() != pid or not pointers:
        return  # a forked child shares neither the context nor the duty
    synchronize()
    for pointer in pointers:
        cudart.cudaHostUnregister(pointer)


def _free(wanted: Range, taken: Sequence[Range]) -> Iterator[Range]:
    """What of `wanted` no range in `taken` covers.

    Yields:
        one range after the other.
    """
    begin, end = wanted
    for first, last in sorted(taken):
        if begin < min(first, end):
            yield begin, min(first, end)
        begin = max(begin, last)
    if begin < end:
        yield begin, end


def _cut(begin: int, end: int, size: int) -> Iterator[Range]:
    for first in range(begin, end, size):
        yield first, min(first + size, end)
