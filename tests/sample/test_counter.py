"""Random numbers by position: the published generator, even, and the same however they are read."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.sample.counter import GAMMA, CounterRandom, in_torch, signed

AT = torch.arange(20_000)


def splitmix64(state: int, count: int) -> list[int]:
    """The reference of the paper, in unbounded integers."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_numbers_are_splitmix64(key: int) -> None:
    """Number i is the i-th output of the published generator, on the host and as devices mix it."""
    expected = splitmix64(key, 8)
    assert [int(x) % 2**64 for x in CounterRandom(key).bits(torch.arange(8))] == expected
    mixed = in_torch(torch.arange(8), signed(key + GAMMA), 0)
    assert [int(x) % 2**64 for x in mixed] == expected
    top = in_torch(torch.arange(8), signed(key + GAMMA), 11)
    assert (
        top.tolist()
        == [x >> 11 for x in expected]
        == CounterRandom(key).bits(torch.arange(8), 53).tolist()
    )


def test_numbers_depend_on_their_position_alone() -> None:
    """Read one by one, backwards or as a matrix, in either width: the same numbers."""
    random = CounterRandom(7)
    whole = random.uniform(AT)
    assert torch.equal(random.uniform(AT.flip(0)).flip(0), whole)
    assert torch.equal(random.uniform(AT.int().view(100, -1)).flatten(), whole)
    assert torch.equal(random.uniform(AT[5:6]), whole[5:6])
    assert not torch.equal(CounterRandom(8).uniform(AT), whole)


def test_uniform_is_even() -> None:
    """Chi-squared over 100 cells, of the numbers and of the pairs of neighbors in it."""
    u = CounterRandom(3).uniform(AT)
    cells = torch.bincount((u * 100).long(), minlength=100)
    pairs = torch.bincount((u[::2] * 10).long() * 10 + (u[1::2] * 10).long(), minlength=100)
    for counts in (cells, pairs):
        expected = counts.sum() / 100
        excess = (float(((counts - expected) ** 2 / expected).sum()) - 99) / math.sqrt(2 * 99)
        assert abs(excess) < 4
    assert float(u.min()) >= 0 and float(u.max()) < 1


def test_exponential_is_minus_the_logarithm() -> None:
    """Our series gives -log(1 - u) to the last places, also at both ends of the range."""
    random = CounterRandom(5)
    u = random.uniform(AT)
    exact = -np.log1p(-u.numpy())
    np.testing.assert_allclose(random.exponential(AT).numpy(), exact, rtol=4e-16, atol=3e-16)
    assert bool((random.exponential(AT) >= 0).all())


def test_generators_give_sequences_in_turn() -> None:
    """One seed gives the same sequences again, and each call another one."""
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    first, second = CounterRandom.of(one), CounterRandom.of(one)
    assert first == CounterRandom.of(two) and first != second
