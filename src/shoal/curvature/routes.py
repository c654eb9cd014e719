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
from typing import Literal, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

from shoal.core.errors import expect, fail
from shoal.curvature.spectrum import Curvature
from shoal.curvature.subject import Subject

Route = Literal["double-backward", "forward-over-reverse", "central-difference"]
Map = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A linear map of vectors in the shapes of the leaves."""


@dataclass(frozen=True, eq=False)
class At:
    """One batch of a subject, as a function of its leaves.

    Attributes:
        subject: of which.
        index: the batch.
    """

    subject: Subject
    index: int

    @property
    def leaves(self) -> list[Tensor]:
        """Where it is differentiated."""
        return list(self.subject.leaves.values())

    def outputs(self, values: Sequence[Tensor]) -> Tensor:
        """The expensive half."""
        return self.subject.outputs(values, self.index)

    def loss(self, outputs: Tensor) -> Tensor:
        """The cheap half."""
        return self.subject.loss(outputs, self.index)

    def gradient(self, values: Sequence[Tensor], graph: bool = False) -> list[Tensor]:
        """∂L/∂θ at `values`; zero for leaves without effect."""
        return _grad([self.loss(self.outputs(values))], values, None, graph=graph)


def batch_map(at: At, curvature: Curvature, route: Route, keep: bool) -> Map:
    """Return the product with one batch's curvature.

    Args:
        at: the batch.
        curvature: which matrix.
        route: how.
        keep: whether the map will be called more than once; if not, its graphs go as they are used.

    Raises:
        InputError: if torch has no such derivative of an operation within.
    """
    try:
        if curvature == "hessian":
            made = _HESSIAN[route](at, keep)
        else:
            made = _GAUSS_NEWTON[route](at, curvature, keep)
    except (NotImplementedError, RuntimeError) as error:
        _refuse(error, route)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        try:
            return made(v)
        except (NotImplementedError, RuntimeError) as error:
            _refuse(error, route)

    return apply


def _refuse(error: Exception, route: Route) -> NoReturn:
    """Name the route that is left where torch lacks a derivative; else raise as it came.

    Raises:
        InputError: for a missing derivative.
    """
    text = str(error)
    if "forward AD" in text or "derivative for aten::" in text or "not implement" in text:
        other = "double-backward" if route == "forward-over-reverse" else "central-difference"
        fail("route", f"operations that {route} can pass", text[:120], f'take route="{other}"')
    raise error


# -- Hessian ---------------------------------------------------------------------------------


def _hessian_double_backward(at: At, keep: bool) -> Map:
    leaves = at.leaves
    gradient = at.gradient(leaves, graph=True)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        return _grad(gradient, leaves, v, keep=keep)

    return apply


def _hessian_forward_over_reverse(at: At, keep: bool) -> Map:
    del keep  # nothing is kept

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        with forward_ad.dual_level():
            gradient = at.gradient([_dual(x, t) for x, t in zip(at.leaves, v, strict=True)])
            return [_tangent(g) for g in gradient]

    return apply


def _hessian_central_difference(at: At, keep: bool) -> Map:
    del keep

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        step = _step(at.leaves, v)
        ahead, behind = (at.gradient(_shifted(at.leaves, v, by)) for by in (step, -step))
        return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]

    return apply


# -- Gauss-Newton and empirical Fisher -------------------------------------------------------


def _gauss_newton_double_backward(at: At, curvature: Curvature, keep: bool) -> Map:
    leaves = at.leaves
    outputs = _expect_tensor(at.outputs(leaves))
    # Jᵀu is linear in u, so its derivative along v is J v whatever u is
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = _grad([outputs], leaves, [u], graph=True)
    middle = _at_outputs(at, outputs, curvature)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        (pushed,) = _grad(pulled, [u], v, keep=keep)
        return _grad([outputs], leaves, [middle(pushed)], keep=keep)

    return apply


def _gauss_newton_forward_over_reverse(at: At, curvature: Curvature, keep: bool) -> Map:
    del keep

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        leaves = at.leaves
        with forward_ad.dual_level():
            duals = [_dual(x, t) for x, t in zip(leaves, v, strict=True)]
            outputs, pushed = forward_ad.unpack_dual(_expect_tensor(at.outputs(duals)))
        pushed = torch.zeros_like(outputs) if pushed is None else pushed.detach()
        return _grad([outputs], leaves, [_at_outputs(at, outputs, curvature)(pushed)])

    return apply


def _gauss_newton_central_difference(at: At, curvature: Curvature, keep: bool) -> Map:
    outputs = _expect_tensor(at.outputs(at.leaves))
    middle = _at_outputs(at, outputs, curvature)

    def apply(v: Sequence[Tensor]) -> Sequence[Tensor]:
        step = _step(at.leaves, v)
        with torch.no_grad():
            ahead, behind = (at.outputs(_shifted(at.leaves, v, by)) for by in (step, -step))
        pushed = middle((ahead - behind) / (2 * step))
        return _grad([outputs], at.leaves, [pushed], keep=keep)

    return apply


def _at_outputs(at: At, outputs: Tensor, curvature: Curvature) -> Callable[[Tensor], Tensor]:
    """The product at the outputs: ∂²L/∂z² for Gauss-Newton, b q_i q_iᵀ of each row for Fisher."""
    z = outputs.detach().requires_grad_()
    (q,) = _grad([at.loss(z)], [z], None, graph=curvature == "ggn")
    if curvature == "ggn":
        return lambda u: _grad([q], [z], [u], keep=True)[0]
    rows = q.flatten(1) if q.dim() > 1 else q.unsqueeze(1)
    return lambda u: (len(rows) * rows * (rows * u.view_as(rows)).sum(1, True)).view_as(q)


_HESSIAN: dict[str, Callable[[At, bool], Map]] = {
    "double-backward": _hessian_double_backward,
    "forward-over-reverse": _hessian_forward_over_reverse,
    "central-difference": _hessian_central_difference,
}
_GAUSS_NEWTON: dict[str, Callable[[At, Curvature, bool], Map]] = {
    "double-backward": _gauss_newton_double_backward,
    "forward-over-reverse": _gauss_newton_forward_over_reverse,
    "central-difference": _gauss_newton_central_difference,
}
ROUTES = tuple(_HESSIAN)


# -- parts -----------------------------------------------------------------------------------


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
    found = grad(
        [of[i] for i in moving],
        at,
        None if along is None else [along[i] for i in moving],
        retain_graph=keep or graph,
        create_graph=graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


def _dual(x: Tensor, tangent: Tensor) -> Tensor:
    return forward_ad.make_dual(x, tangent)


def _tangent(x: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if tangent is None else tangent.detach()


def _shifted(leaves: Sequence[Tensor], v: Sequence[Tensor], by: float) -> list[Tensor]:
    return [(x.detach() + by * t).requires_grad_() for x, t in zip(leaves, v, strict=True)]


def _step(leaves: Sequence[Tensor], v: Sequence[Tensor]) -> float:
    """ε: the cube root of the precision balances truncation, ε², with rounding, precision / ε."""
    size = float(torch.stack([x.detach().norm() for x in leaves]).norm())
    length = float(torch.stack([t.norm() for t in v]).norm())
    relative = torch.finfo(leaves[0].dtype).eps ** (1 / 3)
    return relative * max(size, 1.0) / max(length, 1e-30)


def _expect_tensor(outputs: object) -> Tensor:
    remedy = "give a forward that returns the logits"
    got = type(outputs).__name__
    expect(isinstance(outputs, Tensor), "model", "outputs in one tensor", got, remedy)
    assert isinstance(outputs, Tensor)
    return outputs
