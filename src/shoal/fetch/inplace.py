"""Rows that a device reads where they lie: by a kernel of ours, or by torch's own.

A `view` here is host memory shown as a tensor of the device (:mod:`shoal.fetch.device_rows`).
Kernels (:mod:`shoal.fetch._triton`) read it in whole lines of the bus; where Triton does not run,
torch's ordinary kernels read the same view.

*Sorting.* A device translates addresses of host memory through a small cache, and ids that jump
about a table beyond its reach miss it every time. On an H200, 131,072 rows of 512 bytes came in
1.48 ms as they were and 1.50 ms sorted from a table of 1 GiB, in 2.45 and 1.52 ms from 2 GiB, in
4.52 and 3.21 ms from 16 GiB; rows of 128 bytes gained from 1 GiB on; 32,768 ids gained nothing up
to 16 GiB (docs/LOG.md). Others saw the same (dmlc/dgl #6635, #6590).

*Bounds.* A CUDA kernel that reads by an id outside of its table ends the process's use of the
device. The host could look first, but would have to wait for the device, which ends all overlap. So
ids are limited to the table on the device, in its own order of work, and what they were is kept in
three numbers of host memory that the device writes (:class:`Bounds`). The host looks at them
without waiting, at the table's next call, or when it waits anyway. As with every asynchronous error
the call that raises comes after the call that was wrong; unlike with torch's own, the device stays
usable.

Kernels are tested in Triton's interpreter, the rest with a stand-in for the device, and both on one
(``make test-gpu``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from shoal.core.errors import fail
from shoal.core.kernels import current, usable
from shoal.fetch.gather import as_floats, bag_shares, float_width, mean_of

SORT_BYTES = 1 << 30
SORT_COUNT = 65536  # below it a sort costs more than the misses
_RUNS_KERNELS = ("cuda",)  # kinds of devices; tests let Triton's interpreter play one
_KERNELS_CELL = 2  # of the three numbers of a fault


class Bounds:
    """The range ``[0, n)`` of a table's ids, as devices keep it.

    Example:
        >>> bounds = Bounds(3)
        >>> fault = bounds.fault(torch.device("cpu"))
        >>> bounds.inside(torch.tensor([0, 5]), fault)  # row 5 does not exist: row 2 is read
        tensor([0, 2])
        >>> bounds.report()
        Traceback (most recent call last):
            ...
        shoal.core.errors.InputError: ids: expected ids in [0, 3), got 5 in an earlier ...
        >>> bounds.report()  # said once
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._faults: dict[torch.device, Int[Tensor, " 3"]] = {}

    def fault(self, device: torch.device) -> Int[Tensor, " 3"]:
        """The numbers that `device` writes, in host memory: lowest, highest, and the kernels'.

        All lie in ``[0, n)`` as long as no id was wrong. The caller shows them to the device.
        """
        if device not in self._faults:
            pinned = device.type == "cuda"
            self._faults[device] = torch.zeros(3, dtype=torch.int64, pin_memory=pinned)
        return self._faults[device]

    def inside(self, ids: Int[Tensor, " s"], fault: Int[Tensor, " 3"]) -> Int[Tensor, " s"]:
        """Return ids limited to ``[0, n)``; what they were goes to `fault`, beside ids.

        Four small kernels, and no wait.
        """
        if ids.numel() == 0:
            return ids
        lowest, highest = torch.aminmax(ids)
        torch.minimum(fault[0], lowest, out=fault[0])
        torch.maximum(fault[1], highest, out=fault[1])
        return ids.clamp(0, self._n - 1)

    def report(self) -> None:
        """Raise if a device has met an id outside the table, once.

        Raises:
            InputError: naming the id and the device.
        """
        for device, fault in self._faults.items():
            bad = [x for x in fault.tolist() if not 0 <= x < self._n]
            if bad:
                fault.zero_()
                got = f"{bad[0]} in an earlier read on {device}"
                fail("ids", f"ids in [0, {self._n})", got, "check what the ids index")


