"""What the models of all tasks share: devices, the folder of a model, and the frame of ``fit``.

A model's folder holds ``model.json``, which says what it is, and ``model.safetensors``, its
tensors (:mod:`shoal.core.checkpoint`). The folder of a finished run is such a folder, and has
``settings.json`` and ``log.jsonl`` besides; while it trains, and with ``keep_resume=True``, also
the checkpoints ``last.safetensors`` and ``best.safetensors``. Nothing in it is code: arguments of a
model that are a user's own objects are named in ``model.json`` and must be given to :func:`open`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from shoal.core import checkpoint, ranks
from shoal.core.distribution import installed_version
from shoal.core.errors import InputError, expect, expect_device, expect_folder, fail
from shoal.core.files import LOCK, expect_inside, file_aside, owned
from shoal.training.callbacks import Callback, EarlyStopping, RunLog, ShowProgress
from shoal.training.job import Budget, Job, Progress
from shoal.training.loop import fit
from shoal.training.run import Run

HEADER, TENSORS, FORMAT = "model.json", "model.safetensors", "shoal.model/1"
# What a resumed run may be asked for anew: how long, and what changes nothing but time.
_FREE = {"steps", "epochs", "minutes", "patience", "device", "device_rows", "host_rows", "command"}
_OWN_TASKS = ("labels", "nodes", "links")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a fit came to.

    Attributes:
        folder: of the run; None where none was asked for.
        stopped: why it ended: steps, minutes, patience or interrupt.
        steps: optimizer steps taken.
        seconds: of training, pauses left out.
        loss: of the last step.
        valid: metrics of the best validation, in per cent; empty where nothing is held out.
        test: metrics of the test examples, in per cent; empty after an interrupt.
        size: bytes of the run's folder; 0 where there is none.
        details: what else the task has to say, such as what each tier of a table served.

    Example:
        >>> print(Result(None, "steps", 30, 6.2, 0.125, {"valid_P@1": 50.0}))
        30 steps in 6 s, loss 0.125; valid_P@1 50.00
    """

    folder: Path | None
    stopped: str
    steps: int
    seconds: float
    loss: float
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    size: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.steps} steps in {self.seconds:.0f} s, loss {self.loss:.3g}"]
        for metrics in (self.valid, self.test):
            if metrics:
                parts.append(", ".join(f"{name} {x:.2f}" for name, x in metrics.items()))
        return "; ".join([*parts, *([str(self.folder)] if self.folder else [])])


# -- devices and precision -----------------------------------------------------------------------


def resolve_device(device: str = "auto") -> str:
    """The device that `device` names; ``auto`` is the strongest of cuda, mps and cpu that works.

    Raises:
        InputError: if torch cannot compute on the one that is named.
    """
    if device != "auto":
        expect_device(device)
        return device
    for name, here in (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)):
        try:
            if here():
                expect_device(name)
                return name
        except InputError as error:  # a driver that is too old, a device that is taken
            _log.warning("%s", error)
    return "cpu"


def resolve_precision(
    precision: str = "auto", device: str = "cpu"
) -> Literal["float32", "bfloat16"]:
    """The precision that `precision` names; ``auto`` is bfloat16 where a CUDA device has it.

    Raises:
        InputError: if it is none of auto, float32 and bfloat16.
    """
    if precision == "auto":
        cuda = torch.device(device).type == "cuda"
        able = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if able else "float32"
    if precision not in ("float32", "bfloat16"):
        fail("precision", "auto, float32 or bfloat16", precision, "leave it out for auto")
    return precision  # pyright: ignore[reportReturnType]


# -- arguments that are objects ------------------------------------------------------------------


