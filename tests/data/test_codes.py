"""Planted codes: the closed form is what the best rule reaches, and words alone reach little."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.core.errors import InputError
from shoal.core.search import top_k
from tests.codes import PlantedCodes, code_accuracy, one_hot, planted_codes


def accuracy(data: PlantedCodes, queries: torch.Tensor, keys: torch.Tensor) -> float:
    """Share of test points whose label has the largest inner product."""
    _, best = top_k(queries, keys, 1)
    return (best[:, 0] == data.test_labels.indices).double().mean().item()


@pytest.mark.parametrize(
    ("labels", "digits", "base", "kept"), [(300, 4, 8, 0.7), (2000, 5, 4, 0.9)]
)
def test_the_best_rule_reaches_the_closed_form(labels, digits, base, kept) -> None:
    """Agreement in most digits is right as often as code_accuracy says: 4 standard errors.

    Ties go to the lowest id, which is any one of them, as codes are drawn alike.
    """
    n = 4000
    data = planted_codes(1, labels, n, digits=digits, base=base, kept=kept, seed=1)
    keys = one_hot(data.label_digits, base).to_dense()
    found = accuracy(data, one_hot(data.test_digits, base).to_dense(), keys)
    bound = code_accuracy(labels, digits, base, kept)
    assert found == pytest.approx(bound, abs=4 * math.sqrt(bound * (1 - bound) / n))
    assert 0.1 < bound < 0.9


def test_closed_form_of_two_words() -> None:
    """Two labels, one digit: right if it stays and they differ; a coin where both agree or neither.

    With kept = a: same word (1/q): 1/2. Else a + (1 − a)·(1/2)·(q − 2)/(q − 1).
    """
    q, a = 5, 0.7
    differ = a + (1 - a) * 0.5 * (q - 2) / (q - 1)
    assert code_accuracy(2, 1, q, a) == pytest.approx(0.5 / q + (1 - 1 / q) * differ)


def test_closed_form_falls_with_labels_and_holds_for_millions() -> None:
    """More labels are harder; three million give a finite number below one."""
    shares = [code_accuracy(10**k, 8, 32, 0.8) for k in range(7)]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1.0
    assert 0.5 < code_accuracy(3_000_000, 8, 32, 0.8) < shares[-1]


def test_words_find_less_than_digits() -> None:
    """Shared words name the label far less often than the best rule, and a seed fixes the words."""
    data, again = (planted_codes(10, 500, 1000, synonyms=4, seed=2) for _ in range(2))
    found = accuracy(data, data.test.to_dense(), data.labels.to_dense())
    assert 0.05 < found < 0.6 * code_accuracy(500, 8, 32, 0.8)
    assert torch.equal(data.test.indices, again.test.indices)


def test_a_text_names_the_first_digits() -> None:
    """With named = 2 a label's text has two words, of its first two digits."""
    data = planted_codes(4, 7, 3, digits=3, base=4, synonyms=2, named=2)
    words = data.labels.indices.view(7, 2)
    assert torch.equal(words // 2, torch.tensor([0, 4]) + data.label_digits[:, :2])


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named() -> None:
    """Counts below one, a channel that tells nothing, more digits named than there are."""
    with pytest.raises(InputError, match="n_labels: expected a whole number"):
        planted_codes(1, 0)
    with pytest.raises(InputError, match="kept: expected a probability"):
        planted_codes(1, 2, base=2, kept=0.5)
    with pytest.raises(InputError, match="base: expected at least 2"):
        code_accuracy(2, 2, 1, 1.0)
    with pytest.raises(InputError, match="named: expected at most the 8 digits"):
        planted_codes(1, 2, named=9)
