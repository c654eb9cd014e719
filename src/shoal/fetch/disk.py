"""Rows that do not fit in host memory: read from their file, batch by batch.

A batch's ids are sorted; rows on the same page of the file, or less than 32 KiB apart, are read by
one ``preadv``; and sixteen threads keep as many reads in flight, since a disk answers several in
the time of one. Runs of rows end at multiples of 128 KiB, so that a dense batch is divided among
the threads as well. The system is advised that reads are random: reading ahead, as it does for a
mapped file, would fetch megabytes for each row. What was read stays in its page cache.

The file is never mapped, as it is by ``shoal.unified``: a mapped file that is cut short kills the
process that touches it. And it is never registered with a device, which would pull it into memory
whole. A file that is cut, changed or replaced while it is open ends in an error that names it:
size, time of change and identity are compared before and after every batch, so rows that were read
while another process wrote are not handed over. (The time of change is as fine as the file system
keeps it, some milliseconds on Linux; assumption: writers do not set it back.)
"""

from __future__ import annotations

import math
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.core.errors import expect, expect_ids, expect_positive, fail
from shoal.core.mapped import Origin, layout_of
from shoal.fetch.gather import LENT_BYTES, Buffers, expect_out
from shoal.fetch.threads import for_each

_PAGE = 4096  # the least that a disk reads
# Rows less than so many pages apart are read at once, and what lies between is dropped. Measured on
# a virtual disk of 700 MB/s: one cold read more costs 45 µs of the kernel's time, as 32 KiB do.
_GAP = 8
_RUN_BYTES = 128 << 10  # long enough for full speed, short enough to be shared out
_PIECE = 32  # runs a thread takes at a time: the cost of taking vanishes, the last piece is short