def plain(value: Any) -> Any:
    """An argument of a model as JSON holds it.

    A function or another object is named as ``module:name``; a dataclass and a partial function are
    written with their fields and arguments, a trained part as it was begun.

    Example:
        >>> plain((15, 10)), plain(json.dumps), plain(None)
        ([15, 10], 'json:dumps', None)
        >>> plain(partial(json.dumps, indent=1))
        {'function': 'json:dumps', 'indent': 1}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, partial):
        return {"function": plain(value.func), **{k: plain(x) for k, x in value.keywords.items()}}
    value = getattr(value, "spec", value)
    kind = value if hasattr(value, "__qualname__") else type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not is_dataclass(value) or isinstance(value, type):
        return name
    return {"class": name, **{one.name: plain(getattr(value, one.name)) for one in fields(value)}}


def is_plain(value: Any) -> bool:
    """Whether JSON holds an argument itself, so that a model opens without it.

    Example:
        >>> is_plain("sage"), is_plain((15, 10)), is_plain(json.dumps)
        (True, True, False)
    """
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def own_objects(arguments: Mapping[str, Any]) -> list[str]:
    """The names of arguments that are objects, which a folder does not hold."""
    return [name for name, value in arguments.items() if not is_plain(value)]


# -- folders -------------------------------------------------------------------------------------


def header(task: str, arguments: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """What ``model.json`` says of a model.

    Args:
        task: its name in :data:`shoal.tasks.TASKS`.
        arguments: of the constructor.
        facts: what else opening it needs, as JSON.
    """
    about = {"format": FORMAT, "task": task, "shoal": installed_version()}
    named = {"model": plain_arguments(arguments), "objects": own_objects(arguments)}
    return about | named | facts


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments as JSON holds them."""
    return {name: plain(value) for name, value in arguments.items()}


