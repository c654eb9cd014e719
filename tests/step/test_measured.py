"""Looks, metrics and dampings against dense matrices; the damped optimizer against its law."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import shoal
from shoal.core.errors import InputError
from shoal.core.optimizers import scales_of
from shoal.curvature.problem import Supervised, in_metric, problem_of
from shoal.curvature.products import Products
from shoal.step.damped import DampedDiagonal, diagonal_of
from shoal.step.estimator import CurvatureEstimator
from shoal.step.job import spectral_step
from tests.training.test_loop import label_job

P, B, M = 6, 10, 4


def regression() -> tuple[nn.Linear, Supervised, list[tuple[Tensor, Tensor]]]:
    """Least squares without bias: the Gauss–Newton matrix of a batch is 2XᵀX/b."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(P, 1, bias=False).double()
    scale = 1.0 / torch.arange(1, P + 1)
    batches = [
        (torch.randn(B, P, generator=generator).double() * scale, torch.zeros(B, 1).double())
        for _ in range(M)
    ]
    return model, Supervised(model, functional.mse_loss), batches


def dense(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Each batch's matrix, ``[M, P, P]``."""
    return torch.stack([2 * x.T @ x / B for x, _ in batches])


def stepped(model: nn.Module, batches: list[Any], optimizer: torch.optim.Optimizer) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        functional.mse_loss(model(x), y + 1).backward()
        optimizer.step()
    optimizer.zero_grad()


def test_a_look_is_the_dense_top_and_noise() -> None:
    """λ₁ exactly, k_b c within the probes' error; the next look begins where this one ended."""
    _, objective, batches = regression()
    each = dense(batches)
    mean = each.mean(0)
    noise = (each - mean).square().sum((1, 2)).mean() * M / (M - 1) / mean.trace()
    probe = CurvatureEstimator(objective, steps=P, probes=100)
    first = probe(batches)
    assert first.lam == pytest.approx(float(torch.linalg.eigvalsh(mean)[-1]))
    assert first.noise == pytest.approx(float(noise), rel=0.2)
    assert first.cost == pytest.approx(((P + 100) * 2.3 + 1) * M)
    short = CurvatureEstimator(objective, steps=1)
    short.load_state_dict(probe.state_dict())
    assert short(batches).lam == pytest.approx(first.lam)
    assert CurvatureEstimator(objective, steps=1)(batches).lam < 0.9 * first.lam


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_metric_is_the_scaled_matrix(kind: Any) -> None:
    """Products in an optimizer's metric are D^−½ G D^−½ with its own √v̂ + eps."""
    model, objective, batches = regression()
    optimizer = kind(model.parameters(), lr=1e-3)
    stepped(model, batches, optimizer)
    state = optimizer.state[model.weight]
    v = state["square_avg"] if "square_avg" in state else state["exp_avg_sq"] / (1 - 0.999**M)
    s = 1 / (v.sqrt() + 1e-8).sqrt().flatten()
    scales = scales_of(optimizer, model)
    problem = in_metric(problem_of(objective, batches, max_batches=M), scales)
    products = Products(problem)
    found = torch.stack([products @ row for row in torch.eye(P).double()])
    torch.testing.assert_close(found, s[:, None] * dense(batches).mean(0) * s)


def test_groups_with_rates_of_their_own_scale_too() -> None:
    """SGD needs no scales; a second group at four times the rate is scaled by two."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.4}]
    assert scales_of(torch.optim.SGD(model.parameters(), lr=0.1), model) == {}
    scales = scales_of(torch.optim.SGD(groups, lr=0.1), model)
    assert set(scales) == {"1.weight", "1.bias"}
    assert scales["1.weight"].allclose(torch.tensor(2.0))


def test_adam_before_its_first_step_is_refused() -> None:
    model, _, _ = regression()
    with pytest.raises(InputError, match="second moments of every parameter, got none yet"):
        scales_of(torch.optim.Adam(model.parameters()), model)


def test_rows_that_learn_are_measured() -> None:
    """The label job's token rows: λ₁ of JᵀHJ over the union of two batches' rows, densely."""
    job = label_job(batches=shoal.Clustered(8, 4), dim=4)
    batches = [batch for batch, _ in zip(iter(job.loader), range(2), strict=False)]
    ids = torch.cat([batch.blocks[0].src for batch in batches]).unique()
    assert job.table is not None
    rows = job.table.gather(ids).clone()
    total = torch.zeros(rows.numel(), rows.numel())
    for batch in batches:
        places = torch.searchsorted(ids, batch.blocks[0].src)

        def scores(leaf: Tensor, batch=batch, places=places) -> Tensor:
            at = replace(batch, src=leaf[places])
            return job.objective.criterion.scores(job.objective.outputs({}, at), batch)  # pyright: ignore

        def loss(z: Tensor, batch=batch) -> Tensor:
            return job.objective.criterion.loss(z, batch.blocks[-1])  # pyright: ignore

        out = scores(rows)
        jacobian = torch.autograd.functional.jacobian(scores, rows).reshape(out.numel(), -1)
        inner = torch.autograd.functional.hessian(loss, out)
        total += jacobian.T @ inner.reshape(out.numel(), -1) @ jacobian / 2
    top = float(torch.linalg.eigvalsh(total)[-1])
    assert top > 0
    probe = CurvatureEstimator(job.objective, job.table, steps=30)
    assert probe(batches).lam == pytest.approx(top, rel=1e-3)


def test_a_job_s_metric_is_its_row_optimizer_s() -> None:
    """Before the first step rows have no moments, so the plain matrix is read; afterwards √v̂."""
    job = label_job(batches=shoal.Clustered(8, 4), dim=4)
    batch = next(iter(job.loader))
    assert job.table is not None
    look: Any = spectral_step(job).measure
    ids = batch.blocks[0].src
    assert look.scales(ids) == {}
    job.table.update(ids, torch.full((len(ids), 4), 3.0))
    torch.testing.assert_close(look.scales(ids)["rows"], torch.full((len(ids), 4), 3**-0.5))


def test_the_diagonal_is_estimated() -> None:
    """Signs give the diagonal of a diagonal matrix exactly, of another within its error."""
    _, objective, batches = regression()
    products = Products(problem_of(objective, batches, max_batches=M))
    found = diagonal_of(products, probes=200)["weight"].flatten()
    torch.testing.assert_close(found, dense(batches).mean(0).diagonal(), rtol=0.3, atol=0.03)


def stays(lr: float, batch: int, damping: float) -> bool:
    """Whether the damped optimizer holds noise-dominated least squares at its minimum."""
    generator = torch.Generator().manual_seed(1)
    p, scale = 200, 0.05
    weight = nn.Parameter(torch.ones(p))
    optimizer = DampedDiagonal([weight], lr=lr, damping=damping)
    optimizer.observe({weight: torch.full((p,), scale)})
    for _ in range(150):
        x = torch.randn(batch, p, generator=generator) * math.sqrt(scale)
        weight.grad = x.T @ (x @ weight.detach()) / batch
        optimizer.step()
    return float(weight.detach().norm()) < math.sqrt(p)


def test_the_least_damping_goes_with_rate_over_batch() -> None:
    """Measured by training: δ at (a, b) is that of the law, doubles with a, and halves with b."""
    found = {}
    for lr, batch in ((1.0, 4), (2.0, 4), (2.0, 8)):
        low, high = 0.05, 20.0
        while high > 1.05 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if stays(lr, batch, middle) else (middle, high)
        found[lr, batch] = high

        # E5 in the metric D + δ: lr (μ + 200 μ/b) = 2 for μ = 0.05/(0.05 + δ)
        law = 0.05 * (lr * (1 + 200 / batch) / 2 - 1)
        assert high == pytest.approx(law, rel=0.2)
    assert found[2.0, 4] / found[1.0, 4] == pytest.approx(2, rel=0.2)
    assert found[2.0, 4] / found[2.0, 8] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: DampedDiagonal([nn.Parameter(torch.ones(1))], damping=0.0), "damping: expected"),
        (lambda: DampedDiagonal([nn.Parameter(torch.ones(1))], lr=-1.0), "lr: expected"),
        (lambda: DampedDiagonal([nn.Parameter(torch.ones(1))], decay=1.0), "decay: expected"),
        (
            lambda: CurvatureEstimator(regression()[1])(regression()[2][:1]),
            "batches: expected at least two",
        ),
    ],
)
def test_bad_input_is_named(call: Any, named: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=named):
        call()
