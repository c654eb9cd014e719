"""Clustered batches and step sizes in the trainer of Hugging Face's transformers.

That trainer makes its own data loader, so ours goes in by overriding one method::

    class NgameTrainer(Trainer):
        def get_train_dataloader(self):
            loader = DataLoader(
                self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

and :func:`refresh_callback` announces epochs to the sampler, and keeps its state in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from shoal.core import checkpoint
from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.callbacks import StepControl, announce

_PACKAGE = "transformers", "transformers", "trainer"
STEPS = "steps.safetensors"
_ITEMS = "num_items_in_batch"
# What the callbacks of one training write into its checkpoints.
_FILES: WeakKeyDictionary[Any, dict[str, NgameBatchSampler]] = WeakKeyDictionary()


def refresh_callback(sampler: NgameBatchSampler) -> Any:
    """Make the ``TrainerCallback`` that `sampler` needs: epochs, clusters, checkpoints.

    At the begin of an epoch it clusters anew where that is due. With each checkpoint of the trainer
    it writes the sampler's file (``ngame.safetensors``, by its name) into its folder, and a run
    that is resumed reads it from ``output_dir/checkpoint-<step>``, so that it sees the batches of
    an uninterrupted run.

    Args:
        sampler: the batch sampler of the training data loader.

    Returns:
        a ``transformers.TrainerCallback`` for the trainer's ``callbacks``.

    Raises:
        InputError: if transformers is not installed.
    """
    return callback_of(lambda args, model: sampler)


def callback_of(find: Callable[[Any, Any], NgameBatchSampler]) -> Any:
    """Make the callback of :func:`refresh_callback` for a sampler that a trainer makes later.

    Args:
        find: gives the sampler; called with the trainer's arguments and the model when training
            begins and at every event.

    Raises:
        InputError: if transformers is not installed.
    """

    class Refresh(require(*_PACKAGE).TrainerCallback):
        """Announces epochs to the sampler; saves and loads its state."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take the model, and the state of the checkpoint that training goes on from."""
            sampler = find(args, kwargs["model"])
            files = _FILES.setdefault(kwargs["train_dataloader"], {})
            alone = files.setdefault(sampler.file, sampler) is sampler
            remedy = "give each NgameBatchSampler a name of its own"
            expect(alone, "callbacks", f"one that writes {sampler.file}", "several", remedy)
            if state.global_step > 0:
                sampler.load(_checkpoint(args, state))

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Begin the epoch."""
            # a resumed run starts with the fraction that it was stopped at
            announce(find(args, kwargs["model"]), int(state.epoch + 1e-6))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Add the sampler's state to the checkpoint."""
            if state.is_world_process_zero:
                find(args, kwargs["model"]).save(_checkpoint(args, state))

    return Refresh()


def step_callback(
    loss_fn: Callable[..., Tensor],
    forward: Callable[[nn.Module, Any], Tensor],
    **options: Any,
) -> Any:
    """Make the ``TrainerCallback`` that sets rate and momentum from measured curvature.

    It sees batches and losses as the model is called, so the model must return its loss, as those
    of transformers do that are given labels. It changes what the trainer's schedule starts from, so
    that warm-up and decay stay. With each checkpoint it writes ``steps.safetensors``.

    Args:
        loss_fn: ``(outputs, batch)`` → mean over the batch, such as the cross-entropy of logits and
            ``batch["labels"]``.
        forward: ``(model, batch)`` → outputs, such as the logits.
        options: of :class:`~shoal.step.learner.StepLearner`.

    Raises:
        InputError: if transformers is not installed.
    """
    steps = StepControl(loss_fn, forward, options)

    def watch(module: nn.Module, given: Any, batch: dict[str, Any], made: Any) -> None:
        """Remember a batch that the model is trained on."""
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = made.get("loss") if isinstance(made, Mapping) else None
        remedy = "give it labels, or call shoal.spectral_learner in a loop of your own"
        if loss is None:
            fail("model", "one that returns its loss", type(made).__name__, remedy)
        # told how many labels a step has, a model returns its share of the step's loss
        kept = {name: part for name, part in batch.items() if name != _ITEMS}
        steps.saw(kept, float(loss.detach()), share=batch.get(_ITEMS) is not None)

    class Steps(require(*_PACKAGE).TrainerCallback):
        """Observes each step, and sets what the rule decides."""

        control = steps

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Make the rule, in the state of the checkpoint that training goes on from."""
            if state.global_step > 0:
                steps.load_state_dict(checkpoint.load(_checkpoint(args, state) / STEPS))
            model = kwargs["model"]
            steps.begin(model, kwargs["optimizer"], [_scheduler(kwargs)])
            self.hook = model.register_forward_hook(watch, with_kwargs=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Tell the rule of a step."""
            steps.stepped()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Leave the model as it was."""
            self.hook.remove()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Add the rule's state to the checkpoint."""
            if state.is_world_process_zero:
                checkpoint.save(_checkpoint(args, state) / STEPS, steps.state_dict())

    return Steps()


def _scheduler(kwargs: Any) -> Any:
    """Torch's own scheduler, out of accelerate's."""
    scheduler = kwargs["lr_scheduler"]
    return getattr(scheduler, "scheduler", scheduler)


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the current step's checkpoint.

    Raises:
        InputError: if training resumes from a folder that is not in ``output_dir``.
    """
    folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    if not folder.is_dir():
        wanted = "the checkpoint that training goes on from"
        fail(str(folder), wanted, "no such folder", "move the checkpoint into output_dir")
    return folder
