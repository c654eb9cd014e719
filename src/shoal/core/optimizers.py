"""What curvature and step sizes need to know of an optimizer: one adapter for all kinds.

Every optimizer here moves x ← x − lr · m/D, m a running mean of gradients and D a divisor per
number. With x = S u and S = D^−½ that is a plain step in u, so how far it may go depends on the
curvature in the optimizer's metric, D^−½ H D^−½. The optimizers of torch are read here; any other,
of dense parameters or of the rows of a table, describes itself by a method ``curvature_info``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from shoal.core.errors import expect, fail

_REMEDY = (
    "pass a torch.optim SGD, RMSprop, Adam or AdamW, or 'sgd', 'momentum', 'adam', 'adamw'; "
    "one of your own needs a method curvature_info"
)
# An entry that never had a gradient has D = eps, and a step there would be unbounded; in truth its
# first gradient enters D at once. So D is held above this share of its root mean square.
FLOOR = 1e-3
# Steps of training after which curvature no longer misleads (docs/results/steps.md).
WARM = 50


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer, as far as stability depends on it.

    Attributes:
        kind: what divides gradients: nothing (``"sgd"``), the root of their second moments
            (``"adam"``) or a damped curvature (``"damped"``).
        momentum: B of heavy-ball momentum, or β₁.
        decay: weight decay that is part of the gradient, and so adds to the curvature.
        lr: of the first group, or None where only a name is known.
        started: whether it has taken some fifty steps; None where that does not show.
        notes: what the laws do not cover.
        rates: of the groups, over the first one's.
        divisor: D of the parameter or the rows that were asked for; None where gradients are taken
            as they are, or before the first step of a row optimizer.
    """

    kind: Literal["sgd", "adam", "damped"]
    momentum: float = 0.0
    decay: float = 0.0
    lr: float | None = None
    started: bool | None = None
    notes: tuple[str, ...] = ()
    rates: tuple[float, ...] = (1.0,)
    divisor: Tensor | None = field(default=None, compare=False)

    @property
    def metric(self) -> Literal["plain", "adam"]:
        """The metric in which its steps are plain ones."""
        return "adam" if self.kind == "adam" else "plain"


@runtime_checkable
class DescribesItself(Protocol):
    """An optimizer of one's own that curvature can be measured for."""

    def curvature_info(self, at: Tensor | None = None) -> OptimizerInfo:
        """What stability depends on.

        Args:
            at: a parameter, or the ids of rows, whose divisor is asked for: a tensor of the
                parameter's shape, or ``[s, 1]`` or ``[s, d]`` for s rows.
        """
        ...


Optimizer = torch.optim.Optimizer | DescribesItself | OptimizerInfo | str

_NAMES = {
    "sgd": OptimizerInfo("sgd"),
    "momentum": OptimizerInfo("sgd", 0.9),
    "adam": OptimizerInfo("adam", 0.9),
    "adamw": OptimizerInfo("adam", 0.9),
    "rmsprop": OptimizerInfo("adam"),
}


