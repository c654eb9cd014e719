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
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.cli.parts import Plan
from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail
from shoal.core.memory import available_bytes
from shoal.data.graphs import read
from shoal.data.nodes import node_data
from shoal.graph.features import row_width
from shoal.models.graphs import BATCH_SIZE
from shoal.sample.touch import touch_probability

WIDTH, TRAIN = 256, 0.1  # where nothing is known
_GIB = 2**30
_LINK_REACHED = 0.85
_RATES = ("device_gbs", "link_gbs", "host_gbs", "disk_iops")
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


def plan(asked: Plan) -> dict[str, Any]:
    """Run ``shoal plan``.

    Returns:
        what the command prints: tiers with rows, size, share and time, the code to write and, for a
        graph that ``shoal train`` reads, its flags.

    Raises:
        InputError: if a number is out of range or the graph cannot be read.
    """
    _expect_numbers(asked)
    if asked.source:
        task, asked, graph, seeds = _known(asked.source, asked)
        reads = reads_of_graph(graph, seeds, asked)
    else:
        task, reads = None, zipf_reads(asked)
    width = WIDTH if asked.width is None else asked.width
    row = width * getattr(torch, asked.dtype).itemsize
    device, host = _room(asked)
    hot = min(reads.n, device // row)
    in_memory = reads.n * row <= host
    warm = reads.n - hot if in_memory else min(reads.n - hot, host // row)
    counts = {"device": hot, "host": warm, "disk": reads.n - hot - warm}
    # what is in memory has all rows, those on the device as well
    held = counts | ({"host": reads.n} if in_memory else {})
    seconds = {name: row_seconds(name, row, asked, with_device=device > 0) for name in counts}
    tiers, done = Columns(), 0
    for name, count in counts.items():
        share = reads.share(done + count) - reads.share(done)
        done += count
        tiers.append(
            {
                "tier": name,
                "rows": count,
                "GiB": round(held[name] * row / _GIB, 3),
                "reads_percent": round(100 * share, 2),
                "ms": round(1e3 * reads.batch * share * seconds[name], 3),
            }
        )
    last = "host" if in_memory else "disk"
    command = None if task is None else _command(task, asked, counts, in_memory)
    return {
        "rows": reads.n,
        "row_bytes": row,
        "table_GiB": round(reads.n * row / _GIB, 3),
        "rows_a_batch": round(reads.batch),
        "tiers": tiers,
        "ms_a_batch": round(sum(tier["ms"] for tier in tiers), 3),
        f"ms_all_from_{last}": round(1e3 * reads.batch * seconds[last], 3),
        "assumed": _assumed(asked),
        "code": _code(asked, counts, in_memory),
        **({} if command is None else {"command": command}),
    }


def _known(source: str, asked: Plan) -> tuple[str, Plan, Csr, Tensor]:
    """The task that trains on a graph, the completed settings, the graph and its seeds.

    Raises:
        InputError: if the graph cannot be read.
    """
    found = read(source)
    graph, features = found.graph, found.features
    n, width = graph.n_rows, None if features is None else row_width(features)
    classes = found.y is not None and found.links is None
    seeds = node_data(found).train if classes else None
    if seeds is None or asked.train is not None:
        generator = torch.Generator().manual_seed(asked.seed)
        share = TRAIN if asked.train is None else asked.train
        seeds = torch.randperm(n, generator=generator)[: max(1, round(share * n))]
    size = asked.batch_size or min(BATCH_SIZE, len(seeds))
    width = width if asked.width is None else asked.width
    share = round(len(seeds) / max(n, 1), 4)
    task = "nodes" if classes else "links"
    return task, replace(asked, train=share, batch_size=size, width=width), graph, seeds


def reads_of_graph(graph: Csr, seeds: Int[Tensor, " m"], asked: Plan) -> Reads:
    """What a neighbor sampler reads, by the fan-out model.

    Raises:
        InputError: if the batch is larger than the seeds, or `rows` is not the number of nodes.
    """
    n, size = graph.n_rows, asked.batch_size or BATCH_SIZE
    same = asked.rows in (None, n)
    expect(same, "rows", f"the graph's {n} nodes", asked.rows, "leave it out")
    touched = touch_probability(graph, seeds, asked.fanouts, size)
    total = float(touched.sum())
    served = torch.cat([touched.new_zeros(1), touched.sort(descending=True).values.cumsum(0)])
    return Reads(n, total, lambda count: float(served[count]) / total)


def zipf_reads(asked: Plan) -> Reads:
    """What batches read by a Zipf law.

    Raises:
        InputError: if there are no rows, or a batch has more than the table.
    """
    n = asked.rows
    known = n is not None
    expect(known, "source", "a graph, or --rows", "neither", "name one of them")
    n = n or 0
    expect_positive("rows", n)
    fits = 1 <= asked.batch_rows <= n
    expect(fits, "batch_rows", f"1 … {n}, the table's rows", asked.batch_rows, "set it")
    total = zipf_sum(n, asked.zipf)
    return Reads(n, float(asked.batch_rows), lambda count: zipf_sum(count, asked.zipf) / total)


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


def row_seconds(tier: str, row: int, asked: Plan, with_device: bool) -> float:
    """Seconds that one row of `row` bytes takes from a tier."""
    if tier == "device":
        return row / (1e9 * asked.device_gbs)
    if tier == "disk":
        return math.ceil(row / 4096) / asked.disk_iops
    if not with_device:
        return row / (1e9 * asked.host_gbs)
    return row / (link_rate(row, raw=1e9 * asked.link_gbs) * _LINK_REACHED)


def _room(asked: Plan) -> tuple[int, int]:
    """Bytes for rows on the device and in host memory."""
    device = 0.0 if asked.device_gib is None else asked.device_gib * _GIB
    if asked.device_gib is None and asked.device != "cpu":
        device = torch.cuda.mem_get_info(torch.device(asked.device))[0] / 2
    if asked.host_gib is not None:
        return int(device), int(asked.host_gib * _GIB)
    left = available_bytes()
    if left is None:
        fail("host_gib", "GiB of host memory", "none, and no count by this system", "set it")
    return int(device), left // 2


def _expect_numbers(asked: Plan) -> None:
    """Raise unless every number is in its range."""
    for name in ("width", "batch_size"):
        value = getattr(asked, name)
        expect_positive(name, value) if value is not None else None
    share = asked.train is None or 0 < asked.train <= 1
    expect(share, "train", "a share in (0, 1]", asked.train, "set it")
    expect(len(asked.fanouts) > 0, "fanouts", "a number per hop", "none", "pass 15 10, say")
    for name in ("zipf", "device_gib", "host_gib", *_RATES):
        value, zero = getattr(asked, name), name not in _RATES
        good = value is None or (0 <= value < math.inf and (zero or value > 0))
        want = "a finite number of at least 0" if zero else "a finite number above 0"
        expect(good, name, want, value, "set it")


def _assumed(asked: Plan) -> dict[str, Any]:
    names = ["batch_size", "fanouts", "train"] if asked.source else ["zipf"]
    return {name: getattr(asked, name) for name in (*names, *_RATES)}


def _command(task: str, asked: Plan, counts: dict[str, int], in_memory: bool) -> str:
    """``shoal train`` with rows where they are planned."""
    fanouts = " ".join(map(str, asked.fanouts))
    words = [f"shoal train {task}", shlex.quote(str(asked.source))]
    words.append(f"--batch-size {asked.batch_size} --fanouts {fanouts}")
    if counts["device"]:
        words.append(f"--device {_device(asked)} --device-rows {counts['device']}")
    if not in_memory:
        words.append(f"--host-rows {counts['host']}")
    return " ".join(words)


def _code(asked: Plan, counts: dict[str, int], in_memory: bool) -> list[str]:
    """The lines that make such a table; `rows`, `graph` and `train` are the user's."""
    if in_memory and counts["device"] == 0:
        return ["table = shoal.unified(rows)"]
    parts, lines = ["rows" if in_memory else '"rows.npy"'], []
    if asked.source:
        sizes = f"{list(asked.fanouts)}, {asked.batch_size}"
        lines.append(f"scores = shoal.touch_probability(graph, train, {sizes})")
        parts.append("scores")
    if counts["device"]:
        parts.append(f'device_rows={counts["device"]}, device="{_device(asked)}"')
    if counts["host"] and not in_memory:
        parts.append(f"host_rows={counts['host']}")
    return [*lines, f"table = shoal.TieredTable({', '.join(parts)})"]


def _device(asked: Plan) -> str:
    return asked.device if asked.device != "cpu" else "cuda"
