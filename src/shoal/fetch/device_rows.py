"""Host rows that a CUDA device reads and writes itself, by ordinary kernels on an ordinary tensor.

The pages of a table are registered once (:mod:`shoal.fetch.register`), and torch is shown the same
memory as a CUDA tensor through ``__cuda_array_interface__``. Indexing that view on the device moves
only the rows that it reads, over the bus, with no copy on the host: PyTorch-Direct (Min et al.,
2021, arXiv 2101.07956) without a fork.

Where registration is refused (a lock limit, a sandbox, memory that belongs to a mapped file), rows
are gathered on the host into pinned memory and copied: slower, and equal.

Host and device see each other's writes only after a synchronise, so :meth:`DeviceRows.settle` waits
for a device before the host looks at what it wrote, or writes where it may still be reading. The
order of calls is tested against a stand-in; *it has not yet been run on a device.*
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal._checks import expect_ids
from shoal.fetch import register
from shoal.fetch.bounds import Bounds, expect_index
from shoal.fetch.gather import gather_rows
from shoal.fetch.register import Registration, RegistrationRefused, registration

_REACHED = ("cuda",)  # kinds of devices that can be shown host memory
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DeviceRows:
    """The rows of one host table, as the devices see them.

    Args:
        table: rows in host memory.
        mapped: whether they belong to a mapped file. Such rows are never registered, since that
            would pull the whole file into memory; they are staged.
    """

    def __init__(self, table: Shaped[Tensor, "n ..."], mapped: bool = False) -> None:
        self._table = table.detach()
        self._staged = mapped or table.numel() == 0  # the driver takes no empty range
        self._views: dict[torch.device, Tensor] = {}
        self._faults: dict[torch.device, Tensor] = {}
        self._bounds = Bounds(len(table))
        self._busy = self._wrote = False  # since the last time that the host has waited

    def gather(
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``table[ids]`` on the device of `ids`.

        Raises:
            InputError: if ids are no ids; an id out of range is reported when it is found, by this
                call or, where the device reads by itself, by a later one.
        """
        expect_index(ids)
        view = self.view(ids.device)
        if view is None:
            rows = _stage(self._table, ids)
            return rows if out is None else out.copy_(rows)
        return torch.index_select(view, 0, self.inside(ids), out=out)

    def inside(self, ids: Int[Tensor, " s"]) -> Int[Tensor, " s"]:
        """Return ids that are safe to read a view by; see :class:`~shoal.fetch.bounds.Bounds`.

        Raises:
            InputError: if an earlier read's ids were out of range.
        """
        self._bounds.report()
        if ids.device not in self._faults:
            fault = self._bounds.fault(ids.device)  # of torch's pinned memory, registered already
            self._faults[ids.device] = _as_device_tensor(_Interface(fault, None), ids.device)
        return self._bounds.inside(ids, self._faults[ids.device])

    def put(self, ids: Int[Tensor, " s"], rows: Shaped[Tensor, "s ..."], add: bool = False) -> bool:
        """Write or add rows from their device into the host's memory; False: it cannot reach it.

        Doubles add up where `add` is set; without, one of them wins. Ids are looked at before the
        launch, since a write by a wrong id cannot be taken back: this waits for the device.

        Raises:
            InputError: if an id is out of range; nothing is written then.
        """
        view = self.view(rows.device, writes=True)
        if view is None:
            return False
        expect_ids("ids", ids, len(self._table))
        (view.index_add_ if add else view.index_copy_)(0, to_device(ids, rows.device), rows)
        return True

    def view(self, device: torch.device, writes: bool = False) -> Tensor | None:
        """The table's memory as a tensor of `device`; None where rows must be staged.

        Args:
            device: another than the host.
            writes: whether the caller is about to write, which the host then waits for.
        """
        if self._staged:
            return None
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._views:
            try:
                self._views[device] = device_view(self._table, device)
            except RegistrationRefused as refused:
                self._staged = True
                _clear_error(device)
                reason = (
                    f"rows are staged through pinned memory instead of read in place: {refused}"
                )
                warnings.warn(reason, stacklevel=2)
                return None
        self._busy, self._wrote = True, self._wrote or writes
        return self._views[device]

    def settle(self, writes: bool = False) -> None:
        """Wait for what the devices have written and, if the host is about to write, read.

        Raises:
            InputError: if ids of a read that has ended were out of range.
        """
        if self._wrote or (writes and self._busy):
            self._busy = self._wrote = False
            register.synchronize()
            self._bounds.report()

    def forget(self) -> None:
        """Let go of all views, as the table's memory is about to move."""
        self.settle(writes=True)
        self._views.clear()


def device_view(table: Shaped[Tensor, "n ..."], device: torch.device) -> Shaped[Tensor, "n ..."]:
    """Return a CUDA tensor over the very memory of a host table.

    Tables that share pages share their registration, which lives as long as any view of them.

    Raises:
        RegistrationRefused: if the driver does not take the pages.
    """
    if device.type not in _REACHED:
        raise RegistrationRefused(f"no way to show host memory to {device} in place")
    if table.element_size() not in _SAME_WIDTH:
        raise RegistrationRefused(f"no way to show {table.dtype} to a device in place")
    held = registration(table.untyped_storage())
    return _as_device_tensor(_Interface(table, held), device).view(table.dtype)


class _Interface:
    """What torch reads to take host memory for a device's; torch holds it as long as the view."""

    def __init__(self, table: Tensor, held: Registration | None) -> None:
        self.held = held, table
        # integers of the same width: the protocol has no name for bfloat16 and the 8-bit floats
        raw = table.view(_SAME_WIDTH[table.element_size()])
        self.__cuda_array_interface__ = {
            "shape": tuple(raw.shape),
            "typestr": f"{'|' if raw.element_size() == 1 else '<'}i{raw.element_size()}",
            "strides": tuple(step * raw.element_size() for step in raw.stride()),
            "data": (raw.data_ptr(), False),
            "version": 3,
        }


def _as_device_tensor(interface: _Interface, device: torch.device) -> Tensor:
    return torch.as_tensor(interface, device=device)


def _stage(table: Tensor, ids: Tensor) -> Tensor:
    pinned = ids.device.type == "cuda"
    rows = torch.empty((ids.numel(), *table.shape[1:]), dtype=table.dtype, pin_memory=pinned)
    return to_device(gather_rows(table, ids.cpu(), out=rows), ids.device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, without waiting where the host's memory is pinned."""
    return tensor.to(device, non_blocking=True)


def _clear_error(device: torch.device) -> None:
    """Take the refusal out of the runtime's memory, where the next kernel launch would find it."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return
