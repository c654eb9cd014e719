"""The examples run as they stand, on small data in place of the shipped one."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.data.formats import xc
from shoal.training.run import Run
from tests.planted import planted_labels

EXAMPLES = Path(__file__).parents[1] / "examples"
PANGRAM = "the quick brown fox jumps over the lazy dog"  # so that every letter is known


def run(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What an example prints when it is called with these words."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains twice, prints a table and three answers; the second time it shows what it has."""
    data = planted_labels(n=1200, n_labels=64)
    titles = [f"{data.labels.titles[0]} {PANGRAM}", *data.labels.titles[1:]]
    xc.write(replace(data, labels=replace(data.labels, titles=titles)), tmp_path / "planted")
    # enough examples held out for a combiner
    words = ["--steps", "2", "--source", str(tmp_path / "planted"), "--out", str(tmp_path)]
    said = [run("demo.py", words, monkeypatch, capsys) for _ in range(2)]
    assert said[0] == said[1]
    table, *answers = said[0].split("\n\n")
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows] == ["batches", "random", "ngame", "ensemble"]
    assert float(rows[3][-1]) > float(rows[2][-1]) > 0  # what comes after the encoder takes time
    for answer in answers:
        scores = [float(line.split()[-1]) for line in answer.strip().splitlines()[1:]]
        assert len(scores) == 3 and 1 >= scores[0] >= scores[1] >= scores[2] >= 0
    for batches in ("random", "ngame"):
        (end,) = (x for x in Run.open(tmp_path / f"demo-{batches}").log() if x["event"] == "end")
        assert end["step"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.parametrize("name", ["sentence_transformers", "transformers", "lightning"])
def test_a_foreign_trainer(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two epochs in another library's trainer more than double P@1."""
    pytest.importorskip(name, reason=f"needs {name}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [] if name == "lightning" else ["--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["", "--epochs", "2", *words])
    runpy.run_path(str(EXAMPLES / f"with_{name}.py"), run_name="__main__")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("P@1")]
    _, before, _, after = line.split()
    assert float(after) > 2 * float(before) > 0


def test_pyg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain PyG script with shoal's loader learns what neighbors tell."""
    pytest.importorskip("torch_geometric", reason="needs the extra pyg")
    monkeypatch.setattr(sys, "argv", ["", "--nodes", "1200", "--epochs", "3"])
    runpy.run_path(str(EXAMPLES / "with_pyg.py"), run_name="__main__")
    _, before, _, after = capsys.readouterr().out.split()
    assert float(after) > max(70, 1.5 * float(before))
