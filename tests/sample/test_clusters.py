"""Balanced clusters: exact sizes, planted clusters found, the plain algorithm's quality reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from shoal.core.errors import InputError
from shoal.sample.clusters import balanced_clusters


def cosine(rows: Tensor, order: Tensor, size: int) -> float:
    """Mean cosine of points to the center of their cluster, straight from the definition."""
    unit = normalize(rows.double(), dim=1)
    return float(
        sum((unit[ids] @ normalize(unit[ids].sum(0), dim=0)).sum() for ids in order.split(size))
        / len(rows)
    )


def planted(k: int, size: int, d: int, noise: float) -> tuple[Tensor, Tensor]:
    """Rows around k orthogonal centers, shuffled, and the center of each."""
    generator = torch.Generator().manual_seed(k)
    which = torch.arange(k).repeat_interleave(size)[torch.randperm(k * size, generator=generator)]
    return torch.eye(d)[which] + noise * torch.randn(k * size, d, generator=generator), which


def plain(rows: Tensor, size: int, seed: int) -> Tensor:
    """The algorithm of NGAME's authors, one set at a time: their start, step and stopping rule."""
    generator = torch.Generator().manual_seed(seed)
    unit, sets, leaves = normalize(rows, dim=1), [torch.arange(len(rows))], []
    while sets:
        ids = sets.pop(0)
        if len(ids) <= size:
            leaves.append(ids)
            continue
        left = -(-len(ids) // size) // 2 * size
        x, gain, value = unit[ids], 1.0, -1.0
        centers = x[torch.randperm(len(ids), generator=generator)[:2]]
        while gain >= 1e-4:
            score = x @ centers.T
            halves = (score[:, 1] - score[:, 0]).argsort().split([left, len(ids) - left])
            centers = torch.stack([normalize(x[half].mean(0), dim=0) for half in halves])
            now = sum(float((x[h] @ c).sum()) for h, c in zip(halves, centers, strict=True))
            gain, value = now / len(ids) - value, now / len(ids)
        sets += [ids[half] for half in halves]
    return torch.cat(sorted(leaves, key=len, reverse=True))


@given(
    st.integers(0, 70),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([8192, 5, 1]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_order_is_a_permutation(n: int, size: int, d: int, sample: int, dtype) -> None:
    """Every point stands once, so runs of `size` are ceil(n / size) clusters, all full but one."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(n)).to(dtype)
    order = balanced_clusters(rows, size, seed=size, sample=sample)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


@pytest.mark.parametrize(("k", "size"), [(2, 64), (8, 16), (12, 10), (16, 1), (21, 7)])
def test_planted_clusters_are_found(k: int, size: int) -> None:
    """Well separated clusters of the asked size come back whole, whole ones never cut.

    True for any k: cuts fall between clusters, also where k is odd.
    """
    rows, which = planted(k, size, d=32, noise=0.01)
    order = balanced_clusters(rows, size, seed=0)
    assert bool((which[order].view(k, size) == which[order].view(k, size)[:, :1]).all())


def test_partial_cluster_is_last_and_whole() -> None:
    """60 points of 7 planted clusters in tens but one half gone: six full clusters, the rest."""
    rows, which = planted(7, 10, d=16, noise=0.01)
    rest = (which == 3).nonzero().flatten()[:6]
    keep = torch.ones(70, dtype=torch.bool).index_fill_(0, rest, False)
    order = balanced_clusters(rows[keep], 10, seed=0)
    assert sorted(len(ids) for ids in order.split(10)) == [4] + [10] * 6
    assert cosine(rows[keep], order, 10) > 0.8


def test_quality_equals_the_plain_algorithm() -> None:
    """Within 1 % of the plain algorithm's mean cosine at equal sizes; random order is far below."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.randn(40, 24, generator=generator)
    rows = topics[torch.randint(40, (3000,), generator=generator)]
    rows = rows + torch.randn(3000, 24, generator=generator)
    theirs = sum(cosine(rows, plain(rows, 32, seed), 32) for seed in range(2)) / 2
    ours = sum(cosine(rows, balanced_clusters(rows, 32, seed), 32) for seed in range(2)) / 2
    assert ours >= 0.99 * theirs
    assert cosine(rows, torch.randperm(3000, generator=generator), 32) < 0.5 * ours


def test_sampled_centers_cost_little() -> None:
    """Centers chosen on a tenth of the points reach 98 % of the mean cosine of all of them."""
    rows, _ = planted(32, 64, d=32, noise=0.2)
    full = cosine(rows, balanced_clusters(rows, 32, seed=0), 32)
    assert cosine(rows, balanced_clusters(rows, 32, seed=0, sample=205), 32) > 0.98 * full


def test_length_of_a_row_does_not_matter() -> None:
    """Only directions count: a positive power of two a row, the same clusters bit for bit."""
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    power = 2.0 ** torch.randint(-9, 9, (300, 1), generator=torch.Generator().manual_seed(2))
    assert torch.equal(balanced_clusters(rows, 16, 0), balanced_clusters(rows * power, 16, 0))


def test_the_seed_decides() -> None:
    """The same seed gives the same order, and leaves torch's own randomness alone; another, not."""
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    first = balanced_clusters(rows, 16, seed=3)
    assert torch.equal(first, balanced_clusters(rows, 16, seed=3))
    assert not torch.equal(first, balanced_clusters(rows, 16, seed=4))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("rows", [torch.zeros(50, 4), torch.ones(50, 4), torch.zeros(50, 0)])
def test_rows_without_differences(rows: Tensor) -> None:
    """Zero rows, equal rows, rows of no width: still a permutation."""
    order = balanced_clusters(rows, 8, seed=0)
    assert torch.equal(order.sort().values, torch.arange(50))


def test_duplicates_stay_together() -> None:
    """Five points, eight copies each: clusters of eight hold one point's copies."""
    rows = torch.eye(5).repeat(8, 1)
    order = balanced_clusters(rows, 8, seed=0)
    assert cosine(rows, order, 8) == pytest.approx(1.0)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    """NaN, infinity, integers, vectors, sizes below one: InputError names the argument."""
    rows = torch.ones(5, 2)
    rows[3, 1] = float("nan")
    with pytest.raises(
        InputError, match="rows: expected finite rows, got NaN or infinity in row 3"
    ):
        balanced_clusters(rows, 2, seed=0)
    with pytest.raises(InputError, match=r"rows: expected a floating matrix \[n, d\]"):
        balanced_clusters(torch.ones(5, 2, dtype=torch.int64), 2, seed=0)
    with pytest.raises(InputError, match=r"rows: expected a floating matrix \[n, d\]"):
        balanced_clusters(torch.ones(5), 2, seed=0)
    for size in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="size: expected a whole number of at least 1"):
            balanced_clusters(torch.ones(5, 2), size, seed=0)  # pyright: ignore[reportArgumentType]
