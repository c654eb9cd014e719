"""``shoal train TASK SOURCE``: a task's settings become a model, which is fitted and evaluated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import shoal
from shoal.cli import config
from shoal.cli.show import say
from shoal.core.errors import expect, fail, naming
from shoal.tasks import TASKS, Task
from shoal.tasks.settings import OF_THE_CALL, Training, flat, named

CONFIG = "run.toml"
_OWN = ("labels", "nodes", "links")


class Train(Training):
    """Train a model: shoal train labels|nodes|links SOURCE."""


def tasks() -> dict[str, Task]:
    """All tasks by name: shoal's own, each registered by its module, and those imported since."""
    for name in _OWN:
        import_module(f"shoal.tasks.{name}")
    return TASKS


def parse(words: list[str]) -> tuple[Training, Callable[[Any], dict[str, Any]]]:
    """The settings that the words behind ``shoal train`` stand for, and what trains with them.

    Raises:
        InputError: if there is no such task, or the file of ``--config`` holds no settings of it.
        SystemExit: after ``--help``.
    """
    if words in ([], ["-h"], ["--help"]):
        say(overview())
        raise SystemExit(0 if words else 2)
    path = _config_of(words)
    values = {} if path is None else config.read(path)
    of_file = values.pop("task", None)
    named_here = not words[0].startswith("-")
    with nullcontext() if named_here or path is None else naming(path):
        task = task_of(words[0] if named_here else str(of_file or ""))
    same = of_file in (None, task.name)
    expect(same, f"{path}: task", task.name, repr(of_file), "name the file's task, or none")
    default = None if path is None else config.settings_from(task.settings, values, path)
    rest = words[1:] if named_here else words
    settings = config.parsed(task.settings, f"shoal train {task.name}", rest, default)
    return settings, partial(train, task)


def overview() -> str:
    """What ``shoal train --help`` prints."""
    known = tasks()
    width = max(map(len, known))
    return "\n".join(
        [
            f"usage: shoal train {{{','.join(known)}}} SOURCE [OPTIONS]",
            "       shoal train module:task SOURCE [OPTIONS]",
            "       shoal train --config run.toml [OPTIONS]",
            "",
            *(f"  {name:<{width}}  {(x.settings.__doc__ or '')}" for name, x in known.items()),
            "",
            "shoal train labels --help shows the options of a task.",
        ]
    )


def _config_of(words: list[str]) -> Path | None:
    """The file that ``--config`` names, which is read before the other flags."""
    for i, word in enumerate(words):
        if word.startswith("--config="):
            return Path(word.partition("=")[2])
        if word == "--config" and i + 1 < len(words):
            return Path(words[i + 1])
    return None


def task_of(name: str) -> Task:
    """A registered task, or one that a user's module registers: ``module:name``.

    Raises:
        InputError: if there is none.
    """
    known = tasks()
    if ":" in name:
        found = named(name, "task")
        for task in known.values():
            if found is task or found is task.model_of:
                return task
        want = "a function registered by @shoal.task"
        fail(name, want, type(found).__name__, "register it")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"write shoal train labels {name}".rstrip()
        fail("task", f"one of {', '.join(known)} or module:task", repr(name), remedy)
    return known[name]


def train(task: Task, settings: Training) -> dict[str, Any]:
    """Load the data, fit the task's model, and say what came of it.

    Started by torchrun, its processes train one model; the first one alone writes and speaks.

    Raises:
        InputError: for bad settings or data.
    """
    from shoal.core import ranks

    with ranks.launched():
        if ranks.rank() > 0:
            logging.getLogger("shoal").setLevel(logging.ERROR)
        found = _train(task, settings, first=ranks.rank() == 0)
        return {} if ranks.rank() > 0 else found


def _train(task: Task, settings: Training, first: bool) -> dict[str, Any]:
    out = settings.out or Path("runs") / Path(settings.source).stem
    model = task.model_of(settings)
    columns = settings.load_arguments()
    data = shoal.load(settings.source, **columns) if columns else settings.source
    asked = {"task": task.name, **flat(settings)}
    callbacks = [_writes_config(out / CONFIG, asked)] if first else []
    if first and settings.track is not None:
        callbacks.append(shoal.Tracker(settings.track, out))
    given = settings.fit_arguments()
    result = model.fit(data, out=out, callbacks=callbacks, settings=asked, **given)
    found = {
        "run": str(out),
        "data": settings.source,
        "stopped": result.stopped,
        "steps": result.steps,
        "train_seconds": round(result.seconds, 1),
        "loss": round(result.loss, 4),
        "size_mib": round(result.size / 2**20, 2),
    }
    found |= ({"test": result.test} if result.test else {}) | result.details
    return found if settings.json else found | {"next": f"shoal report {out}"}


def _writes_config(path: Path, asked: dict[str, Any]) -> Any:
    """A callback that leaves settings where training begins, so that a killed run has them too."""
    from shoal.data.lines import write_whole
    from shoal.training.callbacks import Callback

    kept = {name: value for name, value in asked.items() if name not in OF_THE_CALL}
    text = f"# shoal train --config {CONFIG} --out FOLDER trains the same again\n"

    class WriteConfig(Callback):
        def begin(self, progress: Any, job: Any) -> None:
            write_whole(path, [text, config.written(kept), "\n"])

    return WriteConfig()
