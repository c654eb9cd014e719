"""Rows that networks on graphs read, made from features: the one place where that is decided.

Dense features are taken as they are, in float32. Sparse ones become dense; those wider than
:data:`WIDTH` are projected at random to that width, which keeps cosines within 1/√d.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from shoal.core.csr import Csr
from shoal.core.files import file_aside

WIDTH = 256
_WRITE_BYTES = 64 << 20  # made and written at a time


def feature_rows(features: Csr | Float[Tensor, "n f"], seed: int = 0) -> Float[Tensor, "n d"]:
    """Dense rows of all nodes.

    Args:
        features: one row per node.
        seed: of the random projection of wide sparse features.

    Example:
        >>> feature_rows(Csr.from_lists([[1], []], n_cols=2)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return _maker(features, seed)(features)


def row_width(features: Csr | Float[Tensor, "n f"]) -> int:
    """How wide the rows are that :func:`feature_rows` makes."""
    width = features.shape[1]
    return width if isinstance(features, Tensor) else min(width, WIDTH)


def write_rows(path: Path, features: Csr | Float[Tensor, "n f"], seed: int = 0) -> None:
    """Write what :func:`feature_rows` makes to a ``.npy``, a part at a time.

    The rows need not fit in memory, though the features do.

    Args:
        path: of the file.
        features: as for :func:`feature_rows`, and so is the next.
        seed: as above.
    """
    made = _maker(features, seed)
    n, width = features.shape[0], row_width(features)
    each = max(_WRITE_BYTES // max(4 * width, 1), 1)
    with file_aside(path) as new, new.open("wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(file, about)
        for ids in torch.arange(n).split(each):
            part = features.rows(ids) if isinstance(features, Csr) else features[ids]
            file.write(made(part).contiguous().numpy().data)


def _maker(features: Csr | Tensor, seed: int) -> Callable[[Any], Tensor]:
    """The function from any part of the features' rows to dense rows."""
    if isinstance(features, Tensor):
        return Tensor.float
    if features.n_cols <= WIDTH:
        return lambda some: some.to_dense().float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features.n_cols, WIDTH, generator=generator) / WIDTH**0.5

    def projected(some: Csr) -> Float[Tensor, "n d"]:
        values = None if some.values is None else some.values.float()
        columns, ends = some.indices.long(), some.indptr
        return embedding_bag(
            columns,
            directions,
            ends,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )

    return projected
