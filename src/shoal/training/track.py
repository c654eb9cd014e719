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
from pathlib import Path
from typing import Any

from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.core.files import file_aside
from shoal.training.callbacks import Log
from shoal.training.job import Job, Progress

_PROJECT = "shoal"
_NOT_VALUES = ("step", "epoch")
_Write = Callable[[str, dict[str, Any]], None]


class Tracker(Log):
    """Logs a run to a tracker too; a resumed run continues the tracker's.

    Args:
        name: tensorboard, wandb or mlflow; each takes its own settings from the environment
            (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``).
        folder: of the run; its ``settings.json`` is the tracker's configuration.

    Raises:
        InputError: if that tracker is unknown or not installed.
    """

    def __init__(self, name: str, folder: str | Path) -> None:
        expect(name in _TRACKERS, "track", f"one of {', '.join(_TRACKERS)}", name, "choose one")
        module, self._open = _TRACKERS[name]
        self.name, self.folder = name, Path(folder)
        self._write: _Write | None = None
        require(module, "track", f"track-{name}")

    def begin(self, progress: Progress, job: Job) -> None:
        """Begin or continue the tracker's run.

        Raises:
            InputError: if it refuses.
        """
        if self._write is None:
            try:
                self._write = self._open(self.folder)
            except Exception as error:
                reason = " ".join(str(error).split())
                remedy = "see to its settings or leave it out"
                fail("track", f"{self.name} to begin a run", reason, remedy)
        super().begin(progress, job)

    def write(self, event: str, metrics: dict[str, Any]) -> None:
        """Log the numbers of one line; after an error of the tracker, no more."""
        if self._write is None:
            return
        try:
            self._write(event, metrics)
        except Exception as error:  # a tracker's trouble must not end a training run
            self._write = _nothing
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


def _nothing(event: str, metrics: dict[str, Any]) -> None:
    """Log no more."""


def _is_last(event: str, metrics: Mapping[str, Any]) -> bool:
    """Whether this is the last line until a run is resumed."""
    return event == "test" or (event == "end" and metrics.get("stopped") == "interrupt")


def _tensorboard(folder: Path) -> _Write:
    """Event files in ``tensorboard/`` in the run's folder."""
    from torch.utils.tensorboard.writer import SummaryWriter

    writer: Any = None

    def write(event: str, metrics: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            # what was written beyond the step that a resumed run goes on from did not happen
            purge = metrics["step"] + 1 if event == "resume" else 0
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        for name, value in values(event, metrics).items():
            writer.add_scalar(name, value, metrics["step"])
        writer.flush()
        if _is_last(event, metrics):
            writer.close()

    return write


def _wandb(folder: Path) -> _Write:
    import wandb  # pyright: ignore[reportMissingImports]

    known = _read(folder / "tracked.json").get("wandb")
    run = wandb.init(
        project=_PROJECT,
        name=folder.resolve().name,
        dir=str(folder),
        id=known,
        resume="allow" if known else None,
        config=_read(folder / "settings.json"),
    )
    _remember(folder, "wandb", run.id)
    # steps are values: wandb refuses its own ones where a resumed run goes back
    run.define_metric("*", step_metric="at_step")

    def write(event: str, metrics: dict[str, Any]) -> None:
        found = values(event, metrics)
        if found:
            run.log(found | {"at_step": metrics["step"]})
        if _is_last(event, metrics):
            run.finish()

    return write


def _mlflow(folder: Path) -> _Write:
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    client, known = MlflowClient(), _read(folder / "tracked.json").get("mlflow")
    if known is not None:
        client.set_terminated(known, "RUNNING")
    else:
        found = client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(_PROJECT)
        known = client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        for key, value in _read(folder / "settings.json").items():
            client.log_param(known, key, value)
        _remember(folder, "mlflow", known)

    def write(event: str, metrics: dict[str, Any]) -> None:
        for name, value in values(event, metrics).items():
            # MLflow's names have no @
            client.log_metric(known, name.replace("@", "_at_"), value, step=metrics["step"])
        if _is_last(event, metrics):
            client.set_terminated(known, "FINISHED" if event == "test" else "KILLED")

    return write


# name: (the module that must be there, how a run begins)
_TRACKERS: dict[str, tuple[str, Callable[[Path], _Write]]] = {
    "tensorboard": ("torch.utils.tensorboard.writer", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow.tracking", _mlflow),
}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _remember(folder: Path, tracker: str, name: str) -> None:
    known = _read(folder / "tracked.json")
    with file_aside(folder / "tracked.json") as new:
        new.write_text(json.dumps(known | {tracker: name}) + "\n")
