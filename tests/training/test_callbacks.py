"""Callbacks: when they are called and with what; stopping; progress at a terminal and elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.training.job import Budget, Job, Progress
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.training.test_loop import EPOCH, interrupted, label_job, new_run, node_job


class Notes(shoal.Callback):
    """Notes each call: its name, the step, its metrics."""

    def __init__(self, run: Run | None = None) -> None:
        self.calls: list[tuple[str, int, dict[str, Any]]] = []
        self.run, self.lines = run, []

    def begin(self, progress: Progress, job: Job) -> None:
        self.calls.append(("begin", progress.step, {}))

    def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
        self.calls.append(("step", progress.step, metrics))

    def refresh(self, progress: Progress, metrics: dict[str, Any]) -> None:
        self.calls.append(("refresh", progress.step, metrics))

    def validate(self, progress: Progress, metrics: dict[str, Any]) -> None:
        self.calls.append(("validate", progress.step, metrics))

    def end(self, progress: Progress, metrics: dict[str, Any]) -> None:
        self.calls.append(("end", progress.step, metrics))
        self.lines = [] if self.run is None else self.run.log()


def test_five_moments_in_order() -> None:
    """Begin, per epoch a refresh, its steps and a validation, and the end; metrics come along."""
    notes = Notes()
    fit(label_job(), Budget(epochs=2), callbacks=[notes])
    epoch = ["refresh", *["step"] * EPOCH, "validate"]
    assert [name for name, _, _ in notes.calls] == ["begin", *epoch, *epoch, "end"]
    steps = [(at, metrics) for name, at, metrics in notes.calls if name == "step"]
    assert [at for at, _ in steps] == list(range(1, 2 * EPOCH + 1))
    assert all({"loss", "epoch"} <= set(metrics) for _, metrics in steps)
    measured = [at for at, metrics in steps if "hardest_negative" in metrics]
    assert measured == [1, 10]  # those that a log has
    assert "cluster_size" in notes.calls[1][2] and "valid_P@1" in notes.calls[-2][2]
    assert notes.calls[-1][2]["stopped"] == "steps"


def test_the_log_is_written_before_callbacks_are_called(tmp_path: Path) -> None:
    """A callback finds the line of its event in the run's log; a resumed run begins where it is."""
    run = new_run(tmp_path / "run")
    notes = Notes(run)
    fit(interrupted(node_job(), 2), Budget(steps=4), run, callbacks=[notes])
    assert notes.lines[-1]["event"] == "end" and notes.lines[-1]["stopped"] == "interrupt"
    again = Notes(run)
    fit(node_job(), Budget(steps=4), run, resume=True, callbacks=[again])
    assert again.calls[0] == ("begin", 2, {})
    assert [x["event"] for x in again.lines].count("resume") == 1


def test_a_callback_ends_training_and_says_why(tmp_path: Path) -> None:
    """The step in progress is finished, validated and saved; nothing more is trained."""

    class Stop(shoal.Callback):
        def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
            if progress.step == EPOCH + 2:
                progress.stopped = "enough"

    run = new_run(tmp_path / "run")
    progress = fit(node_job(), Budget(epochs=9), run, callbacks=[Stop()])
    assert (progress.stopped, progress.step) == ("enough", EPOCH + 2)
    assert run.load_last()["progress"]["step"] == EPOCH + 2
    assert [x["step"] for x in run.log() if x["event"] == "validate"] == [EPOCH, EPOCH + 2]


def test_patience_that_is_spent_stays_spent(tmp_path: Path) -> None:
    """A run that early stopping ended does not train on when it is resumed, unless it may wait."""
    scores = iter([3.0, 2.0, 1.0, 0.0])
    job = replace(node_job(), evaluate=lambda: {"score": next(scores)})
    run = new_run(tmp_path / "run")
    stop = shoal.EarlyStopping(1)
    assert fit(job, Budget(epochs=9), run, callbacks=[stop]).step == 2 * EPOCH
    again = replace(node_job(), evaluate=job.evaluate)
    assert fit(again, Budget(epochs=9), run, resume=True, callbacks=[stop]).step == 2 * EPOCH
    longer = shoal.EarlyStopping(2)
    assert fit(again, Budget(epochs=9), run, resume=True, callbacks=[longer]).step == 3 * EPOCH


def test_one_line_per_epoch_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, epoch, loss, the first metric and the time left; the last line has none left."""
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    fit(node_job(), Budget(epochs=3), callbacks=[shoal.ShowProgress("nodes", apart=0.0)])
    lines = err.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"nodes: epoch {i}" for i in (1, 2, 3)]
    assert all("loss" in line and "valid_accuracy" in line for line in lines)
    assert ["left" in line for line in lines] == [True, True, False]


def test_short_epochs_do_not_fill_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of epochs within a moment the last alone has a line."""
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    fit(node_job(), Budget(epochs=5), callbacks=[shoal.ShowProgress("nodes", apart=600.0)])
    assert [line.split(",")[0][-1] for line in err.getvalue().splitlines()] == ["5"]


@pytest.mark.parametrize("budget", [Budget(epochs=3), Budget(minutes=0.1 / 60)])
def test_a_named_bar_at_a_terminal(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, share of the budget, of whatever kind, and the step; no lines of their own."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    job = replace(node_job(), evaluate=None)
    fit(job, budget, callbacks=[shoal.ShowProgress("nodes")])
    assert "nodes" in err.getvalue() and "100%" in err.getvalue()
    assert "nodes: epoch" not in err.getvalue()


def test_the_share_of_the_budget_grows_to_one() -> None:
    """By the limit that is nearer; time left follows from it and falls to zero."""
    shares: list[float] = []

    class Watch(shoal.Callback):
        def step(self, progress: Progress, metrics: dict[str, Any]) -> None:
            shares.append(progress.share)
            left = progress.seconds / progress.share - progress.seconds
            assert progress.seconds_left == pytest.approx(left, abs=1e-6)

    progress = fit(node_job(), Budget(steps=4, minutes=60.0), callbacks=[Watch()])
    assert shares == [0.25, 0.5, 0.75, 1.0] and progress.seconds_left == 0
