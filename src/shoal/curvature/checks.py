"""What would make every number wrong, found before anything is measured.

A loss that is no scalar, not finite, or a sum; an objective that gives two values for one batch;
parameters that it does not depend on: each is named with its remedy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.core.batches import map_tensors
from shoal.core.errors import expect, fail
from shoal.curvature.problem import Problem, Supervised


def check_problem(problem: Problem) -> list[str]:
    """Check what would make every number wrong; return what only needs saying.

    Raises:
        InputError: if the loss is no scalar, not finite, a sum, or not the same twice.
    """
    notes = []
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
    notes += _expect_mean(problem)
    return notes + _unused(problem)


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
        if not isinstance(outputs, Tensor) or len(outputs) != n:
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
        "noise is that of batches of this size and the factor 1 / batch size does not hold"
    ]


def _unused(problem: Problem) -> list[str]:
    leaves = list(problem.leaves.values())
    value = problem.value(0)
    remedy = "check for detach() and no_grad() between the parameters and the loss"
    expect(value.requires_grad, "model", "a loss that depends on parameters", "one without", remedy)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    unused = [name for name, x in zip(problem.leaves, gradients, strict=True) if x is None]
    good = len(unused) < len(leaves)
    expect(good, "model", "a loss that depends on the parameters", "one without", remedy)
    return [f"without gradient, so flat: {', '.join(unused)}"] if unused else []
