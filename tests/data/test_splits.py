"""Splits by digest: rows may come, go, move and be corrected, and no example changes sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.splits import digests, held_out, random_split, split_test, validation_split
from shoal.data.texts import Examples, LabelData, Texts
from tests.data.made import features_of

# so many texts that differ that neither side of a half is ever empty
many = st.lists(st.text(max_size=5), min_size=25, max_size=60, unique_by=str.strip)


def sides(texts: list[str], seed: int = 0, share: float = 0.5) -> dict[str, bool]:
    """Of each text whether it is held out; equal texts must agree."""
    found: dict[str, bool] = {}
    for text, held in zip(texts, held_out(Texts.of(texts), share, seed).tolist(), strict=True):
        assert found.setdefault(text, held) == held
    return found


@given(many, many, st.randoms(use_true_random=False), st.integers(0, 3))
def test_rows_may_come_go_and_move(old, new, random, seed) -> None:
    """Adding, doubling, deleting and sorting rows leaves each text on its side."""
    before = sides(old, seed)
    grown = sides(sorted([*old, *new, *old[:5]]), seed)
    assert all(grown[text] == before[text] for text in old)
    left = random.sample(old, 22)
    assert all(held == before[text] for text, held in sides(left, seed).items())


def test_a_digest_at_a_bound_is_of_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts share no digest and leave none out, the lowest and the highest of all included."""
    bounds = [-(2**63), -(2**62), 0, 2**62, 2**63 - 1]
    found = torch.tensor([*bounds, *(x - 1 for x in bounds[1:])])
    monkeypatch.setattr("shoal.data.splits.digests", lambda texts, key="": found)
    parts = [held_out(Texts.of(["a"]), 0.25, seed=0, part=i).int() for i in range(4)]
    assert sum(parts).tolist() == [1] * 9 and parts[1].tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0]


@given(many, st.integers(0, 3))
def test_labels_and_names_do_not_matter(texts, seed) -> None:
    """Correcting labels, uids or where a title ends moves nothing: the text alone decides."""
    plain = Examples.of(Texts.of(texts), Csr.from_lists([[0]] * len(texts), 2))
    divided = Texts([f"x{i}" for i in range(len(texts))], [""] * len(texts), texts)
    corrected = Examples.of(divided, Csr.from_lists([[1]] * len(texts), 2))
    data = LabelData.unsplit("x", plain, Texts.of(["a", "b"]))
    one = split_test(data, 0.5, seed)
    other = split_test(replace(data, train=corrected), 0.5, seed)
    assert one.test.texts.all() == other.test.texts.all()
    again = split_test(one, 0.5, seed)  # what is in train then may still be split
    assert len(one.train) + len(one.test) == len(texts) and not again.own_split


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_share_is_binomial(share: float, seed: int) -> None:
    """Of 20,000 texts the share that is held out lies within four standard deviations."""
    n = 20_000
    held = held_out(Texts.of([f"text {i}" for i in range(n)]), share, seed)
    assert abs(int(held.sum()) - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_seeds_and_purposes_are_independent() -> None:
    """Another seed, or the validation split, holds out others; a larger share holds out more."""
    texts = Texts.of([f"text {i}" for i in range(4000)])
    first = held_out(texts, 0.5, 0)
    for other in (held_out(texts, 0.5, 1), held_out(texts, 0.5, 0, "validation")):
        assert 900 < int((first & other).sum()) < 1100
    assert bool((first | ~held_out(texts, 0.2, 0)).all())


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=6), st.floats(0, 0.99))
def test_small_data(texts, share) -> None:
    """Two texts that differ: both sides have examples. One: nothing is held out."""
    held = held_out(Texts.of(texts), share, 0)
    both = len(set(texts)) > 1 and share > 0
    assert bool(held.any()) == both and not bool(held.all())
    sides(texts, share=share)


def test_nothing_and_one_example() -> None:
    """No example and one are defined: everything trains."""
    for n in (0, 1):
        examples = Examples.of(Texts.of(["tea"] * n), Csr.from_lists([[0]] * n, 1))
        data = LabelData.unsplit("few", examples, Texts.of(["drink"]))
        train, valid = validation_split(split_test(data), 0.5, seed=0)
        assert (len(train), len(valid)) == (n, 0)


def test_features_decide_where_there_are_some() -> None:
    """Rows of equal weights are on one side, of others not always, though they read alike."""
    rows = features_of(Csr.from_lists([[]] * 400, 1), seed=0)
    texts = Texts.of_features(rows.stack(rows))
    held = held_out(texts, 0.5, 0).view(2, -1)
    assert torch.equal(held[0], held[1])
    scaled = Texts.of_features(rows.with_values(2 * rows.values))
    assert scaled.all() == texts.all()[:400]
    assert not torch.equal(digests(scaled), digests(texts)[:400])


def test_digests_are_these() -> None:
    """What runs store must mean the same for ever: two digests, written down."""
    assert digests(Texts.of(["red mug", ""])).tolist() == [
        -9160184080502893247,
        -5426141060434712860,
    ]


def test_shares_out_of_range_are_refused() -> None:
    """A share of one or more, or below none."""
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=r"share: expected a share in \[0, 1\)"):
            held_out(Texts.of(["a"]), share, 0)


@pytest.mark.parametrize(("n", "fraction"), [(2, 0.01), (2, 0.99), (10, 0.2), (1001, 0.25)])
def test_random_split_is_a_partition(n: int, fraction: float) -> None:
    """Both parts are sorted, not empty, disjoint, together everything; sizes round."""
    kept, held = random_split(n, fraction, seed=3)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(n))
    assert torch.equal(kept, kept.sort().values) and torch.equal(held, held.sort().values)
    assert len(held) == min(max(round(n * fraction), 1), n - 1)


def make_data(n: int) -> LabelData:
    """Examples that are labels as well: i and n − 1 − i name each other."""
    names = Texts([f"p{i}" for i in range(n)], [f"t{i}" for i in range(n)], [""] * n)
    mirror = Csr.from_lists([[n - 1 - i] for i in range(n)], n)
    examples = Examples.of(names, mirror)
    return LabelData("mirror", examples, examples, names)


def test_validation_drops_what_training_reveals() -> None:
    """A held-out pair stays true only if its reverse is held out too; the example is left out."""
    train, valid = validation_split(make_data(400), 0.5, seed=0)
    trained = {int(uid[1:]) for uid in train.texts.uids}
    evaluated = [int(uid[1:]) for uid in valid.texts.uids]
    assert 50 < len(evaluated) < 150  # about half of the 200 held out have their mirror held out
    assert all(i not in trained and 399 - i not in trained for i in evaluated)
    assert valid.labels.indices.tolist() == [399 - i for i in evaluated]
    assert valid.drop.indices.tolist() == evaluated


def test_a_number_as_uid_is_no_identity() -> None:
    """Examples and labels that are both called 0, 1, … are not the same documents."""
    n = 60
    examples = Examples.of(
        Texts.of([f"text {i}" for i in range(n)]), Csr.from_lists([[i % 5] for i in range(n)], 5)
    )
    data = LabelData("x", examples, examples, Texts.of([f"label {i}" for i in range(5)]))
    train, valid = validation_split(data, 0.5, seed=0)
    assert len(train) + len(valid) == n and valid.drop.nnz == 0


def test_random_splits_out_of_range_are_refused() -> None:
    """Too few ids, or a share that is none."""
    for n, fraction in ((1, 0.5), (5, 0.0), (5, 1.0)):
        with pytest.raises(InputError, match=r"^(nodes|fraction): expected"):
            random_split(n, fraction, seed=0)
