"""What a checkpoint of a job holds, and how it is put back.

model, rows, tables     the weights: the model's, the loader's table's, further tables' by name
optimizer, row_optimizer, table_optimizers      the optimizers of each, in the same order
loader, progress, random, state     where the run stands; `state` is the job's own
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import InputError, expect, fail, naming
from shoal.core.state import count, made, number, part
from shoal.training.job import Job, Progress, Stateful
from shoal.training.run import Run


def weights_of(job: Job) -> dict[str, Any]:
    """All that is trained, as a checkpoint of the best model holds it; nothing is copied."""
    state: dict[str, Any] = {"model": job.objective.model.state_dict()}
    if job.table is not None:
        state["rows"] = job.table.as_subclass(Tensor)
    state["tables"] = {name: table.as_subclass(Tensor) for name, table in job.tables.items()}
    return state


def moved_by_steps(job: Job) -> dict[str, Any]:
    """All that a step changes: weights and optimizers; nothing is copied."""
    state = weights_of(job)
    if job.optimizer is not None:
        state["optimizer"] = job.optimizer.state_dict()
    if job.table is not None:
        state["row_optimizer"] = job.table.optimizer.state_dict()
    optimizers = {name: table.optimizer.state_dict() for name, table in job.tables.items()}
    return {**state, "table_optimizers": optimizers}


def put_back(job: Job, state: Mapping[str, Any]) -> None:
    """Give a job the weights and optimizers that :func:`moved_by_steps` returned.

    Raises:
        InputError: if a table has rows of another shape.
    """
    job.objective.model.load_state_dict(state["model"])
    if job.optimizer is not None:
        job.optimizer.load_state_dict(state["optimizer"])
    if job.table is not None:
        _put_back_rows(job.table, state["rows"], state["row_optimizer"])
    for name, table in job.tables.items():
        _put_back_rows(table, state["tables"][name], state["table_optimizers"][name])


def whole_state(job: Job, progress: Progress, state: Mapping[str, Stateful]) -> dict[str, Any]:
    """All that a resumed run needs.

    Args:
        job: what is trained.
        progress: how far it has come.
        state: further parts with a state, the job's own included.
    """
    return moved_by_steps(job) | {
        "loader": job.loader.state_dict(),
        "progress": vars(progress) | {"stopped": ""},
        "random": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
        "state": {name: part.state_dict() for name, part in state.items()},
    }


def load_last(job: Job, run: Run, state: Mapping[str, Stateful]) -> Progress:
    """Put a job, torch's random state and `state` where a run's last checkpoint has them.

    Raises:
        InputError: if there is no checkpoint, or it is that of another job.
    """
    saved = run.load_last()
    try:
        with naming(run.last):
            return _put_all_back(job, saved, state)
    except InputError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError
    ) as error:  # fmt: skip
        missing = isinstance(error, KeyError)
        reason = f"nothing named {error}" if missing else str(error).splitlines()[-1].strip()
        fail(str(run.last), "a checkpoint of this job", reason, "resume with its own settings")


def _put_all_back(job: Job, saved: Mapping[str, Any], state: Mapping[str, Stateful]) -> Progress:
    where = part(saved, "progress")
    count(where, "step")
    number(where, "seconds", low=0)
    progress = made(Progress, where, "progress")
    put_back(job, saved)
    job.loader.load_state_dict(saved["loader"])
    parts = saved["state"] if "state" in saved else saved["also"]  # runs of 0.1
    for name, each in state.items():
        each.load_state_dict(parts[name])
    on_host, *on_devices = saved["random"]
    torch.set_rng_state(on_host)
    torch.cuda.set_rng_state_all(on_devices[: torch.cuda.device_count()])
    return progress


def restore(job: Job, run: Run) -> None:
    """Put model, tables, optimizers and loader where a run's last checkpoint has them.

    Raises:
        InputError: if there is none, or it is that of another job.
    """
    with torch.random.fork_rng():
        load_last(job, run, job.state)


def _put_back_rows(table: Any, saved: Tensor, optimizer: dict[str, Any]) -> None:
    rows = table.as_subclass(Tensor)
    want, got = (f"rows of shape {tuple(x.shape)}" for x in (rows, saved))
    expect(want == got, "checkpoint", want, got, "use the run's own data and settings")
    rows.copy_(saved)
    table.optimizer.load_state_dict(optimizer)
