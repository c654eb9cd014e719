"""The one loop: gradient of an objective over a loader's batches, with everything that a run needs.

A step takes the gradient with respect to the dense parameters and, where the table learns, to the
rows that the batch gathered; clips both by one norm; moves the parameters by a torch optimizer and
the rows by the table's own. The learning rate rises linearly over the warm-up and falls linearly to
zero at the end of the budget, as in NGAME's published configuration; a learner may set, from looks
at curvature, what it falls from (:mod:`shoal.step.learner`).

Law: a run that is stopped after any step and resumed ends in the same numbers as one that is not,
at the same thread count. Everything that a step reads is therefore either a function of
(seed, epoch, batch) or part of the checkpoint. (A budget in minutes alone is the exception: there
the clock sets the learning rate.)
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from shoal.core.block import Batch
from shoal.core.errors import InputError, expect, fail
from shoal.step.job import learner_of
from shoal.step.learner import StepLearner
from shoal.training.gradients import gradient_of, trained
from shoal.training.interrupts import interrupts
from shoal.training.job import Budget, Job, Progress
from shoal.training.run import Run


def fit(
    job: Job,
    budget: Budget,
    run: Run | None = None,
    *,
    resume: bool = False,
    step: Literal["schedule", "spectral"] | StepLearner = "schedule",
) -> Progress:
    """Train until the budget is spent, then save.

    The model, and the table if it learns, are trained in place. With validation, ``run.best`` is
    the checkpoint of the best round; ``run.last`` is where a resumed run continues. An interrupt
    (Ctrl-C or a termination signal) ends the run after the step in progress and saves; a second one
    ends it at once.

    Args:
        job: what is trained.
        budget: how long.
        run: where checkpoints and the record go; None keeps nothing.
        resume: continue from ``run.last``.
        step: how far: the schedule's rate; ``"spectral"``: times what a learner makes of curvature
            after the warm-up; or a learner with options of one's own
            (:func:`~shoal.step.job.learner_of`).

    Raises:
        InputError: if the loss is not a finite number, patience has no validation, there is nothing
            to resume, or the checkpoint is that of another job.
    """
    judged = budget.patience is None or job.evaluate is not None
    expect(judged, "patience", "a validation to judge by", "none", "hold out some or leave it out")
    known = isinstance(step, StepLearner) or step in ("schedule", "spectral")
    expect(known, "step", "schedule, spectral or a learner", step, "choose one of them")
    learner = step if isinstance(step, StepLearner) else None
    loop = _Loop(job, budget, run, learner_of(job) if step == "spectral" else learner)
    with torch.random.fork_rng(), interrupts() as interrupted:
        torch.manual_seed(job.seed)
        if resume:
            loop.resume()
        loop.run(interrupted)
    return loop.progress


def restore(job: Job, run: Run) -> None:
    """Put model, tables, optimizers and loader where a run's last checkpoint has them.

    Raises:
        InputError: if there is none, or it is that of another job.
    """
    with torch.random.fork_rng():
        _Loop(job, Budget(steps=1), run, None).resume(recorded=False)


class _Loop:
    """A run in progress."""

    def __init__(
        self, job: Job, budget: Budget, run: Run | None, learner: StepLearner | None
    ) -> None:
        self.job, self.budget, self.record_to, self.learner = job, budget, run, learner
        self.also = {**job.also, **({} if learner is None else {"step": learner})}
        self.progress = Progress()
        self.total = budget.total_steps(job.steps_per_epoch)
        self.lrs = [group["lr"] for group in job.optimizer.param_groups] if job.optimizer else []
        self.tables = {**({} if job.table is None else {"": job.table}), **job.tables}
        self.table_lrs = {name: table.optimizer.lr for name, table in self.tables.items()}
        self.saved_at = time.monotonic()

    # -- the loop ----------------------------------------------------------------------------

    def run(self, interrupted: threading.Event) -> None:
        start = time.monotonic() - self.progress.seconds
        bar = tqdm(total=self.total, initial=self.progress.step, unit="step", disable=None)
        with bar:
            while not self._spent():
                self._refresh()
                for batches in _chunks(iter(self.job.loader), self.job.accumulate):
                    outputs = self._step(batches)
                    self.progress.seconds = time.monotonic() - start
                    bar.update()
                    bar.set_postfix(loss=f"{self.progress.loss:.3f}", refresh=False)
                    self._log_step(batches[-1], outputs)
                    if interrupted.is_set():
                        self.progress.stopped = "interrupt"
                    if self._spent():
                        break
                    self._save_now_and_then()
                self._validate()
        self._finish()

    def _spent(self) -> bool:
        progress, budget = self.progress, self.budget
        if not progress.stopped:
            if self.total is not None and progress.step >= self.total:
                progress.stopped = "steps"
            elif budget.minutes is not None and progress.seconds >= 60 * budget.minutes:
                progress.stopped = "minutes"
            elif budget.patience is not None and progress.rounds >= budget.patience:
                progress.stopped = "patience"
        return bool(progress.stopped)

    def _refresh(self) -> None:
        """Let the batch sampler see new embeddings, at the first batch of an epoch only."""
        loader = self.job.loader
        if self.job.refresh is None or loader.position > 0:
            return
        begin = time.monotonic()
        facts = self.job.refresh(loader.epoch)
        seconds = round(time.monotonic() - begin, 3)
        self._record("refresh", epoch=loader.epoch, refresh_seconds=seconds, **facts)

    # -- one step ----------------------------------------------------------------------------

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one step; the outputs of its last batch come back."""
        job = self.job
        self._set_lr(self._factor())
        learns = job.table is not None
        gradient = gradient_of(job.objective, batches, learns, job.autocast, job.chunk)
        self.progress.loss = gradient.loss
        if not math.isfinite(gradient.loss):
            self._diverged(batches)
            return gradient.outputs[-1]
        gradient.clip_(job.clip)
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
        self.progress.step += 1
        self._learn(batches)
        return gradient.outputs[-1]

    def _factor(self) -> float:
        """The schedule, of step or clock: linear up over the warm-up, linear down to zero."""
        step, minutes = self.progress.step, self.budget.minutes
        if self.total is not None:
            spent = step / self.total
        else:
            spent = self.progress.seconds / (60 * minutes) if minutes else 0.0
        return min(1.0, (step + 1) / max(self.job.warmup, 1)) * max(1.0 - spent, 0.0)

    def _set_lr(self, factor: float) -> None:
        if self.learner is not None:
            factor *= self.learner.factor
        if self.job.optimizer is not None:
            for group, lr in zip(self.job.optimizer.param_groups, self.lrs, strict=True):
                group["lr"] = lr * factor
        for name, table in self.tables.items():
            table.optimizer.lr = self.table_lrs[name] * factor

    def _learn(self, batches: Sequence[Batch]) -> None:
        """Let the learner see the step; it may look, or put an earlier state back."""
        if self.learner is None:
            return
        facts = self.learner.observe(batches, self.progress.loss)
        if facts and self.job.optimizer is not None:
            self.learner.set_momentum(self.job.optimizer)
        if facts:
            self._record("curvature", **facts)

    def _diverged(self, batches: Sequence[Batch]) -> None:
        """Leave the step out if a learner puts an earlier state back, else refuse to go on."""
        if self.learner is None:
            where = f"loss at step {self.progress.step + 1}"
            remedy = "lower --lr; the last checkpoint is untouched"
            fail(where, "a finite number", self.progress.loss, remedy)
        self._learn(batches)
        self.progress.step += 1

    # -- around it ---------------------------------------------------------------------------

    def _validate(self) -> None:
        """Evaluate at the end of every so many epochs, and at the end of the run."""
        job, progress = self.job, self.progress
        due = job.loader.epoch % job.evaluate_every == 0 and job.loader.position == 0
        ended = progress.stopped in ("steps", "minutes")
        if job.evaluate is None or not (due or ended):
            return
        begin = time.monotonic()
        metrics = job.evaluate()
        seconds = round(time.monotonic() - begin, 3)
        self._record("validate", epoch=job.loader.epoch, validate_seconds=seconds, **metrics)
        score = next(iter(metrics.values()))
        better = score > progress.best
        progress.rounds = 0 if better else progress.rounds + 1
        if better:
            progress.best = score
            if self.record_to is not None:
                self.record_to.save_best(self._model_state() | {"step": progress.step})

    def _log_step(self, batch: Batch, outputs: Tensor) -> None:
        step, measure = self.progress.step, self.job.measure
        if step % 10 == 0 or step == 1:
            facts = {} if measure is None else measure(batch, outputs)
            self._record("step", loss=self.progress.loss, epoch=self.job.loader.epoch, **facts)

    def _record(self, event: str, **facts: Any) -> None:
        if self.record_to is not None:
            where = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3)}
            self.record_to.write(event, where | facts)

    def _save_now_and_then(self) -> None:
        if self.record_to is not None and self.record_to.save_due(self.saved_at):
            self._save()

    def _finish(self) -> None:
        if self.record_to is not None:
            self._save()
            self._record("end", stopped=self.progress.stopped, loss=self.progress.loss)

    # -- checkpoints -------------------------------------------------------------------------

    def _model_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self.job.objective.model.state_dict()}
        if self.job.table is not None:
            state["rows"] = self.job.table.as_subclass(Tensor)
        state["tables"] = {name: x.as_subclass(Tensor) for name, x in self.job.tables.items()}
        return state

    def _save(self) -> None:
        job = self.job
        state = self._model_state()
        state["loader"] = job.loader.state_dict()
        state["progress"] = vars(self.progress) | {"stopped": ""}
        state["random"] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        state["also"] = {name: part.state_dict() for name, part in self.also.items()}
        if job.optimizer is not None:
            state["optimizer"] = job.optimizer.state_dict()
        if job.table is not None:
            state["row_optimizer"] = job.table.optimizer.state_dict()
        state["table_optimizers"] = {
            name: table.optimizer.state_dict() for name, table in job.tables.items()
        }
        assert self.record_to is not None
        self.record_to.save_last(state)
        self.saved_at = time.monotonic()

    def resume(self, recorded: bool = True) -> None:
        run = self.record_to
        expect(run is not None, "run", "a run folder to resume from", None, "pass --out")
        assert run is not None
        state = run.load_last()
        try:
            self._load(state)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            missing = isinstance(error, KeyError)
            reason = f"nothing named {error}" if missing else str(error).splitlines()[-1].strip()
            fail(str(run.last), "a checkpoint of this job", reason, "resume with its own settings")
        if recorded:
            self._record("resume")

    def _load(self, state: dict[str, Any]) -> None:
        job = self.job
        job.objective.model.load_state_dict(state["model"])
        if job.table is not None:
            _restore(job.table, state["rows"], state["row_optimizer"])
        for name, table in job.tables.items():
            _restore(table, state["tables"][name], state["table_optimizers"][name])
        if job.optimizer is not None:
            job.optimizer.load_state_dict(state["optimizer"])
        job.loader.load_state_dict(state["loader"])
        for name, part in self.also.items():
            part.load_state_dict(state["also"][name])
        self.progress = Progress(**state["progress"])
        on_host, *on_devices = state["random"]
        torch.set_rng_state(on_host)
        torch.cuda.set_rng_state_all(on_devices[: torch.cuda.device_count()])


def _restore(table: Any, saved: Tensor, optimizer: dict[str, Any]) -> None:
    rows = table.as_subclass(Tensor)
    want, got = (f"rows of shape {tuple(x.shape)}" for x in (rows, saved))
    expect(want == got, "checkpoint", want, got, "use the run's own data and settings")
    rows.copy_(saved)
    table.optimizer.load_state_dict(optimizer)


def _chunks(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while chunk := list(itertools.islice(batches, size)):
        yield chunk
