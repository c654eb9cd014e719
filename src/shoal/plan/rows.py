"""Where a table's rows should lie, by arithmetic: what fits, what it serves, what a batch takes.

Rows are sorted by how often batches read them: by the fan-out model of a graph
(:mod:`shoal.sample.touch`), or by a Zipf law, where the r-th of n rows is read in proportion to
``r^-s``. The hottest fill the device, the next host memory, and a file has the rest. A batch then
takes, one tier after the other,

    Σ_t  rows per batch · share_t · row bytes / rate_t

with these rates: device memory and the processor's own gather are numbers to be given (``shoal
gather`` measures them). The link's is :func:`link_rate` of rows that begin on lines, of which
published measurements on an A100 reach 0.82 to 0.88 (4-, 188- and 256-byte rows: dmlc/dgl #6635 and
#6645; 0.85 here). A disk gives pages of 4 KiB, ``⌈w/4096⌉`` of them a row. Assumption: nothing
overlaps, and what is on disk is in no page cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.sample.touch import touch_probability

TIERS: tuple[str, ...] = ("device", "host", "disk")
"""Where rows lie, the fastest first."""
_LINK_REACHED = 0.85
RAW = {"gen4": 31.5e9, "gen5": 63e9}  # bytes per second of sixteen lanes of PCIe, one way
_SECTOR, _BUS_LINE, _HEADER = 32, 128, 24  # bytes of a request on the bus
_EXACT = 1000  # terms of a Zipf law's sum that are added up, the rest is an integral


@dataclass(frozen=True)
class Reads:
    """What batches read.

    Attributes:
        n: rows of the table.
        batch: distinct rows per batch.
        share: the share of reads that the so many hottest rows serve, in [0, 1].
    """

    n: int
    batch: float
    share: Callable[[int], float]


@dataclass(frozen=True)
class Rates:
    """How fast rows arrive from each tier.

    Attributes:
        device_gbs: GB/s of rows in device memory; a third of an H100's peak, as rows are read and
            written.
        link_gbs: GB/s between host and device, raw; 31.5 is PCIe 4 x16.
        host_gbs: GB/s that the processor gathers where there is no device; one core's, measured.
        disk_iops: pages of 4 KiB per second that the disk reads, sixteen requested at a time.
    """

    device_gbs: float = 1000.0
    link_gbs: float = 31.5
    host_gbs: float = 3.5
    disk_iops: float = 100_000.0

    def seconds(self, tier: str, row: int, with_device: bool) -> float:
        """Seconds that one row of `row` bytes takes from a tier."""
        if tier == "device":
            return row / (1e9 * self.device_gbs)
        if tier == "disk":
            return math.ceil(row / 4096) / self.disk_iops
        if not with_device:
            return row / (1e9 * self.host_gbs)
        return row / (link_rate(row, raw=1e9 * self.link_gbs) * _LINK_REACHED)


@dataclass(frozen=True)
class Placement:
    """Which rows lie where.

    Attributes:
        reads: what batches read.
        row: bytes of a row.
        counts: rows that are read from each of :data:`TIERS`.
        in_memory: whether host memory has all rows, those on the device as well.
        seconds: that a row takes from each tier.
    """

    reads: Reads
    row: int
    counts: dict[str, int]
    in_memory: bool
    seconds: dict[str, float]

    @property
    def last(self) -> str:
        """The slowest tier, which has all rows."""
        return "host" if self.in_memory else "disk"

    def held(self, tier: str) -> int:
        """Rows that lie in a tier."""
        return self.reads.n if self.in_memory and tier == "host" else self.counts[tier]

    def shares(self) -> dict[str, float]:
        """The share of reads that each tier serves."""
        found, done = {}, 0
        for name, count in self.counts.items():
            found[name] = self.reads.share(done + count) - self.reads.share(done)
            done += count
        return found


def place(reads: Reads, row: int, device_bytes: int, host_bytes: int, rates: Rates) -> Placement:
    """The hottest rows on the device, the next in host memory, and a file has the rest.

    Args:
        reads: what batches read.
        row: bytes of a row.
        device_bytes: room for rows on the device.
        host_bytes: room for them in host memory.
        rates: how fast each is.

    Example:
        >>> some = place(zipf_reads(100, 10), 4, 40, 400, Rates())
        >>> some.counts, some.in_memory, some.shares()["device"]
        ({'device': 10, 'host': 90, 'disk': 0}, True, 0.1)
    """
    hot = min(reads.n, device_bytes // row)
    in_memory = reads.n * row <= host_bytes
    warm = reads.n - hot if in_memory else min(reads.n - hot, host_bytes // row)
    counts = dict(zip(TIERS, (hot, warm, reads.n - hot - warm), strict=True))
    seconds = {name: rates.seconds(name, row, with_device=device_bytes > 0) for name in TIERS}
    return Placement(reads, row, counts, in_memory, seconds)


def reads_of_graph(
    graph: Csr, seeds: Int[Tensor, " m"], fanouts: Sequence[int | None], batch_size: int
) -> Reads:
    """What a neighbor sampler reads, by the fan-out model.

    Raises:
        InputError: if the batch is larger than the seeds.
    """
    touched = touch_probability(graph, seeds, fanouts, batch_size)
    total = float(touched.sum())
    served = torch.cat([touched.new_zeros(1), touched.sort(descending=True).values.cumsum(0)])
    return Reads(graph.n_rows, total, lambda count: float(served[count]) / total)


def zipf_reads(n: int, batch_rows: int, zipf: float = 0.0) -> Reads:
    """What batches read by a Zipf law: the r-th row in proportion to ``r^-zipf``.

    Raises:
        InputError: if there are no rows, or a batch has more than the table.
    """
    expect_positive("rows", n)
    fits = 1 <= batch_rows <= n
    expect(fits, "batch_rows", f"1 … {n}, the table's rows", batch_rows, "set it")
    total = zipf_sum(n, zipf)
    return Reads(n, float(batch_rows), lambda count: zipf_sum(count, zipf) / total)


def zipf_sum(count: int, s: float) -> float:
    """``Σ_{r=1}^{count} r^-s``: a thousand terms, and behind them the integral by the midpoints.

    Example:
        >>> zipf_sum(3, 1.0) == 1 + 1 / 2 + 1 / 3, zipf_sum(5000, 0.0)
        (True, 5000.0)
    """
    exact = sum((r**-s for r in range(1, min(count, _EXACT) + 1)), 0.0)
    if count <= _EXACT:
        return exact
    low, high = _EXACT + 0.5, count + 0.5
    rest = math.log(high / low) if s == 1 else (high ** (1 - s) - low ** (1 - s)) / (1 - s)
    return exact + rest


def link_rate(row_bytes: int, align: int = 128, raw: float = RAW["gen5"]) -> float:
    """Useful bytes per second at which a device reads host rows that begin at multiples of `align`.

    A request on the bus carries up to a line of 128 bytes in sectors of 32, and 24 bytes of header,
    so a row of w bytes that touches so many of each takes ``32·sectors + 24·lines`` bytes of the
    raw rate. The model has no limit to requests in flight, which may bind below 128 bytes.

    Args:
        row_bytes: bytes per row, at least 1.
        align: a power of two from 1 to 128: the largest that divides all rows' addresses.
        raw: bytes per second that the bus carries, headers included.

    Raises:
        InputError: if the width or the alignment is out of range.

    Example:
        One line of four sectors and a header: 128 / (128 + 24) of the raw rate.

        >>> round(link_rate(128) / 63e9, 4) == round(128 / 152, 4)
        True
        >>> link_rate(128, align=4) < link_rate(128)
        True
    """
    expect_positive("row_bytes", row_bytes)
    power = align in [2**i for i in range(8)]
    expect(power, "align", "a power of two from 1 to 128", align, "pass 128 for whole lines")
    carried = _SECTOR * _touched(row_bytes, _SECTOR, align)
    carried += _HEADER * _touched(row_bytes, _BUS_LINE, align)
    return raw * row_bytes / carried


def _touched(row_bytes: int, unit: int, align: int) -> float:
    """Mean number of units that a row touches."""
    starts = range(0, unit, min(align, unit))
    return sum(math.ceil((start + row_bytes) / unit) for start in starts) / len(starts)
