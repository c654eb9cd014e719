"""Metrics: tables worked out by hand, the literal loops, and laws about order and bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.core.metrics import by_frequency, deciles, evaluate, inverse_propensity
from tests import oracles
from tests.strategies import csrs

LOG3 = math.log2(3)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Tensor, Csr, Tensor]:
    """Predictions with gaps at their end, truth with empty rows and doubles, weights of ≥ 1."""
    truth = draw(csrs(min_rows=1, min_cols=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (truth.n_rows, truth.n_cols)
    top = torch.rand(shape, generator=generator).argsort(1)[:, :3]
    blank = torch.randint(0, 4, (truth.n_rows, 1), generator=generator)
    top = torch.where(torch.arange(3) >= 3 - blank, -1, top)
    weight = 1 + 5 * torch.rand(truth.n_cols, generator=generator, dtype=torch.float64)
    return top, truth, weight


def test_table_by_hand() -> None:
    """Three points, worked out on paper.

    w = (1, 2, 4, 8). Point 0 has labels {0, 2} and predictions 2, 1, 0: hits at ranks 1 and 3.
    Point 1 has label {3} and predictions 0, 3, 1: a hit at rank 2. Point 2 has none.

    P@1 = 1/3; P@3 = (2 + 1 + 0) / (3·3) = 1/3. R@3 = (1 + 1 + 0)/3.
    nDCG@3 = ((1 + 1/2) / (1 + 1/log2 3) + (1/log2 3) / 1 + 0) / 3.
    PSP@1 = 4 / (4 + 8); PSP@3 = (4 + 1 + 8) / (4 + 1 + 8).
    PSnDCG@3: got  (4 + 1/2) / (1 + 1/log2 3) + (8/log2 3) / 1;
              best (4 + 1/log2 3) / (1 + 1/log2 3) + 8 / 1.
    """
    truth = Csr.from_lists([[2, 0], [3], []], n_cols=4)
    top = torch.tensor([[2, 1, 0], [0, 3, 1], [1, 2, 3]])
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    got = evaluate(top, truth, weight, ks=(1, 3))
    ideal = 1 + 1 / LOG3
    expected = {
        "P@1": 100 / 3,
        "P@3": 100 / 3,
        "nDCG@1": 100 / 3,
        "nDCG@3": 100 * (1.5 / ideal + 1 / LOG3) / 3,
        "PSP@1": 100 * 4 / 12,
        "PSP@3": 100.0,
        "PSnDCG@1": 100 * 4 / 12,
        "PSnDCG@3": 100 * (4.5 / ideal + 8 / LOG3) / ((4 + 1 / LOG3) / ideal + 8),
        "R@1": 100 * 0.5 / 3,
        "R@3": 200 / 3,
    }
    assert got == pytest.approx(expected, rel=1e-12) and list(got) == list(expected)


def test_propensity_by_hand() -> None:
    """Four points, a = 1, b = 1: C = (ln 4 - 1)·2, w = 1 + C / (N_l + 1) for N_l = 3, 1, 0."""
    labels = Csr.from_lists([[0, 1], [0], [0, 0], []], n_cols=3)  # a double counts once
    c = 2 * (math.log(4) - 1)
    expected = torch.tensor([1 + c / 4, 1 + c / 2, 1 + c], dtype=torch.float64)
    torch.testing.assert_close(inverse_propensity(labels, 1.0, 1.0), expected)


@given(csrs(min_rows=3))
def test_propensity_agrees_with_the_literal_loop(labels: Csr) -> None:
    """inverse_propensity() is the paper's formula, at least 1, and falls with frequency."""
    got = inverse_propensity(labels)
    expected = torch.tensor(oracles.inverse_propensity(labels, 0.55, 1.5), dtype=torch.float64)
    torch.testing.assert_close(got, expected)
    assert bool((got >= 1).all())


@given(rankings())
def test_metrics_agree_with_the_literal_loop(case: tuple[Tensor, Csr, Tensor]) -> None:
    """evaluate() is the loop over points, whatever rows are empty or predictions missing."""
    top, truth, weight = case
    got = evaluate(top, truth, weight, ks=(1, 2, 3))
    expected = {}
    for k in (1, 2, 3):
        expected |= oracles.metrics(top, truth, weight, k)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(rankings())
