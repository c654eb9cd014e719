"""Where the rows of a file lie: first byte, shape and dtype, read from the header alone.

Two formats hold rows one after the other, so that row i begins at ``start + i * row_bytes``:
NumPy's ``.npy`` in C order, and a tensor of a ``.safetensors`` file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shoal._checks import InputError, expect, expect_file, fail


@dataclass(frozen=True)
class Layout:
    """Rows in a file.

    Attributes:
        path: the file.
        start: the first row's first byte.
        shape: ``(n, ...)``, rows first.
        dtype: of the numbers, little-endian.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte behind the last row."""
        return self.start + self.shape[0] * self.row_bytes


def layout_of(path: str | Path, name: str | None = None) -> Layout:
    """Read a file's header.

    Args:
        path: a ``.npy`` or ``.safetensors`` file.
        name: which tensor of a safetensors file; not needed where it holds one.

    Raises:
        InputError: if the file is missing, truncated, of another kind, or its rows are not
            contiguous.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "x.npy"), np.zeros((3, 2), dtype=np.float32))
        ...     found = layout_of(Path(folder, "x.npy"))
        >>> found.start, found.shape, found.row_bytes, found.end
        (128, (3, 2), 8, 152)
    """
    path = expect_file(path, "rows, .npy or .safetensors")
    kind = path.suffix
    known = kind in (".npy", ".safetensors")
    expect(known, str(path), "a .npy or .safetensors file", kind, "save it as one of them")
    found = _of_npy(path) if kind == ".npy" else _of_safetensors(path, name)
    expect(len(found.shape) >= 1, str(path), "at least one axis", "a number", "stack the rows")
    size = path.stat().st_size
    got = f"{size} bytes where the header asks for {found.end}"
    expect(size >= found.end, str(path), "a whole file", got, "save or copy it again")
    return found


def _of_npy(path: Path) -> Layout:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, columns_first, dtype = read(file)
            start = file.tell()
        # torch knows which dtypes it can hold, and refuses foreign byte orders
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    except (OSError, ValueError, TypeError, KeyError) as error:
        fail(str(path), "a whole .npy file of numbers", error, "save it again")
    in_rows = not columns_first or len(shape) < 2
    remedy = "save np.ascontiguousarray(rows)"
    expect(in_rows, str(path), "rows one after the other (C order)", "Fortran order", remedy)
    return Layout(path, start, shape, torch_dtype)


def _of_safetensors(path: Path, name: str | None) -> Layout:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            one = name in names or (name is None and len(names) == 1)
            expect(one, str(path), f"name, one of {names}", name, "pass the name of the rows")
            name = names[0] if name is None else name
            rows = file.get_slice(name)
            shape = tuple(rows.get_shape())
            dtype = rows[:0].dtype if shape else torch.float32
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        fail(str(path), "a whole .safetensors file", error, "save it again")
    return Layout(path, 8 + length + header[name]["data_offsets"][0], shape, dtype)