@dataclass(frozen=True, eq=False)
class CacheView:
    """A row cache (:class:`~shoal.fetch.cache.RowCache`) as kernels on its device look it up.

    Attributes:
        rows: ``[c, ...]``.
        keys: of each of the table's n rows: n and the number of its copy, or itself where it has
            none; what ``torch.cat([table, rows])`` is indexed by.
        hits: how many reads copies have served, added to by every reader.
        share: of all reads that they should serve, in [0, 1].
    """

    rows: Shaped[Tensor, "c ..."]
    keys: Int[Tensor, " n"]
    hits: Int[Tensor, ""]
    share: float


@dataclass(frozen=True, eq=False)
class InPlace:
    """Reads of one table by one device.

    Attributes:
        view: the rows ``[n, ...]``, n at least 1, as a tensor of the device.
        bounds: what becomes of ids outside the table.
        fault: its numbers, as a tensor of the device.
        sort_bytes: tables of at least this size are read in the order of their ids.
    """

    view: Shaped[Tensor, "n ..."]
    bounds: Bounds
    fault: Int[Tensor, " 3"]
    sort_bytes: int = SORT_BYTES

    def read(
        self,
        ids: Int[Tensor, " s"],
        out: Shaped[Tensor, "s ..."] | None = None,
        copies: CacheView | None = None,
        floats: bool = False,
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``table[ids]`` on the device of the view; in `out` of that shape if given.

        Rows that have copies on the device come from them, in the same launch and without a wait
        for how many those are; where kernels do not run, all rows cross the bus. With `floats`,
        ``as_floats(table[ids])``: packed rows and halves cross the bus as they are.
        """
        ids, slots = self._order(ids, 0.0 if copies is None else copies.share)
        if self.kernels() and (out is None or out.is_contiguous()):
            from shoal.fetch import _triton

            if out is None and floats:
                out = self._floats(len(ids), torch.float32)
            elif out is None:
                out = self.view.new_empty((len(ids), *self.view.shape[1:]))
            fault = self.fault[_KERNELS_CELL:]
            with current(self.view.device):
                _triton.copy_rows(self.view, ids, out, fault, slots, copies=copies)
            return out
        if slots is None and not floats:
            return torch.index_select(self.view, 0, self._inside(ids), out=out)
        rows = torch.index_select(self.view, 0, self._inside(ids))
        rows = as_floats(rows) if floats else rows
        if slots is None:
            return rows
        # rows that were read in another order go where they belong
        return (torch.empty_like(rows) if out is None else out).index_copy_(0, slots, rows)

    def mean(
        self,
        indices: Int[Tensor, " e"],
        offsets: Int[Tensor, " b_plus_1"],
        weights: Float[Tensor, " e"] | None,
    ) -> Float[Tensor, "b d"]:
        """Return ``mean_of(as_floats(table[indices]), offsets, weights)``.

        Every entry is read over the bus, doubles too: where rows stand in many bags, reading each
        once and averaging on the device moves less.
        """
        if not self.kernels():
            rows = torch.index_select(self.view, 0, self._inside(indices))
            return mean_of(as_floats(rows), offsets, weights)
        from shoal.fetch import _triton

        wide = torch.float64 if self.view.dtype == torch.float64 else torch.float32
        shares = bag_shares(weights, offsets, wide)
        out = self._floats(len(offsets) - 1, wide)
        with current(self.view.device):
            _triton.sum_bags(self.view, indices, offsets, shares, out, self.fault[_KERNELS_CELL:])
        return out

    def kernels(self) -> bool:
        """Whether reads are kernels of ours."""
        whole = self.view[0].is_contiguous()
        device = self.view.device
        return whole and device.type in _RUNS_KERNELS and usable(_probe, device)

    def _order(self, ids: Tensor, held: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Ids in the order in which to read them, and where each one's row belongs.

        `held` is the share of them that should not cross the bus.
        """
        nbytes = self.view.numel() * self.view.element_size()
        if nbytes < self.sort_bytes or len(ids) * (1 - held) < SORT_COUNT:
            return ids, None
        return torch.sort(ids)

    def _inside(self, ids: Tensor) -> Tensor:
        return self.bounds.inside(ids, self.fault)

    def _floats(self, count: int, dtype: torch.dtype) -> Tensor:
        return self.view.new_empty((count, float_width(self.view)), dtype=dtype)


def _probe(device: torch.device) -> bool:
    from shoal.fetch import _triton

    return _triton.probe(device)
