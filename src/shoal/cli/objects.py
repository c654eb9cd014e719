"""Objects to measure or to try: those of a run, or of a function in a user's own file.

A run's job is built again around its model, with the state of the last checkpoint where the run
kept one; own objects come from a Python file, by a function that returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shoal
from shoal.cli.config import settings_of_run
from shoal.cli.use import on_graph, source_of
from shoal.core.errors import expect
from shoal.core.objectives import Objective
from shoal.core.optimizers import OptimizerInfo, optimizer_info
from shoal.data import load_labels
from shoal.data.splits import validation_split
from shoal.step.job import info_of
from shoal.tasks import TASKS, labels
from shoal.tasks.labels import ALL
from shoal.tasks.settings import Table, named
from shoal.training.checkpoints import restore
from shoal.training.job import Job
from shoal.training.run import Run

# What of a run of the first layout, whose options were others, decides its batches.
_OF_BATCHES = {"batch_size", "cluster_size", "batches", "positives", "valid", "seed"}

# The order in which a function may return objects without names.
_PARTS = ("model", "loss_fn", "loader", "optimizer", "forward")


@dataclass(frozen=True, eq=False)
class Objects:
    """What is measured: an objective or a model with its loss, a loader, and how it is trained."""

    model: nn.Module | Objective
    loss_fn: Callable[..., Tensor] | None
    loader: Any
    info: OptimizerInfo
    optimizer: torch.optim.Optimizer | None
    forward: Callable[..., Tensor] | None = None
    after_warmup: bool | None = None  # None: as far as the optimizer's state tells


def objects_of(source: str, device: str = "auto", optimizer: str = "sgd") -> Objects:
    """The objects that a source names.

    Args:
        source: folder of a run, or ``file.py:function``.
        device: where a run's model is put.
        optimizer: by name, of own objects that hold none.

    Raises:
        InputError: if it names neither.
    """
    if ":" in source and source.split(":")[0].endswith(".py"):
        return _own(source, optimizer)
    run = Path(source)
    job, info = job_of(run, device)
    # a run that ended keeps no optimizer, but was trained
    warm = None if Run.open(run).last.exists() else True
    return Objects(job.objective, None, job.loader, info, job.optimizer, after_warmup=warm)


def job_of(run: Path, device: str = "auto") -> tuple[Job, OptimizerInfo]:
    """A run's job in the state of its last checkpoint, and its optimizer with the peak rate.

    Without a checkpoint, as in a finished run by default, the model has its final weights and the
    optimizer no state.

    Raises:
        InputError: if data or checkpoint are not those of the run, or it is an export.
    """
    opened = Run.open(run)
    expect(not opened.exported, str(run), "a run to measure", "an export", "name its run")
    model = shoal.open(run, device=device)
    source, columns = source_of(run, None, Table())
    job = model.job(source) if on_graph(model) else _label_job(model, opened, source, columns)
    info = info_of(job)  # before the schedule's last rate comes back
    # where shares were held out in turn, the encoder that was kept was trained on all examples
    whole = Run(opened.folder / ALL, {})
    opened = whole if whole.last.exists() else opened
    if opened.last.exists():
        restore(job, opened)
    return job, info


def _label_job(model: Any, run: Run, source: str, columns: dict[str, Any]) -> Job:
    """The encoder's job of a run on labels: its batches and loss around the trained encoder."""
    task = TASKS["labels"]
    first = {name: x for name, x in run.settings.items() if name in _OF_BATCHES}
    asked = settings_of_run(task.settings, run.settings.get("command") or first)
    parts, valid = task.model_of(asked).parts, asked.fit_arguments()["valid"]
    data = load_labels(source, **columns)
    once = valid and not (run.folder / ALL).is_dir()
    kept = validation_split(data, valid, asked.seed)[0] if once else data.train
    about = {"seed": asked.seed, "device": model.device, "folder": None}
    encoder, tokens = model.encoder.begin(kept.texts, data.labels, **about)
    device = None if model.device == "cpu" else model.device
    return labels.build(parts, encoder, tokens, kept.labels, device=device)


def _own(source: str, optimizer_name: str) -> Objects:
    """Objects of a user's file: ``file.py:function``, by name or in the order of `_PARTS`."""
    make = named(source, "source")
    made = make() if callable(make) else make
    if isinstance(made, tuple):
        made = dict(zip(_PARTS, made, strict=False))
    elif not isinstance(made, Mapping):
        made = getattr(made, "__dict__", {})
    want = "model, loss_fn and loader, and perhaps optimizer and forward"
    for part in ("model", "loader"):
        expect(part in made, source, want, f"no {part}", "return a dictionary of them")
    optimizer = made.get("optimizer")
    info = optimizer_info(optimizer if optimizer is not None else optimizer_name)
    return Objects(
        made["model"], made.get("loss_fn"), made["loader"], info, optimizer, made.get("forward")
    )
