"""Texts, Examples, LabelData, and what is in memory: parts agree, positions are named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.describe import describe
from shoal.data.texts import Examples, LabelData, Texts, as_texts, label_data, no_pairs


def make_examples(n: int = 10, n_labels: int = 4) -> Examples:
    """Example i has label i modulo L, and may not be judged by its successor."""
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
    examples = make_examples()
    ids = torch.tensor([7, 0, 7])
    part = examples.subset(ids)
    assert part.texts.uids == ["p7", "p0", "p7"]
    assert part.texts.text(0) == examples.texts.text(7)
    assert part.labels.indices.tolist() == [3, 0, 3]
    assert part.drop.indices.tolist() == [0, 1, 0]
    assert len(examples.subset(torch.tensor([], dtype=torch.int64))) == 0


def test_describe_counts_by_hand() -> None:
    """A data set small enough to count; the result is JSON."""
    train = make_examples(10)
    test = Examples(Texts(["t", "u"], [" ", "x"], ["", ""]), no_pairs(2, 4), no_pairs(2, 4))
    names = Texts(list("abcd"), list("abcd"), [""] * 4)
    about = json.loads(json.dumps(describe(LabelData("tiny", train, test, names))))
    assert about["train"] == {
        "examples": 10,
        "pairs": 10,
        "labels_per_example": 1.0,
        "filter_pairs": 10,
        "empty_texts": 0,
        "unlabeled": 0,
    }
    assert about["test"]["empty_texts"] == 1 and about["test"]["unlabeled"] == 2
    assert about["examples_per_label"] == 2.5 and about["labels_never_trained"] == 0
    assert about["label_frequency_deciles"] == [2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.usefixtures("unchecked")
def test_parts_that_disagree_are_refused() -> None:
    """Lengths, rows, widths and ids out of range: InputError names the argument."""
    examples = make_examples()
    with pytest.raises(InputError, match="titles, contents: expected 1 each"):
        Texts(["a"], [], ["b"])
    with pytest.raises(InputError, match="features: expected 1 rows, as uids, got 2"):
        Texts(["a"], ["b"], [""], no_pairs(2, 3))
    with pytest.raises(InputError, match=r"drop: expected a Csr of \(10, 4\)"):
        Examples(examples.texts, examples.labels, no_pairs(10, 5))
    with pytest.raises(InputError, match="labels: expected a Csr"):
        Examples(examples.texts, no_pairs(9, 4), examples.drop)
    with pytest.raises(InputError, match=r"train\.labels: expected 10 columns"):
        LabelData("x", examples, examples, examples.texts)
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 10\), got 10"):
        examples.subset(torch.tensor([10]))


# -- in memory -------------------------------------------------------------------------------------


def test_one_text_or_many() -> None:
    """A string is one text; lists, tuples, arrays and Texts are many; pairs have a title."""
    assert as_texts("a tea")[0].all() == ["a tea"] and as_texts("a tea")[1]
    for many in (["a", "b"], ("a", "b"), np.array(["a", "b"]), iter(["a", "b"])):
        texts, single = as_texts(many)
        assert texts.titles == ["a", "b"] and not single
    texts, _ = as_texts([("a", "b"), ["c", "d"], "e"])
    assert texts.titles == ["a", "c", "e"] and texts.contents == ["b", "d", ""]
    assert as_texts(texts) == (texts, False)
    assert as_texts([])[0].uids == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", None], r"texts\[1\]: expected a string or a pair .*, got 'None'; replace it"),
        ([1.5], r"texts\[0\]: expected a string or a pair"),
        ([float("nan")], r"texts\[0\]: expected a string"),
        ([["a", "b", "c"]], r"texts\[0\]: expected a string or a pair"),
        (["a", "half \ud800"], r"texts\[1\]: expected a text of whole characters"),
        (None, "texts: expected a text or a list of texts, got NoneType; pass a list"),
        (7, "texts: expected a text or a list of texts, got int"),
        (b"bytes", "texts: expected a text or a list of texts, got bytes"),
        ({"a": 1}, "texts: expected a text or a list of texts, got dict"),
        ({"a"}, "texts: expected a text or a list of texts, got set"),
    ],
)
def test_what_is_no_text_names_its_position(value: object, message: str) -> None:
    """None, numbers, bytes, halves of characters: one line with the position."""
    with pytest.raises(InputError, match=message):
        as_texts(value)


def test_labels_of_many_kinds_are_one_matrix() -> None:
    """Names, lists of names, positions, and matrices of numpy, torch and scipy say the same."""
    texts, names = ["red mug", "tea", "cup"], ["cup", "drink", "red"]
    dense = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]])
    rows = [["red", "cup"], "drink", ("cup",)]
    positions = [[2, 0], 1, [0]]
    matrices = [dense, dense.astype(bool), torch.tensor(dense), scipy.sparse.coo_matrix(dense)]
    for labels in (rows, positions, *matrices):
        data = label_data(texts, labels, label_names=names)
        assert data.labels.titles == names and data.train.labels.values is None
        assert data.train.labels.to_dense().tolist() == dense.tolist()
        assert len(data.test) == 0 and not data.own_split
    assert label_data(texts, rows).labels.uids == names
    assert label_data(texts, dense).labels.titles == ["l0", "l1", "l2"]
    weighed = label_data(texts, scipy.sparse.csr_matrix(dense * 0.5)).train.labels
    assert weighed.to_dense().tolist() == (dense * 0.5).tolist()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (["x", 3], None, r"labels\[1\]: expected names of labels, as strings, got '3'; pass str"),
        (["x", None], None, r"labels\[1\]: expected names of labels"),
        (["x", [" "]], None, r"labels\[1\]: expected names of labels"),
        (["x", True], ["x"], r"labels\[1\]: expected names of labels"),
        (["x"], None, "labels: expected 2, one per text, got 1"),
        (["x", "y"], ["x"], r"labels: expected names of label_names, got \['y'\]"),
        ([0, 2], ["x", "y"], r"labels\[1\]: expected positions in the 2 label_names, got 2"),
        ([[0, 1], [0, 0]], ["x", "y"], r"labels\[1\]: expected each position once.*np.array"),
        (["x", "y"], ["x", "y", "x"], "label_names: expected each name once.* twice"),
        ([[], []], None, "labels: expected at least one label"),
        (np.ones((2, 2)), ["x"], "label_names: expected 2, one per column, got 1"),
        (np.array([[1.0, -1], [0, 0]]), None, "labels: expected finite relevances above 0"),
        (np.array([["a", "b"], ["c", "d"]]), None, "labels: expected a matrix of numbers"),
        ("xy", None, "labels: expected a label or a list of labels per text, got str"),
    ],
)
def test_bad_labels_are_named(labels: object, names: list[str] | None, message: str) -> None:
    """Labels that are no strings, too few, unknown or doubled: the first is named."""
    with pytest.raises(InputError, match=message):
        label_data(["a", "b"], labels, label_names=names)


def test_remedies_for_labels_work() -> None:
    """str(label), label_names, and an array in place of a list of lists: each trains then."""
    assert label_data(["a", "b"], [str(x) for x in (3, 4)]).labels.titles == ["3", "4"]
    assert label_data(["a", "b"], [1, 0], label_names=["x", "y"]).train.labels.nnz == 2
    matrix = np.array([[0, 1], [0, 0]])
    assert label_data(["a", "b"], matrix, label_names=["x", "y"]).train.labels.nnz == 1
    half = "half \ud800".encode("utf-8", "replace").decode()
    assert as_texts([half])[0].titles == ["half ?"]


def test_no_texts_and_one_text() -> None:
    """An empty data set is refused; one example and one label are a data set."""
    with pytest.raises(InputError, match="texts: expected at least one, got none"):
        label_data([], [])
    with pytest.raises(InputError, match="texts: expected a list of texts, got one text"):
        label_data("tea", ["drink"])
    one = label_data(["tea"], ["drink"])
    assert (len(one.train), len(one.labels)) == (1, 1)
