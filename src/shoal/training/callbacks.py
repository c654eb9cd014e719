"""What happens around training: logging, early stopping, showing progress, and what a user adds.

:func:`~shoal.training.loop.fit` calls each callback at five moments, in the order in which they
were given; a run's log comes first.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from shoal.core.errors import expect, expect_positive
from shoal.core.progress import Bar
from shoal.training.job import Job, Progress
from shoal.training.run import Run

LOG_EVERY = 10
"""Steps between two lines of a log; the first step has one, too."""


def log_due(step: int) -> bool:
    """Whether a log has a line for this step."""
    return step == 1 or step % LOG_EVERY == 0


class Callback:
    """Does nothing at each moment; a subclass overrides those that it needs.

    Setting ``progress.stopped = "why"`` at any moment ends training after the step in progress, and
    the run is saved.

    Example:
        >>> class StopAtLoss(Callback):
        ...     def step(self, progress, metrics):
        ...         if progress.loss < 0.1:
        ...             progress.stopped = "loss"
    """

    def begin(self, progress: Progress, job: Job) -> None:
        """Before the first step; a resumed run's `progress` has steps already."""

    def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """After each step.

        Args:
            progress: with the step and its loss.
            metrics: ``epoch`` and ``loss``; what the job measures where :func:`log_due`; where a
                step rule measured curvature, its own metrics as ``curvature``.
        """

    def refresh(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """After the job's refresh at the begin of an epoch, with its metrics and seconds."""

    def validate(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """After each validation, with its metrics and seconds; `progress` has the best so far."""

    def end(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """After the last step, once all is saved: why training stopped, and the loss."""

    def test(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """After evaluation on test data; called by the models, since ``fit`` has no such data."""


class Log(Callback):
    """One line per event: the base of a run's log and of trackers, which override :meth:`write`."""

    def write(self, event: str, metrics: dict[str, Any]) -> None:
        """Take one line; `metrics` begin with the step and the seconds of training."""

    def begin(self, progress: Progress, job: Job) -> None:
        """Write ``resume`` if the run has been trained before."""
        if progress.step:
            self._line("resume", progress, {})

    def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Write ``curvature`` where it was measured, and ``step`` where :func:`log_due`."""
        curvature = metrics.get("curvature")
        if curvature:
            self._line("curvature", progress, curvature)
        if log_due(progress.step):
            rest = {name: value for name, value in metrics.items() if name != "curvature"}
            self._line("step", progress, rest)

    def refresh(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Write ``refresh``."""
        self._line("refresh", progress, metrics)

    def validate(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Write ``validate``."""
        self._line("validate", progress, metrics)

    def end(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Write ``end``."""
        self._line("end", progress, metrics)

    def test(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Write ``test``."""
        self._line("test", progress, metrics)

    def _line(self, event: str, progress: Progress, metrics: dict[str, Any]) -> None:
        at = {"step": progress.step, "seconds": round(progress.seconds, 3)}
        self.write(event, at | metrics)


class RunLog(Log):
    """Writes the log of a run's folder; :func:`~shoal.training.loop.fit` adds one per run.

    Args:
        run: whose ``log.jsonl`` is written.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, event: str, metrics: dict[str, Any]) -> None:
        """Append one line."""
        self.run.write(event, metrics)


class EarlyStopping(Callback):
    """Stops with ``"patience"`` when validation has not improved for some rounds.

    Args:
        patience: rounds without a better result, at least 1.

    Raises:
        InputError: if it is not positive.
    """

    def __init__(self, patience: int) -> None:
        expect_positive("patience", patience)
        self.patience = patience

    def begin(self, progress: Progress, job: Job) -> None:
        """Check that there is a validation; a resumed run may have waited long enough already.

        Raises:
            InputError: if the job has none.
        """
        want = "a job with validation"
        expect(job.evaluate is not None, "patience", want, "none", "hold out some or leave it out")
        self.validate(progress, {})

    def validate(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Stop if the best result is `patience` rounds old."""
        if progress.rounds >= self.patience:
            progress.stopped = "patience"


class ShowProgress(Callback):
    """Shows how far training is: a bar at a terminal, elsewhere one line per epoch; both on stderr.

    Args:
        name: what is trained, such as ``encoder``.
        apart: seconds between two lines at least, so that short epochs do not fill a screen; the
            last epoch's line always comes.
    """

    def __init__(self, name: str = "train", apart: float = 1.0) -> None:
        self.name, self.apart = name, apart
        self._bar: Any = None
        self._losses: list[float] = []
        self._validation = ""
        self._line, self._printed = "", 0.0
        self._job: Any = None

    def begin(self, progress: Progress, job: Job) -> None:
        """Open the bar where stderr is a terminal."""
        self._losses, self._validation, self._job = [], "", job
        self._line, self._printed = "", time.monotonic()
        if sys.stderr.isatty():
            self._bar = Bar(
                desc=self.name,
                total=1.0,
                initial=progress.share,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            )

    def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Move the bar, or print the line of an epoch that ends without validation."""
        if self._bar is not None:
            self._bar.update(progress.share - self._bar.n)
            shown = f"step {progress.step}, loss {progress.loss:.3f}{self._validation}"
            self._bar.set_postfix_str(shown, refresh=False)
            return
        self._losses.append(progress.loss)
        epoch, rest = divmod(progress.step, self._job.steps_per_epoch)
        validated = self._job.evaluate is not None and epoch % self._job.evaluate_every == 0
        if rest == 0 and not validated:
            self._print(progress)

    def validate(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Print the epoch's line with the first metric, the one that decides what is best."""
        scores = [x for x in metrics.items() if x[0] not in ("epoch", "validate_seconds")]
        self._validation = "".join(f", {name} {score:.2f} %" for name, score in scores[:1])
        self._print(progress)

    def end(self, progress: Progress, metrics: dict[str, Any]) -> None:
        """Close the bar, or print the last line, also of an epoch that was cut short."""
        self._print(progress, last=True)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, progress: Progress, last: bool = False) -> None:
        if self._bar is not None:
            return
        if self._losses:
            epoch = -(-progress.step // self._job.steps_per_epoch)
            loss = sum(self._losses) / len(self._losses)
            left = f", {_clock(progress.seconds_left)} left" if progress.share < 1 else ""
            self._line = f"{self.name}: epoch {epoch}, loss {loss:.3f}{self._validation}{left}"
            self._losses, self._validation = [], ""
        now = time.monotonic()
        if self._line and (last or now - self._printed >= self.apart):
            print(self._line, file=sys.stderr, flush=True)
            self._line, self._printed = "", now


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S" if seconds >= 3600 else "%M:%S", time.gmtime(seconds))
