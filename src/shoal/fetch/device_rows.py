"""Host rows that a CUDA device reads and writes itself, by ordinary kernels on an ordinary tensor.

The pages of a table are registered once (:mod:`shoal.fetch.register`), and torch is shown the same
memory as a CUDA tensor through ``__cuda_array_interface__``. Indexing that view on the device moves
only the rows that it reads, over the bus, with no copy on the host: PyTorch-Direct (Min et al.,
2021, arXiv 2101.07956) without a fork.

Where registration is refused (a lock limit, a sandbox, memory that belongs to a mapped file), rows
are gathered on the host into pinned memory and copied, with equal result. Where it is not, the
faster of the two is measured and taken (:class:`~shoal.fetch.staged.Auto`).

Host and device see each other's writes only after a synchronization, so
:meth:`DeviceRows.synchronize` waits for a device before the host looks at what it wrote, or writes
where it may still be reading. The order of calls is tested against a stand-in, and on a device by
``make test-gpu``.
"""

from __future__ import annotations

import math
import warnings

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from shoal.core.errors import expect_ids, expect_index
from shoal.fetch import register
from shoal.fetch.gather import (
    as_floats,
    expect_bags,
    expect_out,
    gather_mean,
    mean_of,
)
from shoal.fetch.inplace import Bounds, CacheView, InPlace
from shoal.fetch.register import Registration, RegistrationRefused, registration
from shoal.fetch.staged import Auto, Choice, Staged

_REACHED = ("cuda",)  # kinds of devices that can be shown host memory
# a complex number of two doubles is two integers
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


class DeviceRows:
    """The rows of one host table, as the devices see them.

    Args:
        table: rows in host memory.
        mapped: whether they belong to a mapped file. Such rows are never registered, since that
            would pull the whole file into memory; they are staged.
    """

    def __init__(self, table: Shaped[Tensor, "n ..."], mapped: bool = False) -> None:
        self._table = table.detach()
        self._refused = mapped or table.numel() == 0  # the driver takes no empty range
        self._staged = Staged(self._table)
        self._readers: dict[torch.device, InPlace] = {}
        self._autos: dict[torch.device, Auto] = {}
        self._views: dict[torch.device, Tensor] = {}
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
        expect_index("ids", ids)
        in_place = self._in_place(ids.device)
        if ids.device not in self._autos:
            ways = {} if in_place is None else {"zero-copy": in_place.read}
            row_bytes = math.prod(self._table.shape[1:]) * self._table.element_size()
            self._autos[ids.device] = Auto({**ways, "staged": self._staged.read}, row_bytes)
        return self._autos[ids.device].read(ids, out)

    def gather_beside(
        self,
        ids: Int[Tensor, " s"],
        copies: CacheView,
        out: Shaped[Tensor, "s ..."] | None = None,
    ) -> Shaped[Tensor, "s ..."] | None:
        """Return ``table[ids]`` as :meth:`gather`, from copies on the device where rows have some.

        None where the device does not read by a kernel of ours, and the caller has to divide ids.

        Raises:
            InputError: as :meth:`gather`, or if `out` does not fit.
        """
        expect_index("ids", ids)
        if out is not None:
            expect_out(self._table.shape, self._table.dtype, ids, out)
        in_place = self._in_place(ids.device)
        if in_place is None or not in_place.kernels():
            return None
        return in_place.read(ids, out, copies)

    @property
    def choices(self) -> dict[torch.device, list[Choice]]:
        """By which way each device reads, and what was measured when it was picked."""
        return {device: auto.choices for device, auto in self._autos.items()}

    def gather_floats(self, ids: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Return ``as_floats(table[ids])`` on the device of `ids`.

        Raises:
            InputError: as :meth:`gather`.
        """
        expect_index("ids", ids)
        in_place = self._in_place(ids.device)
        if in_place is None:
            return as_floats(self._staged.read(ids))
        return in_place.read(ids, floats=True)

    def gather_mean(
        self,
        indices: Int[Tensor, " e"],
        offsets: Int[Tensor, " b_plus_1"],
        weights: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Return the weighted mean of each bag of rows on the device of `indices`.

        On a device it looks at the offsets, and so waits for them.

        Raises:
            InputError: as :meth:`gather`, or if offsets or weights do not fit.
        """
        if indices.is_cpu:
            self.synchronize()
            return gather_mean(self._table, indices, offsets, weights)
        expect_index("indices", indices)
        expect_bags(indices, offsets, weights)
        in_place = self._in_place(indices.device)
        if in_place is None:
            mean = mean_of(as_floats(self._staged.read(indices)), offsets, weights)
        else:
            mean = in_place.mean(indices, offsets, weights)
        packed = self._table.dtype == torch.uint8
        return mean if packed else mean.to(self._table.dtype)

    def _in_place(self, device: torch.device) -> InPlace | None:
        """What reads on `device`, once earlier reads were in range; None where rows are staged."""
        view = self.view(device)
        self._bounds.report()
        if view is not None and device not in self._readers:
            fault = _Interface(self._bounds.fault(device), None)  # torch's pinned memory
            self._readers[device] = InPlace(view, self._bounds, _as_device_tensor(fault, device))
        return None if view is None else self._readers[device]

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
        if self._refused:
            return None
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._views:
            try:
                self._views[device] = device_view(self._table, device)
            except RegistrationRefused as refused:
                self._refused = True
                _clear_error(device)
                reason = (
                    f"rows are staged through pinned memory instead of read in place: {refused}"
                )
                warnings.warn(reason, stacklevel=2)
                return None
        self._busy, self._wrote = True, self._wrote or writes
        return self._views[device]

    def synchronize(self, writes: bool = False) -> None:
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
        self.synchronize(writes=True)
        for kept in (self._views, self._readers, self._autos):
            kept.clear()


def device_view(table: Shaped[Tensor, "n ..."], device: torch.device) -> Shaped[Tensor, "n ..."]:
    """Return a CUDA tensor over the very memory of a host table.

    Tables that share pages share their registration, which lives as long as any view of them.

    Raises:
        RegistrationRefused: if the driver does not take the pages.
    """
    if device.type not in _REACHED:
        raise RegistrationRefused(f"no way to show host memory to {device} in place")
    if table.element_size() == 16 and table.stride(-1) != 1:
        raise RegistrationRefused(f"no way to show scattered {table.dtype} to a device in place")
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


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, without waiting where the host's memory is pinned."""
    return tensor.to(device, non_blocking=True)


def _clear_error(device: torch.device) -> None:
    """Take the refusal out of the runtime's memory, where the next kernel launch would find it."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        return
