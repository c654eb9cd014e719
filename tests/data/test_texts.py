"""Texts, Examples, LabelData: subsets agree with parts, splits are partitions, counts count."""

from __future__ import annotations

import json

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.texts import (
    Examples,
    LabelData,
    Texts,
    describe,
    no_pairs,
    random_split,
    validation_split,
)


def make_points(n: int = 10, n_labels: int = 4) -> Examples:
    """Point i has label i modulo L, and may not be judged by its successor."""
    names = [f"p{i}" for i in range(n)]
    texts = Texts(names, [f"title {i}" for i in range(n)], [f"content {i}" for i in range(n)])
    labels = Csr.from_lists([[i % n_labels] for i in range(n)], n_labels)
    drop = Csr.from_lists([[(i + 1) % n_labels] for i in range(n)], n_labels)
    return Examples(texts, labels, drop)


def test_words_never_run_together() -> None:
    """text() keeps the words of title and content apart, whichever of them is empty."""
    texts = Texts(["a", "b", "c", "d"], ["red mug", "", "tea", ""], ["holds tea", "x", "", ""])
    assert texts.all() == ["red mug holds tea", "x", "tea", ""]
    assert [texts.text(i) for i in range(4)] == texts.all()


def test_subset_takes_text_labels_and_drop_together() -> None:
    """subset(ids) is indexing in all three parts, repeats and order included."""
    points = make_points()
    ids = torch.tensor([7, 0, 7])
    part = points.subset(ids)
    assert part.texts.uids == ["p7", "p0", "p7"]
    assert part.texts.text(0) == points.texts.text(7)
    assert part.labels.indices.tolist() == [3, 0, 3]
    assert part.drop.indices.tolist() == [0, 1, 0]
    assert len(points.subset(torch.tensor([], dtype=torch.int64))) == 0


@pytest.mark.parametrize(("n", "fraction"), [(2, 0.01), (2, 0.99), (10, 0.2), (1001, 0.25)])
def test_random_split_is_a_partition(n: int, fraction: float) -> None:
    """Both parts are sorted, not empty, disjoint, together everything; sizes round."""
    kept, held = random_split(n, fraction, seed=3)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(n))
    assert torch.equal(kept, kept.sort().values) and torch.equal(held, held.sort().values)
    assert len(held) == min(max(round(n * fraction), 1), n - 1)


def make_data(n: int) -> LabelData:
    """Examples that are labels as well: i and n − 1 − i name each other."""
    names = Texts([f"p{i}" for i in range(n)], ["t"] * n, [""] * n)
    mirror = Csr.from_lists([[n - 1 - i] for i in range(n)], n)
    points = Examples(names, mirror, no_pairs(n, n))
    return LabelData("mirror", points, points, names)


def test_validation_drops_what_training_reveals() -> None:
    """A held-out pair stays true only if its reverse is held out too; the point is dropped."""
    train, valid = validation_split(make_data(400), 0.5, seed=0)
    trained = {int(uid[1:]) for uid in train.texts.uids}
    judged = [int(uid[1:]) for uid in valid.texts.uids]
    assert 50 < len(judged) < 150  # about half of the 200 held out have their mirror held out
    assert all(i not in trained and 399 - i not in trained for i in judged)
    assert valid.labels.indices.tolist() == [399 - i for i in judged]
    assert valid.drop.indices.tolist() == judged


def test_validation_split_is_seeded_and_no_prefix() -> None:
    """The same seed gives the same split, another seed another one, and none is a run of ids."""
    points = make_points(500)
    names = Texts(list("abcd"), list("abcd"), [""] * 4)
    data = LabelData("four", points, points, names)
    splits = [validation_split(data, 0.2, seed)[1].texts.uids for seed in (0, 0, 1)]
    first, again, other = (torch.tensor([int(u[1:]) for u in uids]) for uids in splits)
    assert torch.equal(first, again) and not torch.equal(first, other)
    for held in (first, other):
        assert 200 < float(held.double().mean()) < 300
        assert int(held.diff().max()) > 1


def test_describe_counts_by_hand() -> None:
    """A data set small enough to count; the result is JSON."""
    train = make_points(10)
    test = Examples(Texts(["t", "u"], [" ", "x"], ["", ""]), no_pairs(2, 4), no_pairs(2, 4))
    names = Texts(list("abcd"), list("abcd"), [""] * 4)
    about = json.loads(json.dumps(describe(LabelData("tiny", train, test, names))))
    assert about["train"] == {
        "points": 10,
        "pairs": 10,
        "labels_per_point": 1.0,
        "filter_pairs": 10,
        "empty_texts": 0,
        "unlabeled": 0,
    }
    assert about["test"]["empty_texts"] == 1 and about["test"]["unlabeled"] == 2
    assert about["points_per_label"] == 2.5 and about["labels_never_trained"] == 0
    assert about["label_frequency_deciles"] == [2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.usefixtures("unchecked")
def test_parts_that_disagree_are_refused() -> None:
    """Lengths, rows, widths and ids out of range: InputError names the argument."""
    points = make_points()
    with pytest.raises(InputError, match="titles, contents: expected 1 each"):
        Texts(["a"], [], ["b"])
    with pytest.raises(InputError, match="features: expected 1 rows, as uids, got 2"):
        Texts(["a"], ["b"], [""], no_pairs(2, 3))
    with pytest.raises(InputError, match=r"drop: expected a Csr of \(10, 4\)"):
        Examples(points.texts, points.labels, no_pairs(10, 5))
    with pytest.raises(InputError, match="labels: expected a Csr"):
        Examples(points.texts, no_pairs(9, 4), points.drop)
    with pytest.raises(InputError, match=r"train\.labels: expected 10 columns"):
        LabelData("x", points, points, points.texts)
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 10\), got 10"):
        points.subset(torch.tensor([10]))
    for n, fraction in ((1, 0.5), (5, 0.0), (5, 1.0)):
        with pytest.raises(InputError, match=r"^(points|fraction): expected"):
            random_split(n, fraction, seed=0)
