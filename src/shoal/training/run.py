"""A run's folder: settings, checkpoints, and a log in JSON lines.

settings.json      what was asked for, as the command or the caller gave it
log.jsonl          one event per line: start, step, refresh, validate, resume, end, test
last.safetensors   where a resumed run continues
best.safetensors   the model of the best validation round, without optimizer state
rows.npy           graphs with --host-rows: feature rows, read from here batch by batch
"""

from __future__ import annotations

import io
import json
import platform
import time
from pathlib import Path
from typing import Any, BinaryIO

import torch

from shoal.core import checkpoint
from shoal.core.distribution import installed_version
from shoal.core.errors import InputError, expect, expect_folder, fail
from shoal.core.files import LOCK, expect_inside, file_aside
from shoal.core.memory import peaks

# An export is read like a run; this file tells the two apart.
EXPORT, EXPORT_FORMAT = "export.json", "shoal.export/1"
# the log's file, and its name in runs of 0.1
_LOGS = "log.jsonl", "record.jsonl"
# what every settings.json of a run says, and hardly any other program's
_FACTS = {"task", "source"}
# of a line of the log; what is longer is none
_LONGEST = 1 << 24


class Run:
    """The folder of one training run.

    Use :meth:`create` for a new one and :meth:`open` for one that exists.

    Attributes:
        folder: where everything lies.
        settings: what the run was asked for.
        save_seconds: at least this long between two checkpoints of a run in progress; a minute of
            work is the most that a killed process loses.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], save_seconds: float = 60.0) -> None:
        self.folder = folder
        self.settings = settings
        self.save_seconds = save_seconds

    @staticmethod
    def create(folder: str | Path, settings: dict[str, Any]) -> Run:
        """Make the folder of a new run; what one that never came to a checkpoint left behind goes.

        Raises:
            InputError: if it holds a run already or anything else, or cannot be written to.
        """
        run = Run(Path(folder), settings)
        remedy = "pass --resume to continue it, or another --out"
        taken = run.last.exists() or (run.folder / "model.safetensors").exists()
        expect(not taken, str(folder), "a folder without a run", "a run", remedy)
        expect(not run.exported, str(folder), "a folder for a run", "an export", "name another")
        run._expect_own()
        run._begin()
        return run

    def _expect_own(self) -> None:
        """Raise if the folder holds files, and no run began there: they are somebody else's."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        others = sorted(path.name for path in there if LOCK not in path.name)
        if others and "settings.json" in others:
            try:
                others = [] if _FACTS <= set(_object(self.folder / "settings.json", "")) else others
            except InputError:
                pass
        want, got = "a new or an empty folder", f"one with {', '.join(others[:3])}"
        expect(not others, str(self.folder), want, got, "name another --out")

    def _begin(self) -> None:
        """Write the settings, and remove what an earlier beginning left.

        Raises:
            InputError: if the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_aside(self.folder / "settings.json") as new:
                new.write_text(json.dumps(self.settings, indent=1) + "\n")
            others = (self.folder / name for name in (*_LOGS, "tracked.json"))
            for leftover in (self.last, self.best, self.rows, *others):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            fail(str(self.folder), "a folder to write to", error.strerror, "name another --out")

    @staticmethod
    def open(folder: str | Path) -> Run:
        """Open the folder of an earlier run, or an export of one.

        Raises:
            InputError: if it holds none.
        """
        folder = expect_folder(folder, "a run")
        expect_inside(folder)
        run = Run(folder, _object(folder / "settings.json", "the settings of a run"))
        if run.exported:
            got = _object(folder / EXPORT, "what an export is").get("format")
            expect(got == EXPORT_FORMAT, str(folder), EXPORT_FORMAT, got, "export it anew")
        return run

    def stage(self, name: str, settings: dict[str, Any], resume: bool) -> Run:
        """The run of a further stage of training, in a folder of its own inside this one.

        Args:
            name: of the folder.
            settings: what the stage depends on; a stage that was begun with others begins anew.
            resume: whether to go on where it stands.
        """
        folder = self.folder / name
        stage = Run(folder, settings)
        if resume and stage.last.exists() and Run.open(folder).settings == settings:
            return stage
        stage._begin()
        return stage

    @property
    def exported(self) -> bool:
        """Whether this is an export, which lacks what only training needs."""
        return (self.folder / EXPORT).exists()

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run continues from."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """The best model by validation."""
        return self.folder / "best.safetensors"

    @property
    def rows(self) -> Path:
        """Feature rows of a graph, where they are read from a file."""
        return self.folder / "rows.npy"

    def expect_settings(self, settings: dict[str, Any], free: set[str]) -> None:
        """Check that a resumed run is the run that was begun.

        Args:
            settings: what is asked for now.
            free: names that may differ, such as the budget.

        Raises:
            InputError: naming the first setting that differs.
        """
        for name, value in settings.items():
            was = self.settings.get(name)
            if name not in free and was != value:
                fail(name, f"{was!r}, as the run in {self.folder} was begun", repr(value), "use it")

    @property
    def log_file(self) -> Path:
        """The log; a run of 0.1 keeps the file that it has."""
        new, old = (self.folder / name for name in _LOGS)
        return old if old.exists() and not new.exists() else new

    def start(self, about: dict[str, Any]) -> None:
        """Write the event ``start``: `about`, and where the run was made (:func:`environment`).

        Args:
            about: the data, the settings as they were resolved, seconds of preparation.
        """
        self.write("start", environment() | about)

    def write(self, event: str, metrics: dict[str, Any]) -> None:
        """Append one line to the log: the event, the time, the peak of memory, and `metrics`.

        Raises:
            InputError: if the folder cannot be written to any more.
        """
        line = {"event": event, "time": round(time.time(), 3)} | peaks() | metrics
        try:
            with self.log_file.open("ab+") as file:
                file.write(_line_end(file) + json.dumps(line).encode() + b"\n")
        except OSError as error:
            fail(str(self.folder), "a folder to write to", error.strerror, "free space on the disk")

    def log(self) -> list[dict[str, Any]]:
        """All events so far; a line that a killed process or a bad disk spoiled is left out."""
        events: list[dict[str, Any]] = []
        if not self.log_file.is_file():
            return events
        with self.log_file.open("rb") as file:
            while line := file.readline(_LONGEST):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):  # bytes that are no UTF-8 among them
                    continue
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    events.append(event)
        return events

    def save_due(self, since: float) -> bool:
        """Whether a checkpoint made at monotonic time `since` is old enough for another."""
        return time.monotonic() - since >= self.save_seconds

    def save_last(self, state: dict[str, Any]) -> None:
        """Write the checkpoint to resume from."""
        checkpoint.save(self.last, state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the best model."""
        checkpoint.save(self.best, state)

    def load_last(self) -> dict[str, Any]:
        """Read the checkpoint to resume from.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        return checkpoint.load(self.last, mapped=True)

    def load_model(self) -> dict[str, Any]:
        """Read the best model, or the last where nothing was validated.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        return checkpoint.load(self.best if self.best.exists() else self.last, mapped=True)


def environment() -> dict[str, Any]:
    """What a result depends on beside data, settings and code: versions, threads, the machine."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(errors="replace").splitlines() if cpu.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {"shoal": installed_version(), "torch": torch.__version__}
    return {
        "versions": versions | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": names[0] if names else platform.processor(),
    }


def _object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: if there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fail(str(path), what, error, "name the folder given to --out")
    expect(isinstance(found, dict), str(path), what, type(found).__name__, "restore it")
    return found


def _line_end(file: BinaryIO) -> bytes:
    """What ends the last line of a file, where a killed process cut it short."""
    if file.seek(0, io.SEEK_END) == 0:
        return b""
    file.seek(-1, io.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
