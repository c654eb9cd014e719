"""Which of several equal ways to read rows is the fastest here, measured once.

A device that reads host rows itself beats threads that gather for it where cores are few or busy,
and may lose where many idle ones gather as fast as the bus carries. No formula knows the machine's
load, so the first read of each size lets all ways run and remembers the fastest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

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
        row_bytes: bytes a row.
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

    Sizes are told apart by powers of two of their rows and by torch's threads.

    Args:
        ways: by name; small reads take the first.
        row_bytes: bytes a row.
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
