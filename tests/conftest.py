"""One thread, reproducible examples, and a way past the type checker to test bad input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

settings.register_profile("shoal", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("shoal")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels run on the CPU


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the annotations' run-time check off, as it is for users, so that errors are ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def outside_data() -> Path:
    """The folder of real data sets that SHOAL_DATA names; skip where it is absent."""
    folder = os.environ.get("SHOAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set SHOAL_DATA to the folder of outside data sets")
    return Path(folder)
