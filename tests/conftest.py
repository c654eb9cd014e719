"""One thread, reproducible examples, and a way past the type checker to test bad input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

WHOLE = {"tests", "cli", "integrations", "models", "serve"}

# make test tries the first of those examples that --hypothesis-profile thorough tries
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=15)
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("quick")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels run on the CPU


@contextmanager
def annotations(checked: bool) -> Iterator[None]:
    """Whether calls are held against their annotations while the block runs."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", not checked)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the annotations' run-time check off, as it is for users, so that errors are ours."""
    with annotations(checked=False):
        yield


@pytest.fixture(scope="module", autouse=True)
def as_users_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for tests of the whole: checks double their time; parts and doctests have them."""
    with annotations(checked=request.path.parent.name not in WHOLE):
        yield


@pytest.fixture
def few_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few held-out examples be enough: small data then train once or twice, not ten times."""
    from shoal.tasks.labels import FEWEST  # not before the checks are installed

    monkeypatch.setattr("shoal.models.labels.ENOUGH", FEWEST)


@pytest.fixture
def outside_data() -> Path:
    """The folder of real data sets that SHOAL_DATA names; skip where it is absent."""
    folder = os.environ.get("SHOAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set SHOAL_DATA to the folder of outside data sets")
    return Path(folder)
