"""Which rows to hold, and how fast the others come from a file.

    python benchmarks/tiers.py [--data DIR] [--quick] [--disk-mib 2048] [--folder DIR]

*Hit rates.* DIR (by default what SHOAL_DATA names) holds ``web-stanford/web-stanford.npz``; without
one, the shipped WordNet graph is sampled. A tenth of its nodes, drawn at random, are seeds;
batches of 512 with fan-outs 15, 10. Every way to score rows sees the same 60 fresh batches, and the
oracle holds the rows that these very batches read most. Rates are shares of the distinct rows of a
batch, means over seeds of everything random.

*Disk.* The same random rows of one file, cold before every read (posix_fadvise, DONTNEED), by
numpy's memory map, plain, with sorted ids, and told that reads are random, and by shoal's threads.
They take turns; median wall and CPU time.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.cli.bandwidth import drop, scratch_file, write_header
from shoal.core.csr import Csr
from shoal.data import graphs
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.sample.expand import NeighborSampler
from shoal.sample.touch import touch_probability

BATCH, FANOUTS, TRAIN, FRESH = 512, [15, 10], 0.1, 60
WIDTH = 512  # bytes a row on disk


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default=os.environ.get("SHOAL_DATA"), help="outside data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--disk-mib", type=int, default=2048, help="size of the file")
    parser.add_argument("--folder", type=Path, help="where the file is made and removed")
    parser.add_argument("--quick", action="store_true", help="one seed, few batches, small file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    fresh, seeds, mib = (6, [0], 64) if args.quick else (FRESH, args.seeds, args.disk_mib)
    name = f"{args.data}/web-stanford/web-stanford.npz" if args.data else "wordnet-graph"
    graph = graphs.read(name).graph
    result = {
        "benchmark": "tiers",
        "quick": args.quick,
        "data": Path(name).stem,
        "torch": torch.__version__,
        "hit_rates": show_rates([hit_rates(graph, seed, fresh) for seed in seeds]),
        "disk": disk(args.folder, mib, 3 if args.quick else 7),
    }
    print(json.dumps(result))


# -- hit rates ---------------------------------------------------------------------------------


def hit_rates(graph: Csr, seed: int, fresh: int) -> dict[str, list[float]]:
    """Per cent of the rows read that a tenth and a fifth of all rows serve, by what chose them."""
    n, generator = graph.n_rows, torch.Generator().manual_seed(seed)
    train = torch.randperm(n, generator=generator)[: int(TRAIN * n)]
    epoch = counts(batches(graph, train, generator, len(train) // BATCH), n)
    table = torch.zeros(n, 1)
    touch = touch_probability(graph, train, FANOUTS, BATCH)
    scores = {
        "random": torch.rand(n, generator=generator),
        "degree": torch.bincount(graph.indices, minlength=n).double(),
        "reverse PageRank": reverse_pagerank(graph, train),
        "one epoch sampled before": epoch,
        "fan-out model": touch,
    }
    tests = list(batches(graph, train, generator, fresh))
    scores["oracle"] = counts(iter(tests), n)
    rates: dict[str, list[float]] = {}
    for name, score in scores.items():
        rates[name] = []
        for share in (0.1, 0.2):
            tiered = TieredTable(table, score, device_rows=int(share * n))
            for ids in tests:
                tiered.gather(ids)
            use = tiered.use()["device"]
            rates[name].append(100 * (use.measured or 0))
            if name == "fan-out model":
                rates.setdefault("fan-out model, predicted", []).append(100 * (use.predicted or 0))
    return rates


def batches(graph: Csr, train: Tensor, generator: torch.Generator, count: int) -> Iterator[Tensor]:
    """The distinct rows of so many batches of random seeds."""
    sampler = NeighborSampler(graph, FANOUTS)
    for _ in range(count):
        seeds = train[torch.randperm(len(train), generator=generator)[:BATCH]]
        yield sampler(seeds, generator)[0].src


def counts(reads: Iterator[Tensor], n: int) -> Tensor:
    """How many batches read each row."""
    seen = torch.zeros(n, dtype=torch.float64)
    for ids in reads:
        seen[ids] += 1
    return seen


def reverse_pagerank(graph: Csr, train: Tensor, steps: int = 5, damping: float = 0.85) -> Tensor:
    """Where random walks from the seeds along the edges that are read are found."""
    start = torch.zeros(graph.n_rows, dtype=torch.float64)
    start[train] = 1 / len(train)
    at, degrees, rows = start, graph.degrees(), graph.row_ids()
    for _ in range(steps):
        walked = (at / degrees.clamp(min=1))[rows]
        at = (1 - damping) * start + damping * torch.zeros_like(at).index_add_(
            0, graph.indices, walked
        )
    return at


def show_rates(found: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Means over the seeds, printed."""
    say(f"\n{'rows chosen by':28} {'10 %':>8} {'20 %':>8}   hits, per cent, {len(found)} seeds")
    means = {}
    for name in found[0]:
        means[name] = [
            round(statistics.mean(x), 2) for x in zip(*(r[name] for r in found), strict=True)
        ]
        say(f"{name:28} {means[name][0]:8.2f} {means[name][1]:8.2f}")
    return means


