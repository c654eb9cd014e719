"""What would make every number wrong, found before anything is measured.

A loss that is no scalar, not finite, or a sum; an objective that gives two values for one batch;
parameters that it does not depend on: each is named with its remedy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.core.batches import map_tensors
from shoal.core.errors import expect, fail
from shoal.curvature.problem import Problem, Supervised
from shoal.curvature.products import Products
from shoal.curvature.routes import refuse
from shoal.curvature.spectrum import Curvature


@dataclass(frozen=True)
class Checked:
    """What is known of a problem before it is measured.

    Attributes:
        notes: what only needs saying.
        is_mean: whether, as far as it shows, the loss is a mean of samples' losses.
    """

    notes: tuple[str, ...] = ()
    is_mean: bool = True


def check_problem(problem: Problem, curvature: Curvature = "ggn") -> Checked:
    """Check what would make every number wrong; return what only needs saying.

    Raises:
        InputError: if the loss is no scalar, not finite, a sum, not the same twice, or depends on
            parameters beside the outputs.
    """
    expect_halves(problem, curvature)
    with torch.no_grad():
        values = [_scalar(problem.value(index)) for index in range(len(problem.batches))]
        again = _scalar(problem.value(0))
    for index, value in enumerate(values):
        good = bool(torch.isfinite(value))
        remedy = "measure at parameters where training has not diverged"
        expect(good, "loss_fn", "a finite loss", f"{value.item()} on batch {index}", remedy)
    gap = abs((again - values[0]).item())
    want, remedy = "the same loss twice on a batch", "make the model a function of its batch"
    same = gap <= 1e-6 * max(abs(values[0].item()), 1e-30)
    expect(same, "model", want, f"{values[0].item()} and {again.item()}", remedy)
    apart = _expect_mean(problem)
    return Checked((*apart, *_unused(problem)), not apart)


def expect_halves(problem: Problem, curvature: Curvature = "ggn") -> None:
    """Raise unless the loss depends on parameters through the outputs alone.

    Raises:
        InputError: for outputs that are no tensor, or the loss itself where the curvature needs
            outputs, and for a penalty on weights inside the loss.
    """
    outputs = problem.outputs(list(problem.leaves.values()), 0)
    remedy, kind = "give a forward that returns the logits", type(outputs).__name__
    expect(isinstance(outputs, Tensor), "model", "outputs in one tensor", kind, remedy)
    remedy += ", and a loss_fn of them"
    good = outputs.dim() > 0 or curvature == "hessian"
    expect(good, "forward", "outputs", "a single number, as a loss is", remedy)
    beside = problem.loss(outputs.detach(), 0)
    moves = isinstance(beside, Tensor) and beside.requires_grad
    remedy = "leave a penalty out of loss_fn, and give it to the optimizer as weight_decay"
    want = "a loss that depends on parameters through the outputs alone"
    expect(not moves, "loss_fn", want, "one that reads parameters as well", remedy)


def expect_symmetric(products: Products) -> None:
    """Raise unless central differences of a Hessian are symmetric.

    Those through a checkpointed segment are not: its backward pass computes the segment again, from
    weights that were not moved.

    Raises:
        InputError: if they are not.
    """
    if products.route != "central-difference" or products.curvature != "hessian":
        return
    generator = torch.Generator().manual_seed(0)
    p, kind = products.shape[0], products.dtype
    vectors = [torch.randn(p, generator=generator).to(products.device, kind) for _ in range(4)]
    found = [products.along(0, v) for v in vectors]
    pairs = [(i, j) for i in range(4) for j in range(i)]
    sides = [(float(vectors[i] @ found[j]), float(vectors[j] @ found[i])) for i, j in pairs]
    apart, size = sum(abs(a - b) for a, b in sides), sum(abs(a) for a, _ in sides)
    remedy = "measure the Gauss-Newton matrix, curvature='ggn', or take route='double-backward'"
    got = "products that are not symmetric, as those through torch.utils.checkpoint"
    expect(apart <= 0.05 * size, "route", "the gradient of a loss", got, remedy)


def _scalar(value: Tensor) -> Tensor:
    good = isinstance(value, Tensor) and value.dim() == 0
    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    expect(good, "loss_fn", "a scalar, the mean over the batch", got, 'use reduction="mean"')
    return value


def _expect_mean(problem: Problem) -> list[str]:
    """Compare the loss of a batch with that of the batch taken twice, where that can be done."""
    batch, n = problem.batches[0], problem.sizes[0]
    if not isinstance(problem.objective, Supervised):
        return []
    with torch.no_grad():
        outputs = problem.outputs(list(problem.leaves.values()), 0)
        if outputs.dim() == 0 or len(outputs) != n:
            return []
        once = problem.loss(outputs, 0).item()

        def double(x: Tensor) -> Tensor:
            return torch.cat([x, x]) if x.dim() and len(x) == n else x

        try:
            twice = problem.objective.loss(
                torch.cat([outputs, outputs]), map_tensors(batch, double)
            ).item()
        except Exception:  # a loss that reads more of a batch than its rows
            return []
    if abs(twice - once) <= 1e-4 * abs(once) + 1e-8:
        return []
    if abs(twice - 2 * once) <= 1e-4 * abs(once):
        fail("loss_fn", "a mean over the batch", "a sum", 'use reduction="mean"')
    return [
        "the loss of a batch taken twice is another: it is no mean of samples' losses, so the "
        "noise is that of batches of this size and the factor 1 / batch size does not hold; "
        "measure scores as outputs, or curvature='fisher'"
    ]


def _unused(problem: Problem) -> list[str]:
    leaves = list(problem.leaves.values())
    value = problem.value(0)
    remedy = "check for detach() and no_grad() between the parameters and the loss"
    expect(value.requires_grad, "model", "a loss that depends on parameters", "one without", remedy)
    try:
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    except RuntimeError as error:
        refuse(error, "double-backward")
    unused = [name for name, x in zip(problem.leaves, gradients, strict=True) if x is None]
    good = len(unused) < len(leaves)
    expect(good, "model", "a loss that depends on the parameters", "one without", remedy)
    return [f"without gradient, so flat: {', '.join(unused)}"] if unused else []
