"""Exact top-k: the sorted dense scores, whatever the tile, with ties, drops and both id widths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.core import search
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.search import top_k
from tests import oracles

FEW_BYTES = 128 * 40  # one query and one group of 32 keys at a time


def whole_rows(n: int, d: int, seed: int, spread: int) -> torch.Tensor:
    """Rows of small whole numbers: inner products are exact, and many are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-spread, spread + 1, (n, d), generator=generator).float()


@given(
    n=st.integers(0, 6),
    m=st.integers(1, 150),
    k=st.integers(1, 40),
    spread=st.integers(0, 3),
    seed=st.integers(0, 2**31),
    max_bytes=st.sampled_from([1, FEW_BYTES, 2**17, 2**27]),
    drops=st.booleans(),
)
@example(n=3, m=100, k=40, spread=0, seed=0, max_bytes=2**17, drops=True)  # every score equal
def test_top_k_is_the_sorted_dense_scores(n, m, k, spread, seed, max_bytes, drops) -> None:
    """Scores and ids equal (score falling, id rising), ties and drops included, in any memory."""
    k = min(k, m)
    queries, keys = whole_rows(n, 3, seed, spread), whole_rows(m, 3, seed + 1, spread)
    drop = None
    if drops:
        generator = torch.Generator().manual_seed(seed)
        drop = Csr.from_dense(torch.rand(n, m, generator=generator) < 0.7)
    scores, ids = top_k(queries, keys, k, drop, max_bytes)
    expected_scores, expected_ids = oracles.top_k(queries, keys, k, drop)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(ids, expected_ids)


def test_floats_agree_with_torch_topk_and_between_tiles() -> None:
    """Distinct scores: the ids of torch.topk, in one tile or in many."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(300, 16, generator=generator)
    keys = torch.randn(5000, 16, generator=generator)
    expected = torch.topk(queries.double() @ keys.double().T, 7)
    for max_bytes in (2**18, 2**22, 2**27):
        scores, ids = top_k(queries, keys, 7, max_bytes=max_bytes)
        assert torch.equal(ids, expected.indices)
        torch.testing.assert_close(scores, expected.values.float())


def test_rising_and_falling_keys() -> None:
    """The worst orders: every tile beats the one before, or none does."""
    keys = torch.arange(1000.0)[:, None]
    for rows, best in ((keys, [999, 998, 997]), (keys.flip(0), [0, 1, 2])):
        ids = top_k(torch.ones(2, 1), rows, 3, max_bytes=FEW_BYTES)[1]
        assert ids.tolist() == [best, best]


def test_dropping_all_but_some_leaves_minus_one() -> None:
    """A row with two keys left of 100 returns both, then -inf and -1, across tiles."""
    keep = torch.zeros(2, 100, dtype=torch.bool)
    keep[0, [3, 97]] = True
    drop = Csr.from_dense(~keep)
    for dtype in (torch.int32, torch.int64):
        typed = Csr(drop.indptr, drop.indices.to(dtype), 100)
        keys = torch.arange(100.0)[:, None]
        scores, ids = top_k(torch.ones(2, 1), keys, 3, typed, FEW_BYTES)
        assert ids.tolist() == [[97, 3, -1], [-1, -1, -1]]
        assert scores[0].tolist() == [97.0, 3.0, float("-inf")]


def test_half_precision_keys_are_searched_in_float32() -> None:
    """bfloat16 rows give the scores of the same rows widened."""
    queries, keys = whole_rows(4, 3, 0, 3), whole_rows(70, 3, 1, 3)
    scores, ids = top_k(queries.bfloat16(), keys.bfloat16(), 5)
    assert scores.dtype == torch.float32
    assert torch.equal(ids, top_k(queries, keys, 5)[1])


def test_minus_zero_ties_with_zero() -> None:
    """-0 and 0 are equal scores, so the lower id comes first."""
    ids = search._leftmost_largest(torch.tensor([[-0.0, 0.0, -1.0, 0.0]]), 4)[1]
    assert ids.tolist() == [[0, 1, 3, 2]]


@given(st.integers(1, 10**4), st.integers(1, 10**6), st.integers(1, 500), st.integers(1, 2**30))
def test_tiles_fit_the_budget(n: int, m: int, k: int, max_bytes: int) -> None:
    """128 bytes a score and a kept score stay within max_bytes, or one query and one group."""
    rows, columns = search._tile_shape(n, m, k, max_bytes)
    assert 1 <= rows <= n and columns % 32 == 0 and 32 <= columns < m + 32
    assert 128 * rows * (columns + k) <= max(max_bytes, 128 * (32 + k))


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """NaN rows, k beyond the keys, widths, types, a drop of another shape: one line each."""
    queries, keys = torch.ones(2, 3), torch.ones(5, 3)
    with pytest.raises(InputError, match="queries: expected finite rows, got NaN or infinity in r"):
        top_k(queries * torch.nan, keys, 1)
    with pytest.raises(InputError, match=r"keys: expected finite rows.* row 4"):
        top_k(queries, torch.cat([keys[:4], keys[4:] / 0]), 1)
    with pytest.raises(InputError, match="k: expected at most the 5 keys, got 6; lower k"):
        top_k(queries, keys, 6)
    with pytest.raises(InputError, match="k: expected a whole number"):
        top_k(queries, keys, 0)
    with pytest.raises(InputError, match="max_bytes: expected a whole number"):
        top_k(queries, keys, 1, max_bytes=0)
    with pytest.raises(InputError, match="queries: expected rows of 3, got 2"):
        top_k(queries[:, :2], keys, 1)
    with pytest.raises(InputError, match="keys: expected floating rows"):
        top_k(queries, keys.long(), 1)
    with pytest.raises(InputError, match=r"drop: expected \(2, 5\)"):
        top_k(queries, keys, 1, Csr.from_lists([[0]], 5))
