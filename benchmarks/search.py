"""Exact top-k: shoal's tiles against plain ``torch.mm`` + ``torch.topk`` in batches, in one run.

The rival gets the best of several batch sizes, tried on the first queries; then both search for all
queries in turn, A B A B. The product alone (tiles that are written and never read) is timed beside
them: no exact search by dense scores can be faster, so rival / product bounds the ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.search import top_k

BATCHES = (256, 512, 1024)
Found = tuple[Tensor, Tensor]


def plain(queries: Tensor, keys: Tensor, k: int, batch: int) -> Found:
    """The rival, as one writes it: a batch of scores, then its top k."""
    found = [torch.topk(torch.mm(part, keys.T), k, dim=1) for part in queries.split(batch)]
    return torch.cat([x.values for x in found]), torch.cat([x.indices for x in found])


def product(queries: Tensor, keys: Tensor) -> None:
    """The inner products alone, a cached tile at a time."""
    out = torch.empty(256, 4096)
    for rows in queries.split(256):
        for part in keys.split(4096):
            torch.mm(rows, part.T, out=out[: len(rows), : len(part)])


def timed(job: Callable[[], Found | None]) -> tuple[float, float, Found | None]:
    """Wall and CPU seconds of one call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = job()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def same_ids(ours: Found, theirs: Found) -> bool:
    """Whether ids agree wherever a score differs from its neighbors by more than rounding.

    `theirs` holds one more column, so that the k-th has a neighbor too.
    """
    gap = (theirs[0].diff(dim=1).abs() > 1e-6).cpu()
    first = torch.ones(len(gap), 1, dtype=torch.bool)
    clear = gap & torch.cat([first, gap[:, :-1]], 1)
    close = (ours[0] - theirs[0][:, :-1]).abs().max() < 1e-5
    return bool(close) and bool((ours[1] == theirs[1][:, :-1])[clear].all())


def compare(queries: Tensor, keys: Tensor, k: int, repeats: int) -> dict[str, object]:
    """Seconds (the least of the repeats), ratios and whether ids agree, for one k."""
    head = queries[:1024]
    trial = {b: min(timed(lambda b=b: plain(head, keys, k, b))[0] for _ in "ab") for b in BATCHES}
    batch = min(trial, key=lambda b: trial[b])
    ours = top_k(queries, keys, k)
    agree = same_ids(ours, plain(queries, keys, k + 1, batch))
    jobs: dict[str, Callable[[], Found | None]] = {
        "plain": lambda: plain(queries, keys, k, batch),
        "shoal": lambda: top_k(queries, keys, k),
        "product": lambda: product(queries, keys),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(timed(job)[:2])
    best = {name: [min(column) for column in zip(*t, strict=True)] for name, t in times.items()}
    return {
        "k": k,
        "rival_batch": batch,
        "same_ids": agree,
        "wall_s": {name: round(wall, 3) for name, (wall, _) in best.items()},
        "cpu_s": {name: round(cpu, 3) for name, (_, cpu) in best.items()},
        "ratio_wall": round(best["plain"][0] / best["shoal"][0], 3),
        "ratio_cpu": round(best["plain"][1] / best["shoal"][1], 3),
        "bound_cpu": round(best["plain"][1] / best["product"][1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="512 queries, 2 repeats")
    parser.add_argument("--queries", type=int, default=9115)
    parser.add_argument("--keys", type=int, default=103827)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n, repeats = (512, 2) if args.quick else (args.queries, args.repeats)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n + args.keys, args.dim, generator=generator)
    queries, keys = torch.nn.functional.normalize(rows, dim=1).split([n, args.keys])
    results = [compare(queries, keys, k, repeats) for k in (5, 100)]
    for result in results:
        print(*(f"{name} {value}" for name, value in result.items()), sep="  ", file=sys.stderr)
    shape = {"queries": n, "keys": args.keys, "dim": args.dim, "threads": args.threads}
    print(json.dumps({"benchmark": "search", **shape, "results": results}))


if __name__ == "__main__":
    main()
