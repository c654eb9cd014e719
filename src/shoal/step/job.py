"""The step rule of a job: its parameters and rows, in the metric of their optimizers.

Rows that a batch gathers enter as one more leaf, over the union of the batches' ids. A spike puts
back model, rows and optimizers as they were at the last measurement, so the rule keeps one copy of
each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.core.batches import map_tensors
from shoal.core.block import Batch, Block
from shoal.core.optimizers import OptimizerInfo, optimizer_info
from shoal.step.estimator import CurvatureEstimator
from shoal.step.learner import StepLearner
from shoal.training.checkpoints import moved_by_steps, put_back
from shoal.training.job import Job


class JobLearner(StepLearner):
    """A learner whose waiting batches a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """As the learner's, batches as plain trees."""
        state = super().state_dict()
        return state | {"batches": [_packed(batch) for batch in state["batches"]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        batches = [_unpacked(batch) for batch in state["batches"]]
        super().load_state_dict({**state, "batches": batches})


def spectral_step(job: Job, **options: Any) -> JobLearner:
    """Make the step rule of a job from curvature that is measured while it trains.

    Args:
        job: whose optimizers' rates are those to begin with. Further tables that the objective
            itself moves are taken as they are: their rates follow, their curvature is not measured.
        options: of :class:`~shoal.step.learner.StepLearner`; warm-up is at least the job's own.

    Raises:
        InputError: if the optimizer is unknown.
    """
    return JobLearner(
        info_of(job),
        CurvatureEstimator(job.objective, job.table, job.optimizer, seed=job.seed),
        state=lambda: _copied(moved_by_steps(job)),
        # a copy, so that it can be put back again
        restore=lambda state: put_back(job, _copied(state)),
        **{"warmup": max(job.warmup, 50), **options},
    )


def info_of(job: Job) -> OptimizerInfo:
    """What stability depends on, of a job's optimizer, or of its rows' where nothing is dense.

    Raises:
        InputError: if it is unknown.
    """
    return optimizer_info(job.table.optimizer if job.optimizer is None else job.optimizer)  # pyright: ignore[reportOptionalMemberAccess]


def _copied(tree: Any) -> Any:
    return map_tensors(tree, lambda x: x.detach().clone())


def _packed(batch: Batch) -> dict[str, Any]:
    return {
        "seeds": batch.seeds,
        "blocks": [{name: getattr(block, name) for name in _BLOCK} for block in batch.blocks],
        "src": batch.src,
        "target": batch.target,
    }


_BLOCK = ("dst", "src", "indptr", "indices", "edges", "dst_in_src")


def _unpacked(tree: Mapping[str, Any]) -> Batch:
    blocks = tuple(Block(**block) for block in tree["blocks"])
    return Batch(tree["seeds"], blocks, tree["src"], tree["target"])
