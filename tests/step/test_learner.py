"""The step rule on made-up measurements: warm-up, averages, caps, spikes, budget, checkpoints."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from shoal.core.errors import InputError
from shoal.core.optimizers import OptimizerInfo
from shoal.step.estimator import Measurement
from shoal.step.learner import StepLearner

BATCH = torch.zeros(64, 1)
law_alone = partial(StepLearner, range_test=False)


def sgd(lr: float) -> OptimizerInfo:
    return OptimizerInfo("sgd", lr=lr)


class Looks:
    """Gives readings in turn, the last one for ever, and counts."""

    def __init__(self, *readings: Measurement) -> None:
        self.readings, self.count = list(readings), 0

    def __call__(self, batches: Any) -> Measurement:
        self.count += 1
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


def reading(rate: float, cost: float = 1.0) -> Measurement:
    """Whose law for SGD is `rate`."""
    return Measurement(2 / rate, 0.0, 0.0, 0.5 / rate, cost)


def drive(learner: StepLearner, steps: int, loss: float = 1.0) -> list[float]:
    """The learning rate after each of some steps."""
    rates = []
    for _ in range(steps):
        learner.observe([BATCH], loss)
        rates.append(learner.lr)
    return rates


def test_it_waits_then_moves_by_at_most_a_ratio() -> None:
    """Nothing during warm-up; the law's at the first look; then 1.5 times a look at most."""
    looks = Looks(reading(0.2), reading(1.0))
    learner = law_alone(sgd(0.1), looks, warmup=10, share=0.1)
    rates = drive(learner, 200)
    assert rates[:9] == [0.1] * 9 and looks.count > 6
    assert next(rate for rate in rates if rate != 0.1) == pytest.approx(0.2)
    ratios = [b / a for a, b in pairwise(rates) if a != 0.1]
    assert max(ratios) == pytest.approx(1.5) and rates[-1] == pytest.approx(1.0, rel=1e-3)


def test_looks_cost_their_share() -> None:
    """A look of 23 gradients at a share of a tenth comes every 230 steps or so."""
    looks = Looks(reading(1.0, cost=23.0))
    drive(law_alone(sgd(0.1), looks, warmup=10, share=0.1), 2000)
    assert 23 * looks.count <= 0.1 * 2000 + 23 and looks.count >= 7


def test_rates_are_averaged_over_looks() -> None:
    """Two looks at 1 and 4 with weight a half: their geometric mean."""
    looks = Looks(reading(1.0), reading(4.0))
    learner = law_alone(sgd(1.0), looks, warmup=1, share=1.0, max_change=10.0)
    while looks.count < 2:
        drive(learner, 1)
    assert learner.lr == pytest.approx(2.0)


def test_adam_follows_the_law_from_its_own_rate() -> None:
    """The first look is the reference; three times that law means three times the rate."""
    looks = Looks(reading(1.0), reading(3.0))
    learner = law_alone(
        OptimizerInfo("adam", 0.9, lr=0.01), looks, warmup=1, share=1.0, average=1.0, max_change=5.0
    )
    while looks.count < 2:
        drive(learner, 1)
    assert learner.lr == pytest.approx(0.03) and learner.factor == pytest.approx(3)


def test_the_rate_falls_with_the_loss() -> None:
    """Gradient noise alone, k tr Σ = 2: 1/a = k tr Σ/(2L), so a tenth of the loss, a tenth of a."""
    learner = law_alone(sgd(1.0), Looks(Measurement(1e-9, 0.0, 2.0, 1.0, 1.0)), warmup=1, share=1.0)
    assert drive(learner, 200, loss=1.0)[-1] == pytest.approx(1.0)
    assert drive(learner, 400, loss=0.1)[-1] == pytest.approx(0.1, rel=0.01)


def test_momentum_is_learned_to_where_the_batch_is_critical() -> None:
    """B → (λ − kc)/(λ + kc) = 0.8 for λ = 9 kc; Polyak's form sets both as E9 has them."""
    look = Looks(Measurement(9.0, 1.0, 0.0, 1.0, 1.0))
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    learner = law_alone(optimizer, look, warmup=1, share=1.0, learn_momentum=True)
    drive(learner, 100)
    learner.apply(optimizer)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.8, abs=1e-6)
    assert learner.lr == pytest.approx(1 / (9 / 2 + 1 / 0.4), rel=1e-3)
    polyak = StepLearner(
        optimizer, Looks(Measurement(9.0, 1.0, 0.0, 1.0, 1.0)), form="polyak", warmup=1
    )
    drive(polyak, 5000)
    polyak.apply(optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.25)


