"""Parts shared by callbacks of other trainers: announcing epochs, and a step rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

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
        self.batch: Any = None
        self.losses: list[float] = []
        self.shares = False

    def begin(self, model: nn.Module, optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
        """Make the rule; go on from a checkpoint's state, if one was loaded.

        Args:
            model: that is trained.
            optimizer: its optimizer, in the state of the checkpoint.
            schedulers: of its rates, likewise.
        """
        from shoal.step.loop import spectral_learner

        self.rule = spectral_learner(
            model, self.loss_fn, optimizer, *schedulers, forward=self.forward, **self.options
        )
        if self.saved is not None:
            self.rule.load_state_dict(self.saved)

    def saw(self, batch: Any, loss: float, share: bool = False) -> None:
        """Remember a batch of the step in progress.

        Args:
            batch: that the model was called with.
            loss: its mean loss, or its share of the step's.
            share: which.
        """
        self.batch, self.shares = batch, share
        self.losses.append(loss)

    def stepped(self) -> dict[str, float]:
        """Tell the rule that a step was taken on what was seen; metrics, if it measured."""
        count, self.losses, seen = len(self.losses), [], self.losses
        if count == 0:
            return {}
        loss = sum(seen) if self.shares else sum(seen) / count
        return self.rule.update(self.batch, loss, averaged=count)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, but batches that wait; empty before training begins."""
        return {} if self.rule is None else self.rule.state_dict() | {"batches": []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a state until training begins."""
        self.saved = state or None
