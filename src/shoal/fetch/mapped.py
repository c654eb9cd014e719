"""Rows that lie in a file: mapped into memory, and read from disk when they are touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from shoal.fetch.layout import layout_of


def map_rows(path: str | Path, name: str | None = None) -> Shaped[Tensor, "n ..."]:
    """Map the rows of a file. Writing to them changes this process's copy, never the file.

    Args:
        path: a ``.npy`` or ``.safetensors`` file.
        name: which tensor of a safetensors file; not needed where it holds one.

    Raises:
        InputError: if the file is missing, truncated or of another kind, or its rows are not
            contiguous.
    """
    found = layout_of(path, name)
    nbytes = found.end - found.start
    if nbytes == 0:  # no system maps nothing
        return torch.empty(found.shape, dtype=found.dtype)
    raw = np.memmap(found.path, np.uint8, mode="c", offset=found.start, shape=(nbytes,))
    return torch.from_numpy(raw).view(found.dtype).view(found.shape)