def test_metrics_lie_between_zero_and_their_bounds(case: tuple[Tensor, Csr, Tensor]) -> None:
    """P@k ≤ mean(min(k, |y|)) / k; every metric lies in [0, 100]; nDCG and R ≤ share with truth."""
    top, truth, weight = case
    degree = truth.with_values(None).coalesce().degrees()
    got = evaluate(top, truth, weight, ks=(1, 2, 3))
    some = 100 * (degree > 0).double().mean().item() + 1e-9
    for k in (1, 2, 3):
        assert got[f"P@{k}"] <= 100 * degree.clamp(max=k).double().mean().item() / k + 1e-9
        assert got[f"nDCG@{k}"] <= some and got[f"R@{k}"] <= some
    assert all(0 <= value <= 100 + 1e-9 for value in got.values())


@given(rankings(), st.randoms(use_true_random=False))
def test_order_of_points_and_names_of_labels_do_not_matter(case, random) -> None:
    """Permuting points, renaming labels, permuting a row's truth: the same numbers."""
    top, truth, weight = case
    points = list(range(truth.n_rows))
    names = list(range(truth.n_cols))
    random.shuffle(points)
    random.shuffle(names)
    rows, name = torch.tensor(points), torch.tensor(names)
    renamed = Csr(truth.indptr, name[truth.indices.long()], truth.n_cols).rows(rows)
    top_renamed = torch.where(top >= 0, name[top.clamp(min=0)], -1)[rows]
    moved = torch.empty_like(weight)
    moved[name] = weight
    ks = (1, 2, 3)
    got = evaluate(top_renamed, renamed, moved, ks)
    assert got == pytest.approx(evaluate(top, truth, weight, ks), rel=1e-9, abs=1e-9)


@given(rankings())
def test_order_within_the_first_k_moves_only_the_discounted(case) -> None:
    """P, R and PSP at k read a set: reversing the k predictions leaves them."""
    top, truth, weight = case
    got, back = evaluate(top, truth, weight, (3,)), evaluate(top.flip(1), truth, weight, (3,))
    for name in ("P@3", "R@3", "PSP@3"):
        assert got[name] == pytest.approx(back[name], rel=1e-12)


def test_the_best_ranking_scores_a_hundred() -> None:
    """Truth listed by falling weight: 100 everywhere that the number of labels allows it.

    PS metrics reach 100 only in this order: with the two labels swapped PSP@1 falls.
    """
    truth = Csr.from_lists([[0, 1], [2, 3]], n_cols=4)
    weight = torch.tensor([2.0, 1.0, 1.0, 3.0])
    best = evaluate(torch.tensor([[0, 1], [3, 2]]), truth, weight, ks=(1, 2))
    assert best == pytest.approx({**dict.fromkeys(best, 100.0), "R@1": 50.0})
    swapped = evaluate(torch.tensor([[1, 0], [3, 2]]), truth, weight, ks=(1, 2))
    assert swapped["PSP@1"] == pytest.approx(80.0) and swapped["P@1"] == 100.0


def test_equal_weights_turn_psp_into_precision_over_its_bound() -> None:
    """With w = 1: PSP@k = P@k / best P@k and PSnDCG@k = nDCG@k over the share with truth."""
    truth = Csr.from_lists([[0, 1, 2], [3], []], n_cols=5)
    got = evaluate(torch.tensor([[0, 4, 1], [4, 3, 0], [0, 1, 2]]), truth, torch.ones(5), (3,))
    assert got["PSP@3"] == pytest.approx(got["P@3"] / (4 / 9))
    assert got["PSnDCG@3"] == pytest.approx(got["nDCG@3"] / (2 / 3))


