"""``shoal train TASK SOURCE``: a task's settings become a model, which is fitted and evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import shoal
from shoal.cli import config
from shoal.core.errors import expect, fail
from shoal.tasks import TASKS, Task, named
from shoal.tasks.settings import OF_THE_CALL, Training, flat


class Train(Training):
    """Train a model: shoal train labels|nodes|links SOURCE."""


def parse(words: list[str]) -> tuple[Training, Callable[[Any], dict[str, Any]]]:
    """The settings that the words behind ``shoal train`` stand for, and what trains with them.

    Raises:
        InputError: if there is no such task, or the file of ``--config`` is not one of its settings.
        SystemExit: after ``--help``.
    """
    if words in ([], ["-h"], ["--help"]):
        print(_overview(), flush=True)
        raise SystemExit(0 if words else 2)
    path = _config_of(words)
    values = {} if path is None else config.read(path)
    begin = 0 if words[0].startswith("-") and "task" in values else 1
    task = task_of(str(values.pop("task", "")) if begin == 0 else words[0])
    values.pop("task", None)
    default = None if path is None else config.settings_from(task.settings, values, path)
    settings = config.parsed(task.settings, f"shoal train {task.name}", words[begin:], default)
    return settings, partial(train, task)


def _overview() -> str:
    width = max(map(len, TASKS))
    about = (f"  {name:<{width}}  {_about(task)}" for name, task in TASKS.items())
    return "\n".join(
        [
            f"usage: shoal train {{{','.join(TASKS)},module:task}} SOURCE [OPTIONS]",
            "       shoal train --config run.toml [OPTIONS]",
            "",
            *about,
            "",
            "shoal train labels --help shows a task's options.",
        ]
    )


def _about(task: Task) -> str:
    return (task.settings.__doc__ or "").partition("\n")[0]


def _config_of(words: list[str]) -> Path | None:
    """The file that ``--config`` names, which must be read before the other flags."""
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
    if ":" in name:
        found = named(name, "task")
        registered = [x for x in TASKS.values() if found in (x, x.model_of, x.name)]
        want = "a function under @shoal.task"
        expect(bool(registered), name, want, type(found).__name__, "register it")
        return registered[0]
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"write shoal train labels {name}"
        fail("task", f"one of {', '.join(TASKS)} or module:name", repr(name), remedy)
    return TASKS[name]


def train(task: Task, settings: Training) -> dict[str, Any]:
    """Load the data, fit the task's model, and say what came of it.

    Raises:
        InputError: for bad settings or data.
    """
    from shoal.training import track

    out = settings.out or Path("runs") / Path(settings.source).stem
    model = task.model_of(settings)
    data = shoal.load(settings.source, **settings.load_arguments())
    callbacks = [_Config(out, task, settings)]
    if settings.track is not None:
        callbacks.append(track.Tracker(settings.track, out))
    asked = {"task": task.name, **flat(settings)}
    result = model.fit(data, out=out, settings=asked, callbacks=callbacks, **settings.fit_arguments())
    return {}
