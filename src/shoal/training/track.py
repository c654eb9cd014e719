"""Trackers: the lines of a run's log also go to TensorBoard, Weights & Biases or MLflow.

Every number becomes a value named ``event/metric`` at the run's step: ``step/loss``,
``validate/valid_P@1``, ``test/R@5``. The last line (``test``, or ``end`` of an interrupted run)
closes the tracker's run. Which one it is stands in ``tracked.json`` in the run's folder, so that a
resumed run continues it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from shoal.core.errors import InputError, fail
from shoal.core.files import file_aside
from shoal.training.callbacks import Log
from shoal.training.run import Run

_PROJECT = "shoal"
_NOT_VALUES = ("step", "epoch")


class Tracker(Log):
    """Logs a run to a tracker too; a resumed run continues the tracker's.

    Args:
        name: tensorboard, wandb or mlflow.
        run: a new one, or one that is resumed.

    Raises:
        InputError: if that tracker is not installed, or refuses to begin.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self._write: Callable[[str, dict[str, Any]], None] | None = None
        try:
            self._write = _TRACKERS[name](run)
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            remedy = "see to its settings or leave --track out"
            fail("track", f"{name} to begin a run", reason, remedy)

    def write(self, event: str, metrics: dict[str, Any]) -> None:
        """Log the numbers of one line; after an error of the tracker, no more."""
        if self._write is None:
            return
        try:
            self._write(event, metrics)
        except Exception as error:  # a tracker's trouble must not end a training run
            self._write = None
            warnings.warn(f"logging to {self.name} stopped: {error}", stacklevel=2)


def values(event: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among an event's metrics, named ``event/metric``.

    Example:
        >>> values("step", {"step": 10, "loss": 2.5, "data": "wordnet"})
        {'step/loss': 2.5}
    """
    numbers = {
        f"{event}/{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and name not in _NOT_VALUES
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def is_last(event: str, metrics: Mapping[str, Any]) -> bool:
    """Whether this is the last line until a run is resumed."""
    return event == "test" or (event == "end" and metrics.get("stopped") == "interrupt")


class _TensorBoard:
    """Event files in ``tensorboard/`` in the run's folder."""

    def __init__(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            _fail_extra("tensorboard", error)
        self.open, self.folder = SummaryWriter, run.folder / "tensorboard"
        self.writer: Any = None

    def __call__(self, event: str, metrics: dict[str, Any]) -> None:
        if self.writer is None and "step" in metrics:
            # what was written beyond the step that a resumed run goes on from did not happen
            purge = metrics["step"] + 1 if event == "resume" else 0
            self.writer = self.open(str(self.folder), purge_step=purge)
        if self.writer is None:
            return
        for name, value in values(event, metrics).items():
            self.writer.add_scalar(name, value, metrics.get("step"))
        self.writer.flush()
        if is_last(event, metrics):
            self.writer.close()


class _Wandb:
    """A run of Weights & Biases; where it goes is wandb's own to say (``WANDB_MODE=offline``)."""

    def __init__(self, run: Run) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            _fail_extra("wandb", error)
        known = _known(run, "wandb")
        self.run = wandb.init(
            project=_PROJECT,
            name=run.folder.resolve().name,
            dir=str(run.folder),
            id=known,
            resume="allow" if known else None,
            config=run.settings,
        )
        _remember(run, "wandb", self.run.id)
        # steps are values: wandb refuses its own ones where a resumed run goes back
        self.run.define_metric("*", step_metric="at_step")

    def __call__(self, event: str, metrics: dict[str, Any]) -> None:
        found = values(event, metrics)
        if found:
            self.run.log(found | {"at_step": metrics.get("step", 0)})
        if is_last(event, metrics):
            self.run.finish()


class _Mlflow:
    """A run of MLflow; where it goes is MLflow's own to say (``MLFLOW_TRACKING_URI``)."""

    def __init__(self, run: Run) -> None:
        try:
            from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            _fail_extra("mlflow", error)
        self.client = MlflowClient()
        self.id = _known(run, "mlflow")
        if self.id is not None:
            self.client.set_terminated(self.id, "RUNNING")
            return
        found = self.client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(_PROJECT)
        name = run.folder.resolve().name
        self.id = self.client.create_run(experiment, run_name=name).info.run_id
        for key, value in run.settings.items():
            self.client.log_param(self.id, key, value)
        _remember(run, "mlflow", self.id)

    def __call__(self, event: str, metrics: dict[str, Any]) -> None:
        for name, value in values(event, metrics).items():
            # its names have no @
            at = name.replace("@", "_at_")
            self.client.log_metric(self.id, at, value, step=metrics.get("step", 0))
        if is_last(event, metrics):
            self.client.set_terminated(self.id, "FINISHED" if event == "test" else "KILLED")


_TRACKERS: dict[str, Callable[[Run], Callable[[str, dict[str, Any]], None]]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def _known(run: Run, tracker: str) -> str | None:
    """The tracker's id of this run, if it has been logged there before."""
    path = run.folder / "tracked.json"
    return json.loads(path.read_text()).get(tracker) if path.exists() else None


def _remember(run: Run, tracker: str, name: str) -> None:
    path = run.folder / "tracked.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    with file_aside(path) as new:
        new.write_text(json.dumps(known | {tracker: name}) + "\n")


def _fail_extra(name: str, error: ImportError) -> NoReturn:
    install = f"pip install 'shoal[track-{name}]'"
    fail("track", f"the extra track-{name}", f"none ({error})", install)
