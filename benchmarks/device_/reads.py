"""Sections about single reads: whether they are right, and how many bytes a second they carry."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from device_.here import GIB, Here, Row, host_rows, random_ids
from shoal.fetch import register
from shoal.fetch.gather import gather_rows
from shoal.fetch.staged import Staged
from shoal.fetch.tiered import TieredTable
from shoal.plan.rows import link_rate

_READ_BYTES = 128 << 20  # of one measured read
_MOST_ROWS = 2_000_000


def equality(here: Here) -> Iterator[Row]:
    """Questions 1 and 2: views, kernels and copies give the same rows; order of freeing."""
    rows = torch.randn(20_000, 48)
    ids = random_ids(len(rows), 5000)
    there, expected = ids.to(here.device), rows[ids]
    checks = {
        "index_select of a view": lambda: here.view(rows).index_select(0, there),
        "kernel or view": lambda: here.in_place(rows).read(there),
        "the same, sorted first": lambda: here.in_place(rows, sort_bytes=0).read(there),
        "staged": lambda: Staged(rows).read(there),
        "view outlives its table": lambda: _view_alone(here, expected),
        "another stream": lambda: _on_a_stream(here, rows, there),
    }
    for name, read in checks.items():
        yield {"check": name, "equal": torch.equal(read().cpu(), expected)}
    view, grown = here.view(rows), rows.clone().index_add_(0, ids, expected)
    view.index_add_(0, there, expected.to(here.device))
    here.wait()
    yield {"check": "index_add_ to a view", "equal": torch.allclose(rows, grown)}
    if here.real:
        yield {"check": "Triton, registered host tensor itself", "equal": _kernel_on_host(here)}


def _view_alone(here: Here, rows: Tensor) -> Tensor:
    view = here.view(rows.clone())
    gc.collect()
    return view.clone()


def _on_a_stream(here: Here, rows: Tensor, there: Tensor) -> Tensor:
    with torch.cuda.stream(here.stream()):
        read = here.in_place(rows).read(there)
    here.wait()
    return read


def _kernel_on_host(here: Here) -> bool:
    """Give Triton the host's tensor, not its view, whose address it has to translate itself."""
    from shoal.fetch import _triton

    rows = torch.randn(1000, 32)
    held = register.registration(rows.untyped_storage())
    ids = torch.tensor([3, 999, 0], device=here.device)
    out = torch.empty(3, 32, device=here.device)
    _triton.copy_rows(rows, ids, out, torch.zeros(1, dtype=torch.int64, device=here.device))
    here.wait()
    del held
    return torch.equal(out.cpu(), rows[ids.cpu()])


def registering(here: Here) -> Iterator[Row]:
    """Question 5: seconds a GiB to register memory that was not touched, and that was."""
    for gib in (0.0625,) if here.quick else (1, 4):
        for touched in (False, True):
            memory = torch.empty(int(gib * GIB), dtype=torch.uint8)
            begin = time.perf_counter()
            if touched:
                register.touch(*register.bytes_of(memory.untyped_storage()))
            touching = time.perf_counter() - begin
            taking, giving = _registered(here, memory)
            yield {
                "GiB": gib,
                "touched first": touched,
                "touching s/GiB": round(touching / gib, 3),
                "registering s/GiB": round(taking / gib, 3),
                "giving back s/GiB": round(giving / gib, 3),
            }


def _registered(here: Here, memory: Tensor) -> tuple[float, float]:
    """Seconds to register as the driver alone would, and to give back; none without a driver."""
    if not here.real:
        return 0.0, 0.0
    cudart: Any = torch.cuda.cudart()
    begin = time.perf_counter()
    error = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 3))
    middle = time.perf_counter()
    if error:
        raise RuntimeError(f"cudaHostRegister of {memory.nbytes} bytes: error {error}")
    cudart.cudaHostUnregister(memory.data_ptr())
    return middle - begin, time.perf_counter() - middle


def bandwidth(here: Here) -> Iterator[Row]:
    """Question 3: GB/s of zero-copy reads against the model of the bus."""
    sizes = (1 / 16,) if here.quick else (1, 16, 60)
    for gib in sizes:
        widths = (4, 32, 128, 256, 400, 512, 1024, 4096)
        widths = widths if gib == sizes[0] else (128, 256, 512)
        memory_rows = host_rows(int(gib * GIB), 4096)
        flat = memory_rows.view(-1)
        for width in widths:
            for shift in (0, 4) if width > 4 else (0,):
                n = (len(flat) - 128) // width
                rows = flat[shift : shift + n * width].view(torch.int32).view(n, -1)
                yield from _orders(here, rows, gib, width, shift)
                if here.late():
                    return
        del memory_rows, flat
        gc.collect()


