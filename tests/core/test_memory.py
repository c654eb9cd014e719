"""The peak of memory rises with what was held, and is told with each line of a record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.core import memory
from shoal.core.memory import available_bytes, peaks
from shoal.training.run import Run

GROW = """
from shoal.core.memory import peak_mib
before = peak_mib()
held = bytearray(200 * 2**20)
held[::4096] = bytes([1]) * len(held[::4096])
risen = peak_mib()
del held
print(risen - before, peak_mib() - risen)
"""


def test_peak_rises_by_what_is_held_and_does_not_fall() -> None:
    """200 MiB that are written to count; when they are gone the peak stays."""
    told = subprocess.run([sys.executable, "-c", GROW], capture_output=True, text=True, check=True)
    risen, after = map(float, told.stdout.split())
    assert 150 < risen < 260 and abs(after) < 20


def test_every_line_of_a_record_tells_the_peak(tmp_path: Path) -> None:
    """In whole MiB; a fact of that name is kept."""
    run = Run.create(tmp_path, {})
    run.write("a", {})
    run.write("b", {"peak_mib": 1})
    first, second = run.log()
    assert 0 < first["peak_mib"] <= peaks()["peak_mib"] and second["peak_mib"] == 1


def test_a_system_that_has_no_count_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: no /proc, no sysconf; nothing is made up."""
    assert (available_bytes() or 0) > 2**20
    monkeypatch.setattr(memory, "Path", lambda name: Path("absent", name[1:]))
    monkeypatch.delattr("os.sysconf")
    assert available_bytes() is None
