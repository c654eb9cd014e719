"""Products equal dense float64 matrices, by every route, kept or made anew."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from shoal import InputError
from shoal.curvature.preserve import preserve_state
from shoal.curvature.problem import Problem, Supervised, problem_of
from shoal.curvature.products import Products, saved_bytes
from shoal.curvature.routes import LinearizationPoint, Route
from shoal.curvature.spectrum import Curvature
from tests.curvature.dense import classes, mlp, per_sample

KINDS = get_args(Curvature)


def problem(model: nn.Module, loss_fn: Any, batches: list[Any], **options: Any) -> Problem:
    return problem_of(Supervised(model, loss_fn), batches, max_batches=9, **options)


@pytest.mark.parametrize("route", get_args(Route))
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_matrix(kind: Curvature, route: Route) -> None:
    """The mean over samples, whatever the batches' sizes; graphs kept or not, again and again."""
    model, loss_fn, batches = mlp(), nn.CrossEntropyLoss(), classes()
    dense = per_sample(model, loss_fn, batches, kind).mean(0)
    tolerance = 1e-7 if route == "central-difference" else 1e-12
    with preserve_state(model, batches, "eval", 0):
        for memory in (0, 1 << 30):
            products = Products(problem(model, loss_fn, batches), kind, route, memory)
            for v in torch.randn(3, products.shape[0], dtype=torch.float64):
                torch.testing.assert_close(products @ v, dense @ v, rtol=0, atol=tolerance)
            assert products.kept == (3 if memory and route == "double-backward" else 0)
    assert dense.norm() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_float32_products_err_by_float32_rounding(kind: Curvature) -> None:
    """Sums are float64: the error of 20 batches is not above that of a few roundings."""
    batches = classes((3,) * 20)
    small = [(x.float(), y) for x, y in batches]
    exact = per_sample(mlp(), nn.CrossEntropyLoss(), batches, kind).mean(0)
    model = mlp(torch.float32)
    with preserve_state(model, small, "eval", 0):
        found = problem_of(Supervised(model, nn.CrossEntropyLoss()), small, max_batches=20)
        v = torch.ones(found.parameters)
        made = Products(found, kind) @ v
    assert made.dtype == torch.float64
    assert (made - exact @ v.double()).norm() < 3e-7 * (exact @ v.double()).norm()


def test_mean_square_loss_and_linear_models_have_products_too() -> None:
    """MSE of a linear model: Hessian and Gauss-Newton are both 2 XᵀX / n, for one output."""
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    model, batches = nn.Linear(3, 1, bias=False).double(), [(x, y)]
    v = torch.randn(3, dtype=torch.float64)
    with preserve_state(model, batches, "eval", 0):
        for kind in ("hessian", "ggn"):
            made = Products(problem(model, nn.MSELoss(), batches), kind) @ v
            torch.testing.assert_close(made, 2 * x.T @ (x @ v) / 7)


def test_a_filter_gives_the_block_of_the_matrix() -> None:
    """Parameters by name: rows and columns of those alone."""
    model, batches = mlp(), classes()
    dense = per_sample(model, nn.CrossEntropyLoss(), batches, "hessian").mean(0)
    with preserve_state(model, batches, "eval", 0):
        found = problem(model, nn.CrossEntropyLoss(), batches, params=lambda name: name[0] == "2")
        products = Products(found, "hessian")
        made = torch.stack([products @ e for e in torch.eye(products.shape[0])], dim=1)
    torch.testing.assert_close(made, dense[25:, 25:])


class Attention(nn.Module):
    """One head of torch's fused attention: its CPU kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(len(x), 2, 2, 12)[..., :12].chunk(3, dim=-1)
        return nn.functional.scaled_dot_product_attention(q, k, v).flatten(1)[:, :3]


@pytest.mark.parametrize("route", ["double-backward", "forward-over-reverse"])
def test_attention_falls_to_the_math_kernel(route: Route) -> None:
    """Both exact routes pass scaled_dot_product_attention, and agree with central differences."""
    torch.manual_seed(0)
    model = Attention()
    batches = [(torch.randn(5, 4, 4), torch.randint(3, (5,)))]
    with preserve_state(model, batches, "eval", 0):
        found = problem(model, nn.CrossEntropyLoss(), batches)
        v = torch.randn(found.parameters)
        made = Products(found, "hessian", route) @ v
        near = Products(found, "hessian", "central-difference") @ v
    assert (made - near).norm() < 1e-2 * made.norm() and made.norm() > 0


def test_an_operation_without_a_derivative_names_the_route_that_is_left() -> None:
    """Group normalization has no forward mode of its gradient; double-backward passes it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)).double()
    batches = classes()
    with preserve_state(model, batches, "eval", 0):
        found = problem(model, nn.CrossEntropyLoss(), batches)
        v = torch.ones(found.parameters)
        with pytest.raises(InputError, match=r'route: .*; take route="double-backward"'):
            Products(found, "hessian", "forward-over-reverse") @ v
        assert (Products(found, "hessian") @ v).norm() > 0


def test_memory_bounds_the_graphs_that_are_kept() -> None:
    """Room for two graphs of the first batch's size keeps two, or one and a smaller one."""
    model, batches = mlp(), classes((6, 6, 6))
    with preserve_state(model, batches, "eval", 0):
        found = problem(model, nn.CrossEntropyLoss(), batches)
        each = saved_bytes(LinearizationPoint(found, 0), "hessian")
        for room, kept in ((each - 1, 0), (each, 1), (2 * each, 2), (9 * each, 3)):
            products = Products(found, "hessian", memory=room)
            products @ torch.ones(found.parameters)
            assert products.kept == kept


def test_several_vectors_are_each_alone() -> None:
    """Products with three vectors at once equal three products."""
    model, batches = mlp(), classes()
    with preserve_state(model, batches, "eval", 0):
        products = Products(problem(model, nn.CrossEntropyLoss(), batches), "ggn", memory=0)
        vectors = list(torch.randn(3, products.shape[0], dtype=torch.float64))
        together = list(products.each_of(vectors))
        for k, v in enumerate(vectors):
            for batch, alone in zip(together, products.each(v), strict=True):
                torch.testing.assert_close(batch[k], alone)
    assert products.taken == 6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "newton"}, "curvature: expected one of"),
        ({"route": "sideways"}, "route: expected one of"),
    ],
)
def test_unknown_words_are_refused(options: dict[str, Any], message: str) -> None:
    """Each with the words that are known."""
    with pytest.raises(InputError, match=message):
        Products(problem(mlp(), nn.CrossEntropyLoss(), classes()), **options)
