"""E1 to E4: eigenvalues of noisy matrices against the models, and refusals outside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh

from shoal.core.errors import InputError
from shoal.curvature.batch_spectra import (
    Coupling,
    additive,
    additive_bulk,
    batch_factor,
    batch_of_factor,
    coupling,
    perturbed,
    wishart,
)

P = 800


def wigner(tau: float, rng: np.random.Generator) -> np.ndarray:
    """Symmetric noise whose spectrum is the semicircle of radius 2τ."""
    x = rng.normal(size=(P, P)) * tau / math.sqrt(2 * P)
    return x + x.T


def top(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = eigsh(matrix, k=k, which="LA", v0=np.ones(len(matrix)))
    return values[::-1], vectors[:, ::-1]


def additive_inverse(value: float, tau: float) -> float:
    """All data's eigenvalue from a batch's, under E1: λ = (λ' + √(λ'² − 4τ²))/2."""
    return (value + math.sqrt(value**2 - 4 * tau**2)) / 2


def test_spiked_wigner() -> None:
    """T1, E1: eight draws; outliers within 3τ√(2/P), overlaps near, spikes below τ at the edge."""
    rng = np.random.default_rng(0)
    spikes = np.array([10.0, 4.0, 2.0, 0.5])
    diagonal = np.zeros(P)
    diagonal[: len(spikes)] = spikes
    for _ in range(8):
        values, vectors = top(np.diag(diagonal) + wigner(1.0, rng), 4)
        for i, spike in enumerate(spikes):
            expected = additive(float(spike), 1.0)
            assert abs(values[i] - expected.value) < 3 * math.sqrt(2 / P)
            if expected.overlap:
                assert abs(vectors[i, i] ** 2 - expected.overlap) < 0.06
    assert additive(0.5, 1.0).value == additive(0.5, 1.0).edge == 2.0


def test_a_bulk_moves_the_outlier() -> None:
    """T1, E2: on a bulk in [0, 2] the outlier is where E2 says, and E1 is further off."""
    rng = np.random.default_rng(1)
    bulk = rng.beta(2.0, 2.0, size=P - 1) * 2
    diagonal = np.append(bulk, 3.0)
    seen = [top(np.diag(diagonal) + wigner(1.0, rng), 1)[0][0] for _ in range(8)]
    nodes = torch.from_numpy(bulk)
    expected = additive_bulk(3.0, 1.0, nodes, torch.ones(P - 1, dtype=torch.float64))
    assert abs(np.mean(seen) - expected.value) < 3 * math.sqrt(2 / P / 8)
    assert abs(np.mean(seen) - additive(3.0, 1.0).value) > 5 * abs(np.mean(seen) - expected.value)
    hidden = additive_bulk(2.2, 2.0, nodes, torch.ones(P - 1, dtype=torch.float64))
    assert hidden.overlap == 0 and hidden.value == hidden.edge


def test_the_edge_of_a_point_bulk_is_the_semicircle_s() -> None:
    """E2 with all of the bulk at zero is E1: value, overlap and edge, above and below."""
    for lam in (5.0, -3.0, 0.9):
        one = additive_bulk(lam, 1.0, torch.zeros(3), torch.ones(3))
        two = additive(lam, 1.0)
        assert one.value == pytest.approx(two.value) and one.edge == pytest.approx(two.edge)
        assert one.overlap == pytest.approx(two.overlap)


def test_inversion_and_extrapolation() -> None:
    """T2: seen at b = 16, inverted and carried to b = 4 … 256: within 2 %."""
    rng = np.random.default_rng(2)
    sigma, lam = 4 * 1.0, 4.0  # τ = 1 at b = 16
    diagonal = np.zeros(P)
    diagonal[0] = lam

    def seen(batch: int) -> float:
        draws = [
            top(np.diag(diagonal) + wigner(sigma / batch**0.5, rng), 1)[0][0] for _ in range(6)
        ]
        return float(np.mean(draws))

    found = additive_inverse(seen(16), sigma / 4)
    assert found == pytest.approx(lam, rel=0.02)
    for batch in (4, 8, 64, 256):
        assert additive(found, sigma / batch**0.5).value == pytest.approx(seen(batch), rel=0.02)


@given(st.floats(0.1, 10), st.floats(1.001, 50))
def test_the_inverse_inverts(tau: float, ratio: float) -> None:
    """E1 and its inverse compose to the identity for every outlier that stands out."""
    lam = ratio * tau
    assert additive_inverse(additive(lam, tau).value, tau) == pytest.approx(lam, rel=1e-4)


def test_gaussian_rows() -> None:
    """T3, E3: sixteen draws of b Gaussian rows; outlier, overlap and edge of a mixed bulk."""
    rng = np.random.default_rng(3)
    p, b, lam = 300, 600, 6.0
    others = np.concatenate([np.full(200, 1.0), np.full(99, 0.3)])
    root = np.sqrt(np.append(lam, others))
    values, overlaps = [], []
    for _ in range(16):
        rows = rng.normal(size=(b, p)) * root
        found, vectors = top(rows.T @ rows / b, 2)
        values.append(found)
        overlaps.append(vectors[0, 0] ** 2)
    expected = wishart(lam, torch.from_numpy(others), 1 / b)
    assert np.mean(values, 0)[0] == pytest.approx(expected.value, rel=0.03)
    assert np.mean(values, 0)[1] == pytest.approx(expected.edge, rel=0.03)
    assert np.mean(overlaps) == pytest.approx(expected.overlap, abs=0.01)


def test_the_isotropic_bulk_ends_where_marchenko_and_pastur_say() -> None:
    """E3 with a bulk s: edge s(1 + √g)², g = P/b, and outlier λ(1 + g s/(λ − s))."""
    found = wishart(9.0, torch.tensor([2.0]), 1 / 100, torch.tensor([50.0]))
    assert found.edge == pytest.approx(2 * (1 + math.sqrt(0.5)) ** 2)
    assert found.value == pytest.approx(9 * (1 + 0.5 * 2 / 7))


def test_second_order_perturbation() -> None:
    """E4: λ₁ + kκ is the mean over fresh noise of the batch's eigenvalue, up to order k²."""
    rng = np.random.default_rng(4)
    diagonal = np.array([5.0, 2.0, 1.0, 0.0])
    spread = np.array([0.0, 1.0, 2.0, 0.5])  # of the noise's first row
    known = coupling(5.0, torch.tensor(diagonal[1:]), torch.tensor(spread[1:] ** 2))
    k, draws = 0.05, []
    for _ in range(2000):
        noise = np.zeros((4, 4))
        noise[0] = noise[:, 0] = rng.normal(size=4) * spread * math.sqrt(k)
        values, vectors = np.linalg.eigh(np.diag(diagonal) + noise)
        draws.append((values[-1], vectors[0, -1] ** 2))
    value, overlap = np.mean(draws, 0)
    expected = perturbed(5.0, known, k)
    assert value - 5 == pytest.approx(expected.value - 5, rel=0.05)
    assert 1 - overlap == pytest.approx(1 - expected.overlap, rel=0.1)


