"""Exact top-k: shoal's tiles against plain ``torch.mm`` + ``torch.topk`` in batches, in one run.

The rival gets the best of several batch sizes, tried on the first queries; then both search for all
queries in turn, A B A B. The product alone (tiles that are written and never read) is timed beside
them: no exact search by dense scores can be faster, so rival / product bounds the ratio.

With --hnsw, approximate search beside the exact one instead: seconds and memory of the graph, and
of a query alone and in a batch, with the recall. Keys stand in clusters of some fifty, and clusters
around one another, as the labels of a trained encoder do; queries are noisy keys.

    python benchmarks/search.py
    python benchmarks/search.py --hnsw --keys 1000000 --dim 128
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.core.search import top_k
from shoal.rank.hnsw import Hnsw, recall

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


def planted(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit rows in clusters of clusters: every level adds a smaller random vector."""
    rows = torch.zeros(n, dim)
    for per, spread in ((5000, 1.0), (50, 0.8), (1, 0.6)):
        centers = torch.randn(-(-n // per), dim, generator=generator)
        own = torch.arange(n) // per
        rows.addcmul_(centers[own], torch.tensor(spread))
    return torch.nn.functional.normalize(rows, dim=1)


def beside_exact(index: Hnsw, queries: Tensor, k: int) -> dict[str, object]:
    """CPU milliseconds a query, exact and approximate in turn, and the recall."""
    exact, walk, shares = [], [], []
    for part in queries.split(-(-len(queries) // 3)):
        begin = time.process_time()
        truth = top_k(part, index.keys, k)[1]
        middle = time.process_time()
        found = index.search(part, k)[1]
        exact.append((middle - begin) / len(part))
        walk.append((time.process_time() - middle) / len(part))
        shares.append(recall(found, truth) * len(part) / len(queries))
    begin = time.process_time()
    for one in queries[:100].split(1):
        index.search(one, k)
    alone = (time.process_time() - begin) / min(100, len(queries))
    return {
        "exact_ms": round(1000 * min(exact), 3),
        "hnsw_ms": round(1000 * min(walk), 3),
        "hnsw_alone_ms": round(1000 * alone, 3),
        "recall": round(sum(shares), 4),
    }


def approximate(n: int, n_keys: int, dim: int) -> dict[str, object]:
    """Build a graph, then the seconds of exact and approximate search, in turn."""
    generator = torch.Generator().manual_seed(0)
    keys = planted(n_keys, dim, generator)
    some = torch.randint(n_keys, (2 * n,), generator=generator)
    noise = torch.randn(2 * n, dim, generator=generator) / dim**0.5
    queries, sample = torch.nn.functional.normalize(keys[some] + noise, dim=1).split([n, n])
    begin = time.process_time()
    index = Hnsw.build(keys, sample)
    built = time.process_time() - begin
    result: dict[str, object] = {"build_cpu_s": round(built, 1), "breadth": index.breadth}
    result["graph_mib"] = index.graph.serialized_length // 2**20
    result |= {f"k={k}": beside_exact(index, queries, k) for k in (5, 100)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="512 queries, 2 repeats")
    parser.add_argument("--queries", type=int, default=9115)
    parser.add_argument("--keys", type=int, default=103827)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hnsw", action="store_true", help="approximate beside exact")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n, repeats = (512, 2) if args.quick else (args.queries, args.repeats)
    shape = {"queries": n, "keys": args.keys, "dim": args.dim, "threads": args.threads}
    if args.hnsw:
        keys = min(args.keys, 10_000) if args.quick else args.keys
        found = approximate(min(n, 1000), keys, args.dim)
        print(*(f"{name} {value}" for name, value in found.items()), sep="  ", file=sys.stderr)
        print(json.dumps({"benchmark": "hnsw", **shape, "keys": keys, **found}))
        return
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n + args.keys, args.dim, generator=generator)
    queries, keys = torch.nn.functional.normalize(rows, dim=1).split([n, args.keys])
    results = [compare(queries, keys, k, repeats) for k in (5, 100)]
    for result in results:
        print(*(f"{name} {value}" for name, value in result.items()), sep="  ", file=sys.stderr)
    print(json.dumps({"benchmark": "search", **shape, "results": results}))


if __name__ == "__main__":
    main()
