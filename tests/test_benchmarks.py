"""The benchmark that needs a device runs without one, every section of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_device_s_benchmark_can_be_rehearsed(tmp_path: Path) -> None:
    """With the CPU as the device no section fails or stays empty, and both files are written."""
    command = [sys.executable, "benchmarks/device.py", "--device", "cpu", "--quick"]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "device")], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    sections = {title: rows for title, rows in found.items() if isinstance(rows, list)}
    assert len(sections) == 14
    for title, rows in sections.items():
        assert rows and not any("failed" in row or "left out" in row for row in rows), (title, rows)
    assert all(row["equal"] for row in sections["equal rows"] if "equal" in row)
    assert (tmp_path / "device.md").read_text().count("\n## ") == 14
    assert len((tmp_path / "device.jsonl").read_text().splitlines()) >= 50
