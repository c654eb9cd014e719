"""Ids that a device reads by: kept inside the table, and reported when they were not.

A CUDA kernel that reads by an id outside of its table ends the process's use of the device. The
host could look first, but would have to wait for the device, which ends all overlap. So ids are
limited to the table on the device, in its own order of work, and what they were is kept in three
numbers of host memory that the device writes: the lowest, the highest, and one for kernels that
mask ids themselves. The host looks at them without waiting, at the table's next call, or when it
waits anyway. As with every asynchronous error the call that raises comes after the call that was
wrong; unlike with torch's own, the device stays usable.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.errors import expect, fail


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

        All lie in ``[0, n)`` as long as no id was wrong. Who asks shows them to the device.
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


def expect_index(ids: Tensor) -> None:
    """Raise unless `ids` is a 1-d int32 or int64 tensor; looks at no value, so waits for nothing.

    Raises:
        InputError: if it is not.
    """
    good = ids.dim() == 1 and ids.dtype in (torch.int32, torch.int64)
    kind = f"{ids.dim()}-d {ids.dtype}"
    expect(good, "ids", "a 1-d int32 or int64 tensor", kind, "convert it with .long()")
