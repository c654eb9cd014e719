"""Clustered batches in Lightning's trainer: a callback that tells the sampler the epoch.

The data loader takes the sampler as it is, ``DataLoader(data, batch_sampler=sampler)``, and
:func:`refresh_callback` joins the trainer's callbacks. On several devices pass
``Trainer(use_distributed_sampler=False)``: Lightning would rebuild the sampler with arguments that
it guesses.
"""

from __future__ import annotations

from typing import Any

from shoal._checks import fail
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
    try:
        from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
    except ImportError:
        fail("lightning", "an installed package", "none", "run pip install lightning")

    class Refresh(Callback):
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
