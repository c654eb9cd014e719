"""Trackers are told what the record is told; a resumed run goes on where it was."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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


Told = tuple[str, str, dict[str, list[tuple[int, float]]]]


def wandb_was_told(folder: Path) -> Told:
    """The run's id, how it ended, and its values by name, from wandb's own files."""
    from wandb.proto import wandb_internal_pb2 as protocol  # pyright: ignore

    values: dict[str, list[tuple[int, float]]] = {}
    ids, ended = set(), False
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for _ in range(300):  # it is another process that writes, in its own time
            records = [protocol.Record.FromString(x) for x in log_records(file.read_bytes())]
            ended = any(record.WhichOneof("record_type") == "exit" for record in records)
            if ended:
                break
            time.sleep(0.1)
        for record in records:
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                assert record.run.project == "shoal"
                config = {x.key: json.loads(x.value_json) for x in record.run.config.update}
                assert config["dim"] == 8
            elif record.WhichOneof("record_type") == "history":
                found = {x.nested_key[0]: json.loads(x.value_json) for x in record.history.item}
                at = found.pop("at_step")
                for name in (name for name in found if name[0] != "_"):
                    values.setdefault(name, []).append((at, found[name]))
    (run,) = ids
    return run, "FINISHED" if ended else "RUNNING", values


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a log of blocks of 32 KiB, each piece behind a check sum, its length and kind."""
    at, whole = 7, b""  # behind the file's own mark
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield whole
            whole = b""


def mlflow_was_told(folder: Path) -> Told:
    """The same, from MLflow's data base."""
    from mlflow.tracking import MlflowClient  # pyright: ignore

    client, known = MlflowClient(), json.loads((folder / "tracked.json").read_text())["mlflow"]
    run = client.get_run(known)
    assert run.data.params == {"dim": "8"} and run.info.run_name == folder.name
    values = {
        name.replace("_at_", "@"): [
            (metric.step, metric.value) for metric in client.get_metric_history(known, name)
        ]
        for name in run.data.metrics
    }
    return known, run.info.status, values


@pytest.fixture(scope="module")
def data_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data base of MLflow's; it takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


@pytest.fixture(params=["wandb", "mlflow"])
def service(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, data_base: str
) -> tuple[str, Callable[[Path], Told]]:
    """Weights & Biases without a network, MLflow with a local data base."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", data_base)
    return request.param, {"wandb": wandb_was_told, "mlflow": mlflow_was_told}[request.param]


OTHERS = pytest.mark.filterwarnings("ignore")  # of packages that are not ours
Service = tuple[str, Callable[[Path], Told]]


@OTHERS
@pytest.mark.extras
def test_a_service_is_told_every_number(service: Service, tmp_path: Path) -> None:
    """Finite numbers, by event and name, at their steps; the last line ends the run."""
    name, told = service
    tell(Run.create(tmp_path, {"dim": 8}), name, *LINES, LAST)
    _, state, values = told(tmp_path)
    assert values["step/loss"] == [(10, 2.0)] and values["validate/valid_P@1"] == [(20, 30.0)]
    assert values["test/P@1"] == [(20, 31.0)] and state == "FINISHED"


@OTHERS
@pytest.mark.extras
def test_a_resumed_run_continues_the_service_s(service: Service, tmp_path: Path) -> None:
    """The same folder, the same run; an interrupt ends it for now; other folders are other runs."""
    name, told = service
    stopped = ("end", {"step": 20, "stopped": "interrupt"})
    tell(Run.create(tmp_path / "a", {"dim": 8}), name, *LINES, stopped)
    first, state, _ = told(tmp_path / "a")
    assert state in ("KILLED", "FINISHED")
    tell(Run.open(tmp_path / "a"), name, ("resume", {"step": 20}), LAST)
    again, state, values = told(tmp_path / "a")
    assert again == first and state == "FINISHED"
    assert len(values["test/P@1"]) == len(values["step/loss"]) == 1
    tell(Run.create(tmp_path / "b", {"dim": 8}), name, *LINES, LAST)
    assert told(tmp_path / "b")[0] != first


@OTHERS
@pytest.mark.extras
def test_a_tracker_in_trouble_ends_no_training(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets no more lines, with a warning. One that cannot begin is refused."""
    name, told = service
    run = Run.create(tmp_path / "a", {"dim": 8})
    tracker = begun(run, name)
    tracker.write(*LINES[0])
    if name == "wandb":  # somebody else ends the run
        import wandb  # pyright: ignore[reportMissingImports]

        wandb.run.finish()  # pyright: ignore
    else:
        from mlflow.tracking import MlflowClient  # pyright: ignore

        MlflowClient().delete_run(told(run.folder)[0])
    with pytest.warns(UserWarning, match=f"logging to {name} stopped"):
        tracker.write(*LINES[0])
    tracker.write(*LINES[2])
    assert "validate/valid_P@1" not in told(run.folder)[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    other = Run.create(tmp_path / "b", {"dim": 8})
    (other.folder / "tracked.json").write_text('{"wandb": "no/such:name"}')
    with pytest.raises(InputError, match=f"expected {name} to begin a run"):
        begun(other, name)


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
