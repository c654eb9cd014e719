"""Trial runs: which rates hold; and nothing is left of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.step.size import StepSize
from shoal.step.trial_runs import trial_runs


def plan(safe: float) -> StepSize:
    return StepSize(8, safe, 2 * safe, "curvature", 4.0, 0.0)


def test_it_finds_the_edge_of_a_quadratic() -> None:
    """A one-parameter quadratic of curvature 2: below 1 it holds, above it is lost."""
    model = nn.Linear(1, 1, bias=False)
    data = TensorDataset(torch.ones(16, 1), torch.zeros(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(data, batch_size=8)
    found = trial_runs(model, functional.mse_loss, loader, optimizer, plan(0.4), steps=30)
    assert [branch.held for branch in found.runs] == [True, True, True, False]
    assert found.largest == pytest.approx(0.8) and found.confirmed
    assert "1.6: lost" in found.explain() and "confirmed by trial runs" in found.explain()
    beyond = trial_runs(model, functional.mse_loss, loader, optimizer, plan(3.0), steps=30)
    assert not beyond.confirmed and beyond.largest == 0 and "NOT confirmed" in beyond.explain()


def test_held_means_that_the_loss_fell() -> None:
    """At a minimum that noise cannot leave unharmed every step costs: no rate is said to hold."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    x, noise = torch.ones(512, 1), torch.randn(512, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(x, noise), batch_size=8)
    with torch.no_grad():
        model.weight.fill_(float(noise.mean()))  # the minimum: loss 1, which cannot be avoided
    found = trial_runs(model, functional.mse_loss, loader, optimizer, plan(0.8), steps=120)
    assert not found.confirmed and found.largest == 0 and "take a smaller one" in found.explain()
    assert [run.word for run in found.runs] == ["rose", "lost", "lost", "lost"]


@pytest.mark.parametrize("seed", range(8))
def test_runs_that_do_not_move_hold(seed: int) -> None:
    """Whatever batches come last: they are compared with themselves, masks of dropout included."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x, y = torch.randn(24, 3) * torch.arange(24).unsqueeze(1), torch.arange(24) % 2
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"factors": [1e-9], "steps": 4}
    found = trial_runs(model, functional.cross_entropy, loader, optimizer, plan(0.1), **options)
    assert found.runs[0].held


def test_steps_are_of_the_size_that_was_asked_for() -> None:
    """Advice for 24 with a loader of 8: each step is the mean over three of its batches."""
    model, data = nn.Linear(1, 1, bias=False), torch.arange(48.0).unsqueeze(1) / 48
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    asked = replace(plan(0.1), batch_size=24)

    def losses(size: int) -> list[tuple[float, ...]]:
        loader = DataLoader(TensorDataset(data, torch.zeros(48, 1)), batch_size=size)
        found = trial_runs(model, functional.mse_loss, loader, optimizer, asked, steps=6)
        assert found.batches == 24 // size and "at batch size 24" in found.explain()
        return [run.losses for run in found.runs]

    assert all(a == pytest.approx(b) for a, b in zip(losses(8), losses(24), strict=True))
    with pytest.raises(InputError, match=r"^loader: expected batches of 24 or a divisor of it"):
        losses(16)


def test_nothing_is_left_of_it() -> None:
    """Parameters, buffers, gradients, optimizer, modes, random states: bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 3), torch.randint(0, 2, (32,))
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator)

    def everything() -> dict[str, Any]:
        return {
            "model": dict(model.state_dict()),
            "gradients": [param.grad for param in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "modes": [module.training for module in model.modules()],
            "random": [torch.get_rng_state(), generator.get_state()],
        }

    before, grads = copy.deepcopy(everything()), [param.grad for param in model.parameters()]
    found = trial_runs(model, functional.cross_entropy, loader, optimizer, plan(0.01), steps=10)
    assert same_tensors(before, everything())
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    again = trial_runs(model, functional.cross_entropy, loader, optimizer, plan(0.01), steps=10)
    assert [x.losses for x in again.runs] == [x.losses for x in found.runs]
    assert found.runs[0].losses[1] != found.runs[1].losses[1]


def test_bad_input_is_named(unchecked: None) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for options, named in (({"steps": 0}, "steps"), ({"factors": [-1.0]}, "factors")):
        with pytest.raises(InputError, match=f"^{named}: expected"):
            trial_runs(model, functional.mse_loss, [1], optimizer, plan(0.1), **options)
    with pytest.raises(InputError, match=r"^loader: expected at least one batch"):
        trial_runs(model, functional.mse_loss, [], optimizer, plan(0.1))
