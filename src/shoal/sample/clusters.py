"""Balanced clusters of directions: which examples are hard for one another.

Recursive 2-means on the sphere whose halves have prescribed sizes, as NGAME, section 4.2 (Dahiya et
al., WSDM 2023) has it: a set of m examples that must hold k = ceil(m / size) clusters is cut into
size * floor(k / 2) examples on the left and the others on the right, until every set is one
cluster. A cut maximizes the mean cosine of unit rows u to the center of their half,

    (|sum of left u| + |sum of right u|) / m,

by turns: the examples with the highest u . delta go left, delta = center left - center right; each
center becomes the normalized sum of its half. It ends when the mean cosine gains less than `tol`,
the rule of NGAME's authors.

All sets of one size are cut together, as one batch of matrices ``[s, m, d]``. A level of the tree
has at most three sizes (k rounded down and up, and the set that holds the partial cluster), so the
whole tree is a few dozen batches instead of n / size calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from shoal.core.errors import expect, expect_finite, expect_positive
from shoal.core.progress import progress

_OVERSHOOT = 0.9  # of a step's change in delta: +2 % mean cosine on WordNet texts; 1.6 oscillates

_Take = Callable[[Tensor], tuple[Tensor, Tensor]]


def balanced_clusters(
    rows: Float[Tensor, "n d"],
    size: int,
    seed: int,
    *,
    max_iter: int = 6,
    tol: float = 1e-4,
    sample: int = 8192,
) -> Int[Tensor, " n"]:
    """Order the examples so that consecutive runs of `size` are clusters of like direction.

    Cluster c is ``order[c * size : (c + 1) * size]``; there are ceil(n / size) of them, all full
    but at most the last one. The same arguments, device and thread count give the same order.

    Args:
        rows: one embedding per example, of any floating type and any length (a zero row has no
            direction and falls anywhere), on any device.
        size: examples in a full cluster, at least 1.
        seed: of the examples that cuts start from.
        max_iter: iterations per cut at most; 16 gain 1 % of mean cosine over 6.
        tol: a cut ends when the mean cosine, 0 … 1, gains less; 1e-4 is that of NGAME's authors.
        sample: a set of more examples chooses its centers on at most so many, evenly spread along
            its parent's u . delta; all examples are then cut by them. Costs 0.5 % of mean cosine.

    Returns:
        A permutation of the n example ids, on the device of the rows.

    Raises:
        InputError: if rows are not a finite floating matrix or a count is not positive.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
        >>> order = balanced_clusters(rows, size=2, seed=0)
        >>> sorted(sorted(pair) for pair in order.view(2, 2).tolist())
        [[0, 2], [1, 3]]
    """
    for name, value in (("size", size), ("max_iter", max_iter), ("sample", sample)):
        expect_positive(name, value)
    matrix = rows.dim() == 2 and rows.is_floating_point()
    kind = f"{rows.dtype} {tuple(rows.shape)}"
    expect(matrix, "rows", "a floating matrix [n, d]", kind, "pass one embedding per example")
    take = _taker(rows)
    chunk = max(1, (2**28 if rows.is_cuda else 2**20) // max(1, rows.shape[1]))  # 1 GiB; a cache
    generator = torch.Generator().manual_seed(seed)
    n = len(rows)
    pending = {n: [torch.randperm(n, generator=generator).to(rows.device).unsqueeze(0)]}
    while (m := max(pending)) > size:
        left = -(-m // size) // 2 * size
        level = torch.cat(pending.pop(m)).split(max(1, chunk // m))
        for sets in progress(level, "cluster"):
            x, w = take(sets[:, :: -(-m // sample)])
            delta = _cut(x, w, left / m, generator, max_iter, tol)
            parts = [(x, w)] if x.shape[1] == m else map(take, sets.split(chunk, dim=1))
            score = torch.cat([_score(*part, delta) for part in parts], dim=1)
            ranked = sets.gather(1, score.argsort(dim=1, descending=True, stable=True))
            for half in ranked.split([left, m - left], dim=1):
                pending.setdefault(half.shape[1], []).append(half)
    return torch.cat([torch.cat(pending[m]).flatten() for m in sorted(pending, reverse=True)])


def _taker(rows: Float[Tensor, "n d"]) -> _Take:
    """Read sets of examples: rows ``[s, m, d]`` in float32 and what makes each a unit row."""
    norms = torch.cat([part.float().norm(dim=1) for part in rows.split(2**16)])
    expect_finite("rows", norms)
    scale = torch.where(norms > 0, 1 / norms, 0)

    def take(ids: Int[Tensor, "s m"]) -> tuple[Float[Tensor, "s m d"], Float[Tensor, "s m"]]:
        # index_select: twice as fast as rows[ids] on a CPU.
        picked = rows.index_select(0, ids.flatten()).float()
        return picked.view(*ids.shape, -1), scale[ids]

    return take


def _score(
    x: Float[Tensor, "s m d"], w: Float[Tensor, "s m"], delta: Float[Tensor, "s d"]
) -> Float[Tensor, "s m"]:
    """Each unit row w x times delta; as row times x', thrice as fast as x times column."""
    return torch.bmm(delta.unsqueeze(1), x.transpose(1, 2)).squeeze(1) * w


def _cut(
    x: Float[Tensor, "s m d"],
    w: Float[Tensor, "s m"],
    share: float,
    generator: torch.Generator,
    max_iter: int,
    tol: float,
) -> Float[Tensor, "s d"]:
    """The delta that sends `share` of each set to the left, from a random example per set."""
    s, m, _ = x.shape
    left = round(share * m)
    each, start = torch.arange(s), torch.randint(m, (s,), generator=generator)
    delta = x[each, start] * w[each, start].unsqueeze(1)
    total = torch.bmm(w.unsqueeze(1), x).squeeze(1)
    value = 0.0
    for turn in range(max_iter):
        # topk and not a threshold: of equal scores exactly as many go left as there is room for,
        # which also tells copies of different examples apart that a cut has not separated yet.
        highest = _score(x, w, delta).topk(left, dim=1, sorted=False).indices
        on_left = torch.zeros_like(w).scatter_(1, highest, w.gather(1, highest))
        above = torch.bmm(on_left.unsqueeze(1), x).squeeze(1)
        below = total - above
        change = normalize(above, dim=1) - normalize(below, dim=1) - delta
        delta = delta + change * (1 + _OVERSHOOT if turn else 1.0)
        last, value = value, float((above.norm(dim=1) + below.norm(dim=1)).mean()) / m
        if value - last < tol:
            break
    return delta
