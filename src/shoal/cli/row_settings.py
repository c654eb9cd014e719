"""What the verbs about rows can be asked for: where they should lie, and how fast they arrive.

As in :mod:`shoal.cli.settings`, one frozen dataclass a verb, and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shoal.cli.settings import Common


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Propose which rows of a table lie on the device, in host memory and on disk."""

    source: Annotated[str | None, tyro.conf.Positional] = None
    """A graph whose batches read the rows: as in train, a saved Csr, or edges, two nodes a line."""
    rows: int | None = None
    """Without a graph: rows of the table."""
    width: int | None = None
    """Numbers a row; by default what train reads of the graph's features, else 256."""
    dtype: Literal["float32", "float16", "bfloat16", "float64", "int8"] = "float32"
    """Of the numbers."""
    batch_size: int | None = None
    """With a graph: seeds a batch; 512 by default, or all where there are fewer."""
    fanouts: tuple[int, ...] = (15, 10)
    """With a graph: neighbors drawn a node, one number a hop, the seeds' own first."""
    train: float | None = None
    """With a graph: share of its nodes that are seeds; its own training nodes, else a tenth."""
    seed: int = 0
    """Of what is drawn: such seeds."""
    zipf: float = 0.0
    """Without a graph: the r-th of the most read rows is read in proportion to 1 / r^zipf."""
    batch_rows: int = 100_000
    """Without a graph: rows that a batch reads."""
    device_gib: float | None = None
    """Device memory for rows; by default half of what is free on --device, and none on a cpu."""
    host_gib: float | None = None
    """Host memory for rows; by default half of what is free."""
    device_gbs: float = 1000.0
    """GB/s of rows in device memory; a third of an H100's peak, as rows are read and written."""
    link_gbs: float = 31.5
    """GB/s between host and device, raw; 31.5 is PCIe 4 x16. What rows get depends on width."""
    host_gbs: float = 3.5
    """GB/s that the processor gathers where there is no device; one core's, measured."""
    disk_iops: float = 100_000.0
    """Pages of 4 KiB a second that the disk gives, sixteen asked for at a time."""


@dataclass(frozen=True, kw_only=True)
class Gather(Common):
    """Measure how fast rows arrive, by width, order, alignment and tier."""

    widths: tuple[int, ...] = (16, 64, 128, 256, 512, 1024, 4096)
    """Bytes a row, each a multiple of 4."""
    mib: int = 256
    """Size of the table in memory, MiB; beyond the processor's caches, or they are measured."""
    disk_mib: int = 256
    """Size of the file, MiB; 0 leaves the disk out."""
    rows: int = 20_000
    """Rows a gather."""
    repeats: int = 3
    """Gathers of each kind; the median counts."""
    folder: Path | None = None
    """Where the file is made and removed; the system's folder for such files by default."""
