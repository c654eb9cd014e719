"""How fast rows arrive and leave: gathers, fused means and row optimizers against torch's own ways.

Three tables are printed and one JSON line. Rivals take turns within one run, on the same ids, and
each gets what makes it fast (an output buffer where its API takes one, the fused dense Adam). Times
are medians of wall time; CPU time stands beside them, since a busy machine spoils the first alone.

    python benchmarks/gather.py            # about a minute and 3 GB
    python benchmarks/gather.py --quick    # a few seconds
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shoal.fetch.gather import gather_mean
from shoal.fetch.quantized import QuantizedRows
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdagrad, RowAdam, RowSGD

Times = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small tables, few repeats")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = 3 if args.quick else 9
    n, count = (100_000, 10_000) if args.quick else (1_000_000, 100_000)
    sizes = (10_000, 100_000) if args.quick else (100_000, 1_000_000)
    touched, width = (2048, 64) if args.quick else (16_384, 256)
    result = {
        "benchmark": "gather",
        "quick": args.quick,
        "threads": args.threads,
        "torch": torch.__version__,
        "gather": show(f"{count} of {n} x 128 float32", gathers(n, count, repeats), "x[ids]"),
        "mean": show(f"mean of 10, {count // 10} bags", means(n, count, repeats), "composition"),
        "packed mean": show(
            f"bytes, weighted mean of 10, {count // 10} bags",
            packed_means(n, count, repeats),
            "decode, embedding_bag",
        ),
        "update": {
            rows: show(
                f"{touched} x {width} touched of {rows}",
                updates(rows, touched, width, repeats, dense=rows == sizes[0]),
                "SparseAdam",
            )
            for rows in sizes
        },
        "overhead_us": overhead(),
    }
    print(json.dumps(result))


def gathers(n: int, count: int, repeats: int) -> Times:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 128, generator=generator)
    ids = torch.randint(n, (count,), generator=generator)
    table, out = unified(rows), torch.empty(count, 128)
    array, indices, buffer = rows.numpy(), ids.numpy(), out.numpy()
    threads = torch.get_num_threads()

    def one_thread() -> None:
        torch.set_num_threads(1)
        torch.index_select(rows, 0, ids, out=out)
        torch.set_num_threads(threads)

    return race(
        {
            "x[ids]": lambda: rows[ids],
            "F.embedding": lambda: functional.embedding(ids, rows),
            "index_select": lambda: torch.index_select(rows, 0, ids),
            "index_select(out=), one thread": one_thread,
            "index_select(out=)": lambda: torch.index_select(rows, 0, ids, out=out),
            "np.take(out=)": lambda: np.take(array, indices, 0, out=buffer, mode="clip"),
            "table[ids]": lambda: table[ids],
            "table.gather(ids, out)": lambda: table.gather(ids, out),
        },
        repeats,
    )


def means(n: int, count: int, repeats: int) -> Times:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 128, generator=generator)
    ids = torch.randint(n, (count,), generator=generator)
    offsets = torch.arange(0, count + 1, 10)
    weights = torch.rand(count, generator=generator)
    out = torch.empty(count, 128)

    def composition(weights: Tensor | None) -> Tensor:
        gathered = torch.index_select(rows, 0, ids, out=out).view(-1, 10, 128)
        if weights is None:
            return gathered.mean(1)
        w = weights.view(-1, 1, 10)
        return torch.bmm(w / w.sum(2, keepdim=True), gathered).squeeze(1)

    return race(
        {
            "composition": lambda: composition(None),
            "gather_mean": lambda: gather_mean(rows, ids, offsets),
            "composition, weighted": lambda: composition(weights),
            "gather_mean, weighted": lambda: gather_mean(rows, ids, offsets, weights),
        },
        repeats,
    )


def packed_means(n: int, count: int, repeats: int) -> Times:
    """Weighted means of bags of rows of bytes with a scale each, against torch's compositions."""
    generator = torch.Generator().manual_seed(0)
    table = QuantizedRows.of(torch.randn(n, 128, generator=generator))
    ids = torch.randint(n, (count,), generator=generator)
    offsets = torch.arange(0, count + 1, 10)
    weights = torch.rand(count, generator=generator)
    # the rivals' own layout: codes apart from scales, buffers that are reused
    codes = table.packed[:, :128].contiguous()
    scale, bias = table.packed[:, 128:].contiguous().view(torch.float32).unbind(1)
    scale, bias = scale.contiguous(), bias.contiguous()
    some, floats = torch.empty(count, 128, dtype=torch.uint8), torch.empty(count, 128)
    in_order = torch.arange(count)

    def decoded() -> Tensor:
        torch.index_select(codes, 0, ids, out=some)
        return floats.copy_(some)

    def shares() -> tuple[Tensor, Tensor]:
        w = weights.view(-1, 10)
        w = w / w.sum(1, keepdim=True)
        return (w * scale[ids].view(-1, 10)), (w * bias[ids].view(-1, 10)).sum(1, keepdim=True)

    def by_bmm() -> Tensor:
        w, shift = shares()
        return torch.bmm(w[:, None], decoded().view(-1, 10, 128)).squeeze(1).add_(shift)

    def by_bag() -> Tensor:
        w, shift = shares()
        how = {"mode": "sum", "per_sample_weights": w.flatten(), "include_last_offset": True}
        return functional.embedding_bag(in_order, decoded(), offsets, **how).add_(shift)

    assert torch.allclose(by_bmm(), table.gather_mean(ids, offsets, weights), atol=1e-5)
    assert torch.allclose(by_bag(), table.gather_mean(ids, offsets, weights), atol=1e-5)
    return race(
        {
            "decode, bmm": by_bmm,
            "decode, embedding_bag": by_bag,
            "QuantizedRows.gather_mean": lambda: table.gather_mean(ids, offsets, weights),
        },
        repeats,
    )


