"""The one loop: gradient of an objective over a loader's batches, with everything that a run needs.

A step takes the gradient with respect to the dense parameters and, where the table is trainable, to
the rows that the batch gathered; clips both by one norm; moves the parameters by a torch optimizer
and the rows by the table's own. The learning rate rises linearly over the warm-up and falls
linearly to zero at the end of the budget, as in NGAME's published configuration; a step rule may
set what it falls from (``shoal.spectral_step``: from curvature, measured while training).

Law: a run that is stopped after any step and resumed ends in the same numbers as one that is not,
at the same thread count. Everything that a step reads is therefore either a function of
(seed, epoch, batch) or part of the checkpoint. (A budget in minutes alone is the exception: there
the clock sets the learning rate.)

Where ``torch.distributed`` runs, its processes train together: each makes its share of a batch's
outputs (:mod:`shoal.sample.parts`), all take the same step, and what they cannot know alike (the
clock, an interrupt, the loss's last bit) is told by process 0 or by any. n processes end in the
numbers of one, up to rounding, and a run may be resumed by another number of them.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from shoal.core import ranks
from shoal.core.block import Batch
from shoal.core.errors import expect, fail
from shoal.fetch.threads import main_interrupted
from shoal.training.callbacks import Callback, RunLog, log_due
from shoal.training.checkpoints import load_last, weights_of, whole_state
from shoal.training.gradients import gradient_of, trained
from shoal.training.job import Budget, Job, Progress, StepRule
from shoal.training.run import Run

_LOGGER = logging.getLogger("shoal")


def fit(
    job: Job,
    budget: Budget,
    run: Run | None = None,
    *,
    resume: bool = False,
    step: StepRule | None = None,
    callbacks: Sequence[Callback] = (),
) -> Progress:
    """Train until the budget is spent, then save.

    The model, and the table if it is trainable, are trained in place. With validation, ``run.best``
    is the checkpoint of the best round; ``run.last`` is where a resumed run continues. An interrupt
    (Ctrl-C or a termination signal) ends the run after the step in progress and saves; a second one
    ends it at once.

    Args:
        job: what is trained.
        budget: how long.
        run: where checkpoints and the log go; None keeps nothing.
        resume: continue from ``run.last``; where a run has no checkpoint yet, begin.
        step: multiplies the schedule's learning rate by its factor, such as
            ``shoal.spectral_step(job)``; None leaves the schedule alone.
        callbacks: called in this order, after the run's log.

    Raises:
        InputError: if the loss is not a finite number, there is no run to resume, the checkpoint is
            that of another job, or a callback refuses the job.
    """
    if ranks.world_size() > 1 and step is not None:
        what, remedy = f"{ranks.world_size()}, and a step rule", "measure in one process"
        fail("step", "one process, as curvature is measured on whole batches", what, remedy)
    job.loader.shared = ranks.world_size() > 1
    loop = _Loop(job, budget, run, step, callbacks)
    with ranks.together(), torch.random.fork_rng(), interrupts() as interrupted:
        torch.manual_seed(job.seed)
        if resume:
            loop.resume()
        loop.run(interrupted)
    return loop.progress


class _Loop:
    """A run in progress."""

    def __init__(
        self,
        job: Job,
        budget: Budget,
        run: Run | None,
        rule: StepRule | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.job, self.budget, self.folder, self.rule = job, budget, run, rule
        self.callbacks = [*([] if run is None else [RunLog(run)]), *callbacks]
        self.state = {**job.state, **({} if rule is None else {"step": rule})}
        self.progress = Progress()
        self.total = budget.total_steps(job.steps_per_epoch)
        self.lrs = [group["lr"] for group in job.optimizer.param_groups] if job.optimizer else []
        self.tables = [*([] if job.table is None else [job.table]), *job.tables.values()]
        self.table_lrs = [table.optimizer.lr for table in self.tables]
        self.saved_at = time.monotonic()

    def run(self, interrupted: threading.Event) -> None:
        start = time.monotonic() - self.progress.seconds
        self.progress.share = self._share()
        for callback in self.callbacks:
            callback.begin(self.progress, self.job)
        while not self._spent():
            self._refresh()
            for batches in _chunks(iter(self.job.loader), self.job.gradients.accumulate):
                metrics = self._step(batches)
                (self.progress.seconds,) = ranks.agreed([time.monotonic() - start])
                self.progress.share = self._share()
                for callback in self.callbacks:
                    callback.step(self.progress, metrics)
                if ranks.any_of(interrupted.is_set() or bool(self.progress.stopped)):
                    self.progress.stopped = self.progress.stopped or "interrupt"
                if self._spent():
                    break
                if self.folder is not None and self.folder.save_due(self.saved_at):
                    self._save(self.folder)
            self._validate()
        if self.folder is not None:
            self._save(self.folder)
        for callback in self.callbacks:
            metrics = {"stopped": self.progress.stopped, "loss": self.progress.loss}
            callback.end(self.progress, metrics)

    def _spent(self) -> bool:
        progress, minutes = self.progress, self.budget.minutes
        if not progress.stopped:
            if self.total is not None and progress.step >= self.total:
                progress.stopped = "steps"
            elif minutes is not None and progress.seconds >= 60 * minutes:
                progress.stopped = "minutes"
        return bool(progress.stopped)

    def _share(self) -> float:
        """The share of the budget that is spent, by the limit that is nearer."""
        by_steps = 0.0 if self.total is None else self.progress.step / self.total
        minutes = self.budget.minutes
        by_clock = 0.0 if minutes is None else self.progress.seconds / (60 * minutes)
        return min(max(by_steps, by_clock), 1.0)

    def _refresh(self) -> None:
        """Show the batch sampler new embeddings, at the first batch of an epoch only."""
        loader = self.job.loader
        if self.job.refresh is None or loader.position > 0:
            return
        begin = time.monotonic()
        metrics = self.job.refresh(loader.epoch)
        seconds = round(time.monotonic() - begin, 3)
        metrics = {"epoch": loader.epoch, "refresh_seconds": seconds, **metrics}
        for callback in self.callbacks:
            callback.refresh(self.progress, metrics)

    # -- one step ----------------------------------------------------------------------------

    def _step(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """Take one step; its metrics come back."""
        job = self.job
        self._set_lr(self._factor())
        if job.loader.shared:  # processes draw different masks, and the same ones when resumed
            key = np.random.SeedSequence((job.seed, self.progress.step, ranks.rank()))
            torch.manual_seed(int(key.generate_state(1)[0]))
        gradient = gradient_of(job.objective, batches, job.table is not None, job.gradients)
        (self.progress.loss,) = ranks.agreed([gradient.loss])
        if math.isfinite(self.progress.loss):
            gradient.clip_(job.gradients.clip)
            if job.optimizer is not None:
                for name, param in trained(job.objective.model).items():
                    param.grad = gradient.dense[name]
                job.optimizer.step()
                job.optimizer.zero_grad()
            if job.table is not None and gradient.rows is not None:
                job.table.update(gradient.ids, gradient.rows)
            if job.observe is not None:
                for batch, outputs in zip(batches, gradient.outputs, strict=True):
                    job.observe(batch, outputs)
        elif self.rule is None:  # which could put an earlier state back
            where = f"loss at step {self.progress.step + 1}"
            remedy = "lower the learning rate; the last checkpoint is untouched"
            fail(where, "a finite number", self.progress.loss, remedy)
        self.progress.step += 1
        curvature = self._observe(batches)
        metrics: dict[str, Any] = {"loss": self.progress.loss, "epoch": job.loader.epoch}
        if job.measure is not None and log_due(self.progress.step):
            metrics |= job.measure(batches[-1], gradient.outputs[-1])
        return metrics | ({"curvature": curvature} if curvature else {})

    def _observe(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Show the step to the rule; it may measure curvature, or put an earlier state back."""
        if self.rule is None:
            return {}
        metrics = self.rule.observe(batches, self.progress.loss)
        if metrics and self.job.optimizer is not None:
            self.rule.set_momentum(self.job.optimizer)
        return metrics

    def _factor(self) -> float:
        """The schedule, of step or clock: linear up over the warm-up, linear down to zero."""
        step, minutes = self.progress.step, self.budget.minutes
        if self.total is not None:
            spent = step / self.total
        else:
            spent = self.progress.seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, (step + 1) / max(self.job.warmup, 1)) * max(1.0 - spent, 0.0)

    def _set_lr(self, factor: float) -> None:
        factor *= 1.0 if self.rule is None else self.rule.factor
        if self.job.optimizer is not None:
            for group, lr in zip(self.job.optimizer.param_groups, self.lrs, strict=True):
                group["lr"] = lr * factor
        for table, lr in zip(self.tables, self.table_lrs, strict=True):
            table.optimizer.lr = lr * factor

    # -- validation and checkpoints ----------------------------------------------------------

    def _validate(self) -> None:
        """Evaluate at the end of every so many epochs, and at the end of the run."""
        job, progress = self.job, self.progress
        due = job.loader.epoch % job.evaluate_every == 0 and job.loader.position == 0
        ended = progress.stopped not in ("", "interrupt")
        if job.evaluate is None or not (due or ended):
            return
        begin = time.monotonic()
        metrics = job.evaluate()
        metrics = dict(zip(metrics, ranks.agreed(list(metrics.values())), strict=True))
        seconds = round(time.monotonic() - begin, 3)
        score = next(iter(metrics.values()))
        better = score > progress.best
        progress.rounds = 0 if better else progress.rounds + 1
        progress.best = max(progress.best, score)
        if better and self.folder is not None:
            self.folder.save_best(weights_of(job) | {"step": progress.step})
        metrics = {"epoch": job.loader.epoch, "validate_seconds": seconds, **metrics}
        for callback in self.callbacks:
            callback.validate(progress, metrics)

    def _save(self, run: Run) -> None:
        run.save_last(whole_state(self.job, self.progress, self.state))
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        run = self.folder
        expect(run is not None, "run", "a run folder to resume from", None, "pass run, or --out")
        assert run is not None
        if run.last.exists():
            self.progress = load_last(self.job, run, self.state)
        else:
            _LOGGER.warning("no checkpoint in %s yet: training starts anew", run.folder)


def _chunks(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while chunk := list(itertools.islice(batches, size)):
        yield chunk


class _MainInterrupted(threading.Event):
    def is_set(self) -> bool:
        return main_interrupted()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Catch the first interrupt (Ctrl-C, or a termination signal) so that a step can be finished.

    Signals reach the main thread only; elsewhere the event counts as set once Ctrl-C ended that.

    Yields:
        an event that the first signal sets; a second one acts as it did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _MainInterrupted()
        return
    event = threading.Event()
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
