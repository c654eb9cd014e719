"""Rows that lie in a file: mapped into memory, and read from disk when they are touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from shoal._checks import expect, expect_file, fail


def map_rows(path: str | Path, name: str | None = None) -> Shaped[Tensor, "n ..."]:
    """Map the rows of a file. Writing to them changes this process's copy, never the file.

    Args:
        path: a ``.npy`` or ``.safetensors`` file.
        name: which tensor of a safetensors file; not needed where it holds one.

    Raises:
        InputError: if the file is missing, truncated or of another kind.
    """
    path = expect_file(path, "rows, .npy or .safetensors")
    kind = path.suffix
    known = kind in (".npy", ".safetensors")
    expect(known, str(path), "a .npy or .safetensors file", kind, "save it as one of them")
    return _map_npy(path) if kind == ".npy" else _map_safetensors(path, name)


def _map_npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, TypeError) as error:
        fail(str(path), "a whole .npy file of numbers", error, "save it again")


def _map_safetensors(path: Path, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            one = name in names or (name is None and len(names) == 1)
            expect(one, str(path), f"name, one of {names}", name, "pass the name of the rows")
            return file.get_tensor(names[0] if name is None else name)
    except (OSError, SafetensorError) as error:
        fail(str(path), "a whole .safetensors file", error, "save it again")