def test_accumulation_divides_the_noise() -> None:
    """A step of four batches: a quarter of their noise; looks pay in fewer steps."""
    look = Looks(Measurement(1.0, 8.0, 0.0, 1.0, 40.0))
    learner = law_alone(sgd(1.0), look, warmup=1, share=0.5, max_change=10.0)
    while look.count == 0:
        learner.observe([BATCH], 1.0, averaged=4)
    assert learner.lr == pytest.approx(1 / (1 / 2 + 8 / 4 / 2))
    assert learner.due == learner.step + 20


def ranged(trouble: float, put: list[float], after: float = 9.0) -> StepLearner:
    """A learner whose law is 1, and whose loss, 2 ± 0.1, is `after` from a rate on.

    What it keeps, and puts back, is the rate of the time.
    """
    looks = Looks(reading(1.0, 1000.0))
    learner = StepLearner(sgd(0.1), looks, warmup=50, state=lambda: learner.lr, restore=put.append)
    drive(learner, 5, loss=4.0)
    for i in range(400):
        learner.observe([BATCH], 2 + 0.1 * (-1) ** i if learner.lr < trouble else after)
    return learner


@pytest.mark.parametrize("trouble", [16.0, 40.0, 100.0, 900.0])
def test_headroom_is_a_quarter_of_where_trouble_came(trouble: float) -> None:
    """The rate is a quarter of trouble's, and weights are those of a rate at or below it, once."""
    put: list[float] = []
    learner = ranged(trouble, put)
    assert learner.spikes == 0
    assert learner.range_test.multiplier == learner.lr == pytest.approx(trouble / 4, rel=0.1)
    (rate,) = put
    assert trouble / 16 <= rate * 1.1 and rate <= 1.1 * trouble / 4


def test_headroom_without_trouble_or_with_little_room() -> None:
    """Never in trouble: a quarter of 1024. In trouble at once: the law's rate, and not below it."""
    put: list[float] = []
    assert ranged(1e9, put).lr == pytest.approx(256.0) and put == []
    assert ranged(1.2, put).lr == pytest.approx(1.0) and len(put) == 1


def test_a_spike_puts_back_what_the_last_look_kept() -> None:
    """Loss falls from 4 to 1, then rises to 3.5: state is put back once, the rate is halved."""
    put: list[int] = []
    looks = Looks(reading(1.0, 1000.0))
    learner = law_alone(sgd(1.0), looks, warmup=5, state=lambda: 7, restore=put.append)
    drive(learner, 3, loss=4.0)
    drive(learner, 300, loss=1.0)
    assert put == [] and learner.lr == pytest.approx(1.0)
    drive(learner, 20, loss=3.5)
    assert put[:1] == [7] and learner.lr <= 0.5
    learner.observe([BATCH], math.nan)
    assert put[-1] == 7


def test_noisy_losses_are_no_spikes() -> None:
    """Batches whose losses scatter by their own size, and single outliers, are left alone."""
    learner = law_alone(sgd(1.0), Looks(reading(1.0, 1e6)), warmup=5)
    generator = torch.Generator().manual_seed(0)
    for i in range(2000):
        scale = 0.5 + 3.5 * 0.99**i
        loss = scale * float(torch.empty(1).exponential_(generator=generator))
        learner.observe([BATCH], loss)
    assert learner.spikes == 0


def test_endless_spikes_are_named() -> None:
    learner = law_alone(
        sgd(1.0), Looks(reading(1.0)), warmup=1, state=lambda: 0, restore=lambda _: None
    )
    drive(learner, 5)
    with pytest.raises(InputError, match="expected at most 5 spikes, got nan; begin with a lower"):
        drive(learner, 6, loss=math.nan)


def test_a_resumed_learner_is_the_uninterrupted_one() -> None:
    """Saved at any step, also while batches wait for a look: the same rates from there on."""

    def fresh() -> StepLearner:
        small = Measurement(2.0, 0.3, 0.0, 0.1, 40.0)
        return StepLearner(sgd(0.1), Looks(small), warmup=3, share=0.5)

    whole = fresh()
    rates = drive(whole, 60)
    for cut in (1, 4, 6, 30):
        first = fresh()
        drive(first, cut)
        state = first.state_dict()
        second = fresh()
        second.load_state_dict(state)
        assert drive(second, 60 - cut) == rates[cut:]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup": 0}, "warmup"),
        ({"share": 0.0}, "share"),
        ({"max_change": 1.0}, "max_change"),
        ({"average": 2.0}, "average"),
        ({"form": "newton"}, "form"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str, unchecked: None) -> None:
    with pytest.raises(InputError, match=f"^{named}: expected"):
        StepLearner(sgd(0.1), Looks(reading(1.0)), **options)
    with pytest.raises(InputError, match="form: expected an optimizer of plain gradients"):
        StepLearner(OptimizerInfo("adam", lr=0.1), Looks(reading(1.0)), form="polyak")
