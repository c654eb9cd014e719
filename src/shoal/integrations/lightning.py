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

from shoal.core.errors import fail
from shoal.integrations.batches import NgameBatchSampler


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

    class Refresh(_callback()):
        """Tells the sampler the epoch; its state is the sampler's."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            """Announce the epoch; make its clusters, if they are due and not made yet."""
            sampler.set_epoch(trainer.current_epoch)
            sampler.begin(trainer.current_epoch)

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
    """Make the Lightning ``Callback`` that sets rate and momentum from looks at curvature.

    It sets the rates of the trainer's first optimizer; leave schedulers that set them too out of
    ``configure_optimizers``. Its state travels in Lightning's checkpoints.

    Args:
        loss_fn: ``(outputs, targets)`` → mean over the batch, what ``training_step`` returns.
        forward: ``(module, batch)`` → outputs, `loss_fn` then being called with ``(outputs,
            batch)``; None for ``module(inputs)`` of ``(inputs, targets)``.
        options: of :class:`~shoal.step.learner.StepLearner`.

    Raises:
        InputError: if lightning is not installed.
    """
    from shoal.curvature.metric import scales_of
    from shoal.curvature.problem import Supervised
    from shoal.step.learner import learner_for
    from shoal.step.probe import Probe

    class Steps(_callback()):
        """Looks every so often, and sets what it learns."""

        def __init__(self) -> None:
            self.learner: Any = None
            self.saved: dict[str, Any] | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Make the learner; go on from a checkpoint's, if there is one."""
            optimizer = trainer.optimizers[0]
            objective = Supervised(pl_module, loss_fn, forward)
            look = Probe(objective, None, lambda _: scales_of(optimizer, pl_module))
            self.learner = learner_for(optimizer, look, **options)
            if self.saved is not None:
                self.learner.load_state_dict(self.saved)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            """Take note of a step; batches between two steps of accumulation are none."""
            count = trainer.accumulate_grad_batches
            if (batch_idx + 1) % count:
                return
            loss = float(outputs["loss"] if isinstance(outputs, dict) else outputs)
            facts = self.learner.observe([batch], loss, averaged=count)
            if facts:
                self.learner.apply(trainer.optimizers[0])
                pl_module.log_dict({f"step/{name}": value for name, value in facts.items()})

        def state_dict(self) -> dict[str, Any]:
            """The learner's state, for Lightning's checkpoint."""
            return {} if self.learner is None else self.learner.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Take up the state of Lightning's checkpoint."""
            self.saved = state_dict or None

    return Steps()


def _callback() -> Any:
    """Lightning's class.

    Raises:
        InputError: if lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
    except ImportError:
        fail("lightning", "an installed package", "none", "run pip install lightning")
    return Callback
