"""Runs and exports of the first layout, opened as models of today: one function per task.

They are told by ``settings.json`` without ``model.json``; the settings are those of the first
command, one dataclass for all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.core.errors import expect, fail
from shoal.models import base
from shoal.models.links import LinkModel
from shoal.models.nodes import NodeModel
from shoal.sample.links import PairSampler
from shoal.step.job import spectral_step
from shoal.training.run import Run

# weights of the first layer, as wide as the rows that it reads
_FIRST = ("layers.0.own.weight", "layers.0.value.weight")


def open_run(folder: Path, **objects: Any) -> Any:
    """The model of a run or an export of the first layout.

    Args:
        folder: of the run.
        objects: plain arguments that are given anew, such as ``device``.

    Raises:
        InputError: if the folder holds no run, or one that is damaged.
    """
    run = Run.open(folder)
    start = next((event for event in run.log() if event["event"] == "start"), {})
    if "features" in start:  # the first line of a run on a graph says how wide they are
        return open_graph_run(run, start, **objects)
    fail(str(folder), "a run on a graph", "one on texts", "wait for its reader")


def open_graph_run(run: Run, start: Mapping[str, Any], **objects: Any) -> NodeModel | LinkModel:
    """The model of a run on a graph.

    Args:
        run: of nodes or of links.
        start: the first line of its log.
        objects: plain arguments that are given anew.

    Raises:
        InputError: if settings, log or checkpoint are damaged.
    """
    asked, where = run.settings, str(run.folder / "settings.json")
    kind = LinkModel if asked.get("task") == "links" else NodeModel
    lacks = [name for name in ("model", "fanouts", "hidden", "seed") if name not in asked]
    expect(not lacks, where, "the settings of a run", f"no {lacks}", "restore it or train again")
    names = ("hidden", "dropout", "batch_size", "lr", "seed", "device_rows", "host_rows")
    given = {name: asked[name] for name in names if asked.get(name) is not None}
    given |= {"fanouts": tuple(asked.get("fanouts", ())), "layer": asked.get("model")}
    given |= {"heads": asked.get("heads")} if asked.get("model") == "gat" else {}
    if asked.get("negatives") == "uniform":
        given["negatives"] = PairSampler
    if asked.get("step") == "spectral":
        given["step"] = spectral_step
    try:
        model = kind(**given | objects)
    except TypeError as error:
        fail(where, "the settings of a run on a graph", error, "restore it or train again")
    about = {name: start.get(name) for name in ("features", "classes", "several")}
    about |= {"source": asked.get("source"), "name": start.get("data")}
    state = base.read_state(run.folder)
    first = [x.shape[1] for name, x in state["model"].items() if name.endswith(_FIRST)]
    expect(len(first) == 1, where, "the weights of a network", list(state), "train again")
    model.fill(run.folder, {**about, "width": first[0]}, state)
    return model
