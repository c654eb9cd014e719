"""Rows of a graph's features in training: where they lie, by ``--device-rows`` and ``--host-rows``.

Without the second all rows are in host memory. With it they are in a file, the graph's own where
that holds the very numbers that a model reads, else ``rows.npy`` in the run's folder; the rows that
batches read most are copied to host memory. What a run learns does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoal._checks import expect
from shoal.columns import Columns
from shoal.csr import Csr
from shoal.fetch.disk import DiskRows
from shoal.fetch.loader import Table
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import unified
from shoal.files import file_aside
from shoal.run import Run
from shoal.settings import Train
from shoal.tasks.graphs import feature_rows, row_maker

_WRITE_BYTES = 64 << 20  # made and written at a time


def rows_of(
    features: Csr | Float[Tensor, "n f"], settings: Train, run: Run
) -> Float[Tensor, "n d"] | DiskRows:
    """Rows of all nodes: in host memory, or in a file if `host_rows` are asked for.

    Args:
        features: one row a node, as the source has them.
        settings: `source`, `seed` and `host_rows` are read.
        run: keeps the file, if one has to be written; one that is there is read.

    Raises:
        InputError: if the file is damaged, or is that of another graph.
    """
    if settings.host_rows is None:
        return feature_rows(features, settings.seed)
    if isinstance(features, Tensor) and settings.source.endswith(".safetensors"):
        own = DiskRows(settings.source, "x")
        if own.dtype == torch.float32:
            return own
    if not run.rows.exists():
        _write(run.rows, features, settings.seed)
    rows = DiskRows(run.rows)
    n, remedy = features.shape[0], "remove it, and it is written anew"
    expect(len(rows) == n, str(run.rows), f"the graph's {n} rows", len(rows), remedy)
    return rows


def _write(path: Path, features: Csr | Tensor, seed: int) -> None:
    """Write all rows, a part at a time: they need not fit in memory, though features do."""
    made = row_maker(features, seed)
    n = features.shape[0]
    width = made(_some(features, torch.arange(0))).shape[1]
    each = max(_WRITE_BYTES // max(4 * width, 1), 1)
    with file_aside(path) as new:
        with new.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
            np.lib.format.write_array_header_1_0(file, head)
            for ids in torch.arange(n).split(each):
                file.write(made(_some(features, ids)).contiguous().numpy().data)


def _some(features: Csr | Tensor, ids: Tensor) -> Csr | Tensor:
    return features.rows(ids) if isinstance(features, Csr) else features[ids]


def table_of(
    rows: Float[Tensor, "n d"] | DiskRows, settings: Train, scores: Callable[[], Tensor]
) -> Table:
    """The table that batches read: all rows alike, or in tiers.

    Args:
        rows: as :func:`rows_of` gives them, or rows that learn.
        settings: `device_rows`, `host_rows` and `device` are read.
        scores: how often each row is read; asked only where there are tiers.

    Raises:
        InputError: if a count is negative, or tiers are asked for and rows learn.
    """
    warm, hot = settings.host_rows, settings.device_rows
    if isinstance(rows, Tensor) and hot == 0 and warm is None:
        return unified(rows)
    device = settings.device
    return TieredTable(rows, scores(), device_rows=hot, host_rows=warm or 0, device=device)


def tiers_used(table: object) -> dict[str, Any]:
    """What the command says of a table in tiers: rows, and the share of reads that each serves."""
    if not isinstance(table, TieredTable):
        return {}
    lines = [{"tier": name, **use.percent()} for name, use in table.use().items()]
    return {"tiers": Columns(lines)}
