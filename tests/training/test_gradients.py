"""One gradient over several batches: what autograd finds on the whole table, rows and all.

Cached or not, it is the same; only what is held in memory differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.core.block import Batch, Block
from shoal.core.errors import InputError
from shoal.core.losses import decoupled_softmax
from shoal.core.objectives import Objective, in_batch
from shoal.core.sparse import matmul
from shoal.training.gradients import Gradient, Gradients, gradient_of, trained
from shoal.training.job import Job
from tests.training.test_loop import label_job, node_job

BFLOAT16 = Gradients(precision="bfloat16")


def batches_of(job: Job, count: int) -> list[Batch]:
    """The first batches of the job's stream."""
    return list(islice(iter(job.loader), count))


def test_accumulated_parameters_are_the_mean_of_the_batches() -> None:
    """Dense gradients and loss over two batches are those of the mean of the two losses."""
    job = node_job(dropout=0.0)
    batches, params = batches_of(job, 2), trained(job.objective.model)
    loss = torch.stack([job.objective(params, batch) for batch in batches]).mean()
    expected = torch.autograd.grad(loss, list(params.values()))
    got = gradient_of(job.objective, batches, rows_train=False)
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
    got = gradient_of(job.objective, batches, rows_train=True)
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
    gradient = gradient_of(objective, batches_of(job, 2), rows_train=True)
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
    gradient = gradient_of(objective, batches_of(label_job(), 1), rows_train=False)
    assert gradient.dense["unused"] == 0 and gradient.dense["weight"] != 0


def test_autocast_computes_in_bfloat16() -> None:
    """Outputs are bfloat16, gradients float32, and the loss is close to the exact one."""
    job = node_job(dropout=0.0)
    batches = batches_of(job, 2)
    exact = gradient_of(job.objective, batches, rows_train=False)
    quick = gradient_of(job.objective, batches, rows_train=False, how=BFLOAT16)
    assert {out.dtype for out in quick.outputs} == {torch.bfloat16}
    assert {grad.dtype for grad in quick.dense.values()} == {torch.float32}
    assert quick.loss != exact.loss and quick.loss == pytest.approx(exact.loss, rel=1e-2)
    label = label_job()
    batches = batches_of(label, 1)
    exact = gradient_of(label.objective, batches, rows_train=True)
    quick = gradient_of(label.objective, batches, rows_train=True, how=BFLOAT16)
    assert quick.rows is not None and quick.rows.dtype == torch.float32
    assert quick.loss == pytest.approx(exact.loss, rel=1e-2)


