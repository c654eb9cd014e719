"""Sketches against dense products."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.sketch import Sketch, products


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    """Random rows."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 200), st.integers(0, 9), st.integers(1, 64), st.integers(0, 99))
def test_a_sketch_of_every_direction_is_exact(m: int, n: int, d: int, seed: int) -> None:
    """Up to 64 directions are all kept: the k keys found have the k largest products."""
    keys, queries, k = rows(m, d, seed), rows(n, d, seed + 1), min(m, 20)
    found = Sketch.of(keys).search(queries, k)
    best = (queries @ keys.T).topk(k, dim=1).values
    own = (queries @ keys.T).gather(1, found).sort(1, descending=True).values
    torch.testing.assert_close(own, best, atol=1e-4, rtol=1e-4)
    assert all(len(set(row)) == k for row in found.tolist())


def test_keys_that_lie_along_64_directions_are_found_among_more() -> None:
    """What a sketch leaves out is where keys do not vary, though queries do."""
    basis = torch.linalg.qr(rows(100, 64, 0)).Q
    keys, queries = rows(5000, 64, 1) @ basis.T, rows(300, 100, 2)
    found = Sketch.of(keys).search(queries, 50).sort(1).values
    assert torch.equal(found, (queries @ keys.T).topk(50, dim=1).indices.sort(1).values)


@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 7), st.integers(0, 99))
def test_products_are_entries_of_the_dense_product(m: int, n: int, width: int, seed: int) -> None:
    """One a (query, id); -inf where the id is -1."""
    keys, queries = rows(m, 3, seed), rows(n, 3, seed + 1)
    ids = torch.randint(-1, m, (n, width), generator=torch.Generator().manual_seed(seed))
    dense = (queries @ keys.T).gather(1, ids.clamp(min=0))
    torch.testing.assert_close(products(queries, keys, ids), dense.masked_fill(ids < 0, -torch.inf))
