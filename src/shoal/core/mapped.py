"""Arrays that lie in a file: where, by its headers alone, and mapped into memory.

Three formats hold arrays as they lie in memory, so that row i begins at ``start + i * row_bytes``:
NumPy's ``.npy`` in C order, such a file in an ``.npz`` that is not compressed, and a tensor of a
``.safetensors`` file. A file may be larger than memory: :func:`layout_of` reads headers alone, and
what :func:`map_rows` maps is read from disk when it is touched.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from shoal.core.errors import InputError, expect, expect_file, fail

_KINDS = (".npy", ".npz", ".safetensors")
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Linux's own; without it the system promises memory for all that could be written to
_NO_RESERVE = 0x4000
_ZIP_HEAD = 30  # bytes before a member's name; the last four hold the lengths of what follows
# of safetensors' names for them
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Layout:
    """An array in a file.

    Attributes:
        path: the file.
        start: the first row's first byte.
        shape: ``(n, ...)``, rows first; ``()`` of a number.
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
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Origin:
    """The file that rows come from, as it was when it was opened: what travels in their place.

    Attributes:
        path: of the file, absolute.
        name: of the array in it; None where it holds one.
        size: of the file, in bytes.
        changed: time of its last change, in nanoseconds.
    """

    path: Path
    name: str | None
    size: int
    changed: int

    @staticmethod
    def of(path: str | Path, name: str | None = None) -> Origin:
        """Look at a file that exists."""
        stat = Path(path).stat()
        return Origin(Path(path).absolute(), name, stat.st_size, stat.st_mtime_ns)

    def expect_same(self) -> None:
        """See that the file is what it was.

        Raises:
            InputError: if it is missing, or another.
        """
        now = Origin.of(expect_file(self.path, "the rows of a table that travelled"), self.name)
        want = f"the file of {self.size} bytes that the table was made of"
        got = f"{now.size} bytes, changed since"
        expect(now == self, str(self.path), want, got, "make the table again")


def layout_of(path: str | Path, name: str | None = None) -> Layout:
    """Read the headers of a file whose rows are wanted.

    Args:
        path: a ``.npy``, ``.npz`` or ``.safetensors`` file.
        name: which array of one that may hold several; not needed where it holds one.

    Raises:
        InputError: if the file is missing, truncated, of another kind or compressed, or its rows
            are not contiguous.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "x.npy"), np.zeros((3, 2), dtype=np.float32))
        ...     found = layout_of(Path(folder, "x.npy"))
        >>> found.start, found.shape, found.row_bytes, found.end
        (128, (3, 2), 8, 152)
    """
    path = expect_file(path, "rows, .npy, .npz or .safetensors")
    known = path.suffix in _KINDS
    want = "a .npy, .npz or .safetensors file"
    expect(known, str(path), want, path.suffix, "save it as one of them")
    if path.suffix == ".npy":
        found = _of_npy(path, 0)
    elif path.suffix == ".npz":
        found = _of_npz(path, name)
    else:
        names = tensors_of(path)
        found = names[_one(path, list(names), name)]
    expect(len(found.shape) >= 1, str(path), "at least one axis", "a number", "stack the rows")
    return _whole(found)


def tensors_of(path: Path) -> dict[str, Layout]:
    """Where each tensor of a ``.safetensors`` file lies.

    Raises:
        InputError: if the file is truncated or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # numpy's way only looks; torch's maps the file to be written to, and is refused the memory
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            kinds = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        fail(str(path), "a whole .safetensors file", error, "save it again")
    for name, (_, kind) in kinds.items():
        expect(kind in _DTYPES, f"{path}, {name}", "numbers that torch has", kind, "convert them")
    return {
        name: Layout(path, 8 + length + header[name]["data_offsets"][0], shape, _DTYPES[kind])
        for name, (shape, kind) in kinds.items()
    }


def _of_npz(path: Path, name: str | None) -> Layout:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [x.removesuffix(".npy") for x in archive.namelist() if x.endswith(".npy")]
            member = archive.getinfo(f"{_one(path, names, name)}.npy")
        with path.open("rb") as file:
            file.seek(member.header_offset)
            head = file.read(_ZIP_HEAD)
        # a member's own name and extra field, which need not be as long as in the directory
        begin = member.header_offset + _ZIP_HEAD + sum(struct.unpack("<HH", head[-4:]))
    except InputError:
        raise
    except Exception as error:  # zipfile's and zlib's own
        fail(str(path), "a whole .npz file", error, "save it again")
    stored = member.compress_type == zipfile.ZIP_STORED
    expect(stored, str(path), "arrays as they are", "compressed ones", "save them by np.savez")
    found = _of_npy(path, begin)
    got = f"{member.file_size} bytes where {found.end - begin} should be"
    expect(
        found.end == begin + member.file_size, str(path), "a whole .npz file", got, "save it again"
    )
    return found


def _one(path: Path, names: list[str], name: str | None) -> str:
    """The name of the array that is meant."""
    one = name in names or (name is None and len(names) == 1)
    expect(one, str(path), f"name, one of {names}", name, "pass the name of the rows")
    return names[0] if name is None else name


def _of_npy(path: Path, at: int) -> Layout:
    try:
        with path.open("rb") as file:
            file.seek(at)
            version = np.lib.format.read_magic(file)
            shape, columns_first, dtype = _READ_HEADER[version](file)
            start = file.tell()
        # fails for dtypes that torch lacks and for foreign byte orders
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    except Exception as error:  # numpy reads its header as Python, and raises what that raises
        fail(str(path), f"a whole {path.suffix} file of numbers", error, "save it again")
    expect(min(shape, default=0) >= 0, str(path), "a shape", shape, "save it again")
    in_rows = not columns_first or len(shape) < 2
    remedy = "save np.ascontiguousarray(rows)"
    expect(in_rows, str(path), "rows one after the other (C order)", "Fortran order", remedy)
    return Layout(path, start, shape, torch_dtype)


def _whole(found: Layout) -> Layout:
    size = found.path.stat().st_size
    got = f"{size} bytes where the header asks for {found.end}"
    expect(size >= found.end, str(found.path), "a whole file", got, "save or copy it again")
    return found


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


def is_written(rows: Tensor) -> bool:
    """Whether rows that were mapped from a file may differ from it: something wrote to them here.

    Linux counts the pages that a process has of its own; elsewhere the answer is yes.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return True
    begin, end = rows.data_ptr(), rows.data_ptr() + rows.nbytes
    inside = False
    with smaps.open() as lines:
        for line in lines:
            first, *rest = line.split(maxsplit=2)
            if not first.endswith(":"):  # a stretch of memory: its first and last address
                low, high = (int(x, 16) for x in first.split("-"))
                inside = low < end and begin < high
            elif inside and first == "Anonymous:" and int(rest[0]) > 0:
                return True
    return False


def _copied_on_write() -> dict[str, int]:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return {"access": mmap.ACCESS_COPY}
    reserve = _NO_RESERVE if hasattr(mmap, "MAP_POPULATE") else 0  # another of Linux's own
    return {"flags": mmap.MAP_PRIVATE | reserve, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
