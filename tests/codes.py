"""Planted labels in any number, with the best possible accuracy in closed form: codewords.

Label l is a word of m digits in base q, drawn at random, and a point of label l is that word after
a symmetric channel: each digit stays with probability `kept` and turns into any other else. Whoever
sees a point's digits does best to name the label that agrees with it in most of them, and is right
with the probability :func:`code_accuracy`.

Texts spell digits. Each digit of each place has words of its own that mean the same, and a text
uses any one of them: a point shares few words with its label, so that counting shared words finds
little, while an encoder that has learned which words are synonyms reads the digits. A label's text
may name only some of its digits; the others are known from its points alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive


@dataclass(frozen=True, eq=False)
class PlantedCodes:
    """Bags of words of points and labels, the labels of points, and the truth.

    Attributes:
        train: words of the training points, ``[n, words]``.
        train_labels: their labels, one each, ``[n, l]``.
        test: words of the test points, ``[n_test, words]``.
        test_labels: their labels, ``[n_test, l]``.
        labels: words of the labels' texts, ``[l, words]``.
        label_digits: the code, ``[l, m]``.
        test_digits: of the test points, after the channel, ``[n_test, m]``.
        base: q.
    """

    train: Csr
    train_labels: Csr
    test: Csr
    test_labels: Csr
    labels: Csr
    label_digits: Int[Tensor, "l m"]
    test_digits: Int[Tensor, "n_test m"]
    base: int


def planted_codes(
    n: int,
    n_labels: int,
    n_test: int = 1000,
    *,
    digits: int = 8,
    base: int = 32,
    kept: float = 0.8,
    synonyms: int = 4,
    named: int | None = None,
    seed: int = 0,
) -> PlantedCodes:
    """Draw a code, points of random labels, and texts; time and memory are those of the texts.

    Args:
        n: training points.
        n_labels: l, labels.
        n_test: test points.
        digits: m, places of a word. ``digits · base`` numbers a row are enough for a linear head to
            decide as the best rule does.
        base: q, at least 2.
        kept: probability that a point shows its label's digit, in (1/base, 1].
        synonyms: words of each digit of each place.
        named: digits that a label's text spells, the first ones; None for all.
        seed: of every draw.

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> data = planted_codes(n=6, n_labels=3, n_test=2, digits=2, base=4, kept=1.0, synonyms=1)
        >>> data.train.shape, data.labels.nnz
        ((6, 8), 6)
        >>> rows = data.train_labels.indices
        >>> data.train.indices.view(6, 2).equal(data.labels.indices.view(3, 2)[rows])
        True
    """
    named = digits if named is None else named
    counts = {"n": n, "n_labels": n_labels, "n_test": n_test, "digits": digits, "named": named}
    for name, count in (counts | {"synonyms": synonyms}).items():
        expect_positive(name, count)
    _expect_channel(base, kept)
    expect(named <= digits, "named", f"at most the {digits} digits", named, "lower it")
    generator = torch.Generator().manual_seed(seed)
    code = torch.randint(base, (n_labels, digits), generator=generator)
    own = torch.randint(n_labels, (n + n_test,), generator=generator)
    shown = _through_channel(code[own], kept, base, generator)
    train, test = _spell(shown, base, synonyms, generator).split([n, n_test])
    words = digits * base * synonyms
    return PlantedCodes(
        _bags(train, words),
        _bags(own[:n, None], n_labels),
        _bags(test, words),
        _bags(own[n:, None], n_labels),
        _bags(_spell(code[:, :named], base, synonyms, generator), words),
        code,
        shown[n:],
        base,
    )


def code_accuracy(n_labels: int, digits: int, base: int, kept: float) -> float:
    """The best P@1 on planted codes, as a share in [0, 1], in the mean over codes.

    A point agrees with its label in K ~ Binomial(m, kept) digits and with each other label in
    Binomial(m, 1/q), independently. The rule is right if no other label agrees in more than K, and
    with probability 1 / (1 + T) if T of them agree in K exactly. With N = l − 1 others, p the
    probability that one agrees in k digits and F in fewer, that is

        Σ_k P(K = k) · ((F + p)^{N+1} − F^{N+1}) / ((N + 1) p).

    Args:
        n_labels: l.
        digits: m.
        base: q.
        kept: in (1/base, 1].

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> code_accuracy(1, digits=3, base=2, kept=0.9)
        1.0
        >>> code_accuracy(2, digits=1, base=2, kept=1.0)  # half of the time both are the same word
        0.75
    """
    _expect_channel(base, kept)
    other = [_binomial(digits, 1 / base, k) for k in range(digits + 1)]
    total = 0.0
    for k, p in enumerate(other):
        # in logarithms: N may be millions and p tiny
        upper = n_labels * _log1m(math.fsum(other[k + 1 :]))
        lower = n_labels * _log1m(math.fsum(other[k:]))
        wins = math.exp(upper) * -math.expm1(lower - upper) / (n_labels * p)
        total += _binomial(digits, kept, k) * wins
    return round(total, 12)


def one_hot(digits: Int[Tensor, "n m"], base: int) -> Csr:
    """Digits as a matrix ``[n, m · base]`` with one entry a place: inner products count agreement.

    Example:
        >>> one_hot(torch.tensor([[1, 0]]), base=2).to_dense()
        tensor([[0., 1., 1., 0.]])
    """
    places = torch.arange(digits.shape[1])
    return _bags(places * base + digits, digits.shape[1] * base)


def _through_channel(
    digits: Int[Tensor, "n m"], kept: float, base: int, generator: Generator
) -> Int[Tensor, "n m"]:
    other = (digits + torch.randint(1, base, digits.shape, generator=generator)) % base
    stays = torch.rand(digits.shape, generator=generator) < kept
    return torch.where(stays, digits, other)


def _spell(
    digits: Int[Tensor, "n m"], base: int, synonyms: int, generator: Generator
) -> Int[Tensor, "n m"]:
    """One word a digit: any of its synonyms."""
    places = torch.arange(digits.shape[1])
    which = torch.randint(synonyms, digits.shape, generator=generator)
    return (places * base + digits) * synonyms + which


def _bags(columns: Int[Tensor, "n m"], n_cols: int) -> Csr:
    """A row of entries a row of `columns`."""
    n, m = columns.shape
    return Csr(torch.arange(n + 1) * m, columns.flatten().int(), n_cols)


def _expect_channel(base: int, kept: float) -> None:
    expect(base >= 2, "base", "at least 2", base, "raise it")
    good = 1 / base < kept <= 1
    expect(good, "kept", f"a probability in (1/{base}, 1]", kept, "try 0.8")


def _binomial(m: int, p: float, k: int) -> float:
    return math.comb(m, k) * p**k * (1 - p) ** (m - k)


def _log1m(x: float) -> float:
    """log(1 − x), −∞ at 1 and past it by rounding."""
    return math.log1p(-x) if x < 1 - 1e-15 else -math.inf
