"""Products of one batch's curvature matrix with vectors, by three routes.

With L the loss, θ the parameters, z the outputs, J = ∂z/∂θ and q = ∂L/∂z:

    Hessian          H v = ∂/∂θ (∂L/∂θ · v)
    Gauss-Newton     G v = Jᵀ (∂²L/∂z²) J v                        (Schraudolph, Neural Comp. 2002)
    empirical Fisher F v = (1/b) Σ_i g_i g_iᵀ v = b Jᵀ (q_i (q_iᵀ (J v)_i))_i

where g_i = b J_iᵀ q_i is the gradient of sample i, row i of the outputs. So Gauss-Newton and Fisher
differ in the product at the outputs alone, which is small. The routes:

    double-backward        differentiates the gradient's own graph, which can be kept for the next
                           product: then a product costs no forward pass
    forward-over-reverse   dual numbers through one pass; keeps no graph of a gradient
    central-difference     (∇L(θ + εv) − ∇L(θ − εv)) / 2ε, or the same of z for J v: wherever
                           there is no second derivative, at an error of ε²
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NoReturn, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

from shoal.core.errors import expect, fail
from shoal.curvature.problem import Problem
from shoal.curvature.spectrum import Curvature

Route = Literal["double-backward", "forward-over-reverse", "central-difference"]
ROUTES = get_args(Route)
LinearOperator = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Maps vectors in the shapes of the leaves, linearly."""