def optimizer_info(optimizer: Any, at: Tensor | None = None) -> OptimizerInfo:
    """Read an optimizer as it stands, or a name with its usual momentum of 0.9.

    Args:
        optimizer: SGD, RMSprop, Adam, AdamW or a class that extends one; any with a method
            ``curvature_info``; ``sgd``, ``momentum``, ``adam``, ``adamw`` or ``rmsprop``; or what
            this function returned.
        at: passed on to ``curvature_info``.

    Raises:
        InputError: for any other.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer_info(torch.optim.SGD([weight], lr=0.1, momentum=0.5)).momentum
        0.5
        >>> optimizer_info("adamw").kind
        'adam'
    """
    if isinstance(optimizer, OptimizerInfo):
        return optimizer
    if isinstance(optimizer, str):
        expect(optimizer in _NAMES, "optimizer", "one that is known", optimizer, _REMEDY)
        return _NAMES[optimizer]
    if isinstance(optimizer, DescribesItself):
        return optimizer.curvature_info(at)
    optimizer = unwrapped(optimizer)
    kind = type(optimizer).__name__
    known = isinstance(optimizer, torch.optim.Optimizer)
    expect(known, "optimizer", "a torch optimizer or a name", kind, _REMEDY)
    groups = optimizer.param_groups
    group, rates = groups[0], tuple(rates_of(optimizer))
    lr = float(group["lr"])
    decay = max(float(group["weight_decay"]) for group in groups)
    notes = _notes_on_groups(groups)
    if isinstance(optimizer, torch.optim.SGD):
        dampened, momentum = float(group["dampening"]), float(group["momentum"])
        remedy = "use dampening=0 and scale the learning rate by 1 - dampening"
        expect(dampened == 0, "dampening", "0", dampened, remedy)
        notes += ("Nesterov's momentum is read as heavy-ball",) if group["nesterov"] else ()
        # plain SGD keeps no state, so that nothing shows whether it has begun
        begun = len(optimizer.state) > 0 if momentum > 0 else None
        return OptimizerInfo("sgd", momentum, decay, lr, begun, notes, rates)
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop):
        fail("optimizer", "one that is known", kind, _REMEDY)
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    momentum = float(group["betas"][0]) if "betas" in group else 0.0
    steps = [float(state.get("step", 0)) for state in optimizer.state.values()]
    begun = max(steps, default=0) >= WARM
    return OptimizerInfo("adam", momentum, 0.0 if decoupled else decay, lr, begun, notes, rates)


def unwrapped(optimizer: Any) -> Any:
    """Torch's own optimizer, out of accelerate's or Lightning's."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rate of each group over the first one's; in a warm-up from 0, those it rises to.

    Example:
        >>> a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> groups = [{"params": [a]}, {"params": [b], "lr": 0.5}]
        >>> rates_of(torch.optim.SGD(groups, lr=0.25))
        [1.0, 2.0]
    """
    groups = optimizer.param_groups
    name = "lr" if groups[0]["lr"] > 0 else "initial_lr"
    rates = [float(group.get(name, 0.0)) for group in groups]
    return [rate / rates[0] if rates[0] > 0 else 1.0 for rate in rates]


def _notes_on_groups(groups: list[dict[str, Any]]) -> tuple[str, ...]:
    several = [
        name
        for name in ("momentum", "betas", "weight_decay")
        if len({str(group.get(name)) for group in groups}) > 1
    ]
    if not several or several == ["weight_decay"]:
        return ()  # of several decays the largest is taken
    return (f"groups differ in {' and '.join(several)}: the first group's was taken",)


def unmoved(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of the parameters that want a gradient and that an optimizer has not moved.

    Those that are in none of its groups, and those that have no second moments while others have.
    """
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        return []
    mine = {param for group in optimizer.param_groups for param in group["params"]}
    moved = {param for param in mine if optimizer.state.get(param)}
    if isinstance(optimizer, torch.optim.SGD) or not moved:
        moved = mine
    named = model.named_parameters()
    return [name for name, param in named if param.requires_grad and param not in moved]


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
    optimizer = unwrapped(optimizer)
    names = {param: name for name, param in model.named_parameters()}
    still, scales = set(unmoved(optimizer, model)), {}
    for group, share in zip(optimizer.param_groups, rates_of(optimizer), strict=True):
        for param in group["params"]:
            name = names.get(param)
            if name is None or name in still or not param.requires_grad:
                continue
            divisor = _divisor(optimizer, group, param)
            if not (divisor is None and share == 1.0):
                divisor = torch.ones_like(param) if divisor is None else divisor
                scales[name] = (max(share, FLOOR) / divisor.detach()).sqrt()
    return scales


def _divisor(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], param: Tensor
) -> Tensor | None:
    """D of one parameter; None where its gradient is taken as it is."""
    if isinstance(optimizer, DescribesItself):
        return optimizer.curvature_info(param).divisor
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
