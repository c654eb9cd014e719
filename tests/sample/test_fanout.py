"""Fan-out: every sampling law is exact, by a chi-squared test that a biased sampler fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.counter import CounterRandom
from shoal.sample.fanout import draw, floyd, resolve
from tests.strategies import csrs, ids_below

TRIALS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def excess(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """How many standard deviations chi-squared lies above its mean under `law`."""
    assert set(counts) <= set(law), "an outcome that the law excludes"
    total = sum(counts.values())
    chi2 = sum((counts[x] - total * p) ** 2 / (total * p) for x, p in law.items())
    free = len(law) - 1
    return (chi2 - free) / (2 * free) ** 0.5


def outcomes(csr: Csr, fanout: int, **how: bool) -> Counter[tuple[int, ...]]:
    """Draw row 0 many times, as so many rows of one call."""
    positions, offsets = draw(csr, torch.zeros(TRIALS, dtype=torch.int64), fanout, seeded(), **how)
    assert bool((offsets.diff() == fanout).all())
    rows = positions.view(TRIALS, fanout)
    if not how.get("replace"):
        rows = rows.sort(1).values
    return Counter(map(tuple, rows.tolist()))


def one_row(weights: list[float]) -> Csr:
    n = len(weights)
    return Csr(torch.tensor([0, n]), torch.arange(n), n, torch.tensor(weights))


@pytest.mark.parametrize(("degree", "k"), [(5, 1), (6, 3), (7, 5), (8, 4)])
def test_all_subsets_are_equally_likely(degree: int, k: int) -> None:
    """Each k-subset has probability 1 / C(degree, k); a sampler that looks right fails."""
    subsets = list(combinations(range(degree), k))
    law = dict.fromkeys(subsets, 1 / len(subsets))
    assert excess(outcomes(one_row([1.0] * degree), k), law) < 4
    if k > 1:  # sliding to the next free number
        assert excess(sliding(degree, k), law) > 20


def sliding(degree: int, k: int) -> Counter[tuple[int, ...]]:
    """A plausible wrong sampler: a number that is taken is replaced by the next free one."""
    found: Counter[tuple[int, ...]] = Counter()
    for row in torch.randint(degree, (TRIALS, k), generator=seeded()).tolist():
        chosen: set[int] = set()
        for t in row:
            while t in chosen:
                t = (t + 1) % degree
            chosen.add(t)
        found[tuple(sorted(chosen))] += 1
    return found


def test_weighted_without_replacement_is_the_successive_law() -> None:
    """A subset's probability is the sum over its orders of w1/W * w2/(W - w1) …; uniform fails."""
    weights = [1.0, 2.0, 3.0, 6.0]
    law = dict.fromkeys(combinations(range(4), 2), 0.0)
    for first, second in permutations(range(4), 2):
        p = weights[first] / 12 * weights[second] / (12 - weights[first])
        law[tuple(sorted((first, second)))] += p
    csr = one_row(weights)
    assert excess(outcomes(csr, 2, weighted=True), law) < 4
    assert excess(outcomes(csr, 2), law) > 20


@pytest.mark.parametrize("weighted", [False, True])
def test_with_replacement_draws_are_independent(weighted: bool) -> None:
    """Pairs of draws have the product law; the other law fails."""
    weights = [1.0, 2.0, 5.0]
    csr = one_row(weights)
    share = [w / 8 for w in weights] if weighted else [1 / 3] * 3
    law = {(i, j): share[i] * share[j] for i in range(3) for j in range(3)}
    assert excess(outcomes(csr, 2, replace=True, weighted=weighted), law) < 4
    assert excess(outcomes(csr, 2, replace=True, weighted=not weighted), law) > 20


@given(csrs(min_rows=1), ids_below(10**6), st.integers(0, 4), st.booleans(), st.booleans())
def test_rows_give_their_own_entries(
    csr: Csr, ids: Tensor, fanout: int, replace: bool, weighted: bool
) -> None:
    """Row i gives min(k, degree) different entries, or k (none if empty) with replacement."""
    ids = ids % csr.n_rows
    if csr.values is None:
        csr = csr.with_values(torch.ones(csr.nnz))
    positions, offsets = draw(csr, ids, fanout, seeded(), replace=replace, weighted=weighted)
    degrees = csr.degrees()[ids]
    counts = (degrees > 0) * fanout if replace else degrees.clamp(max=fanout)
    assert torch.equal(offsets.diff(), counts)
    owner = ids.repeat_interleave(counts)
    assert bool((csr.indptr[owner] <= positions).all())
    assert bool((positions < csr.indptr[owner + 1]).all())
    if not replace:
        call = torch.arange(len(ids)).repeat_interleave(counts)
        pairs = torch.stack([call, positions])
        assert pairs.unique(dim=1).shape == pairs.shape


