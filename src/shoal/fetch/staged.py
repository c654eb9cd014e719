"""The staged copy: threads gather rows into pinned memory, the device's copy engine fetches them.

What zero-copy reads have to beat. A read is cut into pieces and two pinned buffers take turns:
while one is copied, the threads fill the other. A buffer is filled again only when the copy out of
it has ended. Host memory carries each row three times (read, write, copy) against once for a read
in place, but no line is read for less than all of it.

So a device that reads host rows itself beats threads that gather for it where cores are few or
busy, and may lose where many idle ones gather as fast as the bus carries. No formula predicts the
machine's load: :class:`Auto` lets all ways run at the first read of each size and keeps the
fastest.

The order of calls is tested against a stand-in, and on a device by ``make test-gpu``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.core.kernels import current
from shoal.fetch.gather import gather_rows

# assumption: 0.1 ms on a bus of 50 GB/s, ten times what starting a copy costs
PIECE_BYTES = 4 << 20


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


# -- the faster of several ways --------------------------------------------------------------------

Way = Callable[[Tensor, Tensor | None], Tensor]
"""Reads rows: (ids, out or None) -> rows; all ways give the same."""

_ROUNDS = 3  # timed ones, after one that touches memory and compiles
_SMALL = 64 << 10  # bytes; what is smaller takes as long as its launches, so nothing is measured


@dataclass(frozen=True)
class Choice:
    """Which way was picked for reads of one size, and why.

    Attributes:
        way: the one that reads.
        rows: the choice holds for reads of more than half of this and at most this many rows.
        row_bytes: bytes per row.
        threads: torch's threads when it was made.
        seconds: the least time of each way, by name; empty where there is only one, or where reads
            are too small to matter.
    """

    way: str
    rows: int
    row_bytes: int
    threads: int
    seconds: Mapping[str, float]


class Auto:
    """Reads by the fastest way, which the first read of each size finds.

    A size is a power of two of rows, and a number of torch's threads.

    Args:
        ways: by name; small reads take the first.
        row_bytes: bytes per row.
        clock: seconds, once all work of the device of its argument has ended.

    Example:
        >>> rows = torch.arange(4)
        >>> first_is_slow = iter([0.0, 5.0, 5.0, 6.0] * 3)
        >>> ways = {"zero-copy": lambda ids, out: rows[ids], "staged": lambda ids, out: rows[ids]}
        >>> auto = Auto(ways, 1 << 16, lambda device: next(first_is_slow))
        >>> auto.read(torch.tensor([3, 1]))
        tensor([3, 1])
        >>> auto.choices[0].way, auto.choices[0].seconds
        ('staged', {'zero-copy': 5.0, 'staged': 1.0})
    """

    def __init__(
        self,
        ways: Mapping[str, Way],
        row_bytes: int,
        clock: Callable[[torch.device], float] | None = None,
    ) -> None:
        self._ways = ways
        self._row_bytes = row_bytes
        self._clock = clock or _clock
        self._choices: dict[tuple[int, int], Choice] = {}
        self._lock = threading.Lock()

    @property
    def choices(self) -> list[Choice]:
        """What was picked so far, in the order in which sizes came up."""
        return list(self._choices.values())

    def read(
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return the rows of `ids`."""
        key = max(len(ids) - 1, 0).bit_length(), torch.get_num_threads()
        choice = self._choices.get(key)
        if choice is None:
            with self._lock:  # threads that come at the same time wait rather than measure, too
                choice = self._choices.get(key) or self._choose(key, ids)
                self._choices[key] = choice
        return self._ways[choice.way](ids, out)

    def _choose(self, key: tuple[int, int], ids: Tensor) -> Choice:
        rows = 1 << key[0]
        matters = len(self._ways) > 1 and rows * self._row_bytes >= _SMALL
        seconds = self._measure(ids) if matters else {}
        way = min(seconds or self._ways, key=lambda name: seconds.get(name, 0.0))
        return Choice(way, rows, self._row_bytes, key[1], seconds)

    def _measure(self, ids: Tensor) -> dict[str, float]:
        least = dict.fromkeys(self._ways, float("inf"))
        for read in self._ways.values():
            read(ids, None)
        for _ in range(_ROUNDS):  # in turn, so that what slows the machine slows both
            for name, read in self._ways.items():
                begin = self._clock(ids.device)
                read(ids, None)
                least[name] = min(least[name], self._clock(ids.device) - begin)
        return least


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
