"""Killed processes and full disks: no file is half written, and no finished work is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.core import checkpoint
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.training.run import Run
from tests import killing
from tests.planted import planted_labels

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted data, and two small runs on it."""
    folder = tmp_path_factory.mktemp("faults")
    xc.write(planted_labels(n=600, n_labels=16, noise=0.3), folder / "data")
    for name, seed in (("one", 0), ("two", 1)):
        killing.fit(folder, name, seed, steps=2, valid=0.5)
    return folder


def predicted(folder: Path) -> list[list[dict[str, Any]]]:
    return [[vars(x) for x in row] for row in shoal.open(folder).predict(killing.TEXTS, k=5)]


def last_of(run: Run) -> dict[str, Any]:
    """All that a checkpoint holds, but for the clock."""
    state = run.load_last()
    state["progress"].pop("seconds")
    return state


def killed(what: str, folder: Path, kills: int) -> dict[str, Any]:
    """What tests/killing.py tells."""
    words = [sys.executable, "-m", "tests.killing", what, str(folder), str(kills), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "kills"), [("training", 3), pytest.param("stages", 20, marks=SLOW)]
)
def test_killed_training_ends_as_if_it_had_not_been(
    world: Path, tmp_path: Path, what: str, kills: int
) -> None:
    """SIGKILL at random moments, in every stage: the same bits in the end, nothing left over."""
    shutil.copytree(world / "data", tmp_path / "data")
    told = killed(what, tmp_path, kills)
    assert told["kills"] == kills and len({*told["steps"]}) > 1  # some work was kept between them
    one, two = tmp_path / "whole", tmp_path / "killed"
    for last in one.rglob("last.safetensors"):
        folder = last.parent.relative_to(one)
        assert same_tensors(last_of(Run.open(one / folder)), last_of(Run.open(two / folder)))
    for path in one.rglob("*.safetensors"):
        if path.name != "last.safetensors":
            again = two / path.relative_to(one)
            assert same_tensors(checkpoint.load(path), checkpoint.load(again))
    names = [{x.relative_to(run).as_posix() for x in run.rglob("*")} for run in (one, two)]
    assert names[0] == names[1]
    tests = [[x for x in Run.open(run).log() if x["event"] == "test"][-1] for run in (one, two)]
    assert {x: tests[0][x] for x in ("P@1", "R@5")} == {x: tests[1][x] for x in ("P@1", "R@5")}


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=SLOW)])
def test_a_killed_export_leaves_the_old_one_or_the_new(
    world: Path, tmp_path: Path, kills: int
) -> None:
    """Whenever it is killed, what stands there answers, as one run or the other; no rest."""
    for name in ("data", "one", "two"):
        shutil.copytree(world / name, tmp_path / name)
    told = killed("exports", tmp_path, kills)
    assert told["kills"] == kills and told["seen"][-1] == 0
    assert told["left"] == ["out"]


@pytest.mark.slow  # each write is file_aside or folder_aside, which the exports' kills try
@pytest.mark.parametrize("kills", [1, 8])
def test_a_killed_command_leaves_what_was_there_or_all_of_its_own(
    world: Path, tmp_path: Path, kills: int
) -> None:
    """Add, predict, convert, evaluate: nothing is half there, nothing else changed or left over."""
    for name in ("data", "one"):
        shutil.copytree(world / name, tmp_path / name)
    told = killed("commands", tmp_path, kills)
    assert told["changed"] == [] and told["kills"] > 0
    made = ["added", "answers.jsonl"]
    assert told["left"] == sorted(["data", "one", "new.jsonl", "texts.txt", *made])


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes of a file fail, as they do when a disk is full."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path: Path) -> None:
    """The system refuses the write in its middle: one line, and the old state to its last bit."""
    import torch

    old, new = {"rows": torch.ones(100)}, {"rows": torch.ones(100_000)}
    run = Run.create(tmp_path / "run", {})
    run.save_last(old)
    with small_files(50_000), pytest.raises(InputError, match=r"free space or name another --out"):
        run.save_last(new)
    assert same_tensors(run.load_last(), old)
    assert not list(run.folder.glob(".*"))


@pytest.mark.parametrize("size", [100, 5_000, 20_000])
def test_an_export_that_does_not_fit_leaves_the_last_one(
    world: Path, tmp_path: Path, size: int
) -> None:
    """Whichever file is the first that does not fit: one line, and the old export answers."""
    out = tmp_path / "out"
    killing.export(world / "one", out)
    before = predicted(out)
    with small_files(size), pytest.raises(InputError, match="free space") as caught:
        killing.export(world / "two", out)
    assert "\n" not in str(caught.value)
    assert predicted(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@SLOW
def test_training_on_a_full_disk(world: Path, tmp_path: Path) -> None:
    """A disk that fills up ends a run in one line; with space again, it resumes to the same end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    try:
        shutil.copytree(world / "data", disk / "data")
        killing.fit(disk, "run", steps=4)
        last = Run.open(disk / "run").load_last()
        free = shutil.disk_usage(disk).free
        with (disk / "stuffing").open("wb") as file:
            file.write(bytes(free - 20_000))
        with pytest.raises(InputError, match=r"No space left on device.*free space"):
            killing.fit(disk, "run", steps=8)
        assert same_tensors(Run.open(disk / "run").load_last(), last)
        (disk / "stuffing").unlink()
        assert killing.fit(disk, "run", steps=8).steps == 8
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
