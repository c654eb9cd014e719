"""Trackers are told what the record is told; a resumed run goes on where it was."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shoal.core.errors import InputError
from shoal.training.job import Progress
from shoal.training.run import Run
from shoal.training.track import Tracker
from tests.training.test_loop import node_job

LINES: list[tuple[str, dict[str, Any]]] = [
    ("step", {"step": 10, "seconds": 1.0, "loss": 2.0}),
    ("step", {"step": 20, "seconds": 2.0, "loss": float("nan")}),
    ("validate", {"step": 20, "valid_P@1": 30.0}),
]
LAST = ("test", {"step": 20, "P@1": 31.0})


def begun(run: Run, name: str, step: int = 0) -> Tracker:
    tracker = Tracker(name, run.folder)
    tracker.begin(Progress(step=step), node_job())
    return tracker


def tell(run: Run, name: str, *lines: tuple[str, dict[str, Any]]) -> None:
    tracker = begun(run, name)
    for event, metrics in lines:
        tracker.write(event, metrics)


class Service:
    """A stand-in for either service: runs by id, with what each was told."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, list[Any]]] = {}
        self.states: dict[str, str] = {}

    def begin(self, known: str | None) -> str:
        name = known or f"run{len(self.runs)}"
        self.runs.setdefault(name, {})
        self.states[name] = "RUNNING"
        return name

    def add(self, run: str, name: str, at: Any, value: Any) -> None:
        self.runs[run].setdefault(name, []).append((at, value))


def stand_in_wandb(service: Service) -> ModuleType:
    class Of:
        def __init__(self, **asked: Any) -> None:
            assert asked["project"] == "shoal" and asked["config"] == {"dim": 8}
            self.id = service.begin(asked["id"])

        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "at_step")

        def log(self, values: dict[str, float]) -> None:
            for name, value in values.items():
                if name != "at_step":
                    service.add(self.id, name, values["at_step"], value)

        def finish(self) -> None:
            service.states[self.id] = "FINISHED"

    module = ModuleType("wandb")
    module.init = Of  # pyright: ignore[reportAttributeAccessIssue]
    return module


def stand_in_mlflow(service: Service) -> ModuleType:
    class MlflowClient:
        def get_experiment_by_name(self, name: str) -> None:
            assert name == "shoal"

        def create_experiment(self, name: str) -> str:
            return "7"

        def create_run(self, experiment: str, run_name: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(run_id=service.begin(None)))

        def log_param(self, run: str, key: str, value: Any) -> None:
            assert (key, value) == ("dim", 8)

        def log_metric(self, run: str, key: str, value: float, step: int) -> None:
            assert "@" not in key  # as MLflow wants it
            service.add(run, key.replace("_at_", "@"), step, value)

        def set_terminated(self, run: str, status: str) -> None:
            service.states[run] = status

    module = ModuleType("mlflow.tracking")
    module.MlflowClient = MlflowClient  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.fixture(params=["wandb", "mlflow"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Service]:
    """One of the two services, played by a module of its name."""
    service, name = Service(), request.param
    monkeypatch.setitem(sys.modules, "wandb", stand_in_wandb(service))
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", stand_in_mlflow(service))
    return name, service


def test_a_service_is_told_every_number(service: tuple[str, Service], tmp_path: Path) -> None:
    """Finite numbers, by event and name, at their steps; the last line ends the run."""
    name, played = service
    tell(Run.create(tmp_path, {"dim": 8}), name, *LINES, LAST)
    (told,) = played.runs.values()
    assert told["step/loss"] == [(10, 2.0)] and told["validate/valid_P@1"] == [(20, 30.0)]
    assert told["test/P@1"] == [(20, 31.0)]
    assert list(played.states.values()) == ["FINISHED"]


def test_a_resumed_run_continues_the_service_s(
    service: tuple[str, Service], tmp_path: Path
) -> None:
    """The same folder, the same run; an interrupt ends it for now; other folders are other runs."""
    name, played = service
    stopped = ("end", {"step": 20, "stopped": "interrupt"})
    tell(Run.create(tmp_path / "a", {"dim": 8}), name, *LINES, stopped)
    assert played.states.pop("run0") in ("KILLED", "FINISHED")
    tell(Run.open(tmp_path / "a"), name, ("resume", {"step": 20}), LAST)
    assert played.states == {"run0": "FINISHED"} and len(played.runs["run0"]["test/P@1"]) == 1
    tell(Run.create(tmp_path / "b", {"dim": 8}), name)
    assert list(played.runs) == ["run0", "run1"]


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    """Its own reader finds every value once, also those that a resumed run overtook."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tmp_path, {"dim": 8})
    lost = ("step", {"step": 30, "loss": 9.0})
    tell(run, "tensorboard", *LINES, lost)
    again = ("step", {"step": 30, "loss": 1.0})
    tell(run, "tensorboard", ("resume", {"step": 20}), again, LAST)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(x.step, x.value) for x in found.Scalars("step/loss")] == [(10, 2.0), (30, 1.0)]
    assert [x.value for x in found.Scalars("validate/valid_P@1")] == [30.0]
    assert [x.value for x in found.Scalars("test/P@1")] == [31.0]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_tracker_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the extra that brings it."""
    for module in ("torch.utils.tensorboard.writer", "wandb", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"pip install 'torch-shoal\[track-{name}\]'"):
        Tracker(name, tmp_path)


def test_a_tracker_in_trouble_ends_no_training(
    service: tuple[str, Service], tmp_path: Path
) -> None:
    """It gets no more lines, with a warning. One that cannot begin is refused."""
    name, played = service
    run = Run.create(tmp_path, {"dim": 8})
    tracker = begun(run, name)
    played.runs.clear()  # every further call fails
    with pytest.warns(UserWarning, match=f"logging to {name} stopped"):
        tracker.write(*LINES[0])
    tracker.write(*LINES[2])
    with pytest.raises(InputError, match=f"expected {name} to begin a run"):
        begun(Run.create(tmp_path / "b", {"other": 1}), name)
