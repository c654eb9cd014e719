"""Host rows that a CUDA device reads itself, by ordinary kernels on an ordinary-looking tensor.

The pages of a table are registered once (``cudaHostRegister``: they stay where they are, and every
device may map them), and torch is shown the same memory as a CUDA tensor through
``__cuda_array_interface__``. Indexing that view on the device moves only the rows that it reads,
over the bus, with no copy on the host: PyTorch-Direct (Min et al., 2021, arXiv 2101.07956) without
a fork.

Where registration is refused (a lock limit, a sandbox, memory that belongs to a mapped file), rows
are gathered on the host into pinned memory and copied: slower, and equal.

This module's order of calls is tested against a stand-in; *it has not yet been run on a device.*
Assumption: host and device address of registered memory are the same, as under unified addressing
on 64-bit Linux. The CPU and the device see each other's writes only after a synchronise.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.fetch.gather import gather_rows

_PORTABLE_MAPPED = 1 | 2  # any context may use the pages; the device may address them
_CHUNK_BYTES = 64 << 30  # recent drivers refuse single calls of 512 GiB and more
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        chunk_bytes: largest piece for one call of the driver.

    Raises:
        RegistrationRefused: if a piece is refused; those before it are unregistered again.
    """

    def __init__(
        self,
        storage: torch.UntypedStorage,
        cudart: Any,
        synchronize: Callable[[], None],
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        done: list[int] = []
        try:
            for pointer, nbytes in _chunks(storage.data_ptr(), storage.nbytes(), chunk_bytes):
                error = int(cudart.cudaHostRegister(pointer, nbytes, _PORTABLE_MAPPED))
                if error:
                    raise RegistrationRefused(f"cudaHostRegister of {nbytes} bytes: error {error}")
                done.append(pointer)
        except BaseException:
            _unregister(cudart, lambda: None, done, storage, os.getpid())
            raise
        end = weakref.finalize(self, _unregister, cudart, synchronize, done, storage, os.getpid())
        end.atexit = False  # the process's end frees the pages; the driver may be gone by then


class DeviceRows:
    """The rows of one host table, as the devices read them.

    Args:
        table: rows in host memory.
        mapped: whether they belong to a mapped file. Such rows are never registered, since that
            would pull the whole file into memory; they are staged.
    """

    def __init__(self, table: Shaped[Tensor, "n ..."], mapped: bool = False) -> None:
        self._table = table
        self._staged = mapped or table.numel() == 0  # the driver takes no empty range
        self._views: dict[torch.device, Tensor] = {}

    def gather(
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``table[ids]`` on the device of `ids`.

        The device does not look whether ids are in range before it reads: an id beyond the table
        ends the process's use of the device, as it does for any CUDA tensor.
        """
        view = self._view(ids.device)
        if view is None:
            rows = _stage(self._table, ids)
            return rows if out is None else out.copy_(rows)
        if out is None:
            return torch.index_select(view, 0, ids)
        return torch.index_select(view, 0, ids, out=out)

    def forget(self) -> None:
        """Let go of all views, as the table's memory is about to move."""
        self._views.clear()

    def _view(self, device: torch.device) -> Tensor | None:
        if self._staged:
            return None
        if device not in self._views:
            try:
                self._views[device] = device_view(self._table, device)
            except RegistrationRefused as refused:
                self._staged = True
                _clear_error(device)
                reason = (
                    f"rows are staged through pinned memory instead of read in place: {refused}"
                )
                warnings.warn(reason, stacklevel=4)
                return None
        return self._views[device]


def device_view(table: Shaped[Tensor, "n ..."], device: torch.device) -> Shaped[Tensor, "n ..."]:
    """Return a CUDA tensor over the very memory of a host table.

    Views of one storage share one registration, which lives as long as any of them.

    Raises:
        RegistrationRefused: if the driver does not take the pages.
    """
    if table.element_size() not in _SAME_WIDTH:
        raise RegistrationRefused(f"no way to show {table.dtype} to a device in place")
    return _as_device_tensor(_Interface(table, _registration(table)), device).view(table.dtype)


class _Interface:
    """What torch reads to take host memory for a device's; torch holds it as long as the view."""

    def __init__(self, table: Tensor, registration: Registration) -> None:
        self.registration = registration
        # integers of the same width: the protocol has no name for bfloat16 and the 8-bit floats
        raw = table.view(_SAME_WIDTH[table.element_size()])
        self.__cuda_array_interface__ = {
            "shape": tuple(raw.shape),
            "typestr": f"{'|' if raw.element_size() == 1 else '<'}i{raw.element_size()}",
            "strides": tuple(step * raw.element_size() for step in raw.stride()),
            "data": (raw.data_ptr(), False),
            "version": 3,
        }


# Registrations in use, by storage: registering a page twice is an error of the driver.
_REGISTERED: weakref.WeakValueDictionary[tuple[int, int], Registration] = (
    weakref.WeakValueDictionary()
)
_LOCK = threading.Lock()


def _registration(table: Tensor) -> Registration:
    storage = table.untyped_storage()
    key = (storage.data_ptr(), storage.nbytes())
    with _LOCK:
        registration = _REGISTERED.get(key)
        if registration is None:
            registration = Registration(storage, _cudart(), _synchronize)
            _REGISTERED[key] = registration
        return registration


def _cudart() -> Any:
    return torch.cuda.cudart()


def _synchronize() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def _as_device_tensor(interface: _Interface, device: torch.device) -> Tensor:
    return torch.as_tensor(interface, device=device)


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


def _chunks(pointer: int, nbytes: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, nbytes, chunk_bytes):
        yield pointer + start, min(chunk_bytes, nbytes - start)


def _stage(table: Tensor, ids: Tensor) -> Tensor:
    rows = torch.empty((ids.numel(), *table.shape[1:]), dtype=table.dtype, pin_memory=True)
    return gather_rows(table, ids.cpu(), out=rows).to(ids.device, non_blocking=True)


def _clear_error(device: torch.device) -> None:
    """Take the refusal out of the runtime's memory, where the next kernel launch would find it."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return
