"""What is done with a trained model: evaluate, predict, query, report, serve, export, add."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import shoal
from shoal.core.errors import expect, expect_folder, expect_positive, fail
from shoal.serve.limits import Limits
from shoal.tasks.settings import Common, File, Flag, Float, Table, Text

_log = logging.getLogger(__name__)
_AT_A_TIME = 4096  # texts that are predicted between two writes

Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclass(frozen=True, kw_only=True)
class Computing(Common):
    """Options of the subcommands that compute with a trained model."""

    device: str = "auto"
    """Where to compute: auto (the strongest that works), cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Ranking(Computing):
    """Options of the subcommands that rank labels."""

    search: Literal["exact", "hnsw"] = "exact"
    """Compare with every label, or walk a graph that misses a few: for millions (extra ann)."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Ranking):
    """Evaluate a run on its data's test examples, nodes or links, or on other data."""

    run: Run
    """Folder of a run, a saved model or an export."""
    source: Text = None
    """Another data set with the same labels; the run's own by default."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Predict(Ranking):
    """Predict labels for a file of texts, or classes or links for a file of nodes."""

    run: Run
    """Folder of a run, a saved model or an export."""
    texts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Texts: one per line, or a .csv, .tsv, .jsonl or .parquet table. For graphs: a node per
    line."""
    source: Text = None
    """Graphs: another graph with the same features, such as one that has grown; else the run's."""
    out: File = None
    """Where to write JSON lines; standard output by default."""
    k: int = 5
    """Number of labels per text, or of classes or links per node."""
    threshold: Float = None
    """Leave out predictions with a lower score; scores are probabilities where the model has
    them."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True, kw_only=True)
class Query(Ranking):
    """Predict the labels of one text."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """The text."""
    run: File = None
    """Folder of a run; the newest one under runs/ by default."""
    k: int = 5
    """Number of labels."""
    threshold: Float = None
    """Leave out labels with a lower score; scores are probabilities where the model has them."""
    explain: Flag = False
    """Also show which rankers, words and nearest examples speak for each label."""


@dataclass(frozen=True, kw_only=True)
class Report(Common):
    """Show what a run did: one HTML file with charts, metrics and examples."""

    run: Run
    """Folder of a run, finished or not."""
    out: File = None
    """The file to write; report.html in the run's folder by default."""


@dataclass(frozen=True, kw_only=True)
class Serve(Ranking):
    """Answer over HTTP, with a page to try it: the labels of texts."""

    run: Run
    """Folder of a run on labels, a saved model or an export."""
    host: str = "127.0.0.1"
    """Address to serve at; 0.0.0.0 lets other machines in, and there is no password."""
    port: int = 8000
    """Port to serve at; 0 takes any that is free and prints it."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Export(Computing):
    """Write a trained run as a folder for shoal, sentence-transformers and transformers."""

    run: Run
    """Folder of a run on labels."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to make; an earlier export there is replaced."""


@dataclass(frozen=True, kw_only=True)
class Add(Computing):
    """Add labels to a trained run, by their texts, without training; the run stays as it is."""

    run: Run
    """Folder of a run on labels, or an export."""
    labels: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS")]
    """The new labels: JSON lines with "uid", "title" and perhaps "content"."""
    out: Path
    """The folder to make: an export with all labels; an earlier export there is replaced."""


def opened(run: Path, asked: Computing) -> Any:
    """The model in a folder, on the device and with the search that were asked for.

    Raises:
        InputError: if there is none, or a model on a graph is asked to search labels.
    """
    search = getattr(asked, "search", "exact")
    if search == "exact":
        return shoal.open(run, device=asked.device)
    return shoal.open(run, device=asked.device, search=shoal.HnswSearch(run / "hnsw"))


def evaluate(asked: Evaluate) -> dict[str, Any]:
    """Run ``shoal evaluate``: metrics on test examples, in per cent.

    Raises:
        InputError: if the run is not whole, or the data is of another kind or has other labels.
    """
    model = opened(asked.run, asked)
    source = asked.source
    data = None if source is None else _loaded(source, asked.table)
    return {"run": str(asked.run), "data": source or model.source, "test": model.evaluate(data)}
