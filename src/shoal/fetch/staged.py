"""The staged copy: threads gather rows into pinned memory, the device's copy engine fetches them.

What zero-copy reads have to beat. A read is cut into pieces and two pinned buffers take turns:
while one is copied, the threads fill the other. A buffer is filled again only when the copy out of
it has ended. Host memory carries each row three times (read, write, copy) against once for a read
in place, but no line is read for less than all of it.

The order of calls is tested against a stand-in, and on a device by ``make test-gpu``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.core.kernels import current
from shoal.fetch.gather import gather_rows

PIECE_BYTES = (
    4 << 20
)  # assumption: 0.1 ms on a bus of 50 GB/s, ten times what starting a copy costs


@dataclass(frozen=True)
class Lane:
    """A buffer of pinned memory, and the event that says when the copy out of it has ended."""

    buffer: Tensor
    copied: Any


def lane(nbytes: int, device: torch.device) -> Lane:
    """Make a lane to `device`; on the host, ordinary memory and copies that end at once."""
    if device.type != "cuda":
        return Lane(torch.empty(nbytes, dtype=torch.uint8), _Ended())
    with current(device):
        return Lane(torch.empty(nbytes, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())


class Staged:
    """Reads of one host table by one device, through two pinned buffers a thread.

    Args:
        table: rows in host memory, or mapped from a file.
        piece_bytes: what one buffer holds; a row that is longer makes it longer.
        make_lane: :func:`lane`, or what stands in for it.
    """

    def __init__(
        self,
        table: Shaped[Tensor, "n ..."],
        piece_bytes: int = PIECE_BYTES,
        make_lane: Callable[[int, torch.device], Lane] = lane,
    ) -> None:
        self._table = table
        row_bytes = max(math.prod(table.shape[1:]) * table.element_size(), 1)
        self._rows = max(piece_bytes // row_bytes, 1)
        self._nbytes = self._rows * row_bytes
        self._make_lane = make_lane
        self._local = threading.local()

    def read(
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``table[ids]`` on the device of `ids`, which are waited for; the rows are not.

        Raises:
            InputError: if an id is out of range.
        """
        shape, dtype = self._table.shape[1:], self._table.dtype
        if out is None:
            out = ids.new_empty((len(ids), *shape), dtype=dtype)
        lanes = self._lanes(ids.device)
        pieces = zip(ids.cpu().split(self._rows), out.split(self._rows), strict=True)
        for turn, (piece, target) in enumerate(pieces):
            buffer, copied = lanes[turn % 2].buffer, lanes[turn % 2].copied
            copied.synchronize()
            nbytes = target.numel() * target.element_size()
            rows = buffer[:nbytes].view(dtype).view(target.shape)
            gather_rows(self._table, piece, out=rows)
            with current(ids.device):
                target.copy_(rows, non_blocking=True)
                copied.record()
        return out

    def _lanes(self, device: torch.device) -> list[Lane]:
        """The calling thread's own: two threads that shared them would have to take turns."""
        if not hasattr(self._local, "lanes"):
            self._local.lanes = {}
        mine: dict[torch.device, list[Lane]] = self._local.lanes
        if device not in mine:
            mine[device] = [self._make_lane(self._nbytes, device) for _ in range(2)]
        return mine[device]


class _Ended:
    """The event of a copy that has ended when its call returns."""

    def record(self) -> None:
        """Nothing to mark."""

    def synchronize(self) -> None:
        """Nothing to wait for."""
