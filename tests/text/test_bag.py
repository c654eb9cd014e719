"""matmul over a Csr and unit rows: equal to torch's own, through every kind of derivative."""

from __future__ import annotations

import torch
from hypothesis import given
from torch.func import grad, hessian, jvp, vjp
from torch.nn.functional import normalize

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.sparse import matmul, unit
from shoal.text.bag import BagSum
from tests.strategies import csrs


def _case() -> tuple[Csr, torch.Tensor]:
    matrix = Csr.from_lists([[0, 2, 2], [], [3, 1], [0]], n_cols=4)
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return matrix, rows


@given(csrs(min_cols=1))
def test_equals_dense_product(csr: Csr) -> None:
    """Same numbers as the dense matrix, with empty rows and doubles."""
    plain = csr.with_values(None)
    rows = torch.randn(csr.n_cols, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(matmul(plain, rows), plain.to_dense() @ rows)


def test_gradients_of_all_orders_check_out() -> None:
    """Numeric differences confirm the gradient, its gradient, and forward mode."""
    matrix, rows = _case()
    rows.requires_grad_()

    def cubed(x: torch.Tensor) -> torch.Tensor:
        return matmul(matrix, x) ** 3

    assert torch.autograd.gradcheck(cubed, rows, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cubed, rows)


def test_func_transforms_agree_with_dense() -> None:
    """jvp of grad, vjp and dense Hessians through matmul equal those through the dense matrix."""
    matrix, rows = _case()
    dense = matrix.to_dense().double()

    def ours(x: torch.Tensor) -> torch.Tensor:
        return (matmul(matrix, x).sin() ** 2).sum()

    def theirs(x: torch.Tensor) -> torch.Tensor:
        return ((dense @ x).sin() ** 2).sum()

    direction = torch.ones_like(rows)
    product = jvp(grad(ours), (rows,), (direction,))[1]
    expected = (hessian(theirs)(rows) * direction).sum((-1, -2))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(product, expected)
    back = vjp(lambda x: matmul(matrix, x), rows)[1](torch.ones(4, 3, dtype=torch.float64))[0]
    torch.testing.assert_close(back, dense.T @ torch.ones(4, 3, dtype=torch.float64))


def test_the_encoder_is_the_dense_formula() -> None:
    """Normalized sums and their gradient, from a block that knows its transpose."""
    matrix, rows = _case()
    ids = torch.arange(4)
    block = Block(ids, ids, matrix.indptr, matrix.indices, matrix.indices)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = matrix.to_dense().double()
    for _ in range(2):  # the second time the transpose is there already
        ours = grad(lambda x: (BagSum()([block], x) * weight).sum())(rows)
        theirs = grad(lambda x: (normalize(dense @ x, dim=1) * weight).sum())(rows)
        torch.testing.assert_close(ours, theirs)


def test_unit_is_normalize() -> None:
    """Values and gradient of torch's normalize, for zeros and for rows too short to scale too."""
    rows = _case()[1]
    rows[1], rows[2] = 0, rows[2] * 1e-14

    def cubes(scaled: torch.Tensor) -> torch.Tensor:
        return (scaled**3).sum()

    torch.testing.assert_close(unit(rows), normalize(rows, dim=1))
    ours, theirs = grad(lambda x: cubes(unit(x)))(rows), grad(lambda x: cubes(normalize(x)))(rows)
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs)


def test_unit_differentiates_in_every_mode() -> None:
    """Numeric differences confirm both orders; the Hessian is that of torch's normalize."""
    rows = _case()[1].requires_grad_()
    assert torch.autograd.gradcheck(unit, rows, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(unit, rows, check_fwd_over_rev=True)
    ours, theirs = (hessian(lambda x, f=f: (f(x) ** 3).sum())(rows) for f in (unit, normalize))
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs)
