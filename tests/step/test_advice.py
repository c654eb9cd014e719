"""Advice from spectra that are known: the laws, their limits, six rules, and the scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.core.optimizers import optimizer_info
from shoal.curvature.spectrum import Noise, Spectrum
from shoal.step.damped import DampedDiagonal
from shoal.step.rules import rates, rescale
from shoal.step.schedule import BatchSizeLR, effective_batch
from shoal.step.size import learning_rate
from tests.step.made import known_spectrum


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(2))


def sgd(**options: float) -> torch.optim.SGD:
    return torch.optim.SGD([weight()], lr=0.1, **options)  # pyright: ignore[reportArgumentType]


def with_gradient_noise(covariance: float, loss: float) -> Spectrum:
    """A known spectrum whose gradients have noise as well."""
    spectrum = known_spectrum(loss=loss)
    return replace(spectrum, noise=replace(spectrum.noise, gradient_covariance=covariance))


def test_the_law_by_hand() -> None:
    """λ₁ = 2, c = 10, b = 10, B = 0.5: 1/a = 2/3 + 1 is stable, 1 + 1 safe, critical at 5 · 3."""
    plan = learning_rate(known_spectrum(), 10, sgd(momentum=0.5), after_warmup=True)
    assert plan.safe == pytest.approx(1 / 2) and plan.edge == pytest.approx(2 / (2 / 3 + 1))
    assert plan.critical_batch == pytest.approx(15) and plan.regime == "noise"
    assert plan.trusted and plan.momentum == 0.5
    assert "critical batch 15" in plan.explain() and "safe" in plan.explain()


def test_a_loss_in_smaller_units_allows_a_larger_rate() -> None:
    """A thousandth of the curvature, its trace and its noise: a thousand times the rate."""
    small = known_spectrum(lam=2e-3, trace=4e-3, c=10e-3)
    one, two = (learning_rate(x, 10, "sgd") for x in (known_spectrum(), small))
    assert two.safe == pytest.approx(1e3 * one.safe) and two.edge == pytest.approx(1e3 * one.edge)


def test_gradient_noise_lowers_what_is_safe_alone() -> None:
    """tr Σ/L = 20/2 doubles c = 10 for the safe rate; edge and critical batch keep to stability."""
    plan = learning_rate(with_gradient_noise(20.0, loss=2.0), 10, "sgd")
    assert plan.safe == pytest.approx(1 / (1 + 20 / 10 / 2))
    assert plan.edge == pytest.approx(2 / (1 + 10 / 10 / 2)) and plan.critical_batch == 5


def test_noise_may_hold_half_of_what_was_gained() -> None:
    """L = 2, tr Σ = 20: begun at 2.5 the floor's c is 10 + 20/0.5, begun at 100 it is 10 + 20/2."""
    spectrum = with_gradient_noise(20.0, loss=2.0)
    rate = {b: learning_rate(spectrum, 10, "sgd", initial_loss=b).safe for b in (2.5, 100.0, None)}
    assert rate[2.5] == pytest.approx(1 / (1 + 50 / 10 / 2))
    assert rate[100.0] == rate[None] == pytest.approx(1 / (1 + 20 / 10 / 2))
    with pytest.raises(
        InputError, match=r"^initial_loss: expected a loss above the present one, 2"
    ):
        learning_rate(spectrum, 10, "sgd", initial_loss=2.0)


@given(st.floats(0, 0.95), st.integers(1, 4096))
def test_momentum_lengthens_no_safe_step(momentum: float, b: int) -> None:
    """Whatever the batch, the safe rate with momentum is at most the one without."""
    plain, heavy = (learning_rate(known_spectrum(), b, sgd(momentum=x)) for x in (0.0, momentum))
    assert heavy.safe <= plain.safe * (1 + 1e-9)


def test_a_rate_is_carried_by_what_allows_less() -> None:
    """Towards small batches the gradients' floor, towards large ones stability: by hand.

    λ₁ = 2, c = 10, floor's c 210: 1/a of stability is 1 + 5/b, of the floor 1 + 105/b.
    """
    spectrum = with_gradient_noise(400.0, loss=2.0)
    down, up = (rates(spectrum, 0.1, 10, b, "sgd").spectral for b in (1, 100))
    assert down == pytest.approx(0.1 * (1 + 105 / 10) / (1 + 105 / 1))
    assert up == pytest.approx(0.1 * (1 + 5 / 10) / (1 + 5 / 100))
    inside = replace(spectrum, metric="adam")  # E7: 1/a = λ₁/38 + k c/2
    found = rates(inside, 0.1, 10, 100, "adamw").spectral
    assert found == pytest.approx(0.1 * (2 / 38 + 105 / 10) / (2 / 38 + 105 / 100))


def test_decay_that_is_coupled_is_curvature() -> None:
    """SGD's weight decay adds to λ₁; AdamW's, decoupled, does not."""
    plain, decayed = (learning_rate(known_spectrum(), 10**9, sgd(weight_decay=x)) for x in (0, 2.0))
    assert plain.safe == pytest.approx(2 * decayed.safe)
    assert optimizer_info(torch.optim.AdamW([weight()], weight_decay=0.5)).decay == 0
    assert optimizer_info(torch.optim.Adam([weight()], weight_decay=0.5)).decay == 0.5