# -- disk --------------------------------------------------------------------------------------


def disk(folder: Path | None, mib: int, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Random rows of a cold file, few and many of them, and of a cached one."""
    with scratch_file(folder, mib << 20) as path:
        n = (mib << 20) // WIDTH
        write_header(path, n, WIDTH // 4)
        few, many = n // 1000, n // 100
        return {
            f"cold, {few} of {n}": race(path, few, repeats, cold=True),
            f"cold, {many} of {n}": race(path, many, max(repeats // 2, 1), cold=True),
            f"cached, {few} of {n}": race(path, few, repeats, cold=False),
        }


def race(path: Path, count: int, repeats: int, cold: bool) -> dict[str, dict[str, float]]:
    """Let all read the same rows in turn, other rows each turn; they must agree."""
    generator = np.random.default_rng(count)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    n = len(DiskRows(path))
    for turn in range(repeats + 1):
        ids = generator.integers(0, n, count)
        first: np.ndarray | None = None
        for name, reader in READERS.items():
            read = reader(path)
            if cold:
                drop(path)
            start = time.perf_counter(), time.process_time()
            rows = read(ids)
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
            if turn:  # the first turn starts threads and touches memory
                times[name].append(spent)
            first = rows if first is None else first
            if not np.array_equal(first, rows):
                raise SystemExit(f"{name} read other rows")
            del read
    say(f"\n{'cold' if cold else 'cached'}, {count} of {n} rows of {WIDTH} bytes")
    base = statistics.median(wall for wall, _ in times["memmap"])
    found = {}
    for name, spent in times.items():
        wall, cpu = (statistics.median(x) for x in zip(*spent, strict=True))
        found[name] = {"wall_ms": round(1e3 * wall, 1), "cpu_ms": round(1e3 * cpu, 1)}
        found[name]["x_memmap"] = round(base / wall, 2)
        say(f"{name:28} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms CPU {base / wall:8.2f} x")
    return found


def by_memmap(path: Path, ordered: bool = False, random: bool = False) -> Callable[..., np.ndarray]:
    rows = np.load(path, mmap_mode="r")
    if random:
        rows._mmap.madvise(mmap.MADV_RANDOM)

    def read(ids: np.ndarray) -> np.ndarray:
        if not ordered:
            return np.take(rows, ids, 0)
        order = np.argsort(ids)
        out = np.empty((len(ids), rows.shape[1]), rows.dtype)
        out[order] = rows[ids[order]]
        return out

    return read


def by_disk_rows(path: Path, threads: int) -> Callable[..., np.ndarray]:
    table = DiskRows(path, threads=threads)
    return lambda ids: table.gather(torch.from_numpy(ids)).numpy()


READERS: dict[str, Callable[[Path], Callable[..., np.ndarray]]] = {
    "memmap": by_memmap,
    "memmap, sorted ids": lambda path: by_memmap(path, ordered=True),
    "memmap, MADV_RANDOM": lambda path: by_memmap(path, random=True),
    "DiskRows, 1 thread": lambda path: by_disk_rows(path, 1),
    "DiskRows, 16 threads": lambda path: by_disk_rows(path, 16),
}


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
