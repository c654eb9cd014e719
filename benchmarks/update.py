"""Does a row optimizer's step take longer over a larger table? 1e5, 1e6 and 1e7 rows, 4 GB.

Every step touches the same number of rows, drawn from the whole table. Memory that a step meets for
the first time is faulted in by the system, which is not the optimizer's doing, so each batch of ids
is stepped once before it is timed; state that no batch touches stays unbacked. Tables take turns:
step k of one, step k of the next. SparseAdam of torch runs beside RowAdam on the smaller
tables (its state, too, is of the table's size). Times are medians of wall time with the least CPU
time beside them; a table is printed, and one JSON line.

    python benchmarks/update.py            # about two minutes and 8 GB
    python benchmarks/update.py --quick    # seconds
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.fetch.stepping import Rows
from shoal.fetch.unified import UnifiedTensor
from shoal.fetch.update import RowAdagrad, RowAdam, RowSGD

OPTIMIZERS: dict[str, Callable[[], Rows]] = {
    "RowAdam": RowAdam,
    "RowAdagrad": RowAdagrad,
    "RowAdagrad(per_row=False)": lambda: RowAdagrad(per_row=False),
    "RowSGD": lambda: RowSGD(1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small tables, few steps")
    parser.add_argument("--touched", type=int, default=16_384, help="rows a step (default 16384)")
    parser.add_argument("--width", type=int, default=100, help="numbers a row (default 100)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--optimizers", nargs="+", default=["RowAdam"], choices=[*OPTIMIZERS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (10_000, 100_000) if args.quick else (100_000, 1_000_000, 10_000_000)
    touched, batches = (2048, 2) if args.quick else (args.touched, 5)
    systems: dict[str, list[Callable[[], None]]] = {}
    dtype = getattr(torch, args.dtype)
    for n in sizes:
        table = UnifiedTensor.empty(n, args.width, dtype=dtype)
        table.uniform_(-1, 1)
        drawn = draw(n, touched, args.width, batches)
        for name in args.optimizers:
            systems[f"{name}, {n} rows"] = steps(OPTIMIZERS[name](), table, drawn)
        if n < sizes[-1] and dtype == torch.float32:
            systems[f"SparseAdam, {n} rows"] = sparse_steps(table, drawn)
    result = race(systems, rounds=2 if args.quick else 6)
    say(f"{touched} of n rows x {args.width} {args.dtype}, one thread: milliseconds a step")
    for name, (wall, cpu) in result.items():
        say(f"{name:44} {wall:9.2f} wall {cpu:9.2f} CPU")
    about = {"touched": touched, "width": args.width, "dtype": args.dtype, "quick": args.quick}
    times = {name: {"wall_ms": wall, "cpu_ms": cpu} for name, (wall, cpu) in result.items()}
    print(json.dumps({"benchmark": "update", **about, "torch": torch.__version__, **times}))


def draw(n: int, touched: int, width: int, batches: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(n)
    ids = torch.randperm(n, generator=generator).split(touched)[:batches]
    return [(one, torch.randn(len(one), width, generator=generator)) for one in ids]


def steps(
    optimizer: Rows, table: UnifiedTensor, drawn: list[tuple[Tensor, Tensor]]
) -> list[Callable[[], None]]:
    rows = table.as_subclass(Tensor)
    return [lambda ids=ids, grad=grad: optimizer.step(rows, ids, grad) for ids, grad in drawn]


def sparse_steps(table: Tensor, drawn: list[tuple[Tensor, Tensor]]) -> list[Callable[[], None]]:
    parameter = table.as_subclass(Tensor).clone().requires_grad_()
    optimizer = torch.optim.SparseAdam([parameter])

    def step(ids: Tensor, grad: Tensor) -> None:
        parameter.grad = torch.sparse_coo_tensor(
            ids[None], grad, parameter.shape, is_coalesced=True, check_invariants=False
        )
        optimizer.step()

    return [lambda ids=ids, grad=grad: step(ids, grad) for ids, grad in drawn]


def race(
    systems: dict[str, list[Callable[[], None]]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Median wall and least CPU milliseconds of a step, the first round untimed."""
    wall: dict[str, list[float]] = {name: [] for name in systems}
    cpu: dict[str, list[float]] = {name: [] for name in systems}
    for index in range(rounds):
        for batch in range(len(next(iter(systems.values())))):
            for name, run in systems.items():
                start = time.perf_counter(), time.process_time()
                run[batch]()
                if index:
                    wall[name].append((time.perf_counter() - start[0]) * 1e3)
                    cpu[name].append((time.process_time() - start[1]) * 1e3)
    return {
        name: (round(statistics.median(wall[name]), 2), round(min(cpu[name]), 2))
        for name in systems
    }


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
