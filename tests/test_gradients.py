"""One gradient over several batches: what autograd finds on the whole table, rows and all."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from shoal.block import Batch
from shoal.gradients import gradient_of, trained
from shoal.job import Job
from shoal.objectives import Objective
from tests.test_train import label_job, node_job


def batches_of(job: Job, count: int) -> list[Batch]:
    """The first batches of the job's stream."""
    return list(islice(iter(job.loader), count))


def test_accumulated_parameters_are_the_mean_of_the_batches() -> None:
    """Dense gradients and loss over two batches are those of the mean of the two losses."""
    job = node_job(dropout=0.0)
    batches, params = batches_of(job, 2), trained(job.objective.model)
    loss = torch.stack([job.objective(params, batch) for batch in batches]).mean()
    expected = torch.autograd.grad(loss, list(params.values()))
    got = gradient_of(job.objective, batches, rows_learn=False)
    assert got.rows is None and got.loss == pytest.approx(loss.item())
    assert list(got.dense) == list(params)
    for one, two in zip(got.dense.values(), expected, strict=True):
        assert two.abs().max() > 0
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("count", [1, 2])
def test_rows_are_the_gradient_of_the_whole_table(count: int) -> None:
    """Row gradients, put where their ids are, equal autograd through a dense copy of the table."""
    job = label_job()
    batches = batches_of(job, count)
    assert job.table is not None
    table = job.table.as_subclass(Tensor).clone().requires_grad_()
    dense = [replace(batch, src=table[batch.blocks[0].src]) for batch in batches]
    loss = torch.stack([job.objective({}, batch) for batch in dense]).mean()
    (expected,) = torch.autograd.grad(loss, table)
    got = gradient_of(job.objective, batches, rows_learn=True)
    assert got.ids is not None and got.rows is not None
    assert len(got.ids.unique()) == len(got.ids) and expected.abs().max() > 0
    rows = torch.zeros_like(expected).index_add_(0, got.ids, got.rows)
    torch.testing.assert_close(rows, expected)


class _RowsAndWeight(nn.Module):
    """Rows times a weight; a second weight that only some batches touch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.tensor(3.0))

    def forward(self, blocks: object, rows: Tensor) -> Tensor:
        return rows * self.weight


def test_clipping_bounds_everything_together() -> None:
    """Clipped, parameters and rows together have the limit's norm and the old direction."""
    job = label_job()
    objective = Objective(_RowsAndWeight(), lambda outputs, batch: outputs.square().mean())
    gradient = gradient_of(objective, batches_of(job, 2), rows_learn=True)
    assert gradient.rows is not None
    weight, rows = gradient.dense["weight"].clone(), gradient.rows.clone()
    norm = torch.cat([weight.view(1), rows.flatten()]).norm()
    torch.testing.assert_close(gradient.norm(), norm)
    gradient.clip_(2 * norm.item())
    gradient.clip_(None)
    torch.testing.assert_close(gradient.rows, rows)
    gradient.clip_(norm.item() / 4)
    torch.testing.assert_close(gradient.norm(), norm / 4)
    torch.testing.assert_close(gradient.rows, rows / 4)
    torch.testing.assert_close(gradient.dense["weight"], weight / 4)


def test_untouched_parameters_have_gradient_zero() -> None:
    """A parameter that the batch does not reach moves by nothing, rather than failing."""
    objective = Objective(_RowsAndWeight(), lambda outputs, batch: outputs.mean())
    gradient = gradient_of(objective, batches_of(label_job(), 1), rows_learn=False)
    assert gradient.dense["unused"] == 0 and gradient.dense["weight"] != 0


def test_autocast_computes_in_bfloat16() -> None:
    """Outputs are bfloat16, gradients float32, and the loss is close to the exact one."""
    job = node_job(dropout=0.0)
    batches = batches_of(job, 2)
    exact = gradient_of(job.objective, batches, rows_learn=False)
    quick = gradient_of(job.objective, batches, rows_learn=False, autocast=True)
    assert {out.dtype for out in quick.outputs} == {torch.bfloat16}
    assert {grad.dtype for grad in quick.dense.values()} == {torch.float32}
    assert quick.loss != exact.loss and quick.loss == pytest.approx(exact.loss, rel=1e-2)
    label = label_job()
    batches = batches_of(label, 1)
    exact, quick = (gradient_of(label.objective, batches, True, autocast=x) for x in (False, True))
    assert quick.rows is not None and quick.rows.dtype == torch.float32
    assert quick.loss == pytest.approx(exact.loss, rel=1e-2)
