"""Trial runs: which rates hold; and nothing is left of them."""

from __future__ import annotations

import copy
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


def test_what_was_gained_is_not_lost() -> None:
    """Begun little above the present loss, a rate that would hold half of the loss is lost."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    x, noise = torch.ones(512, 1), torch.randn(512, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(x, noise), batch_size=8)
    with torch.no_grad():
        model.weight.fill_(float(noise.mean()))  # the minimum: loss 1, which cannot be avoided
    options: dict[str, Any] = {"factors": [0.5], "steps": 40}
    kept = trial_runs(model, functional.mse_loss, loader, optimizer, plan(1.0), **options)
    options["initial_loss"] = 1.1
    lost = trial_runs(model, functional.mse_loss, loader, optimizer, plan(1.0), **options)
    assert kept.confirmed is False and kept.runs[0].held  # 1.0 itself was not tried
    assert not lost.runs[0].held and kept.runs[0].losses == lost.runs[0].losses
    assert lost.limit == pytest.approx((lost.before + 1.1) / 2)
    with pytest.raises(InputError, match=r"^initial_loss: expected a loss above the present one"):
        trial_runs(model, functional.mse_loss, loader, optimizer, plan(1.0), initial_loss=0.1)


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
