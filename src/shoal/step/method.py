"""What of an optimizer decides how far it may step: its kind, its memory, its decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from shoal.core.errors import expect, fail

Kind = Literal["sgd", "adam", "damped"]
_REMEDY = "pass a torch.optim SGD, RMSprop, Adam or AdamW, or 'sgd', 'momentum', 'adam', 'adamw'"


@dataclass(frozen=True)
class Method:
    """An optimizer, as far as stability depends on it.

    Attributes:
        kind: gradients as they are, divided by the root of their second moments, or by a damped
            curvature.
        momentum: B of heavy-ball momentum, or β₁.
        decay: weight decay that is part of the gradient, and so adds to the curvature.
        lr: of the first group, or None where only a name is known.
        started: whether it has taken steps; None where that does not show.
        notes: what the laws do not know about it.
    """

    kind: Kind
    momentum: float = 0.0
    decay: float = 0.0
    lr: float | None = None
    started: bool | None = None
    notes: tuple[str, ...] = ()


Optimizer = torch.optim.Optimizer | Method | str

_NAMES = {
    "sgd": Method("sgd"),
    "momentum": Method("sgd", 0.9),
    "adam": Method("adam", 0.9),
    "adamw": Method("adam", 0.9),
    "rmsprop": Method("adam"),
}


def method_of(optimizer: Optimizer) -> Method:
    """Read a torch optimizer, or a name with its usual momentum of 0.9.

    Args:
        optimizer: SGD, RMSprop, Adam, AdamW or a class that extends one, :class:`DampedDiagonal`
            (:mod:`shoal.step.damped`), or ``sgd``, ``momentum``, ``adam``, ``adamw``, ``rmsprop``;
            or what this function made.

    Raises:
        InputError: for any other.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> method_of(torch.optim.SGD([weight], lr=0.1, momentum=0.5)).momentum
        0.5
        >>> method_of("adamw").kind
        'adam'
    """
    if isinstance(optimizer, Method):
        return optimizer
    if isinstance(optimizer, str):
        expect(optimizer in _NAMES, "optimizer", "one that is known", optimizer, _REMEDY)
        return _NAMES[optimizer]
    known = isinstance(optimizer, torch.optim.Optimizer)
    expect(known, "optimizer", "a torch optimizer or a name", type(optimizer).__name__, _REMEDY)
    group = optimizer.param_groups[0]
    started = len(optimizer.state) > 0
    if isinstance(optimizer, torch.optim.SGD):
        return _sgd(group, started)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.RMSprop):
        decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        beta = float(group["betas"][0]) if "betas" in group else 0.0
        decay = 0.0 if decoupled else float(group["weight_decay"])
        return Method("adam", beta, decay, float(group["lr"]), started)
    if "damping" in group:
        return Method("damped", 0.0, float(group["weight_decay"]), float(group["lr"]), started)
    fail("optimizer", "one that is known", type(optimizer).__name__, _REMEDY)


def _sgd(group: dict[str, Any], started: bool) -> Method:
    dampened, momentum = float(group["dampening"]), float(group["momentum"])
    remedy = "use dampening=0 and scale the learning rate by 1 - dampening"
    expect(dampened == 0, "dampening", "0", dampened, remedy)
    notes = ("Nesterov's momentum is read as heavy-ball",) if group["nesterov"] else ()
    # plain SGD keeps no state, so that nothing tells whether it has begun
    known = started if momentum > 0 else None
    return Method("sgd", momentum, float(group["weight_decay"]), float(group["lr"]), known, notes)