def _orders(here: Here, rows: Tensor, gib: float, width: int, shift: int) -> Iterator[Row]:
    count = min(_READ_BYTES // width, _MOST_ROWS, 20_000 if here.quick else _MOST_ROWS)
    ids = random_ids(len(rows), count).to(here.device)
    out = torch.empty((count, width // 4), dtype=torch.int32, device=here.device)
    align = math.gcd(width, shift, 128)
    model = link_rate(width, align) / 1e9
    as_is, sorts = here.in_place(rows, 1 << 62), here.in_place(rows, 0)
    in_order = ids.sort().values
    ways = {
        "kernel": lambda: as_is.read(ids, out),
        "kernel, sorting": lambda: sorts.read(ids, out),
        "kernel, sorted ids": lambda: as_is.read(in_order, out),
        "torch on a view": lambda: torch.index_select(as_is.view, 0, ids, out=out),
    }
    for name, read in ways.items():
        rate = count * width / here.seconds(read) / 1e9
        yield {
            "table GiB": gib,
            "row bytes": width,
            "alignment": align,
            "way": name,
            "GB/s": round(rate, 2),
            "model GB/s": round(model, 1),
            "of model": round(rate / model, 2),
        }


def programs(here: Here) -> Iterator[Row]:
    """Question 3: how many programs the bus needs, which decides what the grid is capped at."""
    rows = host_rows((64 << 20) if here.quick else GIB, 512)
    ids = random_ids(len(rows), 20_000 if here.quick else 250_000).to(here.device)
    out = torch.empty((len(ids), 512), dtype=torch.uint8, device=here.device)
    reads = here.in_place(rows, 1 << 62)
    for count in (10, 20, 40, 80, 160, 320):

        def read(count: int = count) -> None:
            if not here.real:
                return void(reads.read(ids, out))
            from shoal.fetch import _triton

            return _triton.copy_rows(reads.view, ids, out, reads.fault[2:], programs=count)

        rate = len(ids) * 512 / here.seconds(read) / 1e9
        yield {"programs of 128 threads": count, "row bytes": 512, "GB/s": round(rate, 2)}


def rivals(here: Here) -> Iterator[Row]:
    """Question 4: zero-copy against threads that gather into pinned memory, and a copy."""
    rows = host_rows((64 << 20) if here.quick else 4 * GIB, 512)
    before, reads = torch.get_num_threads(), here.in_place(rows)
    for count in (8192,) if here.quick else (8192, 131_072):
        ids = random_ids(len(rows), count)
        there = ids.to(here.device)
        base = here.seconds(lambda: reads.read(there))  # noqa: B023
        yield _rival(count, "zero-copy", 0, base, base)
        buffer = torch.empty((count, 512), dtype=torch.uint8, pin_memory=here.real)
        target = torch.empty((count, 512), dtype=torch.uint8, device=here.device)
        staged = Staged(rows)
        for threads in (1, 2) if here.quick else (1, 2, 4, 8, 16):
            torch.set_num_threads(threads)

            def plain(ids: Tensor = ids, buffer: Tensor = buffer, target: Tensor = target) -> None:
                target.copy_(gather_rows(rows, ids, out=buffer), non_blocking=True)

            yield _rival(count, "index_select, pinned, copy", threads, here.seconds(plain), base)
            seconds = here.seconds(lambda: staged.read(there, target))  # noqa: B023
            yield _rival(count, "staged in two buffers", threads, seconds, base)
        torch.set_num_threads(before)


def _rival(count: int, way: str, threads: int, seconds: float, base: float) -> Row:
    rate = count * 512 / seconds / 1e9
    ratio = round(seconds / base, 2)
    return {"rows": count, "way": way, "threads": threads, "GB/s": round(rate, 2), "× time": ratio}


def hits(here: Here) -> Iterator[Row]:
    """Question 6: reads of which a share finds its rows on the device, against none held there."""
    rows = host_rows((64 << 20) if here.quick else 4 * GIB, 512)
    hot, plain = len(rows) // 10, here.in_place(rows)
    for count in (20_000,) if here.quick else (8192, 131_072):
        for share in (0.0, 0.25, 0.5, 0.75, 0.9, 0.97):
            rest = (1 - share) / (len(rows) - hot)
            scores = torch.full((len(rows),), rest)
            scores[:hot] = max(share / hot, 1.01 * rest)  # held, if never asked for
            table = TieredTable(rows, scores, device_rows=hot, device=here.device)
            inside = int(share * count)
            ids = torch.cat(
                [random_ids(hot, inside), hot + random_ids(len(rows) - hot, count - inside)]
            )
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
            there = ids[order].to(here.device)
            base = here.seconds(lambda: plain.read(there))  # noqa: B023
            seconds = here.seconds(lambda: table.gather(there))  # noqa: B023
            yield {
                "rows": count,
                "hit rate": share,
                "measured": round(table.use()["device"].measured or 0.0, 2),
                "GB/s": round(count * 512 / seconds / 1e9, 2),
                "without copies GB/s": round(count * 512 / base / 1e9, 2),
                "speed-up": round(base / seconds, 2),
                "1 / (1 - h)": round(1 / (1 - share), 2),
            }


def overlap(here: Here) -> Iterator[Row]:
    """Reads beside a matrix product: what share of the shorter is hidden behind the longer."""
    rows = host_rows((64 << 20) if here.quick else 4 * GIB, 512)
    ids = random_ids(len(rows), 20_000 if here.quick else 131_072).to(here.device)
    size = 512 if here.quick else 8192
    x = torch.randn(size, size, device=here.device)
    reads, side = here.in_place(rows), here.stream()

    def read() -> None:
        with torch.cuda.stream(side):
            reads.read(ids)

    def compute() -> None:
        void(x @ x)

    def both() -> None:
        read()
        compute()

    alone = {"read": here.seconds(read), "compute": here.seconds(compute)}
    together = here.seconds(both)
    hidden = (sum(alone.values()) - together) / min(alone.values())
    times = {f"{name} ms": round(seconds * 1e3, 3) for name, seconds in alone.items()}
    yield {**times, "both ms": round(together * 1e3, 3), "hidden": round(hidden, 2)}


def void(_: object) -> None:
    """Forget a result."""
