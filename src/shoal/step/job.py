"""The on-the-fly learner for a job: dense parameters and rows, in the metric of their optimizers.

Rows that a batch gathers enter as one more leaf, over the union of the batches' ids; RowAdam's and
RowAdagrad's roots are their metric. A spike puts back model, rows and optimizers as they were at
the last look, so the learner keeps one copy of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shoal.core.block import Batch, Block
from shoal.core.errors import expect
from shoal.curvature.metric import floored, scales_of
from shoal.curvature.problem import ROWS
from shoal.step.learner import StepLearner
from shoal.step.method import Method, method_of
from shoal.step.probe import Probe
from shoal.training.checkpoints import moved_by_steps, put_back
from shoal.training.job import Job


class JobLearner(StepLearner):
    """A :class:`StepLearner` whose waiting batches a checkpoint can hold."""

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
        options: of :class:`StepLearner`; warm-up is at least the job's own.

    Raises:
        InputError: if the optimizer is unknown.
    """
    optimizer, table = job.optimizer, job.table
    method, lr = method_of_job(job)

    def scales(ids: Tensor | None) -> dict[str, Tensor]:
        dense = {} if optimizer is None else scales_of(optimizer, job.objective.model)
        if ids is None or (divisor := _row_divisor(table.optimizer, ids)) is None:  # pyright: ignore[reportOptionalMemberAccess]
            return dense
        share = 1.0
        if optimizer is not None and optimizer.param_groups[0]["lr"] > 0:
            share = table.optimizer.lr / optimizer.param_groups[0]["lr"]  # pyright: ignore[reportOptionalMemberAccess]
        return {**dense, ROWS: (share / divisor).sqrt()}

    look = Probe(job.objective, table, scales, seed=job.seed)
    options = {"warmup": max(job.warmup, 50), **options}
    return JobLearner(
        method,
        lr,
        look,
        state=lambda: _copied(moved_by_steps(job)),
        # a copy, so that it can be put back again
        restore=lambda state: put_back(job, _copied(state)),
        **options,
    )


spectral = spectral_step


def method_of_job(job: Job) -> tuple[Method, float]:
    """The method of a job's optimizer, or of its rows', and the rate to begin with.

    Raises:
        InputError: if it is unknown.
    """
    if job.optimizer is not None:
        return method_of(job.optimizer), float(job.optimizer.param_groups[0]["lr"])
    optimizer = job.table.optimizer  # pyright: ignore[reportOptionalMemberAccess]
    rows = type(optimizer).__name__
    beta, lr = getattr(optimizer, "betas", (0.0,))[0], float(optimizer.lr)
    known = {"RowSGD": Method("sgd", lr=lr)}
    known |= dict.fromkeys(("RowAdagrad", "RowAdam"), Method("adam", beta, lr=lr))
    remedy = "train the rows with RowAdam, RowAdagrad or RowSGD"
    expect(rows in known, "table", "a row optimizer that is known", rows, remedy)
    return known[rows], lr


def _row_divisor(optimizer: Any, ids: Tensor) -> Tensor | None:
    """D of rows `ids`: RowAdam's √v̂ + eps, RowAdagrad's √s + eps; None for RowSGD."""
    state = optimizer.state
    at = ids.to(next(iter(state.values())).device) if state else ids
    if "v" in state:
        steps = state["steps"][at].clamp(min=1).double()
        corrected = state["v"][at] / (1 - optimizer.betas[1] ** steps).unsqueeze(1)
        return floored(corrected.sqrt().to(state["v"]) + optimizer.eps)
    if "sum" in state:
        return floored(state["sum"][at].sqrt() + optimizer.eps).unsqueeze(1)
    return None


def _copied(node: Any) -> Any:
    if isinstance(node, Tensor):
        return node.detach().clone()
    if isinstance(node, Mapping):
        return {key: _copied(x) for key, x in node.items()}
    return [_copied(x) for x in node] if isinstance(node, list) else node


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