def test_at_initialization_it_is_not_trusted() -> None:
    """An optimizer that has not stepped: the larger of c and the trace is taken, and it says so."""
    spectrum = known_spectrum(trace=50.0, c=1.0)
    optimizer = sgd(momentum=0.9)
    plan = learning_rate(spectrum, 8, optimizer)
    assert not plan.trusted and "NOT safe" in plan.explain() and "fifty steps" in plan.explain()
    assert plan.safe == pytest.approx(1 / (2 / 2 + 50 / 8 / 0.2))
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    assert learning_rate(spectrum, 8, optimizer).trusted


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", sgd()])
def test_what_does_not_tell_is_not_trusted(optimizer: Any) -> None:
    """A name, or plain SGD, shows no training: NOT safe, until it is said or a loss has fallen."""
    metric = "adam" if optimizer == "adamw" else "plain"
    spectrum = known_spectrum(metric=metric, loss=1.0)
    plan = learning_rate(spectrum, 8, optimizer)
    assert (
        not plan.trusted and "NOT safe" in plan.explain() and "after_warmup=True" in plan.explain()
    )
    assert learning_rate(spectrum, 8, optimizer, after_warmup=True).trusted
    assert learning_rate(spectrum, 8, optimizer, initial_loss=2.0).trusted
    carried = rescale(spectrum, 0.1, 8, 16, optimizer)
    assert (
        not carried.trusted and rescale(spectrum, 0.1, 8, 16, optimizer, after_warmup=True).trusted
    )


def test_adam_needs_its_metric() -> None:
    """In Adam's metric 38/λ₁ for a batch of all; the plain metric is refused with the remedy."""
    inside = known_spectrum(metric="adam", dataset_size=64)
    assert learning_rate(inside, 64, "adamw").safe == pytest.approx(38 / 2)
    with pytest.raises(InputError, match="precondition=optimizer"):
        learning_rate(known_spectrum(), 64, "adamw")
    with pytest.raises(InputError, match="without precondition"):
        learning_rate(inside, 64, "sgd")


def test_the_paper_s_model() -> None:
    """model="additive" is 2(1 + B)/(λ₁ + k s2/λ₁): linear in b where noise wins; never trusted."""
    spectrum = known_spectrum(s2=40.0)
    plan = learning_rate(spectrum, 100, "momentum", model="additive", after_warmup=True)
    assert plan.safe == pytest.approx(2 * 1.9 / (2 + 0.4 / 2)) and not plan.trusted
    assert "270 times" in plan.explain()


def test_damping_for_a_second_order_optimizer() -> None:
    """The plan of a damped optimizer holds the least damping at its rate: proportional to it."""
    spectrum = known_spectrum(lam=0.01, trace=2.0, c=2.0, parameters=10_000)
    optimizers = [DampedDiagonal([weight()], lr=lr) for lr in (1.0, 2.0)]
    found = [learning_rate(spectrum, 4, x, after_warmup=True).damping for x in optimizers]
    assert found[0] is not None and found[1] is not None
    assert found[1] / found[0] == pytest.approx(2, rel=0.1)
    assert learning_rate(spectrum, 4, "sgd").damping is None


@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0, 0.95))
def test_rescaling_is_consistent(b: int, to: int, momentum: float) -> None:
    """There and back is the same rate; growing b never lowers it; never more than linear."""
    spectrum, optimizer = known_spectrum(dataset_size=4000), sgd(momentum=momentum)
    there = rescale(spectrum, 0.1, b, to, optimizer)
    assert rescale(spectrum, there.safe, to, b, optimizer).safe == pytest.approx(0.1)
    ratio = there.safe / 0.1
    assert ratio >= 1 - 1e-9 if to >= b else ratio <= 1 + 1e-9
    if b <= to < 4000:  # without replacement noise falls faster than 1/b, and is gone at 4,000
        assert ratio <= to / b * (4000 - b) / (4000 - to) + 1e-9


def test_rules_side_by_side() -> None:
    """Noise alone: the law is linear; curvature alone: constant; Adam: the root, with a note."""
    noisy, calm = known_spectrum(lam=1e-9, c=1e3), known_spectrum(c=0.0)
    assert rates(noisy, 0.1, 8, 64, "sgd").spectral == pytest.approx(0.8)
    assert rates(calm, 0.1, 8, 64, "sgd").spectral == pytest.approx(0.1)
    assert rates(noisy, 0.1, 8, 64, "sgd").noise == pytest.approx(
        0.1 * (1 + 100 / 8) / (1 + 100 / 64)
    )
    spectrum = known_spectrum()  # whose gradient noise scale is 100
    assert rates(spectrum, 0.1, 16, 64, "adam").spectral == pytest.approx(0.2)
    assert "noise scale of 100" in rescale(spectrum, 0.1, 16, 400, "adam").explain()
    assert "noise scale" not in rescale(spectrum, 0.1, 16, 64, "adam").explain()