def updates(n: int, touched: int, width: int, repeats: int, dense: bool) -> Times:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, width, generator=generator)
    ids = torch.randperm(n, generator=generator)[:touched]
    grad = torch.randn(touched, width, generator=generator)
    parameter = rows.clone().requires_grad_()
    sparse = torch.optim.SparseAdam([parameter])
    sgd, adagrad, adam = RowSGD(1e-3), RowAdagrad(1e-3), RowAdam(1e-3)

    def sparse_adam() -> None:
        parameter.grad = torch.sparse_coo_tensor(
            ids[None], grad, (n, width), is_coalesced=True, check_invariants=False
        )
        sparse.step()

    racers: dict[str, Callable[[], object]] = {
        "SparseAdam": sparse_adam,
        "RowAdam": lambda: adam.step(rows, ids, grad),
        "RowAdagrad": lambda: adagrad.step(rows, ids, grad),
        "RowSGD": lambda: sgd.step(rows, ids, grad),
    }
    if dense:
        whole = rows.clone().requires_grad_()
        whole.grad = torch.zeros_like(rows).index_copy_(0, ids, grad)
        racers["dense Adam, fused"] = torch.optim.Adam([whole], fused=True).step
    return race(racers, repeats)


def overhead() -> dict[str, float]:
    """Microseconds a call beyond index_select, for 8 ids, where a call is all there is."""
    rows, ids = torch.zeros(1000, 16), torch.arange(8)
    table = unified(rows)

    def each(read: Callable[[], object], count: int = 1000) -> float:
        start = time.process_time()
        for _ in range(count):
            read()
        return (time.process_time() - start) / count * 1e6

    reads: dict[str, Callable[[], object]] = {
        "index_select": lambda: torch.index_select(rows, 0, ids),
        "table.gather(ids)": lambda: table.gather(ids),
        "table[ids]": lambda: table[ids],
        "F.embedding(ids, table)": lambda: functional.embedding(ids, table),
    }
    best = {name: min(each(read) for _ in range(15)) for name, read in reads.items()}
    plain = best.pop("index_select")
    beyond = {name: round(time - plain, 2) for name, time in best.items()}
    say(f"\nmicroseconds beyond index_select ({plain:.1f}): {beyond}")
    return beyond


def race(racers: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Let all run in turn; median wall and least CPU milliseconds of each."""
    wall: dict[str, list[float]] = {name: [] for name in racers}
    cpu: dict[str, list[float]] = {name: [] for name in racers}
    for _ in range(repeats + 1):
        for name, run in racers.items():
            start = time.perf_counter(), time.process_time()
            run()
            wall[name].append((time.perf_counter() - start[0]) * 1e3)
            cpu[name].append((time.process_time() - start[1]) * 1e3)
    # the first round touches memory for the first time
    return {
        name: {
            "wall_ms": round(statistics.median(wall[name][1:]), 2),
            "cpu_ms": round(min(cpu[name][1:]), 2),
        }
        for name in racers
    }


def show(title: str, times: Times, base: str) -> Times:
    """Print one table with ratios to `base`, and return it."""
    say(f"\n{title:34} {'wall ms':>9} {'CPU ms':>9} {'CPU × of ' + base:>24}")
    for name, time_ in times.items():
        ratio = times[base]["cpu_ms"] / max(time_["cpu_ms"], 1e-9)
        say(f"{name:34} {time_['wall_ms']:9.2f} {time_['cpu_ms']:9.2f} {ratio:24.2f}")
    return times


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
