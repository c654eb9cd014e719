"""Calibration and thresholds: planted probabilities come back, cuts are the best there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.decisions import calibration_error, macro_f1
from shoal.core.errors import InputError
from shoal.rank.calibration import _RIDGE, Calibration, Thresholds, _logistic, kept
from shoal.rank.ensemble import Candidates, TrainedNetwork, Weights
from shoal.rank.evaluate import calibration


def planted(n: int, labels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of queries that differ in strength; each label is true by itself, P = σ(2 z − 1)."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, labels, generator=g) + 2 * torch.randn(n, 1, generator=g)
    true = torch.rand(n, labels, generator=g) < (2 * z - 1).sigmoid()
    return z, true, torch.ones_like(true)


@pytest.mark.parametrize("labels", [1, 3, 20])
def test_probabilities_hold_where_labels_do_not_compete(labels: int) -> None:
    """From one to twenty labels a text: stated as often as true, for many and for few labels."""
    z, true, real = planted(4000, labels, seed=0)
    made = Calibration.fit(z, true, real)
    z, true, _ = planted(4000, labels, seed=1)
    stated = made.probabilities(z)
    assert calibration_error(calibration(stated.flatten(), true.flatten())) < 2
    torch.testing.assert_close(stated, (2 * z - 1).sigmoid(), atol=0.05, rtol=0)


def test_probabilities_hold_where_labels_compete_for_one_place() -> None:
    """One label a text, drawn by softmax: what a logit means depends on the others."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 8, generator=g) * 2 + 3 * torch.randn(4000, 1, generator=g)
    choice = z.softmax(1).multinomial(1, generator=g)
    true = torch.zeros_like(z).scatter_(1, choice, 1.0).bool()
    made = Calibration.fit(z, true, torch.ones_like(true))
    assert made.shared == pytest.approx(made.slope, rel=0.05)
    assert calibration_error(calibration(made.probabilities(z).flatten(), true.flatten())) < 4


@given(st.integers(1, 6), st.integers(0, 99))
def test_probabilities_rise_with_logits(n: int, seed: int) -> None:
    """However little there is to learn from, ranking within a query stays as it is."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, generator=g)
    real = torch.rand(n, 4, generator=g) < 0.8
    true = (torch.rand(n, 4, generator=g) < 0.5) & real
    p = Calibration.fit(z.masked_fill(~real, -torch.inf), true, real).probabilities(z)
    assert bool((p.gather(1, z.argsort(1)).diff(dim=1) >= 0).all())
    assert bool(((p >= 0) & (p <= 1)).all())


@given(st.integers(1, 30), st.integers(0, 99))
def test_little_data_lean_to_where_they_begin(n: int, seed: int) -> None:
    """What comes out has no gradient: of the logistic loss, and of the pull to the beginning."""
    g = torch.Generator().manual_seed(seed)
    x, start = torch.randn(n, 2, generator=g).double(), torch.tensor([3.0, -3.0]).double()
    true = torch.rand(n, generator=g) < 0.5
    scale = x.abs().mean(0)
    x, weight = x / scale, _logistic(x, true, start) * scale
    pull = _RIDGE * (weight - start * scale)
    assert (x.T @ ((x @ weight).sigmoid() - true.double()) + pull).abs().max() < 1e-6


def test_a_query_without_candidates_states_nothing() -> None:
    """No NaN comes out."""
    z = torch.full((1, 3), -torch.inf)
    assert Calibration(2.0, 0.5, 1.0).probabilities(z).tolist() == [[0.0] * 3]


@given(st.integers(1, 30), st.integers(0, 99))
def test_thresholds_are_the_best_cuts(n: int, seed: int) -> None:
    """No other threshold has a better micro F1; macro F1 is the best of those tried."""
    g = torch.Generator().manual_seed(seed)
    p = (torch.rand(n, generator=g) * 10).round() / 10
    labels = torch.randint(3, (n,), generator=g)
    true = torch.rand(n, generator=g) < p
    count = torch.bincount(labels[true], minlength=3) + torch.randint(2, (3,), generator=g)
    found = Thresholds.choose(p, labels, true, count)

    def micro(t: float) -> float:
        made = p >= t
        return float(2 * true[made].sum() / (made.sum() + count.sum()).clamp(min=1))

    assert micro(found.micro) == pytest.approx(max(micro(t) for t in [*p.tolist(), 1.1]))
    best = max(macro_f1(labels[p >= t], true[p >= t], count) for t in p.tolist())
    made = p >= found.macro
    assert macro_f1(labels[made], true[made], count) == pytest.approx(best)
    assert found.labels.tolist() == (count >= 5).nonzero().flatten().tolist()
    state = Thresholds.of_state(found.state_dict())
    assert torch.equal(state.own, found.own) and state.micro == found.micro


def test_labels_that_are_seen_often_have_thresholds_of_their_own() -> None:
    """Label 0 is true from 0.2 on, label 1 from 0.8 on; label 2 is rare and has the common one."""
    p = torch.linspace(0, 1, 101).repeat(2)
    labels = torch.arange(2).repeat_interleave(101)
    true = p > torch.tensor([0.195, 0.795])[labels]
    found = Thresholds.choose(p, labels, true, torch.tensor([81, 21, 1]))
    least = found.least("label-f1", torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(least, torch.tensor([[0.195, 0.795, found.micro]]))


def test_what_a_rule_keeps() -> None:
    """A number, a rule, and as many labels as are expected; none where there is none."""
    scores = torch.tensor([[0.9, 0.8, 0.2, -torch.inf], [0.3, 0.1, 0.0, 0.0]])
    ids = torch.tensor([[3, 1, 0, -1], [2, 1, 0, 3]])
    rules = Thresholds(0.25, 0.85, torch.tensor([1]), torch.tensor([0.1]))
    want: dict[Any, list[int]] = {
        0.15: [3, 1], 0.0: [3, 4], "f1": [2, 1], "macro-f1": [1, 0], "label-f1": [2, 2],
        "count": [2, 0],
    }  # fmt: skip
    for threshold, counts in want.items():
        assert kept(scores, ids, threshold, rules).sum(1).tolist() == counts
    with pytest.raises(InputError, match="this model learned no thresholds"):
        kept(scores, ids, "f1", None)


@pytest.mark.usefixtures("unchecked")
def test_rules_that_do_not_exist_are_refused() -> None:
    """By the names of those that do."""
    bad: Any = "best"
    with pytest.raises(InputError, match=r"threshold: expected a number or one of f1, macro-f1"):
        kept(torch.zeros(1, 1), torch.zeros(1, 1).long(), bad, None)


def test_combiners_of_before_keep_their_meaning() -> None:
    """Their probability is σ(slope · ln softmax(z) + offset); they have learned no threshold."""
    weights = Weights(1, hidden=4, seed=0)
    state = {**weights.state_dict(), "slope": torch.tensor(0.8), "offset": torch.tensor(-0.3)}
    g = torch.Generator().manual_seed(0)
    found = Candidates(torch.arange(6).expand(5, 6), torch.rand(5, 6, 4, generator=g))
    opened = TrainedNetwork.of_state(state)
    share = weights.logits(found).log_softmax(1)
    want = (0.8 * share - 0.3).sigmoid().sort(dim=1, descending=True).values
    torch.testing.assert_close(opened.rank(found, 6).scores, want)
    assert opened.thresholds is None
    again = TrainedNetwork.of_state(opened.state_dict())
    assert torch.equal(again.rank(found, 6).scores, opened.rank(found, 6).scores)
