"""Clustered batches and step sizes in the trainer of Hugging Face's transformers.

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
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shoal.core import checkpoint
from shoal.core.errors import fail
from shoal.integrations.batches import FILE, NgameBatchSampler

STEPS = "steps.safetensors"


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

    class Refresh(_callback()):
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


def step_callback(
    loss_fn: Callable[..., Tensor],
    forward: Callable[[nn.Module, Any], Tensor],
    batches: int = 4,
    **options: Any,
) -> Any:
    """Make the ``TrainerCallback`` that sets rate and momentum from looks at curvature.

    It looks at the first batches of the trainer's data loader, and changes what the trainer's
    schedule starts from, so that warm-up and decay stay. With each checkpoint it writes
    ``steps.safetensors``. Spikes are seen in logged losses alone.

    Args:
        loss_fn: ``(outputs, batch)`` → mean over the batch, such as the cross-entropy of logits and
            ``batch["labels"]``.
        forward: ``(model, batch)`` → outputs, such as the logits.
        batches: that are looked at.
        options: of :class:`~shoal.step.learner.StepLearner`.

    Raises:
        InputError: if transformers is not installed.
    """
    from shoal.curvature.metric import scales_of
    from shoal.curvature.problem import Supervised
    from shoal.step.learner import learner_for
    from shoal.step.probe import Probe

    class Steps(_callback()):
        """Looks every so often, and sets what it learns."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take batches, and the state of the checkpoint that training goes on from."""
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            taken = list(islice(iter(kwargs["train_dataloader"]), batches))
            self.seen, self.loss = taken, None
            look = Probe(
                Supervised(model, loss_fn, forward), None, lambda _: scales_of(optimizer, model)
            )
            self.learner = learner_for(optimizer, lambda _: look(taken), **options)
            self.bases = _scheduler(kwargs).base_lrs.copy()
            self.learner.first_lr = self.learner.lr = self.bases[0]
            if state.global_step > 0:
                path = _checkpoint(args, state) / STEPS
                self.learner.load_state_dict(checkpoint.load(path))
                self._set(kwargs)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Remember the loss."""
            self.loss = (kwargs.get("logs") or {}).get("loss", self.loss)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take note of a step."""
            count = args.gradient_accumulation_steps
            if self.learner.observe(self.seen, self.loss, averaged=count):
                self._set(kwargs)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Add the learner's state to the checkpoint."""
            if state.is_world_process_zero:
                saved = self.learner.state_dict() | {"batches": []}
                checkpoint.save(_checkpoint(args, state) / STEPS, saved)

        def _set(self, kwargs: Any) -> None:
            scheduler = _scheduler(kwargs)
            scheduler.base_lrs[:] = [base * self.learner.factor for base in self.bases]
            self.learner.set_momentum(kwargs["optimizer"])

    return Steps()


def _scheduler(kwargs: Any) -> Any:
    """Torch's own scheduler, out of accelerate's."""
    scheduler = kwargs["lr_scheduler"]
    return getattr(scheduler, "scheduler", scheduler)


def _callback() -> Any:
    """The trainer's class of callbacks.

    Raises:
        InputError: if transformers is not installed.
    """
    try:
        from transformers import TrainerCallback  # pyright: ignore[reportMissingImports]
    except ImportError:
        fail("transformers", "an installed package", "none", "run pip install 'shoal[text]'")
    return TrainerCallback


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
