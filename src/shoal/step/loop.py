"""The step rule of a training loop that somebody else wrote, in two lines of it.

::

    learner = spectral_learner(model, loss_fn, optimizer)
    ...
        optimizer.step()
        learner.update(batch, loss)

It does what ``fit(job, step=spectral_step(job))`` does: it measures in the optimizer's own metric,
runs a range test, and puts weights back after a spike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from shoal.core.batches import map_tensors
from shoal.core.optimizers import optimizer_info
from shoal.core.optimizers import unwrapped as unwrapped_optimizer
from shoal.curvature.problem import Supervised, unwrapped
from shoal.step.estimator import CurvatureEstimator
from shoal.step.learner import StepLearner


class LoopLearner(StepLearner):
    """The learner of :func:`spectral_learner`, which holds the optimizer whose rates it sets."""

    def __init__(
        self,
        objective: Supervised,
        optimizer: torch.optim.Optimizer,
        schedulers: Sequence[LRScheduler],
        options: Mapping[str, Any],
    ) -> None:
        info = optimizer_info(optimizer)
        # a schedule may have begun at zero; what it rises to is what the rule multiplies
        lr = optimizer.param_groups[0].get("initial_lr", info.lr)
        model, self.sets, self.schedulers = objective.model, optimizer, tuple(schedulers)
        super().__init__(
            replace(info, lr=lr),
            CurvatureEstimator(objective, optimizer=optimizer),
            state=lambda: _copied({"model": dict(model.state_dict()), **_moments(optimizer)}),
            restore=lambda kept: _put_back(model, optimizer, _copied(kept)),
            **options,
        )

    def update(
        self, batch: Any, loss: float | Tensor | None, averaged: int = 1
    ) -> dict[str, float]:
        """Take note of a step that has been taken, and set the rates of the next one.

        Args:
            batch: that it was taken on, or the last of those.
            loss: of the step, before it.
            averaged: batches that it averaged over in this process, by gradient accumulation.

        Returns:
            metrics of a measurement, if there was one; else nothing.

        Raises:
            InputError: if curvature cannot be measured, or spikes do not end.
        """
        value = float(loss.detach()) if isinstance(loss, Tensor) else loss
        metrics = self.observe([batch], value, averaged)
        self.apply(self.sets, *self.schedulers)
        return metrics


def spectral_learner(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    *schedulers: LRScheduler,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    **options: Any,
) -> LoopLearner:
    """Make the step rule of a training loop of your own; call its ``update`` after each step.

    Args:
        model: that is trained; compiled, or within DistributedDataParallel, as it may be.
        loss_fn: ``(outputs, targets)`` → mean over the batch; ``(outputs, batch)`` with `forward`.
        optimizer: of the model, at the rate that training begins with.
        schedulers: of the optimizer's rates. Their warm-up and decay stay: what they start from is
            multiplied.
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)`` of ``(inputs, targets)``.
        options: of :class:`~shoal.step.learner.StepLearner`.

    Raises:
        InputError: if the optimizer is unknown.

    Example:
        A quadratic of curvature 2 without noise: from 0.1 to the law's 2/2.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> learner = spectral_learner(model, nn.MSELoss(), optimizer, warmup=2, range_test=False)
        >>> batch = torch.ones(128, 1), torch.zeros(128, 1)
        >>> for _ in range(4):
        ...     metrics = learner.update(batch, loss=1.0)
        >>> round(optimizer.param_groups[0]["lr"], 6)
        1.0
    """
    objective = Supervised(unwrapped(model), loss_fn, forward)
    return LoopLearner(objective, unwrapped_optimizer(optimizer), schedulers, options)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"moments": optimizer.state_dict()["state"]}


def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Weights and moments as they were; rates, and all else of the groups, as they are."""
    model.load_state_dict(kept["model"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": kept["moments"], "param_groups": groups})


def _copied(tree: Any) -> Any:
    return map_tensors(tree, lambda x: x.detach().clone())
