"""Several labels in one cell: what is a list, what is one label, and what seems to join some."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.label_cells import is_list, joined_by, split_cells

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
stripped = words.map(str.strip).filter(bool)


@given(st.lists(stripped, min_size=1, max_size=4))
def test_a_list_as_python_prints_it_comes_back(labels: list[str]) -> None:
    """Quotes, escapes, brackets and separators inside of labels are theirs."""
    assert split_cells([repr(labels)], None) == {repr(labels): labels}
    assert is_list(repr(labels))


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (r"""['it\'s', "a\"b"]""", ["it's", 'a"b']),
        ("['a' 'b']", ["a", "b"]),
        ("[1, 2]", ["1", "2"]),
        ("{a,b}", ["a", "b"]),
        ("[]", []),
        ("a | b", ["a", "b"]),
    ],
)
def test_lists_of_other_programs(cell: str, labels: list[str]) -> None:
    """What numpy, JSON, Postgres and separators make of labels."""
    assert split_cells([cell], None) == {cell: labels}


@pytest.mark.parametrize(
    ("label", "listed"),
    [("red mug", False), ("red (old)", False), ("['a', 'b']", True), ("<a><b>", True)],
)
def test_one_label_is_a_list_or_none(label: str, listed: bool) -> None:
    """Brackets or tags around all of it."""
    assert is_list(label) == listed


def test_spaces_join_where_words_are_labels_themselves() -> None:
    """Nine of ten words must be labels, or one label another in another order."""
    single = [f"w{i}" for i in range(9)]
    pairs = ["w0 w1", "w2 w3", "w4 w5", "w6 w7", "w8 x0"]
    assert joined_by([*single, *pairs], 99) == (" ", 5)
    assert joined_by([*single, *pairs, "w0 x1"], 99) is None
    assert joined_by(["red blue", "blue red", "old"], 99) == (" ", 2)
    assert joined_by(["red blue", "old hat"], 99) is None


@pytest.mark.parametrize("between", [";", ", ", "::", "\n"])
def test_lists_of_labels_that_hardly_recur_are_noticed(between: str) -> None:
    """In a small table with many labels no part of a list occurs twice."""
    cells = [between.join(f"a long label {i}{k}" for k in "ab") for i in range(30)]
    assert joined_by(cells, len(cells)) == (between.strip(" "), 30)
    many = joined_by(cells, 20 * len(cells))
    assert many is None if between == ", " else many == (between, 30)
    assert joined_by([*cells[:3], *(f"x {i}" for i in range(30))], 33) is None
