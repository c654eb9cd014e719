"""Parts shared by callbacks of other trainers: announcing epochs, and a step rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from shoal.core.optimizers import optimizer_info
from shoal.integrations.batches import NgameBatchSampler


def announce(sampler: NgameBatchSampler, epoch: int) -> None:
    """Begin an epoch: clusters are made now, if they are due and not made yet."""
    sampler.set_epoch(epoch)
    sampler.begin(epoch)


class StepControl:
    """A step rule within another trainer: made when training begins, saved with its checkpoints.

    Args:
        loss_fn: ``(outputs, targets)`` → mean over the batch; with `forward` ``(outputs, batch)``.
        forward: ``(model, batch)`` → outputs; None for ``model(inputs)`` of ``(inputs, targets)``.
        options: of :class:`~shoal.step.learner.StepLearner`.
    """

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        forward: Callable[[nn.Module, Any], Tensor] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.loss_fn, self.forward, self.options = loss_fn, forward, options
        self.rule: Any = None
        self.saved: dict[str, Any] | None = None

    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Sequence[Any] | None = None,
        lr: float | None = None,
    ) -> None:
        """Make the rule; go on from a checkpoint's state, if one was loaded.

        Args:
            model: that is trained.
            optimizer: its optimizer.
            batches: that are measured each time; None for those that are observed.
            lr: the rate to begin with; None for the optimizer's own.
        """
        from shoal.curvature.problem import Supervised
        from shoal.step.estimator import CurvatureEstimator
        from shoal.step.learner import StepLearner

        objective = Supervised(model, self.loss_fn, self.forward)
        measure: Any = CurvatureEstimator(objective, optimizer=optimizer)
        if batches is not None:
            estimator, measure = measure, lambda _: estimator(batches)
        info = optimizer_info(optimizer)
        info = info if lr is None else replace(info, lr=lr)
        self.rule = StepLearner(info, measure, **self.options)
        if self.saved is not None:
            self.rule.load_state_dict(self.saved)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state; empty before training begins."""
        return {} if self.rule is None else self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a state until training begins."""
        self.saved = state or None