def test_clustered_batches_are_not_extrapolated_in_silence() -> None:
    """Noise of clustered batches carried to another size is noted, and k_N = 0 is not assumed."""
    spectrum = known_spectrum(sampling="clustered", dataset_size=64)
    plan = learning_rate(spectrum, 64, "sgd")
    assert plan.safe == pytest.approx(1 / (1 + 10 / 64 / 2)) and "assumption" in plan.explain()
    assert "assumption" not in learning_rate(spectrum, 16, "sgd").explain()


def test_effective_batch_counts_accumulation_and_ranks() -> None:
    assert effective_batch(8) == 8 and effective_batch(8, 4, 2) == 64


def test_the_scheduler_chains_and_resumes() -> None:
    """Beside a decay it multiplies; a resumed one goes on where the saved one was."""
    optimizer = sgd()
    schedule = BatchSizeLR(optimizer, 16, accumulate=2, ranks=1, rule="linear")
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    schedule.step(), decay.step()
    schedule.set_batch_size(64)
    assert schedule.get_last_lr() == [pytest.approx(0.1 * 0.5 * 4)]
    assert schedule.batch_size == 128
    state, inner = schedule.state_dict(), optimizer.state_dict()
    other = sgd()
    resumed = BatchSizeLR(other, 16, accumulate=2, ranks=1, rule="linear")
    other.load_state_dict(inner)
    resumed.load_state_dict(state)
    for each in (schedule, resumed):
        each.set_batch_size(16, accumulate=1)
    assert resumed.get_last_lr() == schedule.get_last_lr() == [pytest.approx(0.1 * 0.5 / 2)]


def test_the_scheduler_by_spectrum_is_rescale() -> None:
    spectrum, optimizer = known_spectrum(), sgd()
    schedule = BatchSizeLR(optimizer, 16, spectrum)
    schedule.set_batch_size(256)
    assert schedule.get_last_lr()[0] == pytest.approx(rescale(spectrum, 0.1, 16, 256, "sgd").safe)


def test_the_scheduler_forgets_its_way() -> None:
    """Two laws of which the lesser counts: the rate depends on the size, not on sizes between."""
    spectrum, optimizer = with_gradient_noise(400.0, loss=2.0), sgd()
    schedule = BatchSizeLR(optimizer, 10, spectrum)
    for b in (1000, 1, 100):
        schedule.set_batch_size(b)
        assert schedule.get_last_lr()[0] == pytest.approx(
            rates(spectrum, 0.1, 10, b, "sgd").spectral
        )


def test_betas_scale_with_the_batch() -> None:
    """κ = 4: lr × 2, 1 − β × 4, eps / 2; a κ that takes β below zero is refused."""
    optimizer = torch.optim.AdamW([weight()], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    schedule = BatchSizeLR(optimizer, 16, scale_betas=True)
    schedule.set_batch_size(64)
    (group,) = optimizer.param_groups
    assert group["lr"] == pytest.approx(0.2) and group["betas"] == pytest.approx((0.6, 0.996))
    assert group["eps"] == pytest.approx(5e-9)
    with pytest.raises(InputError, match="betas stay in"):
        schedule.set_batch_size(64 * 16)
    assert group["lr"] == pytest.approx(0.2) and schedule.batch_size == 64


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: optimizer_info("lamb"), "optimizer: expected one that is known, got lamb"),
        (lambda: optimizer_info(torch.optim.Adagrad([weight()])), "got Adagrad"),
        (lambda: optimizer_info(3), "optimizer: expected a torch optimizer"),
        (lambda: optimizer_info(sgd(momentum=0.5, dampening=0.5)), "dampening: expected 0"),
        (lambda: learning_rate(known_spectrum(dataset_size=10), 11, "sgd"), "at most all 10"),
        (
            lambda: learning_rate(known_spectrum(residuals=torch.ones(2)), 8, "sgd"),
            "residual of at most 5%, got 2 ± 1; measure with more steps",
        ),
        (lambda: learning_rate(known_spectrum(curvature="hessian"), 8, "sgd"), "curvature='ggn'"),
        (lambda: learning_rate(known_spectrum(noise=Noise()), 8, "sgd"), "the noise of batches"),
        (lambda: rates(known_spectrum(), 0.0, 8, 16, "sgd"), "lr: expected a learning rate above"),
        (lambda: BatchSizeLR(sgd(), 8, rule="cubic"), "rule: expected one of constant"),
        (lambda: BatchSizeLR(sgd(), 8, rule="spectral"), "spectrum: expected one for the rule"),
        (lambda: BatchSizeLR(sgd(), 8, scale_betas=True), "scale_betas: expected False"),
        (lambda: BatchSizeLR(sgd(), 0), "batch_size: expected a whole number"),
    ],
)
def test_bad_input_is_named(call, named: str, unchecked: None) -> None:
    """What cannot be advised on is refused with what was expected, what came and a remedy."""
    with pytest.raises(InputError, match=named):
        call()