@dataclass(frozen=True, eq=False)
class LinearizationPoint:
    """One batch of a problem, as a function of its leaves.

    Attributes:
        problem: whose batch.
        index: which batch.
    """

    problem: Problem
    index: int

    @property
    def leaves(self) -> list[Tensor]:
        """Where it is differentiated."""
        return list(self.problem.leaves.values())

    def outputs(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The expensive half, one tensor in a list.

        Raises:
            InputError: if the model gives something else.
        """
        made = self.problem.outputs(values, self.index)
        remedy = "give a forward that returns the logits"
        kind = type(made).__name__
        expect(isinstance(made, Tensor), "model", "outputs in one tensor", kind, remedy)
        return [made]

    def loss(self, outputs: Tensor) -> Tensor:
        """The cheap half."""
        return self.problem.loss(outputs, self.index)

    def gradient(self, values: Sequence[Tensor], graph: bool = False) -> list[Tensor]:
        """∂L/∂θ at `values`; zero for leaves without effect."""
        outputs = self.problem.outputs(values, self.index)
        return _grad([self.loss(outputs)], values, None, graph=graph)


def batch_operator(
    at: LinearizationPoint, curvature: Curvature, route: Route, keep: bool
) -> LinearOperator:
    """Return the product with one batch's curvature.

    Args:
        at: the batch.
        curvature: which matrix.
        route: how.
        keep: whether the operator will be called more than once; if not, its graphs are freed as
            they are used.

    Raises:
        InputError: if torch has no such derivative of an operation within.
    """
    try:
        if curvature == "hessian":
            operator = _hessian(at, route, keep)
        else:
            operator = _gauss_newton(at, curvature, route, keep)
    except (NotImplementedError, RuntimeError) as error:
        refuse(error, route)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            return operator(v)
        except (NotImplementedError, RuntimeError) as error:
            refuse(error, route)

    return apply


def refuse(error: Exception, route: Route) -> NoReturn:
    """Name the route that is left where torch lacks a derivative; else raise as it came.

    Raises:
        InputError: for a missing derivative.
    """
    text = str(error)
    if "use_reentrant=True" in text:
        want = "checkpointed segments that can be differentiated twice"
        fail("model", want, "use_reentrant=True", "checkpoint with use_reentrant=False")
    missing = ("forward AD", "derivative for aten::", "not implement", "torch.utils.checkpoint")
    if any(part in text for part in missing):
        other = "double-backward" if route == "forward-over-reverse" else "central-difference"
        got = " ".join(text.split())[:120]
        fail("route", f"operations that {route} can pass", got, f'take route="{other}"')
    raise error


def _hessian(at: LinearizationPoint, route: Route, keep: bool) -> LinearOperator:
    if route == "central-difference":
        return partial(central_difference, at.gradient, at.leaves)
    if route == "forward-over-reverse":
        return lambda v: _dual(at.gradient, at.leaves, v)[1]
    leaves = at.leaves
    gradient = at.gradient(leaves, graph=True)
    return lambda v: _grad(gradient, leaves, v, keep=keep)


def _gauss_newton(
    at: LinearizationPoint, curvature: Curvature, route: Route, keep: bool
) -> LinearOperator:
    leaves = at.leaves
    if route == "forward-over-reverse":

        def in_one_pass(v: Sequence[Tensor]) -> Sequence[Tensor]:
            (outputs,), (pushed,) = _dual(at.outputs, leaves, v)
            return _grad([outputs], leaves, [_at_outputs(at, outputs, curvature)(pushed)])

        return in_one_pass
    (outputs,) = at.outputs(leaves)
    if route == "double-backward":
        # Jᵀu is linear in u, so its derivative along v is J v whatever u is
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = _grad([outputs], leaves, [u], graph=True)
        push: LinearOperator = lambda v: _grad(pulled, [u], v, keep=keep)  # noqa: E731
    else:
        push = torch.no_grad()(partial(central_difference, at.outputs, leaves))
    middle = _at_outputs(at, outputs, curvature)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        (pushed,) = push(v)
        return _grad([outputs], leaves, [middle(pushed)], keep=keep)

    return apply


def _at_outputs(
    at: LinearizationPoint, outputs: Tensor, curvature: Curvature
) -> Callable[[Tensor], Tensor]:
    """The product at the outputs: ∂²L/∂z² for Gauss-Newton, b q_i q_iᵀ of each row for Fisher."""
    z = outputs.detach().requires_grad_()
    (q,) = _grad([at.loss(z)], [z], None, graph=curvature == "ggn")
    if curvature == "ggn":
        return lambda u: _grad([q], [z], [u], keep=True)[0]
    rows = q.flatten(1) if q.dim() > 1 else q.unsqueeze(1)
    return lambda u: (len(rows) * rows * (rows * u.view_as(rows)).sum(1, True)).view_as(q)


def _grad(
    of: Sequence[Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor] | None,
    keep: bool = False,
    graph: bool = False,
) -> list[Tensor]:
    """Torch's ``grad``, with zero where nothing depends on anything."""
    moving = [i for i, x in enumerate(of) if x.requires_grad]
    if not moving:
        return [torch.zeros_like(x) for x in at]
    gradients = grad(
        [of[i] for i in moving],
        at,
        None if along is None else [along[i] for i in moving],
        retain_graph=keep or graph,
        create_graph=graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(gradients)


_Function = Callable[[Sequence[Tensor]], list[Tensor]]


def _dual(
    function: _Function, leaves: Sequence[Tensor], v: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Values of a function and its derivatives along v, by dual numbers."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(leaves, v, strict=True)]
        parts = [forward_ad.unpack_dual(x) for x in function(duals)]
        tangents = [torch.zeros_like(x) if t is None else t.detach() for x, t in parts]
        return [x for x, _ in parts], tangents


def central_difference(
    function: _Function, leaves: Sequence[Tensor], v: Sequence[Tensor], reach: float = 1.0
) -> list[Tensor]:
    """The derivatives of a function along v, by central differences.

    Args:
        function: of the leaves.
        leaves: where.
        v: along which.
        reach: of the difference, in units of the length that balances its errors.
    """
    size = float(torch.stack([x.detach().norm() for x in leaves]).norm())
    length = float(torch.stack([t.norm() for t in v]).norm())
    # the cube root of the precision balances truncation, ε², with rounding, precision / ε
    step = torch.finfo(leaves[0].dtype).eps ** (1 / 3) * max(size, 1.0) / max(length, 1e-30)
    step *= reach
    ahead, behind = (
        function([(x.detach() + by * t).requires_grad_() for x, t in zip(leaves, v, strict=True)])
        for by in (step, -step)
    )
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
