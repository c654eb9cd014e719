"""Caches of rows: copies of the rows that batches read most, in the slots of one tensor.

One score per row says which are hot, from any source: the fan-out model (``shoal.sample.touch``),
degrees, or counts of what batches read. A score is taken to be in proportion to how often a row is
read, so tiers that are filled in the order of falling scores serve

    predicted share of tier t  =  Σ_{i in t} score_i / Σ_i score_i

of all rows read (Min et al., "Graph neural network training and data tiering", KDD 2022, fills a
device's memory in this way by weighted reverse PageRank; the fan-out model predicts reads, not
ranks, so its share can be compared with what is measured).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Int, Real, Shaped
from torch import Tensor

from shoal.core.errors import expect
from shoal.core.memory import is_out_of_memory
from shoal.fetch.gather import gather_rows
from shoal.fetch.inplace import CacheView
from shoal.fetch.unified import unified

_SHRINK = 0.75  # of the rows asked for, where the device has no room for them
_FILL_BYTES = 64 << 20  # copied at a time, so that filling needs no second table


def hottest(scores: Real[Tensor, " n"], counts: Sequence[int]) -> list[Int[Tensor, " c"]]:
    """Deal rows out to tiers in the order of falling scores.

    Args:
        scores: one per row, at least 0.
        counts: rows per tier, fastest tier first, together at most n.

    Returns:
        ids of each tier, sorted; among equal scores lower ids come first.

    Example:
        >>> [ids.tolist() for ids in hottest(torch.tensor([1.0, 3.0, 2.0, 3.0]), [1, 2])]
        [[1], [2, 3]]
    """
    order = torch.argsort(scores, descending=True, stable=True)[: sum(counts)]
    return [ids.sort().values for ids in order.split(list(counts))]


def share(scores: Real[Tensor, " n"], ids: Int[Tensor, " c"]) -> float:
    """The share of reads that rows `ids` serve if reads are in proportion to scores, in [0, 1].

    Example:
        >>> share(torch.tensor([3.0, 1.0]), torch.tensor([0]))
        0.75
    """
    total = float(scores.double().sum())
    return float(scores[ids].double().sum()) / total if total > 0 else 0.0


def expect_scores(scores: Real[Tensor, " n"], n: int) -> None:
    """Raise unless there is one finite score of at least 0 a row.

    Raises:
        InputError: if there is not.
    """
    right = scores.shape == (n,)
    expect(right, "scores", f"one per row, ({n},)", tuple(scores.shape), "score every row")
    good = bool((scores >= 0).all()) and bool(scores.isfinite().all())
    expect(good, "scores", "finite numbers of at least 0", "others", "clean them")


class RowCache:
    """Copies of some rows of a table in slots on a device, read by slot: one tier.

    Where the device has no room for as many slots as were asked for, there are fewer, and a warning
    says how many.

    Args:
        count: slots.
        shape: of the table whose rows are copied, ``(n, ...)``.
        dtype: of its numbers.
        device: where the slots are.
        base: number of the first slot, where several caches share one numbering.

    Attributes:
        rows: ``[slots, ...]``.
        ids: which row each slot holds, int64 on the host; -1 for none.
        read: ``(slots - base, out)`` → rows, on the device of the slots' numbers.

    Example:
        >>> table = torch.arange(8.0).view(4, 2)
        >>> cache = RowCache(2, table.shape, table.dtype, torch.device("cpu"))
        >>> cache.fill(torch.tensor([1, 3]), table.__getitem__)
        >>> cache.rows.tolist()
        [[2.0, 3.0], [6.0, 7.0]]
    """

    def __init__(
        self,
        count: int,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        base: int = 0,
    ) -> None:
        self.rows = _as_many_as_fit(count, shape[1:], dtype, device)
        self.ids = torch.full((len(self.rows),), -1)
        self.base = base
        # what is on the host can be read from every device
        on_host = self.rows.is_cpu
        self.read = unified(self.rows).gather if on_host else partial(gather_rows, self.rows)

    def __len__(self) -> int:
        """How many slots there are."""
        return len(self.ids)

    @property
    def filled(self) -> Int[Tensor, " h"]:
        """Ids of the rows that have a copy, by slot."""
        return self.ids[self.ids >= 0]

    def serves(self, device: torch.device) -> bool:
        """Whether ids on `device` are read here."""
        return self.rows.is_cpu or device == self.rows.device

    def has(self, slots: Int[Tensor, " s"]) -> Bool[Tensor, " s"]:
        """Which of `slots` are this cache's."""
        return (slots >= self.base) & (slots < self.base + len(self))

    def view(self, n: int, share: float) -> CacheView:
        """The copies of a table of n rows, for kernels whose reads hit in `share` of all cases."""
        there = self.rows.device
        keys = torch.arange(n, dtype=torch.int32 if n + len(self) < 2**31 else torch.int64)
        keys[self.filled] = (n + (self.ids >= 0).nonzero().squeeze(1)).to(keys.dtype)
        hits = torch.zeros((), dtype=torch.int64, device=there)
        return CacheView(self.rows, keys.to(there), hits, share)

    def fill(
        self, ids: Int[Tensor, " c"], read: Callable[[Tensor], Shaped[Tensor, "c ..."]]
    ) -> None:
        """Copy rows `ids`, sorted, one per slot; those that are here already stay where they are.

        Args:
            ids: as many as there are slots.
            read: gives rows by ids, on the host.
        """
        stays = torch.isin(self.ids, ids)
        slots = (~stays).nonzero().squeeze(1)
        come = ids[~torch.isin(ids, self.ids)]
        row_bytes = max(math.prod(self.rows.shape[1:]) * self.rows.element_size(), 1)
        each = max(_FILL_BYTES // row_bytes, 1)
        for some, rows in zip(slots.split(each), come.split(each), strict=True):
            # a slot holds no row while it is written, in case reading fails
            self.ids[some] = -1
            self.rows.index_copy_(0, some.to(self.rows.device), read(rows).to(self.rows.device))
            self.ids[some] = rows


def _as_many_as_fit(
    count: int, row: torch.Size, dtype: torch.dtype, device: torch.device
) -> Shaped[Tensor, "c ..."]:
    left = count
    while True:
        try:
            rows = _empty((left, *row), dtype, device)
            break
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
            if left == 0 or not is_out_of_memory(error):
                raise
            left = int(left * _SHRINK)
    if left < count:
        mib = math.prod(row) * dtype.itemsize / 2**20
        warnings.warn(
            f"{count} rows ({count * mib:.1f} MiB) were to be held on {device}, which has room for "
            f"{left} of them ({left * mib:.1f} MiB); the others are read from the tiers below",
            stacklevel=4,
        )
    return rows


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)
