"""Processes that train together: one, two or three end in the same numbers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.core import checkpoint
from shoal.core.checkpoint import same_tensors
from shoal.sample.parts import part
from shoal.training.job import Budget
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.training.ranks_worker import JOBS, STEPS, classified, outcome
from tests.training.test_loop import label_job, node_job

ROOT = Path(__file__).parents[2]


def start(folders: Sequence[Path], *words: str) -> list[subprocess.Popen[str]]:
    """Start a process in each folder, as torchrun does."""
    world = len(folders)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *sys.path])
    common = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": path}
    environment = os.environ | {name: str(value) for name, value in common.items()}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Status, output and messages of each."""
    streams = [process.communicate(timeout=240) for process in processes]
    return [(p.returncode, *s) for p, s in zip(processes, streams, strict=True)]


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def trained(request: Any, tmp_path_factory: Any) -> tuple[int, Path]:
    """What so many processes made of the jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    words = "-m", "tests.training.ranks_worker", "."
    for status, _, err in ended(start([folder] * request.param, *words)):
        assert status == 0, err
    return request.param, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> dict[str, Any]:
    """What one process makes of them."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("alone"))
    try:
        return {name: outcome(make) for name, make in JOBS.items()}
    finally:
        os.chdir(before)


def assert_close(one: Any, two: Any, **tolerance: float) -> None:
    """Two trees of tensors, equal up to rounding."""
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, two, **tolerance)
        return
    assert one.keys() == two.keys()
    for name in one:
        assert_close(one[name], two[name], **tolerance)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.whole
def test_processes_train_as_one(name: str, trained: Any, alone: dict[str, Any]) -> None:
    """Loss, outputs, gradients and weights are those of one process, and equal bits on each."""
    world, folder = trained
    parts = [checkpoint.load(folder / f"{name}-{rank}.safetensors") for rank in range(world)]
    for other in parts[1:]:
        assert same_tensors(parts[0], other)
    # a missing factor of 1 / world would be off by a half
    assert_close(parts[0]["gradient"], alone[name]["gradient"], rtol=1e-4, atol=1e-6)
    assert_close(parts[0]["trained"], alone[name]["trained"], rtol=1e-2, atol=1e-3)
    assert_close(parts[0]["best"], alone[name]["best"], rtol=0.0, atol=1e-6)


def test_classifiers_lie_in_parts_and_learn_as_one(trained: Any) -> None:
    """Losses, gradients of embeddings, weights and the best labels are those of one process."""
    world, folder = trained
    parts = [checkpoint.load(folder / f"classified-{rank}.safetensors") for rank in range(world)]
    for other in parts[1:]:
        assert same_tensors(parts[0], other)
    one = classified()
    for name in ("dropped out", "fitted"):  # by other masks
        assert one.pop(name).shape == parts[0].pop(name).shape
    assert one.keys() == parts[0].keys()
    for name, value in one.items():
        exact = " ids " in name
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(parts[0][name], value, **tolerance)
        assert value.abs().max() > 0


def test_a_run_is_resumed_by_another_number_of_processes(trained: Any, alone: Any) -> None:
    """What two or three began, one ends, in the numbers of one that did it all."""
    job = label_job()
    fit(job, Budget(steps=STEPS), Run.open(trained[1] / "half-0"), resume=True)
    assert job.table is not None
    rows = job.table.as_subclass(Tensor)
    assert_close(rows, alone["labels"]["trained"]["rows"], rtol=1e-2, atol=1e-3)


def test_parts_of_a_batch_make_its_output() -> None:
    """The rows that parts make, several hops deep, are those of the whole, whatever the parts."""
    job = node_job(dropout=0.0)
    batch = next(iter(job.loader))
    whole = job.objective.outputs({}, batch)
    for rows in torch.randperm(len(whole)).split(5):
        hops, read = part(batch.hops, rows)
        assert all(len(set(hop.src.tolist())) == len(hop.src) for hop in hops)
        less = replace(batch, blocks=hops, src=batch.src[read])
        torch.testing.assert_close(job.objective.outputs({}, less), whole[rows])


def write_table(folder: Path) -> Path:
    """Texts whose first word is their label."""
    lines = [f"w{i % 7} x{i % 5} y{i % 11},w{i % 7}" for i in range(400)]
    path = folder / "t.csv"
    path.write_text("\n".join(["text,labels", *lines]) + "\n")
    return path


def command(source: Path, *more: str) -> list[str]:
    """A small training run."""
    return ["-m", "shoal", "train", "labels", str(source), "--batch-size", "64", *more]


@pytest.mark.slow
def test_the_command_trains_in_two_processes(tmp_path: Path) -> None:
    """One of them writes and speaks; what it writes opens like any model, at the same metrics."""
    source = write_table(tmp_path)
    words = command(source, "--steps", "20", "--rank", "classifiers", "--out", "run", "--json")
    (first, second) = ended(start([tmp_path] * 2, *words))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert '"P@1": 100.0' in first[1] and second[1:] == ("", "")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["run", "t.csv"]


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path: Path) -> None:
    """Other data on one of them: every process says which fact differs, and nothing is trained."""
    source = write_table(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "t.csv").write_text(source.read_text() + "w1 more,w1\n")
    words = command(Path("t.csv"), "--steps", "2", "--out", "run")
    for status, out, err in ended(start([tmp_path, other], *words)):
        assert (status, out) == (2, "")
        assert "data: expected" in err and "on rank 1; start all processes" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    """One line and status 2, soon, and the run can be resumed."""
    source = write_table(tmp_path)
    words = command(source, "--epochs", "100000", "--rank", "encoder", "--out", "run")
    first, second = start([tmp_path] * 2, *words)
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    (status, _, err), _ = ended([first, second])
    assert status == 2 and time.monotonic() - began < 60
    assert err.splitlines()[-1].startswith("shoal: rank 0: expected an answer of all 2 processes")
