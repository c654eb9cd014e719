"""Arrays that lie in a file: mapped into memory, and read from disk when they are touched."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from shoal.core.errors import fail
from shoal.core.layout import Layout, layout_of

# Linux's own; without it the system promises memory for all that could be written to
_NO_RESERVE = 0x4000


def map_rows(path: str | Path, name: str | None = None) -> Shaped[Tensor, "n ..."]:
    """Map the rows of a file. Writing to them changes this process's copy, never the file.

    Args:
        path: a ``.npy``, ``.npz`` or ``.safetensors`` file, which may be larger than memory.
        name: which array of one that may hold several; not needed where it holds one.

    Raises:
        InputError: if the file is missing, truncated, of another kind or compressed, or its rows
            are not contiguous.
    """
    return map_array(layout_of(path, name))


def map_array(found: Layout) -> Shaped[Tensor, ...]:
    """Map an array whose layout is known; see :func:`map_rows`.

    Raises:
        InputError: if the system does not map the file.
    """
    nbytes = found.end - found.start
    if nbytes == 0:  # no system maps nothing
        return torch.empty(found.shape, dtype=found.dtype)
    before = found.start % mmap.ALLOCATIONGRANULARITY  # where a map may begin
    try:
        with found.path.open("rb") as file:
            kind = _copied_on_write()
            raw = mmap.mmap(file.fileno(), nbytes + before, offset=found.start - before, **kind)
    except OSError as error:
        remedy = "read it by shoal.TieredTable(path)"
        fail(str(found.path), "a file that can be mapped", error.strerror, remedy)
    rows = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=before))
    return rows.view(found.dtype).view(found.shape)


def _copied_on_write() -> dict[str, int]:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return {"access": mmap.ACCESS_COPY}
    reserve = _NO_RESERVE if hasattr(mmap, "MAP_POPULATE") else 0  # another of Linux's own
    return {"flags": mmap.MAP_PRIVATE | reserve, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
