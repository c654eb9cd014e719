"""A small trained run, and the model in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.data.formats import xc
from tests import command
from tests.planted import planted_labels


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on planted labels."""
    folder = tmp_path_factory.mktemp("served")
    xc.write(planted_labels(n=60, n_labels=16), folder / "planted")
    options = "--batch-size 12 --cluster-size 4 --dim 8 --steps 3 --valid 0.5".split()
    command.result("train", "labels", folder / "planted", *options, "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def labeler(run: Path) -> Any:
    """The run's model."""
    return shoal.open(run)