def test_no_prediction_at_all_scores_zero() -> None:
    """-1 everywhere is 0 everywhere, also beside the last label of the row before."""
    truth = Csr.from_lists([[2], [0]], n_cols=3)
    got = evaluate(torch.full((2, 2), -1), truth, torch.ones(3), ks=(1, 2))
    assert set(got.values()) == {0.0}


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """A repeat, an unknown label, too few predictions, wrong sizes, no points: one line each."""
    truth, weight = Csr.from_lists([[0], [1]], n_cols=3), torch.ones(3)
    good = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(InputError, match="top: expected distinct labels per row"):
        evaluate(torch.tensor([[0, 1], [2, 2]]), truth, weight, (1,))
    with pytest.raises(InputError, match=r"top: expected ids in \[-1, 3\), got 3"):
        evaluate(torch.tensor([[0, 1], [3, 2]]), truth, weight, (1,))
    with pytest.raises(InputError, match=r"top: expected ids in \[-1, 3\), got -2"):
        evaluate(torch.tensor([[0, 1], [-2, 2]]), truth, weight, (1,))
    with pytest.raises(InputError, match="top: expected label ids"):
        evaluate(good.float(), truth, weight, (1,))
    with pytest.raises(InputError, match="ks: expected at most 2 predictions, got 3"):
        evaluate(good, truth, weight, (1, 3))
    with pytest.raises(InputError, match="ks: expected a whole number"):
        evaluate(good, truth, weight, (0,))
    with pytest.raises(InputError, match="ks: expected at least one rank"):
        evaluate(good, truth, weight, ())
    with pytest.raises(InputError, match="truth: expected one row per prediction"):
        evaluate(good[:1], truth, weight, (1,))
    with pytest.raises(InputError, match="inverse: expected one per label"):
        evaluate(good, truth, weight[:2], (1,))
    with pytest.raises(InputError, match="inverse: expected finite rows"):
        evaluate(good, truth, weight * torch.nan, (1,))
    with pytest.raises(InputError, match="at least 3 examples, got 2"):
        inverse_propensity(truth)
    with pytest.raises(InputError, match="a, b: expected positive"):
        inverse_propensity(Csr.from_lists([[0]] * 3, 1), a=0.0)


def test_deciles_agree_with_the_literal_loop() -> None:
    """Pairs listed, sorted by frequency, cut in ten: shares of the true and of the predicted.

    Each label is true of one point and predicted for one, so that no two pairs are equally rare.
    """
    generator = torch.Generator().manual_seed(0)
    top = torch.randperm(90, generator=generator).view(30, 3)
    owner = torch.randint(30, (90,), generator=generator)
    owner[top[::2]] = torch.arange(0, 30, 2)[:, None]
    top[5, 1:] = -1
    frequency = torch.randperm(90, generator=generator)
    truth = Csr.from_dense(owner == torch.arange(30)[:, None])
    found = deciles(top, truth, frequency, 3)
    made = [(i, y, r) for i, row in enumerate(top.tolist()) for r, y in enumerate(row) if y >= 0]
    assert found["R@3"] == oracles.tenths(frequency, [(y, y in top[owner[y]]) for y in range(90)])
    for k in (1, 3):
        predicted = [(y, bool(owner[y] == i)) for i, y, r in made if r < k]
        assert found[f"P@{k}"] == oracles.tenths(frequency, predicted)
    assert found["frequency"] == [4 + 9 * i for i in range(10)]
    assert len({*found["P@1"]}) > 2 and len({*found["R@3"]}) > 2


def test_parts_by_frequency_are_equal_and_fair() -> None:
    """Distinct frequencies: means of sorted runs; equal ones: order of values tells nothing."""
    frequency = torch.tensor([5, 1, 4, 2, 3, 0])
    assert by_frequency(frequency, frequency, parts=3) == [0.5, 2.5, 4.5]
    rising = torch.arange(10_000.0)
    parts = by_frequency(rising, torch.zeros(10_000, dtype=torch.long))
    assert len(parts) == 10 and max(abs(x - 4999.5) for x in parts) < 400
    assert by_frequency(rising[:3], frequency[:3]) == [1.0, 2.0, 0.0]
    assert by_frequency(rising[:0], frequency[:0]) == []


@pytest.mark.usefixtures("unchecked")
def test_deciles_of_nothing_are_refused() -> None:
    """No true label at all, more ranks than predictions, other points: one line."""
    truth = Csr.from_lists([[0], [1]], n_cols=2)
    top, frequency = torch.tensor([[0], [1]]), torch.tensor([1, 1])
    for bad in (
        (top, Csr.from_lists([[], []], n_cols=2), frequency, 1),
        (top, truth, frequency, 2),
        (top[:1], truth, frequency, 1),
    ):
        with pytest.raises(InputError, match="predictions or more for each"):
            deciles(*bad)
