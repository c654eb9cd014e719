"""Rows of a graph's features: how they are made, and where they lie.

Without ``--host-rows`` all rows are in host memory. With it they are in a file, the graph's own
where that holds the very numbers that a model reads, else ``rows.npy`` in the run's folder; the
rows that batches read most are copied to host memory. What a run learns does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect
from shoal.core.files import file_aside
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import unified
from shoal.tasks.graphs import start_of
from shoal.training.loader import Table
from shoal.training.run import Run

# sparse features wider than this are projected at random to it, which keeps cosines within 1/√d
WIDTH = 256
_WRITE_BYTES = 64 << 20  # made and written at a time


def feature_rows(features: Csr | Float[Tensor, "n f"], seed: int) -> Float[Tensor, "n d"]:
    """Dense rows of all nodes: as they are, or sparse ones at most :data:`WIDTH` wide.

    Args:
        features: one row a node.
        seed: of the random projection of wide sparse features.
    """
    return row_maker(features, seed)(features)


def row_maker(features: Csr | Tensor, seed: int) -> Callable[[Any], Tensor]:
    """The function of :func:`feature_rows`, to be called with any part of the features' rows."""
    if isinstance(features, Tensor):
        return Tensor.float
    if features.n_cols <= WIDTH:
        return lambda some: some.to_dense().float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.n_cols, WIDTH, generator=generator) / WIDTH**0.5
    return partial(_projected, directions)


def _projected(directions: Float[Tensor, "f d"], features: Csr) -> Float[Tensor, "n d"]:
    return torch.nn.functional.embedding_bag(
        features.indices.long(),
        directions,
        features.indptr,
        mode="sum",
        per_sample_weights=None if features.values is None else features.values.float(),
        include_last_offset=True,
    )


def row_width(features: Csr | Float[Tensor, "n f"]) -> int:
    """How wide the rows are that :func:`feature_rows` makes."""
    width = features.shape[1]
    return width if isinstance(features, Tensor) else min(width, WIDTH)


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
    own = _own(features, settings.source)
    if own is not None:
        return own
    if not run.rows.exists():
        _write(run.rows, features, settings.seed)
    rows = DiskRows(run.rows)
    n, remedy = features.shape[0], "remove it, and it is written anew"
    expect(len(rows) == n, str(run.rows), f"the graph's {n} rows", len(rows), remedy)
    return rows


def _own(features: Csr | Tensor, source: str) -> DiskRows | None:
    """The rows of the source itself, where it holds the very numbers that a model reads."""
    if not isinstance(features, Tensor):
        return None
    try:
        own = DiskRows(source, "x")
    except InputError:  # a folder, or compressed
        return None
    return own if own.dtype == torch.float32 else None


def rows_for(
    run: Run, source: str, features: Csr | Float[Tensor, "n f"], settings: Train
) -> Float[Tensor, "n d"] | DiskRows:
    """Rows of a graph as a run's model reads them.

    Args:
        run: whose model it is.
        source: the graph; where it is not the run's own, its rows are held in memory.
        features: of its nodes.
        settings: of the run.

    Raises:
        InputError: if its features are not as many as those that the run has learned.
    """
    # projected rows are equally wide whatever they are projected from
    want, got = start_of(run)["features"], features.shape[1]
    expect(got == want, "features", f"{want} columns, as the run's", got, "use data of its kind")
    own = source == settings.source
    return rows_of(features, settings if own else replace(settings, host_rows=None), run)


def _write(path: Path, features: Csr | Tensor, seed: int) -> None:
    """Write all rows, a part at a time: they need not fit in memory, though features do."""
    made = row_maker(features, seed)
    n, width = features.shape[0], row_width(features)
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