class _Layers(nn.Module):
    """A bag through two layers with dropout between: parameters and rows that learn, noise."""

    def __init__(self, dropout: float = 0.0, between: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
        self.between = between or nn.Dropout(dropout)

    def forward(self, blocks: Sequence[Block], rows: Tensor) -> Tensor:
        sums = matmul(blocks[0].csr, rows)
        return self.last(self.between(self.first(sums).tanh()))


def in_batch_objective(model: nn.Module) -> Objective:
    """A loss that couples all rows of the outputs."""
    return Objective(model, in_batch(partial(decoupled_softmax, temperature=0.5)))


def assert_same(one: Gradient, two: Gradient, **tolerance: float) -> None:
    """Loss, outputs and every gradient agree, and none is zero."""
    assert one.loss == pytest.approx(two.loss, rel=tolerance.get("rtol", 1e-5))
    torch.testing.assert_close(one.outputs, two.outputs, **tolerance)
    for name, grad in two.dense.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(one.dense[name], grad, **tolerance)
    assert one.ids is not None and two.ids is not None and torch.equal(one.ids, two.ids)
    assert one.rows is not None and two.rows is not None and two.rows.abs().max() > 0
    torch.testing.assert_close(one.rows, two.rows, **tolerance)


@pytest.mark.parametrize("chunk", [1, 9, 8, 10**6])
@pytest.mark.parametrize("count", [1, 2])
def test_cached_equals_uncached(chunk: int, count: int) -> None:
    """Chunks that divide the outputs, that do not, of one row, of all: the same to rounding."""
    batches = batches_of(label_job(batches=shoal.Clustered(24, 8)), count)
    objective = in_batch_objective(_Layers())
    whole = gradient_of(objective, batches, rows_train=True)
    assert len(whole.outputs[0]) % 9 == 0 and len(whole.outputs[0]) % 8 != 0
    assert_same(gradient_of(objective, batches, rows_train=True, how=Gradients(chunk=chunk)), whole)


def one_graph_in_chunks(objective: Objective, batch: Batch, chunk: int, seed: int) -> Gradient:
    """The oracle for dropout: chunks in the order of their lengths, all in one graph."""
    torch.manual_seed(seed)
    block, params = batch.blocks[0], trained(objective.model)
    leaf = batch.src.clone().requires_grad_()
    order = block.indptr.diff().argsort(stable=True)
    parts = []
    for ids in order.split(chunk):
        part = block.csr.rows(ids)
        small = Block(block.dst[ids], block.src, part.indptr, part.indices, part.indices)
        parts.append(objective.outputs(params, replace(batch, blocks=(small,), src=leaf)))
    out = torch.cat(parts)[order.argsort()]
    loss = objective.loss(out, batch)
    *dense, rows = torch.autograd.grad(loss, [*params.values(), leaf])
    named = dict(zip(params, dense, strict=True))
    return Gradient(loss.item(), [out.detach()], named, block.src, rows)


def assert_dropout_is_replayed(device: str) -> None:
    (batch,) = batches_of(label_job(), 1)
    batch, objective = batch.to(device), in_batch_objective(_Layers(dropout=0.5).to(device))
    expected, other = (one_graph_in_chunks(objective, batch, 5, seed) for seed in (1, 2))
    after = torch.rand(3, device=device)
    for seed in (2, 1):
        torch.manual_seed(seed)
        got = gradient_of(objective, [batch], rows_train=True, how=Gradients(chunk=5))
    assert_same(got, expected)
    assert (got.dense["first.weight"] - other.dense["first.weight"]).abs().max() > 1e-4
    torch.manual_seed(2)
    one_graph_in_chunks(objective, batch, 5, 2)
    assert torch.equal(torch.rand(3, device=device), after)


def test_dropout_is_replayed() -> None:
    """Masks of the second pass are those of the first, and afterwards the state has moved on."""
    assert_dropout_is_replayed("cpu")


@pytest.mark.gpu
def test_dropout_is_replayed_on_a_device() -> None:
    """The same law where the masks are drawn by a CUDA generator."""
    assert_dropout_is_replayed("cuda")


def test_cached_under_autocast() -> None:
    """In bfloat16 too, weights included, which autocast converts once a context."""
    batches, objective = batches_of(label_job(), 2), in_batch_objective(_Layers())
    whole, cached = (
        gradient_of(
            objective, batches, rows_train=True, how=Gradients(precision="bfloat16", chunk=chunk)
        )
        for chunk in (None, 5)
    )
    assert cached.outputs[0].dtype == torch.bfloat16
    assert_same(cached, whole, rtol=0.05, atol=2e-3)
    exact = gradient_of(objective, batches, rows_train=True)
    assert (exact.dense["first.weight"] - cached.dense["first.weight"]).abs().max() > 0


class _Held:
    """A tensor that a graph holds; counts the bytes of all that are alive."""

    alive = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        _Held.alive += tensor.nbytes
        _Held.peak = max(_Held.peak, _Held.alive)

    def __del__(self) -> None:
        _Held.alive -= self.tensor.nbytes


def held_by_graphs(seeds: int, chunk: int | None) -> int:
    """Peak bytes that graphs hold while a batch of so many seeds is differentiated."""
    job = label_job(batches=shoal.Random(seeds))
    (batch,) = batches_of(job, 1)
    model = _Layers()
    objective = Objective(model, lambda outputs, batch: outputs.sum())
    _Held.alive = _Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Held, lambda held: held.tensor):
        gradient_of(objective, [batch], rows_train=False, how=Gradients(chunk=chunk))
    assert _Held.alive == 0
    return _Held.peak


def test_chunks_bound_what_graphs_hold() -> None:
    """Four times the seeds: as much held with chunks of eight rows, more than twice without."""
    assert held_by_graphs(64, chunk=8) <= 1.2 * held_by_graphs(16, chunk=8)
    assert held_by_graphs(64, chunk=None) > 2 * held_by_graphs(16, chunk=None)
    assert held_by_graphs(64, chunk=8) < held_by_graphs(64, chunk=None) / 3


def test_a_graph_is_run_chunk_by_chunk() -> None:
    """Each chunk of seeds takes its own part of every hop; the gradient is that of the whole."""
    job = node_job(dropout=0.0)
    batches = batches_of(job, 1)
    whole = gradient_of(job.objective, batches, rows_train=False)
    got = gradient_of(job.objective, batches, rows_train=False, how=Gradients(chunk=5))
    assert got.loss == pytest.approx(whole.loss)
    for one, two in zip(got.dense.values(), whole.dense.values(), strict=True):
        assert two.abs().max() > 0
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("unchecked")
def test_models_that_mix_rows_are_refused() -> None:
    """Batch statistics, a model of other rows, chunks of nothing: named, with reasons."""
    batches = batches_of(label_job(), 1)
    norm: Any = nn.BatchNorm1d(32)
    objective = in_batch_objective(_Layers(between=norm))
    with pytest.raises(InputError, match="got BatchNorm1d at between over the statistics"):
        gradient_of(objective, batches, rows_train=True, how=Gradients(chunk=5))
    objective.model.eval()
    whole = gradient_of(objective, batches, rows_train=True)
    assert_same(gradient_of(objective, batches, rows_train=True, how=Gradients(chunk=5)), whole)
    all_rows = Objective(_RowsAndWeight(), lambda outputs, batch: outputs.mean())
    with pytest.raises(InputError, match="chunk: expected a model that makes"):
        gradient_of(all_rows, batches, rows_train=True, how=Gradients(chunk=5))
    for chunk in (0, -1, 2.5):
        with pytest.raises(InputError, match="chunk: expected a whole number"):
            Gradients(chunk=chunk)
