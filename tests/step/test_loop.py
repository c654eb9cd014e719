"""The step rule in a loop of one's own: two lines, with schedules, compiled, on two processes."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import lr_scheduler

from shoal.step.find_lr import find_lr
from shoal.step.learner import StepLearner
from shoal.step.loop import LoopLearner, spectral_learner


def batch_of(step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
    """128 samples of a task that two layers can learn."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(128, 8, generator=draw)
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def train(model: nn.Module, optimizer: Any, learner: LoopLearner, steps: int, rank: int = 0) -> Any:
    """A loop of one's own; the rates that it was trained at."""
    rates = []
    for step in range(steps):
        x, y = batch_of(step, rank)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        learner.update((x, y), loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_adamw_climbs_in_a_loop_of_two_lines() -> None:
    """Its rate is found by the range test, and it trains better than at the rate it began with."""
    losses = []
    for learns in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        options: dict[str, Any] = {} if learns else {"warmup": 10**6}
        learner = spectral_learner(model, cross_entropy, optimizer, **options)
        rates = train(model, optimizer, learner, 300)
        losses.append(sum(cross_entropy(model(x), y).item() for x, y in map(batch_of, range(4))))
    assert learner.range_test.ended and max(rates) > 10 * rates[0]
    assert losses[1] < 0.7 * losses[0]


def test_a_module_without_gradient_does_not_end_it() -> None:
    """An encoder's pooler, say: AdamW never moves it, and the rule measures without it."""
    model = network()
    model.register_module("pooler", nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = spectral_learner(model, _loss, optimizer, warmup=3, forward=_three)
    for step in range(8):
        x, y = batch_of(step)
        optimizer.zero_grad()
        loss = cross_entropy(_three(model, (x, y)), y)
        loss.backward()
        optimizer.step()
        whole.update((x, y), loss)
    assert whole.reference is not None


def _three(model: Any, batch: Any) -> Tensor:
    return model[2](model[1](model[0](batch[0])))


def _loss(outputs: Tensor, batch: Any) -> Tensor:
    return cross_entropy(outputs, batch[1])


SCHEDULES: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 5) * 0.99**t),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.99),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "in sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 35)], [5]
    ),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_schedules_are_multiplied_not_overwritten(name: str) -> None:
    """With the rule the rate is the schedule's own times the rule's factor, at every step."""

    def run(learns: bool) -> tuple[list[float], list[float]]:
        weight = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
        schedule = SCHEDULES[name](optimizer)
        options: dict[str, Any] = {"warmup": 6 if learns else 99, "range_test": False}
        learner = spectral_learner(weight, mse_loss, optimizer, schedule, **options)
        rates, factors = [], []
        for _ in range(35):
            optimizer.step()
            schedule.step()
            learner.update((torch.ones(128, 1), torch.zeros(128, 1)), 1.0)
            rates.append(optimizer.param_groups[0]["lr"])
            factors.append(learner.factor)
        return rates, factors

    (alone, ones), (both, factors) = run(False), run(True)
    assert set(ones) == {1.0} and factors[-1] > 5  # towards 2/λ = 1
    assert both == pytest.approx([a * f for a, f in zip(alone, factors, strict=True)])


def test_a_compiled_model_is_measured_as_it_is() -> None:
    """What torch.compile wraps is unwrapped; the rates are those of the plain module."""
    rates = []
    for wrap in (lambda net: net, lambda net: torch.compile(net, backend="eager")):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        called: Any = wrap(model)
        learner = spectral_learner(called, cross_entropy, optimizer, warmup=5, range_test=False)
        rates.append(train(called, optimizer, learner, 12))
    assert rates[0] == pytest.approx(rates[1]) and rates[0][-1] != 0.05


def test_a_resumed_loop_is_the_uninterrupted_one() -> None:
    """Model, optimizer and learner saved in the middle of the range test: the same rates after."""

    def fresh() -> tuple[nn.Module, Any, LoopLearner]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return model, optimizer, spectral_learner(model, cross_entropy, optimizer, warmup=10)

    whole, first, second = fresh(), fresh(), fresh()
    train(*whole, 25), train(*first, 25)
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))  # pyright: ignore
    assert second[2].range_test.running
    assert train(*second, 15) == train(*whole, 15)


def _replica(rank: int, folder: str) -> None:
    """One process of two, with batches of its own."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(folder, "port").read_text())
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    net = network()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    learner = spectral_learner(model, cross_entropy, optimizer, warmup=10)
    rates = train(model, optimizer, learner, 60, rank)
    state = copy.deepcopy(net.state_dict())
    loader = [batch_of(step, rank) for step in range(8)]
    found = find_lr(model, cross_entropy, loader, optimizer, steps=3)
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    kept = (state, rates, learner.range_test.step, found.lr | {0: found.found[0].best.after})
    torch.save(kept, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.whole
def test_replicas_stay_equal_bit_for_bit(tmp_path: Path) -> None:
    """Two processes with batches of their own: one rate, one decision, the same weights."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    torch.multiprocessing.spawn(_replica, (str(tmp_path),), nprocs=2)
    (a, rates, test, one), (b, others, _, two) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert one == two and one[128] > 0
    assert rates == others and len(set(rates)) > 20 and test > 20
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_losses_that_wander_by_chance_end_no_range_test() -> None:
    """Plateaus of losses around one value: at most one climb of twenty is stopped, not four of ten.

    A loss that rises by three standard deviations stops all of them.
    """
    from shoal.core.optimizers import OptimizerInfo
    from shoal.step.estimator import Measurement

    def climbs(rises: float) -> int:
        stopped = 0
        for seed in range(20):
            draw = torch.Generator().manual_seed(seed)
            look = Measurement(1.0, 1.0, 1.0, 1.0, 50.0)
            learner = StepLearner(
                OptimizerInfo("adam", 0.9, lr=1e-3), lambda _, look=look: look, warmup=50,
                state=lambda: None, restore=lambda _: None,
            )  # fmt: skip
            noise = torch.randn(320, generator=draw).tolist()
            for step in range(320):
                beyond = rises if learner.range_test.factor > 16 else 0.0
                learner.observe([torch.zeros(64, 1)], 5 + noise[step] + beyond)
                if learner.range_test.ended:
                    break
            stopped += learner.range_test.trouble
        return stopped

    assert climbs(0.0) <= 1 and climbs(3.0) == 20