def write_header(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``model.json``.

    Raises:
        InputError: if the folder cannot be written to.
    """
    try:
        with file_aside(folder / HEADER) as new:
            new.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        fail(str(folder), "a folder to write to", error.strerror, "name another folder")


def save(folder: str | Path, about: Mapping[str, Any], state: dict[str, Any]) -> None:
    """Write a model's folder; one that is there is replaced, file by file.

    Args:
        folder: made if need be.
        about: of :func:`header`.
        state: its tensors, a tree as :mod:`shoal.core.checkpoint` writes it.

    Raises:
        InputError: if it cannot be written to.
    """
    folder = Path(folder)
    checkpoint.save(folder / TENSORS, state)
    write_header(folder, about)


def read_header(folder: str | Path) -> dict[str, Any]:
    """What ``model.json`` in a folder says.

    Raises:
        InputError: if it is missing, damaged, or that of another version or library.
    """
    path = expect_folder(folder, "a model") / HEADER
    remedy = "name a folder that save, fit or `shoal train` wrote"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fail(str(path), "what a model is, as JSON", error, remedy)
    got = about.get("format") if isinstance(about, dict) else type(about).__name__
    expect(got == FORMAT, str(path), f"a model of format {FORMAT}", got, remedy)
    return about


def read_state(folder: str | Path) -> dict[str, Any]:
    """A model's tensors: of a finished model, else of a run's best or last checkpoint.

    Raises:
        InputError: if there are none, or they are damaged.
    """
    paths = [Path(folder, name) for name in (TENSORS, "best.safetensors", "last.safetensors")]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        fail(str(folder), "a trained model", "a run without a checkpoint", "train it: --resume")
    return checkpoint.load(found)


def open(folder: str | Path, **objects: Any) -> Any:
    """Open a model that ``save``, ``fit(out=…)`` or ``shoal train`` wrote, of any task.

    Args:
        folder: of the model, a run, or an export; also ones of the first layout.
        objects: arguments of the model that are objects of one's own, as they were given to it: a
            folder never holds code. ``device`` and other plain arguments may be given anew.

    Raises:
        InputError: if the folder holds no whole model, or an object that predicting needs is
            missing.
    """
    folder = expect_folder(folder, "a model")
    expect_inside(folder)
    if not (folder / HEADER).exists():
        from shoal.models import legacy

        return legacy.open_run(folder, **objects)
    from shoal.tasks import TASKS

    about = read_header(folder)
    if about.get("task") in _OWN_TASKS:  # their pages register them
        import_module(f"shoal.tasks.{about['task']}")
    task = TASKS.get(str(about.get("task")))
    if task is None:
        where, known = f"{folder / HEADER}: task", f"one of {', '.join(TASKS)}"
        fail(where, known, about.get("task"), "import the module that registers it")
    return task.model_class().restore(folder, about, objects)


def expect_arguments(
    where: str, about: Mapping[str, Any], objects: Mapping[str, Any], needed: Sequence[str] = ()
) -> dict[str, Any]:
    """The constructor's arguments: those of a header, with objects that are given in their place.

    Args:
        where: the folder, for messages.
        about: of :func:`read_header`.
        objects: given to :func:`open`.
        needed: names of objects without which the model cannot predict; others become None.

    Raises:
        InputError: if one of them is missing.
    """
    saved, own = about.get("model", {}), about.get("objects", [])
    good = isinstance(saved, dict) and isinstance(own, list)
    good = good and all(isinstance(name, str) for name in own)
    expect(good, where, "the arguments of a model", "others", "restore model.json or train again")
    for name in own:
        lacks = name in needed and name not in objects
        want, remedy = f"the {name} of the model, {saved.get(name)}", f"pass {name}= to shoal.open"
        expect(not lacks, where, want, "none", remedy)
    unknown = [name for name in objects if name not in saved]
    expect(
        not unknown,
        f"{where}: open",
        f"arguments among {', '.join(saved)}",
        unknown,
        "leave it out",
    )
    kept = {name: None if name in own else value for name, value in saved.items()}
    return {name: tuple(x) if isinstance(x, list) else x for name, x in {**kept, **objects}.items()}


# -- fit -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fitting:
    """What ``fit`` of a model is asked for besides data: where to write, how long, who listens.

    Attributes:
        out: folder of the run; None keeps nothing but the model in memory.
        resume: continue the run in `out`; from the beginning, where none was begun.
        epochs: passes over the training examples at most, as are the three below.
        steps: optimizer steps.
        minutes: of training.
        patience: validations without a better one.
        callbacks: further ones of the loop.
        keep_resume: keep the checkpoints of a finished run, which only training on needs.
        settings: of the command, to be written down beside the model's own.
    """

    out: str | Path | None = None
    resume: bool = False
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    patience: int | None = None
    callbacks: Sequence[Any] = ()
    keep_resume: bool = False
    settings: Mapping[str, Any] | None = None

    def budget(self, epochs: int) -> Budget:
        """The limits that were asked for, or `epochs` where there is none.

        Raises:
            InputError: if a limit is not positive.
        """
        limits = (self.steps, self.epochs, self.minutes)
        default = epochs if all(x is None for x in limits) else self.epochs
        return Budget(self.steps, default, self.minutes)

    @contextmanager
    def run(self, about: Mapping[str, Any], *data: torch.Tensor) -> Iterator[Run]:
        """The run to train in: a new one, the one to resume, or where `out` is None a passing one.

        Where several processes train together, the first one alone has `out`; every other works in
        a passing run, so that their machines need to share the data only (and `out` to resume).

        Args:
            about: of :func:`header`, with ``source``, the data's name or path.
            data: what must be the same in all processes.

        Yields:
            the run, its folder and ``model.json`` in place.

        Raises:
            InputError: if there is a run where a new one should be, or one with other settings, or
                processes were not started alike.
        """
        limits = {name: getattr(self, name) for name in ("steps", "epochs", "minutes", "patience")}
        asked = {"task": about["task"], "source": about["source"], **about["model"], **limits}
        asked |= {} if self.settings is None else {"command": dict(self.settings)}
        none = self.out is None and self.resume
        expect(not none, "out", "the folder to resume", None, "pass out=")
        if self.out is None or ranks.rank() > 0:
            # best and last lie in a folder meanwhile, so that training is the same with and without
            with TemporaryDirectory(prefix="shoal-") as folder:
                if self.resume and Path(str(self.out)).is_dir():
                    shutil.copytree(str(self.out), folder, dirs_exist_ok=True)
                _expect_alike(asked, data)
                run = self._opened(Path(folder), asked) if self.resume else None
                yield run or Run.create(folder, asked)
            return
        _expect_alike(asked, data)
        out = Path(self.out)
        with ExitStack() as stack:
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(owned(out / LOCK, out))
            except OSError as error:
                fail(str(out), "a folder to write to", error.strerror, "name another --out")
            run = self._opened(out, asked)
            if not (out / HEADER).exists():  # that of a finished run describes its model still
                write_header(out, about)
            yield run

    def _opened(self, out: Path, asked: dict[str, Any]) -> Run:
        finished = (out / TENSORS).exists()
        begun = self.resume and (out / "settings.json").exists()
        if not begun:
            remedy = "name another folder, or remove this one"
            expect(not finished, str(out), "a folder without a model", "a model", remedy)
        if not begun or not (finished or (out / "last.safetensors").exists()):
            if self.resume:
                _log.warning("%s: nothing to resume, training starts from the beginning", out)
            return Run.create(out, asked)
        run = Run.open(out)
        first = (out / "record.jsonl").exists() and not (out / HEADER).exists()
        remedy = "train a new run that begins with it"
        expect(not first, str(out), "a run of this version", "one of the first layout", remedy)
        remedy = "train with keep_resume=True to resume later, or name another folder"
        ready = run.last.exists()
        expect(ready, str(out), "a run with checkpoints", "a finished one without", remedy)
        run.expect_settings(asked, _FREE)
        return run

    def train(
        self,
        job: Job,
        run: Run,
        epochs: int,
        step: Callable[[Job], Any] | None = None,
        name: str = "train",
    ) -> Progress:
        """Train a job in a run, and show how far it is.

        Args:
            job: what is trained.
            run: of :meth:`run`, or one inside it where a model has several stages.
            epochs: the budget where none is asked for.
            step: makes the job's step rule; None for the schedule alone.
            name: of what is trained, before its progress.

        Raises:
            InputError: if the loss is not finite or the checkpoint is that of another job.
        """
        rule = None if step is None else step(job)
        resume, watchers = self.resume and run.last.exists(), self.watchers("train")
        return fit(job, self.budget(epochs), run, resume=resume, step=rule, callbacks=watchers)

    def watchers(self, stage: str, first: bool = True) -> list[Callback]:
        """The callbacks of a stage of training.

        Args:
            stage: its name, for the progress that is shown.
            first: whether the limits and the callbacks that were asked for belong to it.
        """
        shown: list[Callback] = [] if ranks.rank() else [ShowProgress(stage)]
        if not first:
            return shown
        stopping = [] if self.patience is None else [EarlyStopping(self.patience)]
        return [*stopping, *shown, *self.callbacks]

    def finish(
        self,
        run: Run,
        progress: Progress,
        about: Mapping[str, Any],
        state: dict[str, Any],
        test: dict[str, float],
    ) -> Result:
        """Make the finished run's folder a model's folder and say what came of it.

        Args:
            run: of :meth:`run`.
            progress: of the last stage.
            about: of :func:`header`.
            state: the model's tensors.
            test: its metrics.

        Raises:
            InputError: if the folder cannot be written to.
        """
        if self.out is not None:
            save(run.folder, about, state)
        return self.close(run, progress, test)

    def close(self, run: Run, progress: Progress, test: dict[str, float], *others: Path) -> Result:
        """Log the test metrics of a run whose model is saved, and remove its checkpoints.

        Args:
            run: of :meth:`run`.
            progress: of training.
            test: metrics of the test examples; empty where there are none.
            others: further files and folders that only resuming needs.
        """
        if test:
            for callback in (RunLog(run), *self.callbacks):
                callback.test(progress, test)
        if self.out is not None and not self.keep_resume:
            for path in (run.last, run.best, *others):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        return self.result(run, progress, test)

    def result(self, run: Run, progress: Progress, test: dict[str, float]) -> Result:
        """The result of a run, finished or interrupted."""
        here = None if self.out is None or ranks.rank() > 0 else run.folder
        every = [] if here is None else here.rglob("*")
        files = [path for path in every if path.is_file() and path.name != LOCK]
        size = sum(path.stat().st_size for path in files)
        where = progress.stopped, progress.step, round(progress.seconds, 3), progress.loss
        return Result(here, *where, best_validation(run), test, size)


def _expect_alike(asked: Mapping[str, Any], data: Sequence[torch.Tensor]) -> None:
    """Check that all processes have the same versions, settings and data, before any trains."""
    if ranks.world_size() > 1:
        versions = {"shoal": installed_version(), "torch": torch.__version__}
        settings = {name: json.dumps(value, default=str) for name, value in asked.items()}
        ranks.expect_same(versions | settings | {"data": ranks.digest(*data)})


def best_validation(run: Run) -> dict[str, float]:
    """The metrics of a run's best validation; its first metric decides."""
    events = [event for event in run.log() if event["event"] == "validate"]
    kept = [{k: v for k, v in x.items() if k.startswith("valid_")} for x in events]
    return max(kept, key=lambda metrics: next(iter(metrics.values())), default={})