class DiskRows:
    """A table whose rows stay in a file. They arrive on the device of their ids.

    Args:
        path: a ``.npy``, ``.npz`` or ``.safetensors`` file, with a name if it may hold several.
        name: which of its arrays.
        threads: reads in flight; 16 suits one solid-state disk.

    Attributes:
        shape: ``(n, ...)``, rows first.
        dtype: of the numbers.

    Raises:
        InputError: if the file is missing, truncated or of another kind, or the system lacks
            preadv.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "x.npy"), np.arange(6.0, dtype=np.float32).reshape(3, 2))
        ...     DiskRows(Path(folder, "x.npy")).gather(torch.tensor([2, 0]))
        tensor([[4., 5.],
                [0., 1.]])
    """

    def __init__(self, path: str | Path, name: str | None = None, *, threads: int = 16) -> None:
        expect_positive("threads", threads)
        able = hasattr(os, "preadv")
        want, remedy = "a system with preadv (Linux, macOS 11)", "use shoal.unified(path)"
        expect(able, "DiskRows", want, sys.platform, remedy)
        self._layout = layout_of(path, name)
        self._origin, self._threads = Origin.of(path, name), threads
        self.shape, self.dtype = torch.Size(self._layout.shape), self._layout.dtype
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._identity = _identity(os.fstat(self._file))
        if hasattr(os, "posix_fadvise"):  # Linux has it
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)
        self._buffers = Buffers()

    def __len__(self) -> int:
        """How many rows there are."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Name file, shape and dtype."""
        return f"DiskRows({str(self.path)!r}, {tuple(self.shape)}, {self.dtype})"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._origin, self._threads)

    @property
    def path(self) -> Path:
        """The file."""
        return self._layout.path

    def gather(
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return rows `ids` on the device of `ids`.

        Args:
            ids: int32 or int64, each in ``[0, n)``; repeats are read once.
            out: where to write, of the result's shape, dtype and device; lent memory if None.

        Raises:
            InputError: if an id is out of range, `out` does not fit, or the file is no longer what
                it was when it was opened.
        """
        expect_ids("ids", ids, len(self))
        if out is not None:
            expect_out(self.shape, self.dtype, ids, out)
        host = self._host(ids, out)
        if host.numel():
            self._expect_unchanged()
            # not view(-1), which leaves the stride of a lone number as it is
            flat = host.as_strided((host.numel(),), (1,)).view(torch.uint8)
            self._read(ids.cpu(), flat.numpy().reshape(len(ids), -1))
            self._expect_unchanged()
        if out is None:
            return host.to(ids.device, non_blocking=True)
        return out if host is out else out.copy_(host)

    def _host(self, ids: Tensor, out: Tensor | None) -> Tensor:
        """Host memory to read into: `out` itself where it will do."""
        if out is not None and out.device.type == "cpu" and out.is_contiguous():
            return out
        shape = (len(ids), *self.shape[1:])
        if ids.is_cuda:
            return torch.empty(shape, dtype=self.dtype, pin_memory=True)  # freed after its copy
        if math.prod(shape) * self.dtype.itemsize < LENT_BYTES:
            return torch.empty(shape, dtype=self.dtype)
        return self._buffers.empty(shape, self.dtype)

    def _read(self, ids: Tensor, out: np.ndarray) -> None:
        """Fill ``out`` ``[s, row_bytes]``, run by run, on the threads."""
        rows, order = (x.numpy() for x in ids.sort())
        first = runs(rows, self._layout.start, self._layout.row_bytes)
        each = max(1, min(_PIECE, math.ceil(len(first) / self._threads)))
        cuts = np.append(first[::each], len(rows)).tolist()
        starts = np.append(first, len(rows))

        def piece(number: int) -> None:
            low, high = cuts[number], cuts[number + 1]
            ends = starts[number * each : (number + 1) * each + 1]
            try:
                out[order[low:high]] = self._rows(rows[low:high], ends - low)
            except OSError as error:
                fail(str(self.path), "a file that can be read", error, "check the disk")

        for_each(piece, ((number,) for number in range(len(cuts) - 1)), self._threads)

    def _rows(self, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Rows of some runs, sorted; run j is ``rows[ends[j]:ends[j + 1]]``."""
        width, start = self._layout.row_bytes, self._layout.start
        low, high = rows[ends[:-1]], rows[ends[1:] - 1] + 1
        places = np.append(0, (high - low).cumsum())
        memory = np.empty(places[-1] * width, dtype=np.uint8)
        view = memory.data
        bytes_ = places * width
        for a, b, at in zip(
            bytes_[:-1].tolist(), bytes_[1:].tolist(), (start + low * width).tolist(), strict=True
        ):
            if os.preadv(self._file, [view[a:b]], at) != b - a:
                self._read_on(view[a:b], at)
        shift = (places[:-1] - low).repeat(np.diff(ends))
        return memory.reshape(-1, width)[rows + shift]

    def _read_on(self, view: memoryview, at: int) -> None:
        """Read what the system gave in part: it may be interrupted, and it stops at the end."""
        while view:
            count = os.preadv(self._file, [view], at)
            if count == 0:
                remedy = "write it again and open it again"
                fail(str(self.path), "a whole file", f"its end at byte {at}", remedy)
            view, at = view[count:], at + count

    def _expect_unchanged(self) -> None:
        try:
            now = _identity(os.fstat(self._file)), _identity(self.path.stat())
        except OSError as error:
            fail(str(self.path), "the file that was opened", error, "put it back")
        for found in now:
            for what, was, is_ in zip(_IDENTITY, self._identity, found, strict=True):
                if was != is_:
                    want, got = f"the file that was opened ({what} {was})", f"{what} {is_}"
                    fail(str(self.path), want, got, "open it again when it is whole")


_IDENTITY = ("size", "time of change", "device", "inode")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_size, stat.st_mtime_ns, stat.st_dev, stat.st_ino


def _reopen(origin: Origin, threads: int) -> DiskRows:
    origin.expect_same()
    return DiskRows(origin.path, origin.name, threads=threads)


def runs(rows: np.ndarray, start: int, row_bytes: int) -> np.ndarray:
    """Divide sorted rows of a file into runs, each read at once.

    A row continues the run before it if it begins at most eight pages behind the one on which that
    ends, and in the same stretch of 128 KiB as the row before it.

    Args:
        rows: sorted ids, at least one; repeats allowed.
        start: the first byte of row 0.
        row_bytes: bytes per row, at least 1.

    Returns:
        where in `rows` each run begins, 0 first.

    Example:
        >>> runs(np.array([0, 1, 1, 33, 70, 127, 128]), start=0, row_bytes=1024).tolist()
        [0, 4, 5, 6]
    """
    begin = start + rows * row_bytes
    page = begin[1:] // _PAGE - (begin[:-1] + row_bytes - 1) // _PAGE
    block = begin // _RUN_BYTES
    apart = (page > _GAP) | (block[1:] != block[:-1])
    return np.append(0, np.flatnonzero(apart) + 1)
