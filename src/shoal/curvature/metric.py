"""The metric of an optimizer that divides each gradient by something: D^−½ H D^−½ in place of H.

With θ = S u and S = D^−½, a step of an optimizer that divides by D in θ is a plain step in u, and
the curvature there is S H S. So measuring in the metric needs no products of its own: parameters u
are differentiated, and S u is what the objective sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shoal.core.errors import expect
from shoal.curvature.spectrum import Metric

# An entry that never had a gradient has D = eps, and a step there would be unbounded; in truth its
# first gradient enters D at once. So D is held above this share of its root mean square.
FLOOR = 1e-3


def metric_of(optimizer: torch.optim.Optimizer | None) -> Metric:
    """The name of the metric that :func:`scales_of` makes."""
    plain = optimizer is None or isinstance(optimizer, torch.optim.SGD)
    return "plain" if plain else "adam"


def scales_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """S = D^−½ of every parameter that an optimizer moves, times √(its group's rate / the first's).

    D = √v̂ + eps for Adam, AdamW and RMSprop; 1 for SGD. Where nothing is scaled, nothing is
    returned.

    Args:
        optimizer: that has taken steps, if it is of Adam's kind.
        model: names its parameters.

    Raises:
        InputError: if it has not.
    """
    names = {param: name for name, param in model.named_parameters()}
    first = optimizer.param_groups[0]["lr"]
    scales = {}
    for group in optimizer.param_groups:
        share = group["lr"] / first if first > 0 else 1.0
        for param in group["params"]:
            divisor = _divisor(optimizer, group, param)
            if param in names and not (divisor is None and share == 1.0):
                divisor = torch.ones_like(param) if divisor is None else divisor
                scales[names[param]] = (max(share, FLOOR) / divisor.detach()).sqrt()
    return scales


def _divisor(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], param: Tensor
) -> Tensor | None:
    """D of one parameter; None where its gradient is taken as it is."""
    if isinstance(optimizer, torch.optim.SGD):
        return None
    state = optimizer.state.get(param, {})
    begun = "exp_avg_sq" in state or "square_avg" in state
    remedy = "take some fifty steps before measuring in its metric"
    expect(begun, "optimizer", "second moments of every parameter", "none yet", remedy)
    if "square_avg" in state:
        return floored(state["square_avg"].sqrt() + group["eps"])
    moments = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    corrected = moments / (1 - group["betas"][1] ** float(state["step"]))
    return floored(corrected.sqrt() + group["eps"])


def floored(divisor: Tensor) -> Tensor:
    """D with its smallest entries raised to a thousandth of its root mean square."""
    return divisor.clamp(min=FLOOR * float(divisor.square().mean().sqrt()))