@given(st.integers(2, 1000), st.data())
def test_the_factor_is_a_sample_mean_s_variance(n: int, data: st.DataObject) -> None:
    """k_N = 0, k_1 = 1, and a batch size comes back from its factor."""
    b = data.draw(st.integers(1, n))
    assert batch_factor(n, n) == 0 and batch_factor(1, n) == 1
    assert batch_of_factor(batch_factor(b, n), n) == pytest.approx(b)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: batch_factor(11, 10), "batch_size: expected at most all 10"),
        (lambda: batch_factor(0), "batch_size: expected a whole number"),
        (lambda: additive(1.0, -1.0), "tau: expected"),
        (lambda: additive(math.nan, 1.0), "lam: expected a finite"),
        (lambda: additive_bulk(0.5, 1.0, torch.arange(2), torch.ones(2)), "lam: expected an outl"),
        (lambda: additive_bulk(0.5, 1.0, torch.ones(0), torch.ones(0)), "nodes: expected a bulk"),
        (lambda: wishart(3.0, torch.tensor([-1.0]), 0.1), "others: expected eigenvalues of at"),
        (lambda: perturbed(1.0, Coupling(4.0, 0.0), 0.5), "k: expected a noise"),
        (lambda: coupling(1.0, torch.ones(1), torch.ones(1)), "others: expected eigenvalues below"),
    ],
)
def test_outside_its_limits_a_law_refuses(call, named: str, unchecked: None) -> None:
    """Each limit of validity is named, with what came and what to do."""
    with pytest.raises(InputError, match=named):
        call()
