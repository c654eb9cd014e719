"""A second-order optimizer, x ← x − a (D + δ)⁻¹ g, and the least damping δ that holds it.

D is a running mean of the diagonal of the Gauss–Newton matrix, by Hutchinson's z ⊙ Gz with random
signs z (Bekas, Kokiopoulou and Saad, 2007; to precondition with: AdaHessian, 2006.00719). Without
damping flat directions are stepped along as far as steep ones, and the noise of batches throws them
out. Granziol, Zohren and Roberts (JMLR 2022) have the least damping proportional to
learning rate over batch size; so has E8 of :mod:`shoal.curvature.stability` where noise dominates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import expect, expect_positive
from shoal.core.optimizers import OptimizerInfo
from shoal.curvature.products import Products


class DampedDiagonal(torch.optim.Optimizer):
    """x ← x − lr · g / (D + δ), with D a running mean of the Gauss–Newton matrix' diagonal.

    Call :meth:`observe` with a new estimate every so many steps (:func:`diagonal_of`). Before the
    first one D is zero, and a step is that of SGD with the rate lr/δ.

    Args:
        params: as torch's optimizers take them.
        lr: a, the share of a Newton step; 1 is all of it.
        damping: δ, above 0; the least is in the advice of :func:`~shoal.step.size.learning_rate`.
        decay: of the running mean, in [0, 1).
        weight_decay: added to the gradient.

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = DampedDiagonal([x], lr=1.0, damping=1.0)
        >>> optimizer.observe({x: torch.tensor([3.0, 0.0])})
        >>> (x * torch.tensor([4.0, 1.0])).sum().backward()
        >>> optimizer.step()
        >>> x.tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.5,
        damping: float = 1.0,
        *,
        decay: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        expect(lr >= 0, "lr", "a learning rate of at least 0", lr, "raise it")
        expect(damping > 0, "damping", "a number above 0", damping, "see learning_rate")
        expect(0 <= decay < 1, "decay", "a number in [0, 1)", decay, "try 0.9")
        expect(weight_decay >= 0, "weight_decay", "at least 0", weight_decay, "raise it")
        defaults = {"lr": lr, "damping": damping, "decay": decay, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def curvature_info(self, at: Tensor | None = None) -> OptimizerInfo:
        """What stability depends on; the laws of damping read the spectrum in the plain metric."""
        group = self.param_groups[0]
        started = len(self.state) > 0
        return OptimizerInfo("damped", 0.0, group["weight_decay"], group["lr"], started)

    def observe(self, diagonal: Mapping[Tensor, Tensor]) -> None:
        """Take an estimate of the diagonal, one tensor a parameter, into the running mean."""
        for group in self.param_groups:
            for param in group["params"]:
                if param not in diagonal:
                    continue
                state, seen = self.state[param], diagonal[param].detach()
                if "diagonal" not in state:
                    state["diagonal"] = seen.clone()
                else:
                    state["diagonal"].lerp_(seen, 1 - group["decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient.

        Args:
            closure: evaluates the loss anew, as torch has it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                gradient = param.grad.add(param, alpha=group["weight_decay"])
                # an estimate of a diagonal that is not negative can be; its mean is not
                diagonal = self.state[param].get("diagonal", torch.zeros_like(param)).clamp(min=0)
                param.addcdiv_(gradient, diagonal + group["damping"], value=-group["lr"])
        return loss


def diagonal_of(products: Products, probes: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Estimate the diagonal of a curvature: the mean of z ⊙ Hz over random signs z.

    Args:
        products: with the curvature.
        probes: random vectors; the error of an entry falls as the root of their number.
        seed: of them.

    Returns:
        one tensor a leaf, by name.

    Raises:
        InputError: if `probes` is not positive.
    """
    expect_positive("probes", probes)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(products.shape[0], dtype=torch.float64, device=products.device)
    for _ in range(probes):
        z = torch.randint(0, 2, total.shape, generator=generator).to(products.device) * 2.0 - 1.0
        total += z.double() * (products @ z.to(products.dtype))
    leaves = products.problem.leaves
    parts = (total / probes).split([leaf.numel() for leaf in leaves.values()])
    return {
        name: x.view_as(leaf).to(leaf)
        for (name, leaf), x in zip(leaves.items(), parts, strict=True)
    }
