"""fit() with the learner: resumed equals uninterrupted; it looks, moves and recovers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.step.job import spectral_step
from shoal.step.range_test import MARGIN, STAGE
from shoal.training.job import Budget, Job
from shoal.training.loop import fit
from shoal.training.run import Run
from tests.training.test_loop import interrupted, label_job, last_of, new_run, node_job


def sgd_job() -> Job:
    job = node_job()
    return replace(job, optimizer=torch.optim.SGD(job.objective.model.parameters(), 0.1, 0.9))


@pytest.mark.parametrize("make", [label_job, node_job, sgd_job])
def test_resumed_equals_uninterrupted(make: Any, tmp_path: Path) -> None:
    """While batches wait for a look, and after it: the same state, bit for bit."""

    def run_of(job: Job, run: Run, **options: Any) -> None:
        learner = spectral_step(job, warmup=2, share=1.0, learn_momentum=make is sgd_job)
        fit(job, Budget(steps=14), run, step=learner, **options)

    whole = new_run(tmp_path / "whole")
    run_of(make(), whole)
    (look,) = [x for x in whole.log() if x["event"] == "curvature"]
    assert look["lam_max"] > 0 and look["noise"] > 0
    step = last_of(whole)["state"]["step"]
    raised = MARGIN ** ((step["range_test"]["step"] - 1) / STAGE)  # since the look
    assert step["lr"] == pytest.approx(look["lr"] * raised)
    for step in (5, 12):
        run = new_run(tmp_path / str(step))
        run_of(interrupted(make(), step), run)
        run_of(make(), Run.open(run.folder), resume=True)
        assert same_tensors(last_of(run), last_of(whole))


def test_looking_changes_the_rate_alone(tmp_path: Path) -> None:
    """Until the first look a run with the learner is the run without, bit for bit."""
    one, two = new_run(tmp_path / "one"), new_run(tmp_path / "two")
    fit(node_job(), Budget(steps=9), one)
    job = node_job()
    fit(job, Budget(steps=9), two, step=spectral_step(job))
    state = last_of(two)
    del state["state"]["step"]
    assert same_tensors(state, last_of(one))


def test_a_diverging_run_recovers(tmp_path: Path) -> None:
    """A rate that overflows is halved, and weights come back, instead of an error."""
    job = sgd_job()
    learner = spectral_step(job, warmup=2, share=1.0, range_test=False)
    fit(job, Budget(steps=12), step=learner)
    broken = [0]
    criterion = job.objective.criterion

    def sometimes(outputs: Any, batch: Any) -> Any:
        broken[0] += 1
        return criterion(outputs, batch) * (float("nan") if broken[0] == 4 else 1.0)

    before = learner.lr
    run = new_run(tmp_path / "run")
    failing = replace(job, objective=replace(job.objective, criterion=sometimes))
    fit(failing, Budget(steps=12), run, step=learner)
    (spike,) = [x for x in run.log() if x["event"] == "curvature" and "spike" in x]
    assert learner.spikes == 1 and spike["lr"] == pytest.approx(before / 2)
    broken[0] = 0
    with pytest.raises(InputError, match="expected a finite number"):
        fit(failing, Budget(steps=12))
