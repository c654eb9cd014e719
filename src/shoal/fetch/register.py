"""Pages of host memory that devices may read, registered where they lie and given back once.

``cudaHostRegister`` locks pages and lets every device map them; nothing is copied. Whole pages are
registered, since whole pages are locked, and each page once, however many tables share it: the
driver refuses a page twice. What is registered already is only held on to, so two views of one
tensor, two arrays over one buffer and two small tables on one page all work.

Pages are touched first, by several threads: the driver faults them in one by one while it holds its
lock. Assumption: host and device address of registered memory are the same, as under unified
addressing on 64-bit Linux. The order of calls is tested against a stand-in for the driver; *it has
not yet been run on a device.*
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


class RegistrationRefused(RuntimeError):
    """The driver did not take the pages; the message says why."""


class Registration:
    """Pages that are registered until the last user of this object is gone.

    They are unregistered once: after all work of the devices has ended, never in a forked child,
    and before their storage is freed, which is held until then.

    Args:
        storage: the host memory.
        cudart: ``torch.cuda.cudart()``, or what stands in for it.
        synchronize: waits for all devices.
        others: registrations that hold a part of the pages; they live as long as this one.
        chunk_bytes: largest piece for one call of the driver, a multiple of the page.

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
        self.pages = pages_of(storage)
        done: list[int] = []
        try:
            for begin, end in _free(self.pages, [other.pages for other in others]):
                touch(begin, end)
                for first, last in _cut(begin, end, chunk_bytes):
                    _register(cudart, first, last - first)
                    done.append(first)
        except BaseException:
            _unregister(cudart, lambda: None, done, storage, os.getpid())
            raise
        end_ = weakref.finalize(self, _unregister, cudart, synchronize, done, storage, os.getpid())
        end_.atexit = False  # the process's end frees the pages; the driver may be gone by then

    def covers(self, pages: Range) -> bool:
        """Whether these pages are all registered."""
        return self.pages[0] <= pages[0] and pages[1] <= self.pages[1]


_LIVE: weakref.WeakSet[Registration] = weakref.WeakSet()
_LOCK = threading.Lock()


def registration(storage: torch.UntypedStorage) -> Registration:
    """Return what keeps the pages of `storage` registered for as long as it is held.

    Raises:
        RegistrationRefused: if the driver does not take them.
    """
    pages = pages_of(storage)
    with _LOCK:
        near = [one for one in _LIVE if one.pages[0] < pages[1] and pages[0] < one.pages[1]]
        for one in near:
            if one.covers(pages):
                return one
        made = Registration(storage, _cudart(), synchronize, near)
        _LIVE.add(made)
        return made


def pages_of(storage: torch.UntypedStorage) -> Range:
    """The pages that a storage lies on.

    Example:
        >>> begin, end = pages_of(torch.zeros(3).untyped_storage())
        >>> begin % mmap.PAGESIZE, (end - begin) % mmap.PAGESIZE
        (0, 0)
    """
    begin = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE) * mmap.PAGESIZE
    return begin, end


def touch(begin: int, end: int) -> None:
    """Let the system back pages with memory now, on all of torch's threads; no byte changes.

    Where it has no such call (before Linux 5.14, elsewhere) nothing happens: whoever needs the
    pages faults them in.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)

    def populate(first: int, last: int) -> None:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _POPULATE_WRITE)

    for_each(populate, _cut(begin, end, _TOUCH_BYTES))


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
    pointers: list[int],
    storage: torch.UntypedStorage,
    pid: int,
) -> None:
    """Undo a registration; `storage` is only held, so that its memory outlives the call."""
    if os.getpid() != pid or not pointers:
        return  # a forked child shares neither the context nor the duty
    synchronize()
    for pointer in pointers:
        cudart.cudaHostUnregister(pointer)


def _free(pages: Range, taken: Sequence[Range]) -> Iterator[Range]:
    """What of `pages` no range in `taken` covers.

    Yields:
        one range after the other.
    """
    begin, end = pages
    for first, last in sorted(taken):
        if begin < min(first, end):
            yield begin, min(first, end)
        begin = max(begin, last)
    if begin < end:
        yield begin, end


def _cut(begin: int, end: int, size: int) -> Iterator[Range]:
    for first in range(begin, end, size):
        yield first, min(first + size, end)
