"""Slow, literal versions: one loop a point, one sum a formula, as the papers write them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from shoal.core.csr import Csr


def label_sets(labels: Csr) -> list[set[int]]:
    """The labels of each point."""
    ptr, col = labels.indptr.tolist(), labels.indices.tolist()
    return [set(col[ptr[i] : ptr[i + 1]]) for i in range(labels.n_rows)]


def inverse_propensity(labels: Csr, a: float, b: float) -> list[float]:
    """w_l = 1 + C (N_l + b)^-a with C = (ln N - 1)(b + 1)^a (Jain et al. 2016)."""
    points = label_sets(labels)
    c = (math.log(len(points)) - 1) * (b + 1) ** a
    counts = [sum(label in point for point in points) for label in range(labels.n_cols)]
    return [1 + c * (count + b) ** -a for count in counts]


def metrics(top: Tensor, truth: Csr, weight: Tensor, k: int) -> dict[str, float]:
    """Every metric at k in per cent, a point at a time."""
    sums = dict.fromkeys(("P", "nDCG", "PSP", "best", "PSnDCG", "best_n", "R"), 0.0)
    for ids, true in zip(top.tolist(), label_sets(truth), strict=True):
        ranking = sorted((weight[label].item() for label in true), reverse=True)
        ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(true))))
        for r, label in enumerate(ids[:k]):
            if label in true:
                w = weight[label].item()
                sums["P"] += 1 / k
                sums["R"] += 1 / len(true)
                sums["nDCG"] += 1 / math.log2(r + 2) / ideal
                sums["PSP"] += w
                sums["PSnDCG"] += w / math.log2(r + 2) / ideal
        sums["best"] += sum(ranking[:k])
        sums["best_n"] += sum(w / math.log2(r + 2) / ideal for r, w in enumerate(ranking[:k]))
    n = len(top)
    return {
        f"P@{k}": 100 * sums["P"] / n,
        f"nDCG@{k}": 100 * sums["nDCG"] / n,
        f"PSP@{k}": 100 * sums["PSP"] / sums["best"] if sums["best"] else 0.0,
        f"PSnDCG@{k}": 100 * sums["PSnDCG"] / sums["best_n"] if sums["best_n"] else 0.0,
        f"R@{k}": 100 * sums["R"] / n,
    }


def tenths(frequency: Tensor, pairs: list[tuple[int, bool]]) -> list[float]:
    """Share in per cent of (label, hit) pairs that are hits, rarest tenth first; ties must be none.

    The first parts hold one more where ten does not divide the pairs.
    """
    ordered = [hit for _, hit in sorted((int(frequency[label]), hit) for label, hit in pairs)]
    size, more = divmod(len(ordered), 10)
    ends = [0]
    for part in range(10):
        ends.append(ends[-1] + size + (part < more))
    parts = [ordered[a:b] for a, b in pairwise(ends)]
    return [pytest.approx(100 * sum(part) / len(part)) for part in parts]


def top_k(queries: Tensor, keys: Tensor, k: int, drop: Csr | None) -> tuple[Tensor, Tensor]:
    """Score every pair, sort each row by (score falling, id rising), cut at k."""
    scores = queries.float() @ keys.float().T
    if drop is not None:
        for row, columns in enumerate(label_sets(drop)):
            for column in columns:
                scores[row, column] = -torch.inf
    best = torch.empty(len(queries), k)
    ids = torch.empty(len(queries), k, dtype=torch.int64)
    for row, values in enumerate(scores.tolist()):
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
        best[row] = torch.tensor([values[i] for i in order])
        ids[row] = torch.tensor([i if values[i] > -math.inf else -1 for i in order])
    return best, ids
