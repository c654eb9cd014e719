"""What neighbors show: dense oracles of propagation, and laws of the pool's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal import Csr
from shoal.graph.baselines import pool, pool_weights, smoothed_rows
from shoal.graph.propagate import smoothed


@given(n=st.integers(1, 12), seed=st.integers(0, 2**16))
def test_smoothing_is_that_of_dense_matrices(n: int, seed: int) -> None:
    """Ten steps of the recurrence on the dense graph; loops and values of entries are not read."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n, n, generator=generator) < 0.3
    dense = dense | dense.T
    x = torch.randn(n, 3, generator=generator)
    row, col = dense.nonzero().unbind(1)
    graph = Csr.from_coo(row, col, (n, n), torch.full((len(row),), 7.0))
    looped = (dense | torch.eye(n, dtype=torch.bool)).double()
    scale = torch.diag(looped.sum(1).rsqrt())
    step, want = scale @ looped @ scale, x.double()
    for _ in range(10):
        want = 0.9 * step @ want + 0.1 * x.double()
    torch.testing.assert_close(smoothed(graph, x).double(), want, atol=1e-5, rtol=1e-5)


def test_smoothed_words_have_length_one_and_other_features_their_own() -> None:
    """Wide sparse features are words; narrow ones are read as they are, however they are stored."""
    ring = Csr.from_lists([[1, 2], [2, 0], [0, 1]], n_cols=3)
    words = Csr.from_lists([[0], [300], [7, 8]], n_cols=301)
    torch.testing.assert_close(smoothed_rows(ring, words).norm(dim=1), torch.ones(3))
    narrow = Csr.from_lists([[0], [1], [0]], n_cols=2)
    dense = narrow.to_dense().float()
    torch.testing.assert_close(smoothed_rows(ring, narrow), smoothed_rows(ring, dense))


@pytest.mark.parametrize("several", [False, True])
def test_a_model_that_is_surer_of_itself_weighs_no_more(several: bool) -> None:
    """Scores times a number are weighed by that number less: the pool stays what it is."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (60,), generator=generator)
    truth = torch.nn.functional.one_hot(target, 3)
    models = [truth + torch.randn(60, 3, generator=generator) for _ in range(3)]
    wanted = truth.bool() if several else target
    surer = [models[0], 50 * models[1], models[2] / 50]
    plain, other = pool_weights(models, wanted), pool_weights(surer, wanted)
    torch.testing.assert_close(pool(models, plain), pool(surer, other), atol=1e-4, rtol=1e-3)
    assert (plain > 0.05).all()
