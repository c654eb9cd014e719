"""Decisions and probabilities: metrics against loops over pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.decisions import calibration_error, decisions
from shoal.rank.evaluate import calibration


@given(st.lists(st.tuples(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4))), min_size=1))
def test_decisions_are_counts_of_pairs(rows: list[tuple[set[int], set[int]]]) -> None:
    """Micro F1, precision and recall over all pairs; macro F1 over labels that occur."""
    truth = Csr.from_lists([sorted(true) for true, _ in rows], n_cols=5)
    top = torch.full((len(rows), 5), -1)
    for i, (_, made) in enumerate(rows):
        top[i, : len(made)] = torch.tensor(sorted(made, reverse=True))
    pairs = {(i, label) for i, (true, _) in enumerate(rows) for label in true}
    made = {(i, label) for i, (_, given) in enumerate(rows) for label in given}

    def f1(label: int | None) -> float | None:
        true, ours = ({p for p in x if label in (None, p[1])} for x in (pairs, made))
        return 200 * len(true & ours) / (len(true) + len(ours)) if true | ours else None

    each = [x for label in range(5) if (x := f1(label)) is not None]
    found = decisions(top, truth)
    assert found["F1"] == pytest.approx(f1(None) or 0.0)
    assert found["F1_macro"] == pytest.approx(sum(each) / max(len(each), 1), abs=1e-4)
    assert found["precision"] == pytest.approx(100 * len(pairs & made) / max(len(made), 1))
    assert found["recall"] == pytest.approx(100 * len(pairs & made) / max(len(pairs), 1))


def test_honest_probabilities_have_no_error() -> None:
    """What is stated as p is true in a share p; what is surely true and never is, is off by 100."""
    g = torch.Generator().manual_seed(0)
    stated = torch.rand(200_000, generator=g)
    true = torch.rand(200_000, generator=g) < stated
    assert calibration_error(calibration(stated, true)) < 0.5
    assert calibration_error(calibration(torch.ones(3), torch.zeros(3).bool())) == 100
    assert calibration_error(calibration(torch.zeros(0), torch.zeros(0).bool())) == 0
