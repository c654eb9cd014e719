"""Runs and exports of the first layout, opened as models of today: one function per task.

They are told by ``settings.json`` without ``model.json``; the settings are those of the first
command, one dataclass for all tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.core.errors import fail
from shoal.training.run import Run


def open_run(folder: Path, **objects: Any) -> Any:
    """The model of a run or an export of the first layout.

    Args:
        folder: of the run.
        objects: plain arguments that are given anew, such as ``device``.

    Raises:
        InputError: if the folder holds no run, or one that is damaged.
    """
    run = Run.open(folder)
    start = next((event for event in run.record() if event["event"] == "start"), {})
    if "features" in start:  # the first line of a run on a graph says how wide they are
        return open_graph_run(run, start, **objects)
    fail(str(folder), "a run on a graph", "one on texts", "wait for its reader")


def open_graph_run(run: Run, start: dict[str, Any], **objects: Any) -> Any:
    """The NodeModel or LinkModel of a run on a graph."""
    raise NotImplementedError
