"""A small trained run, and the labeler in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cli.settings import Train

from shoal.cli import main as cli
from shoal.data import xc
from shoal.data.planted import planted_labels
from shoal.rank.predictor import Labeler
from shoal.tasks.labels import labeler_of
from shoal.training.run import Run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on planted labels."""
    folder = tmp_path_factory.mktemp("served")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    out = folder / "run"
    options = {"batch_size": 12, "cluster_size": 4, "dim": 8, "steps": 3}
    assert cli.run(Train(source=str(folder / "planted"), out=out, json=True, **options)) == 0  # pyright: ignore
    return out


@pytest.fixture(scope="session")
def labeler(run: Path) -> Labeler:
    """The run's own."""
    return labeler_of(Run.open(run))
