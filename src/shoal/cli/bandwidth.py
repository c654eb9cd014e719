"""How fast rows arrive on this machine, by width, order, alignment and tier.

The same number of random rows is gathered from tables of one size and rising width: in host memory,
with ids as they come and sorted, rows beginning on 128-byte lines and 4 bytes behind them; from a
file, cold and cached; and, where ``--device`` is one, from its memory and by it from host memory.
Counted are the rows' own bytes, so that MB/s fall where more has to be moved than was read.
Each number is the median of some gathers behind a first one that touches the memory.

A file is cold after the system was advised to drop it (posix_fadvise, DONTNEED), which it may
ignore; which pages are still there is looked up (mincore) and said.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.cli.parts import Gather
from shoal.core.columns import Columns
from shoal.core.errors import expect, expect_positive, fail
from shoal.fetch.disk import DiskRows
from shoal.fetch.unified import unified

_MIB = 2**20
_LINE = 128
_DISK_ROWS = 4000  # cold rows take 50 µs each on a slow disk
_HEADER = 128  # bytes of the header that NumPy writes for two axes


def gather(asked: Gather) -> dict[str, Any]:
    """Run ``shoal gather``.

    Returns:
        what the command prints: one line per kind of read.

    Raises:
        InputError: if a number is out of range, or the file cannot be made.
    """
    _expect_numbers(asked)
    lines, left = Columns(memory_reads(asked)), []
    if asked.disk_mib:
        lines += disk_reads(asked, left)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "gathers": lines}
    if left:
        result["cold_file_pages_still_cached_percent"] = round(100 * statistics.mean(left), 1)
    return result


# -- host and device ---------------------------------------------------------------------------


def memory_reads(asked: Gather) -> Iterator[dict[str, Any]]:
    """Gathers from host memory by the processor and, if asked for, by a device and from its own.

    Yields:
        one line per kind.
    """
    memory = torch.empty(asked.mib * _MIB + 2 * _LINE, dtype=torch.uint8).random_(256)
    device = torch.device(asked.device)
    for width in asked.widths:
        for aligned in (True, False):
            rows = rows_at(memory, width, aligned)
            table = unified(rows)
            for order, ids in orders(len(rows), asked.rows):
                out = torch.empty(len(ids), *rows.shape[1:], dtype=rows.dtype)
                reads: dict[str, Callable[[], object]] = {"host": partial(table.gather, ids, out)}
                if device.type != "cpu":
                    reads["device"] = partial(_on_device, rows.to(device), ids.to(device))
                    reads["host, by device"] = partial(_on_device, table, ids.to(device))
                for tier, read in reads.items():
                    seconds = median_seconds(read, asked.repeats)
                    yield _line(tier, width, order, "yes" if aligned else "no", len(ids), seconds)


def _on_device(table: Tensor, ids: Tensor) -> None:
    table.index_select(0, ids)
    torch.cuda.synchronize(ids.device)


def rows_at(memory: Tensor, width: int, aligned: bool) -> Tensor:
    """Rows of `width` bytes that begin on a 128-byte line, or 4 bytes behind one."""
    start = -memory.data_ptr() % _LINE + (0 if aligned else 4)
    n = (len(memory) - 2 * _LINE) // width
    return memory[start : start + n * width].view(torch.int32).view(n, width // 4)


def orders(n: int, count: int) -> list[tuple[str, Tensor]]:
    """The same random ids as they come and sorted."""
    ids = torch.randint(n, (min(count, n),), generator=torch.Generator().manual_seed(0))
    return [("random", ids), ("sorted", ids.sort().values)]


def median_seconds(
    read: Callable[[], object], repeats: int, before: Callable[[], object] | None = None
) -> float:
    """Median of some calls behind a first one; `before` each is called out of the time."""
    times = []
    for _ in range(repeats + 1):
        if before is not None:
            before()
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _line(
    tier: str, width: int, order: str, aligned: str, count: int, seconds: float
) -> dict[str, Any]:
    return {
        "tier": tier,
        "row_bytes": width,
        "order": order,
        "aligned": aligned,
        "MB_s": round(count * width / seconds / 1e6, 1),
        "rows_s": round(count / seconds),
    }


# -- disk --------------------------------------------------------------------------------------


def disk_reads(asked: Gather, left: list[float]) -> Iterator[dict[str, Any]]:
    """Gathers from a file, cold and cached; `left` receives shares of pages that did not go cold.

    Yields:
        one line per kind.

    Raises:
        InputError: if the file cannot be made.
    """
    with scratch_file(asked.folder, asked.disk_mib * _MIB) as path:
        for width in asked.widths:
            write_header(path, asked.disk_mib * _MIB // width, width // 4)
            table = DiskRows(path)
            ((_, ids), _) = orders(len(table), min(asked.rows, _DISK_ROWS))
            drop(path)
            share = cached_share(path)
            left += [] if share is None else [share]
            read = partial(table.gather, ids)
            for tier, before in (("disk, cold", partial(drop, path)), ("disk, cached", None)):
                seconds = median_seconds(read, asked.repeats, before)
                yield _line(tier, width, "random", "-", len(ids), seconds)


@contextlib.contextmanager
def scratch_file(folder: Path | None, nbytes: int) -> Iterator[Path]:
    """Make a file of random bytes behind room for a header, and remove it.

    Yields:
        its path.

    Raises:
        InputError: if it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            path, some = home / "rows.npy", np.random.default_rng(0).bytes(_MIB)
            with path.open("wb") as file:
                file.write(bytes(_HEADER))
                for _ in range(nbytes // _MIB):
                    file.write(some)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            where = "folder" if folder is None else str(folder)
            fail(where, f"room for a file of {nbytes // _MIB} MiB", error, "name another --folder")
        yield path


def write_header(path: Path, n: int, numbers: int) -> None:
    """Let the bytes of a file be ``[n, numbers]`` int32, whatever they were."""
    with path.open("r+b") as file:
        about = {"descr": "<i4", "fortran_order": False, "shape": (n, numbers)}
        np.lib.format.write_array_header_1_0(file, about)
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path) -> None:
    """Ask the system to drop a file from its page cache, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        # twice: pages that were read last wait in lists of each processor when it is asked first
        for _ in range(2):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def cached_share(path: Path) -> float | None:
    """The share of a file's pages that lie in memory; None where the system has no such call.

    Not by reads that must not wait (RWF_NOWAIT): those fetch the page that they do not find.
    """
    try:
        look = ctypes.CDLL(None).mincore
    except (AttributeError, TypeError, OSError):
        return None
    mapped = np.memmap(path, np.uint8, mode="c")
    pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), dtype=np.uint8)
    address, length = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(len(mapped))
    failed = look(address, length, ctypes.c_void_p(pages.ctypes.data))
    return None if failed else float((pages & 1).mean())


def _expect_numbers(asked: Gather) -> None:
    for name in ("mib", "rows", "repeats"):
        expect_positive(name, getattr(asked, name))
    expect(asked.disk_mib >= 0, "disk_mib", "at least 0", asked.disk_mib, "set it to 0 for none")
    expect(len(asked.widths) > 0, "widths", "one width at least", "none", "pass 512, say")
    most = min(asked.mib, asked.disk_mib or asked.mib) * _MIB
    for width in asked.widths:
        good = width >= 4 and width % 4 == 0 and width <= most
        expect(good, "widths", f"multiples of 4 up to {most} bytes", width, "change it")
