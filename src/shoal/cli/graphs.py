"""The first command on top of the models on graphs, until its subcommands take its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core.errors import expect
from shoal.data.lines import lines, shorten
from shoal.models import base
from shoal.models.links import LinkModel
from shoal.models.nodes import NodeModel
from shoal.sample.links import PairSampler
from shoal.step.job import spectral_step
from shoal.tasks.common import expect_settings
from shoal.training.run import Run
from shoal.training.track import Tracker


def model_of(asked: Train) -> NodeModel | LinkModel:
    """The model that settings ask for."""
    names = ("hidden", "fanouts", "dropout", "batch_size", "lr", "seed", "device_rows", "host_rows")
    given = {name: getattr(asked, name) for name in (*names, "device")}
    given |= {"layer": asked.model, "heads": asked.heads if asked.model == "gat" else None}
    given["step"] = spectral_step if asked.step == "spectral" else None
    given = {name: value for name, value in given.items() if value is not None}
    if asked.task == "nodes":
        return NodeModel(**given)
    return LinkModel(**given, negatives=PairSampler if asked.negatives == "uniform" else None)


def train(asked: Train) -> dict[str, Any]:
    """Run ``shoal train`` on a graph."""
    expect_settings(asked)
    out = asked.out or Path("runs") / Path(asked.source).stem
    limits = ("resume", "epochs", "steps", "minutes", "patience", "valid_every")
    given = {name: getattr(asked, name) for name in limits}
    trackers = [] if asked.track is None else [Tracker(asked.track, out)]
    given |= {"callbacks": trackers, "keep_resume": True}
    result = model_of(asked).fit(asked.source, out=out, **given)
    found = {
        "run": str(out),
        "data": asked.source,
        "stopped": result.stopped,
        "steps": result.steps,
        "train_seconds": round(result.seconds, 1),
        "loss": round(result.loss, 4),
    }
    return found | ({"test": result.test} if result.test else {}) | result.details


def predictions(
    run: Run, source: str, ids: Tensor, k: int, threshold: float | None, device: str
) -> Iterator[dict[str, Any]]:
    """One line per node.

    Yields:
        a node, and its classes or links.
    """
    model = opened(run, device)
    what = "links" if isinstance(model, LinkModel) else "classes"
    for node, row in zip(ids.tolist(), model.predict(ids, source, k, threshold), strict=True):
        yield {"node": node, what: [asdict(x) | {"score": round(x.score, 4)} for x in row]}


def opened(run: Run, device: str = "cpu") -> NodeModel | LinkModel:
    """The model of a run."""
    return base.open(run.folder, device=device)


def read_ids(path: Path) -> Tensor:
    """The nodes of a file, a number a line."""
    ids = []
    for number, line in lines(path):
        word = line.strip()
        good = word.isascii() and word.isdecimal() and len(word) < 19
        want = "the number of a node, from 0"
        expect(good, f"{path}:{number}", want, shorten(word), "correct the line")
        ids.append(int(word))
    return torch.tensor(ids, dtype=torch.int64)
