"""Balanced clusters against the plain algorithm of NGAME's authors, on tf-idf rows of WordNet.

The plain one cuts one set at a time in numpy: two random rows as centers, similarity differences
sorted, halves by `array_split`, normalized means, until the mean similarity gains less than 1e-4;
sets of a level are shared out to a pool of threads. Both make clusters of the same size, so that
their mean in-cluster cosines compare; clusters of exactly 64 are timed as well. Run with
OPENBLAS_NUM_THREADS=1, or numpy's own threads fight the pool's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
import torch
from labels_ import Begun
from torch import Tensor

import shoal
from shoal.tasks.labels import Parts
from shoal.text.bag import embed
from shoal.text.vocabulary import random_rows

SIZE = 64


def untrained_rows(source: str) -> Tensor:
    """Embeddings of a data set's training points before any training: tf-idf, projected."""
    data = shoal.load_labels(source)
    bags = Begun.of(Parts(), data.train, data.labels).documents
    return embed(bags, random_rows(bags, 256, seed=0))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def plain_cut(x: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    similarity = x @ x[rng.choice(len(x), 2, replace=False)].T
    halves, old, new = [], -np.inf, -2.0
    while new - old >= 1e-4:
        halves = np.array_split(np.argsort(similarity[:, 1] - similarity[:, 0]), 2)
        # array_split's first half is the one nearer to the first center.
        similarity = x @ unit(np.stack([x[half].mean(0) for half in halves])).T
        old, new = new, sum(similarity[h, i].sum() for i, h in enumerate(halves)) / len(x)
    return halves


def plain(rows: Tensor, levels: int, seed: int, threads: int) -> list[np.ndarray]:
    """2^levels clusters, recursively, a level's sets shared out to `threads` threads."""
    x, sets = unit(rows.numpy()), [np.arange(len(rows))]
    rng = np.random.default_rng(seed)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(levels):
            cuts = pool.map(lambda ids, r: plain_cut(x[ids], r), sets, rng.spawn(len(sets)))
            sets = [ids[half] for ids, halves in zip(sets, cuts, strict=True) for half in halves]
    return sets


def cosine(rows: Tensor, clusters: Sequence[np.ndarray]) -> float:
    """Mean cosine of points to the center of their cluster."""
    x = unit(rows.numpy())
    return float(np.concatenate([x[ids] @ unit(x[ids].mean(0)) for ids in clusters]).mean())


def ours(rows: Tensor, size: int, seed: int) -> list[np.ndarray]:
    return [ids.numpy() for ids in shoal.balanced_clusters(rows, size, seed).split(size)]


def timed(make: Callable[[int], list[np.ndarray]], rows: Tensor, seed: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    clusters = make(seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sizes = [len(ids) for ids in clusters]
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "cosine": cosine(rows, clusters),
        "clusters": len(sizes),
        "size_min": min(sizes),
        "size_median": median(sizes),
        "size_max": max(sizes),
    }


def measure(rows: Tensor, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Medians of alternating repeats, each with a seed of its own."""
    levels = int(np.ceil(np.log2(len(rows) / SIZE)))
    size = -(-len(rows) // 2**levels)
    systems: dict[str, Callable[[int], list[np.ndarray]]] = {
        "plain": lambda seed: plain(rows, levels, seed, threads),
        f"shoal, {size} a cluster": lambda seed: ours(rows, size, seed),
        f"shoal, {SIZE} a cluster": lambda seed: ours(rows, SIZE, seed),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for seed in range(repeats):
        for name, make in systems.items():
            runs[name].append(timed(make, rows, seed))
    return {name: {k: median(r[k] for r in all_) for k in all_[0]} for name, all_ in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="10,000 rows, one repeat")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = untrained_rows(args.data)
    if args.quick:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:10_000]]
    result = measure(rows, 1 if args.quick else args.repeats, args.threads)
    rival, same, _ = result.values()
    for name, r in result.items():
        sizes = f"{r['size_min']:.0f}/{r['size_median']:.0f}/{r['size_max']:.0f}"
        numbers = f"{r['wall_s']:7.2f} s wall {r['cpu_s']:7.2f} s CPU   cosine {r['cosine']:.4f}"
        line = f"{name:24} {numbers}   {r['clusters']:.0f} clusters of {sizes}"
        print(line, file=sys.stderr)
    ratios = {f"{key}_ratio": same[key] / rival[key] for key in ("wall_s", "cpu_s", "cosine")}
    print("shoal / plain:", {k: round(v, 3) for k, v in ratios.items()}, file=sys.stderr)
    shape = {"rows": len(rows), "width": rows.shape[1], "threads": args.threads}
    print(json.dumps({"benchmark": "clusters", **shape, **ratios, "systems": result}))


if __name__ == "__main__":
    main()