@given(csrs(min_rows=1), ids_below(10**6))
def test_no_fanout_takes_whole_rows(csr: Csr, ids: Tensor) -> None:
    """fanout=None, and a fan-out beyond every degree, give the rows' entries in order."""
    ids = ids % csr.n_rows
    expected = csr.edges(ids)
    for fanout in (None, 6, 10**6):
        found = draw(csr, ids, fanout, seeded())
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("replace", [False, True])
def test_zero_weights_are_never_drawn(replace: bool) -> None:
    """An entry of weight zero never comes; a row of zeros is empty; tiny weights are legal."""
    values = torch.tensor([0.0, 1e-30, 0.0, 1.0, 0.0, 0.0])
    csr = Csr(torch.tensor([0, 4, 4, 6]), torch.arange(6), 6, values)
    rows = torch.tensor([0, 2, 1]).repeat(1000)
    positions, offsets = draw(csr, rows, 2, seeded(), replace=replace, weighted=True)
    assert set(positions.tolist()) <= {1, 3}
    assert torch.equal(offsets.diff(), torch.tensor([2, 0, 0]).repeat(1000))


def test_weighted_draws_stay_in_their_row_beside_huge_ones() -> None:
    """The running sum over rows of very different weight rounds; draws never leave their row."""
    values = torch.tensor([1e30, 1e30, 1e-3, 1e-3])
    csr = Csr(torch.tensor([0, 2, 4]), torch.arange(4), 4, values)
    rows = torch.tensor([0, 1]).repeat(500)
    positions, _ = draw(csr, rows, 3, seeded(), replace=True, weighted=True)
    assert torch.equal(positions.view(-1, 3) // 2, rows.unsqueeze(1).expand(-1, 3))


def test_floyd_reaches_large_sets() -> None:
    """Degrees beyond float32's integers are drawn from evenly: the low bit is fair."""
    degree = 2**40
    chosen = floyd(torch.full((4000,), degree), 3, CounterRandom(0), torch.arange(4000))
    assert int(chosen.max()) < degree and int(chosen.min()) >= 0
    assert abs(float((chosen % 2).double().mean()) - 0.5) < 4 * 0.5 / 12000**0.5


@given(st.integers(1, 6), st.integers(0, 9), st.integers(-(2**63), 2**63 - 1))
def test_host_and_devices_resolve_alike(k: int, more: int, key: int) -> None:
    """Taken numbers are replaced by the same ones in numpy, as on the host, and in torch."""
    degrees, turns = torch.full((50,), k + more), torch.arange(k)[:, None]
    last = degrees - k + turns
    drawn = CounterRandom(key).below(torch.arange(50) * k + turns, last + 1)
    assert torch.equal(
        resolve(drawn, last), floyd(degrees, k, CounterRandom(key), torch.arange(50))
    )


@pytest.mark.parametrize("how", [{}, {"replace": True}, {"weighted": True}])
def test_same_seed_same_draw(how: dict[str, bool]) -> None:
    """A draw is a function of its arguments and the generator's seed, and seeds matter."""
    csr = Csr(torch.arange(0, 401, 40), torch.arange(400), 400, torch.rand(400) + 0.1)
    ids = torch.arange(10)
    one, same, other = (draw(csr, ids, 5, seeded(s), **how)[0] for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, i, g: draw(c, i, -1, g), "fanout: expected at least 0, or None for all, got -1"),
        (lambda c, i, g: draw(c, i, 1), "generator: expected a torch.Generator, got None"),
        (lambda c, i, g: draw(c, i, 1, g, weighted=True), "weighted: expected a Csr with values"),
        (
            lambda c, i, g: draw(c.with_values(torch.tensor([-1.0])), i, 1, g, weighted=True),
            "values: expected finite weights of at least 0",
        ),
        (
            lambda c, i, g: draw(
                c.with_values(torch.tensor([float("nan")])), i, 1, g, weighted=True
            ),
            "values: expected finite weights of at least 0",
        ),
    ],
)
def test_bad_draws_are_refused(call: Callable[..., object], message: str) -> None:
    """A negative fan-out, no generator, no weights or bad ones: one line that names which."""
    csr = Csr(torch.tensor([0, 1]), torch.tensor([0]), 1)
    with pytest.raises(InputError, match=message):
        call(csr, torch.tensor([0]), seeded())
