"""Ritz values equal dense eigenvalues, residuals tell how far, and ghosts do not appear."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal import InputError
from shoal.curvature.lanczos import lanczos, quadrature
from shoal.curvature.spectrum import smoothed
from shoal.curvature.trace import hutchinson, hutchpp, xtrace


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and a random basis."""
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(*2 * values.shape, dtype=torch.float64, generator=draw))
    return (basis * values) @ basis.T


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.integers(1, 4))
def test_all_steps_give_all_eigenvalues(values: list[float], block: int) -> None:
    """Whatever the spectrum, zeros and copies of a value included: breakdowns begin anew."""
    true = torch.tensor(values, dtype=torch.float64)
    matrix = symmetric(true)
    found = lanczos(lambda v: matrix @ v, len(values), len(values), block=block)
    gap = (found.ritz - true.sort(descending=True).values).abs().max()
    assert gap <= 1e-9 * max(true.abs().max(), 1e-3)
    assert found.residuals.max() <= 1e-9 * max(true.abs().max(), 1e-3)
    assert abs(found.weights.sum() - 1) < 1e-9


def test_residuals_bound_the_distance_to_an_eigenvalue() -> None:
    """An eigenvalue within each residual, long before convergence; and residuals are the norm."""
    true = torch.linspace(-1, 5, 200, dtype=torch.float64)
    matrix = symmetric(true)
    found = lanczos(lambda v: matrix @ v, 200, 12)
    nearest = (found.ritz.unsqueeze(1) - true).abs().min(1).values
    assert (nearest <= found.residuals + 1e-12).all() and found.residuals[0] > 1e-4
    u = found.vector(0)
    norm = torch.linalg.vector_norm(matrix @ u - found.ritz[0] * u)
    torch.testing.assert_close(norm, found.residuals[0])
    norms = torch.stack([(matrix @ q).square().sum() for q in found.basis.rows])
    torch.testing.assert_close(norms, found.squares)


def test_no_ghosts() -> None:
    """120 steps on three outliers, in float32 too, find each of them once."""
    true = torch.cat([torch.tensor([9.0, 7.0, 5.0]), torch.rand(297)]).double()
    matrix = symmetric(true)
    for dtype in (torch.float64, torch.float32):
        found = lanczos(lambda v: matrix @ v.double(), 300, 120, dtype=dtype)
        assert (found.ritz > 2).sum() == 3
        torch.testing.assert_close(found.ritz[:3], true[:3], rtol=1e-6, atol=0)


def test_a_block_finds_copies_that_one_vector_cannot() -> None:
    """Eigenvalue 5 three times, nine steps: once from one vector, three times from three."""
    true = torch.cat([torch.full((3,), 5.0), torch.linspace(0, 1, 60)]).double()
    matrix = symmetric(true)
    count = [
        int((lanczos(lambda v: matrix @ v, 63, 9, block=block).ritz > 4.9).sum())
        for block in (1, 3)
    ]
    assert count == [1, 3]


def test_it_stops_once_the_top_is_settled() -> None:
    """The residual is below the tolerance, and one step fewer would not have done."""
    matrix = symmetric(torch.cat([torch.tensor([4.0]), torch.linspace(0, 1, 80)]).double())
    found = lanczos(lambda v: matrix @ v, 81, 60, tolerance=1e-5)
    steps = len(found.ritz)
    assert steps < 20 and found.residuals[0] <= 4e-5 and len(found.basis) == steps
    assert lanczos(lambda v: matrix @ v, 81, steps - 1).residuals[0] > 4e-5


def test_what_is_not_finite_is_refused() -> None:
    """NaN in a product: an error, no eigenvalue."""
    with pytest.raises(InputError, match="product: expected finite numbers"):
        lanczos(lambda v: v / 0, 5, 3)


def test_quadrature_is_exact_for_polynomials() -> None:
    """m steps integrate degree 2m − 1 against the start's own measure, and degree 2m not."""
    matrix = symmetric(torch.linspace(-1, 2, 40, dtype=torch.float64))
    starts: list[Tensor] = []

    def product(v: Tensor) -> Tensor:
        starts.append(v.clone())
        return matrix @ v

    nodes, weights = quadrature(product, 40, 4)
    for degree, exact in ((7, True), (8, False)):
        true = starts[0] @ torch.linalg.matrix_power(matrix, degree) @ starts[0]
        assert torch.isclose(weights @ nodes**degree, true, rtol=1e-6) == exact


def test_the_density_s_distance_is_within_its_bound() -> None:
    """Wasserstein's distance is the area between the two distribution functions."""
    true = torch.linspace(0, 1, 400, dtype=torch.float64).square()
    matrix = symmetric(true)
    nodes, weights = quadrature(lambda v: matrix @ v, 400, 40, 2)
    grid = torch.linspace(-0.1, 1.1, 4001, dtype=torch.float64)
    ours = ((nodes <= grid.unsqueeze(1)).double() @ weights).clamp(max=1)
    truth = (true <= grid.unsqueeze(1)).double().mean(1)
    distance = torch.trapezoid((ours - truth).abs(), grid)
    # Chen, Trogdon and Ubaru (arXiv 2105.06595, theorem 1), in units of the span, except with 5 %
    bound = max(12 / (40 - 0.5), math.sqrt(4 * math.log(2 * 400 / 0.05) / ((400 + 2) * 2)))
    assert 1e-4 < distance < bound < 1
    at, density = smoothed(nodes, weights)
    assert torch.trapezoid(density, at).item() == pytest.approx(1, abs=1e-3)


def test_traces_are_right_within_their_errors_and_rank_as_published() -> None:
    """Eigenvalues 1 / i²: root mean square errors of 20 seeds fall from one to the next."""
    true = 1 / torch.arange(1, 121, dtype=torch.float64) ** 2
    matrix, squares = symmetric(true), []
    for method in (hutchinson, hutchpp, xtrace):
        runs = [method(lambda v: matrix @ v, 120, 30, seed=seed) for seed in range(20)]
        gaps = torch.tensor([run.value for run in runs]) - true.sum()
        errors = torch.tensor([run.error for run in runs])
        squares.append(gaps.square().mean().sqrt().item())
        # XTrace's parts share their vectors, so its error is told about a third too small
        assert 0.4 < errors.mean() / squares[-1] < 2
    assert squares[0] > 5 * squares[1] and squares[1] > squares[2]
    assert xtrace(lambda v: matrix @ v, 120, 240).value == pytest.approx(true.sum().item())
