"""How fast rows arrive on this machine, by width, order, alignment and tier.

The same number of random rows is gathered from tables of one size and rising width: in host memory,
with ids as they come and sorted, rows beginning on 128-byte lines and 4 bytes behind them; from a
file, cold and cached; and, where ``--device`` is one, from its memory and by it from host memory.
Counted are the rows' own bytes, so that MB/s fall where more has to be moved than was asked for.
Each number is the median of some gathers behind a first one that touches the memory.

A file is cold once the system was asked to drop it (posix_fadvise, DONTNEED), which it may refuse;
which pages are still there is looked up (mincore) and said.

*The device's rows have not been run on a device.*
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.cli.parts import Gather
from shoal.core.columns import Columns
from shoal.core.errors import expect, expect_folder, expect_positive, fail
from shoal.fetch.disk import DiskRows
from shoal.fetch.unified import unified

_MIB = 2**20
_LINE = 128
_DISK_ROWS = 4000  # cold rows take 50 µs each on a slow disk
_HEADER = 128  # bytes of the header that NumPy writes for two axes


def gather(asked: Gather) -> dict[str, Any]:
    """Run ``shoal gather``.

    Returns:
        what the command prints: a line a kind of read.

    Raises:
        InputError: if a number is out of range, the file cannot be made, or the picture not drawn.
    """
    _expect_numbers(asked)
    memory = torch.empty(asked.mib * _MIB + 2 * _LINE, dtype=torch.uint8).random_(256)
    found = Columns(host_reads(asked, memory))
    if asked.device != "cpu":
        found += device_reads(asked, memory)
    left = None
    if asked.disk_mib:
        from_disk, left = disk_reads(asked)
        found += from_disk
    if asked.plot is not None:
        draw(found, asked.plot)
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "gathers": found}
    if left is not None:
        result["cold_file_pages_still_cached_percent"] = round(100 * left, 1)
    return result | ({} if asked.plot is None else {"plot": str(asked.plot)})


# -- host and device ---------------------------------------------------------------------------


def host_reads(asked: Gather, memory: Tensor) -> list[dict[str, Any]]:
    """Gathers on the processor, from host memory."""
    found = []
    for width in asked.widths:
        for aligned in (True, False):
            table = unified(rows_at(memory, width, aligned))
            for order, ids in orders(len(table), asked.rows):
                out = torch.empty(len(ids), *table.shape[1:], dtype=table.dtype)
                seconds = median_seconds(lambda: table.gather(ids, out), asked.repeats)  # noqa: B023
                found.append(_line("host", width, order, aligned, len(ids), seconds))
    return found


def device_reads(asked: Gather, memory: Tensor) -> list[dict[str, Any]]:
    """Gathers on a device, from its own memory and from the host's."""
    device, found = torch.device(asked.device), []
    for width in asked.widths:
        for aligned in (True, False):
            rows = rows_at(memory, width, aligned)
            tables = {"device": rows.to(device), "host, by device": unified(rows)}
            for tier, table in tables.items():
                for order, ids in orders(len(rows), asked.rows):
                    there = ids.to(device)

                    def read(table: Tensor = table, there: Tensor = there) -> None:
                        table.index_select(0, there)
                        torch.cuda.synchronize(device)

                    seconds = median_seconds(read, asked.repeats)
                    found.append(_line(tier, width, order, aligned, len(ids), seconds))
    return found


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
    tier: str, width: int, order: str, aligned: bool | None, count: int, seconds: float
) -> dict[str, Any]:
    return {
        "tier": tier,
        "row_bytes": width,
        "order": order,
        "aligned": "-" if aligned is None else "yes" if aligned else "no",
        "MB_s": round(count * width / seconds / 1e6, 1),
        "rows_s": round(count / seconds),
    }


# -- disk --------------------------------------------------------------------------------------


def disk_reads(asked: Gather) -> tuple[list[dict[str, Any]], float | None]:
    """Gathers from a file, cold and cached, and the share of its pages that would not go cold.

    Raises:
        InputError: if the file cannot be made.
    """
    found, left = [], []
    with scratch_file(asked.folder, asked.disk_mib * _MIB) as path:
        for width in asked.widths:
            write_header(path, asked.disk_mib * _MIB // width, width // 4)
            table = DiskRows(path)
            ((_, ids), _) = orders(len(table), min(asked.rows, _DISK_ROWS))
            drop(path)
            left.append(cached_share(path))

            def read(table: DiskRows = table, ids: Tensor = ids) -> None:
                table.gather(ids)

            cold = median_seconds(read, asked.repeats, before=lambda: drop(path))
            found.append(_line("disk, cold", width, "random", None, len(ids), cold))
            warm = median_seconds(read, asked.repeats)
            found.append(_line("disk, cached", width, "random", None, len(ids), warm))
    known = [share for share in left if share is not None]
    return found, statistics.mean(known) if known else None


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
    """The share of a file's pages that lie in memory; None where the system does not tell.

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


# -- picture -----------------------------------------------------------------------------------


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw MB/s over bytes a row, a line a kind of read.

    Raises:
        InputError: if matplotlib is missing, or the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        fail("plot", "matplotlib", error, "pip install 'shoal[plot]'")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in found:
        lines.setdefault((line["tier"], line["order"], line["aligned"]), []).append(line)
    names = {"yes": ", aligned", "no": ", 4 bytes off", "-": ""}
    for (tier, order, aligned), points in lines.items():
        x, y = ([point[key] for point in points] for key in ("row_bytes", "MB_s"))
        axes.loglog(x, y, marker="o", label=f"{tier}, {order}{names[aligned]}")
    axes.set_xlabel("bytes a row")
    axes.set_ylabel("MB/s of rows")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        fail(str(path), "a file that can be written", error, "name another --plot")


def _expect_numbers(asked: Gather) -> None:
    for name in ("mib", "rows", "repeats"):
        expect_positive(name, getattr(asked, name))
    expect(asked.disk_mib >= 0, "disk_mib", "at least 0", asked.disk_mib, "set it to 0 for none")
    expect(len(asked.widths) > 0, "widths", "one width at least", "none", "pass 512, say")
    if asked.plot is not None:
        kinds, suffix = (".png", ".svg", ".pdf"), asked.plot.suffix
        expect(suffix in kinds, "plot", f"a name that ends in {kinds}", suffix, "rename it")
        expect_folder(asked.plot.parent, "room for the picture")
    most = min(asked.mib, asked.disk_mib or asked.mib) * _MIB
    for width in asked.widths:
        good = width >= 4 and width % 4 == 0 and width <= most
        expect(good, "widths", f"multiples of 4 up to {most} bytes", width, "change it")
