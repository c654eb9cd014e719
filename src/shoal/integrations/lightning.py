"""Clustered batches and step sizes in Lightning's trainer, by callbacks.

The data loader takes the sampler as it is, ``DataLoader(data, batch_sampler=sampler)``, and
:func:`refresh_callback` joins the trainer's callbacks. On several devices pass
``Trainer(use_distributed_sampler=False)``: Lightning would rebuild the sampler with arguments that
it guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from shoal.core.distribution import require
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.callbacks import StepControl, announce

_PACKAGE = "lightning.pytorch", "lightning", "lightning"


def refresh_callback(sampler: NgameBatchSampler) -> Any:
    """Make the Lightning ``Callback`` that `sampler` needs: epochs, clusters, checkpoints.

    Lightning may start a data loader before it announces the epoch; the sampler then clusters by
    itself, with the model as it is at that moment. The sampler's state travels in Lightning's own
    checkpoints; Lightning resumes at whole epochs.

    Args:
        sampler: the batch sampler of the training data loader.

    Returns:
        a ``lightning.pytorch.Callback`` for the trainer's ``callbacks``.

    Raises:
        InputError: if lightning is not installed.
    """

    class Refresh(require(*_PACKAGE).Callback):
        """Announces epochs to the sampler; its state is the sampler's."""

        @property
        def state_key(self) -> str:
            """Where the state lies in a checkpoint: of several samplers each has its own."""
            return sampler.file

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            """Begin the epoch."""
            announce(sampler, trainer.current_epoch)

        def state_dict(self) -> dict[str, Any]:
            """The sampler's state, for Lightning's checkpoint."""
            return sampler.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Take up the state of Lightning's checkpoint."""
            sampler.load_state_dict(state_dict)

    return Refresh()


def step_callback(
    loss_fn: Callable[..., Tensor],
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    **options: Any,
) -> Any:
    """Make the Lightning ``Callback`` that sets rate and momentum from measured curvature.

    It multiplies the rates of the trainer's first optimizer, and what its schedulers start from.
    Its state travels in Lightning's checkpoints.

    Args:
        loss_fn: ``(outputs, targets)`` → mean over the batch, what ``training_step`` returns.
        forward: ``(module, batch)`` → outputs, `loss_fn` then being called with ``(outputs,
            batch)``; None for ``module(inputs)`` of ``(inputs, targets)``.
        options: of :class:`~shoal.step.learner.StepLearner`.

    Raises:
        InputError: if lightning is not installed.
    """
    steps = StepControl(loss_fn, forward, options)

    class Steps(require(*_PACKAGE).Callback):
        """Observes each step, and sets what the rule decides."""

        control = steps

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Make the rule."""
            optimizer = trainer.optimizers[0]
            configs = [config.scheduler for config in trainer.lr_scheduler_configs]
            mine = [x for x in configs if getattr(x, "optimizer", None) is optimizer]
            steps.begin(pl_module, optimizer, mine)
            self.taken = trainer.global_step

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            """Remember a batch; if a step was taken on it and those before, tell the rule."""
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            # Lightning divides it by the batches of a step
            steps.saw(batch, float(loss) * trainer.accumulate_grad_batches)
            if trainer.global_step == self.taken:
                return
            self.taken = trainer.global_step
            metrics = steps.stepped()
            if metrics:
                pl_module.log_dict({f"step/{name}": value for name, value in metrics.items()})

        def state_dict(self) -> dict[str, Any]:
            """The rule's state, for Lightning's checkpoint."""
            return steps.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Take up the state of Lightning's checkpoint."""
            steps.load_state_dict(state_dict)

    return Steps()
