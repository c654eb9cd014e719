"""Clustered batches in the trainer of Hugging Face's transformers.

That trainer makes its own data loader, so ours goes in by overriding one method::

    class NgameTrainer(Trainer):
        def get_train_dataloader(self):
            loader = DataLoader(
                self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

and :func:`refresh_callback` tells the sampler the epoch, and keeps its state in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal._checks import fail
from shoal.integrations.batches import FILE, NgameBatchSampler


def refresh_callback(sampler: NgameBatchSampler) -> Any:
    """Make the ``TrainerCallback`` that `sampler` needs: epochs, clusters, checkpoints.

    At the begin of an epoch it clusters anew where that is due. With each checkpoint of the trainer
    it writes ``ngame.safetensors`` into its folder, and a run that is resumed reads it from
    ``output_dir/checkpoint-<step>``, so that it sees the batches of an uninterrupted run.

    Args:
        sampler: the batch sampler of the training data loader.

    Returns:
        a ``transformers.TrainerCallback`` for the trainer's ``callbacks``.

    Raises:
        InputError: if transformers is not installed.
    """
    return callback_of(lambda model: sampler)


def callback_of(find: Callable[[Any], NgameBatchSampler]) -> Any:
    """Make the callback of :func:`refresh_callback` for a sampler that a trainer makes later.

    Args:
        find: gives the sampler; called with the model when training begins and at every event.

    Raises:
        InputError: if transformers is not installed.
    """
    try:
        from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]
    except ImportError:
        fail("transformers", "an installed package", "none", "run pip install 'shoal[text]'")

    class Refresh(TrainerCallback):
        """Tells the sampler the epoch; saves and loads its state."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take the model, and the state of the checkpoint that training goes on from."""
            sampler = find(kwargs["model"])
            if state.global_step > 0:
                sampler.load(_checkpoint(args, state))

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Announce the epoch; its clusters are made now, if they are due."""
            sampler = find(kwargs["model"])
            # a resumed run starts with the fraction that it was stopped at
            epoch = int(state.epoch + 1e-6)
            sampler.set_epoch(epoch)
            sampler.begin(epoch)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Add the sampler's state to the checkpoint."""
            if state.is_world_process_zero:
                find(kwargs["model"]).save(_checkpoint(args, state))

    return Refresh()


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the current step's checkpoint.

    Raises:
        InputError: if training resumes from a folder that is not in ``output_dir``.
    """
    folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    if not folder.is_dir():
        wanted = f"the checkpoint that training goes on from, with {FILE}"
        fail(str(folder), wanted, "no such folder", "move the checkpoint into output_dir")
    return folder
