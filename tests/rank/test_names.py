"""Names in texts: every occurrence found, scored as the formula has it, and kept on disk."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.data.texts import Texts
from shoal.rank.names import NameIndex, Phrases, names, singular
from shoal.text.vocabulary import learn

Rows = list[list[int]]
_rows = st.lists(st.lists(st.integers(0, 3), max_size=7), min_size=1, max_size=5)


def occurrences(texts: Rows, called: Rows) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(length, position) of each name in each text, by looking."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, text in enumerate(texts):
        for j, name in enumerate(called):
            for at in range(len(text) - len(name) + 1):
                if 1 <= len(name) <= 4 and text[at : at + len(name)] == name:
                    found.setdefault((i, j), []).append((len(name), at))
    return found


@given(texts=_rows, called=_rows)
def test_every_occurrence_is_found_and_scored(texts: Rows, called: Rows) -> None:
    """Earliness and length of each (text, label) pair are those of a search by hand."""
    within = Phrases.within(Csr.from_lists(texts, 4))
    whole = Phrases.whole(Csr.from_lists(called, 4), torch.arange(len(called)), len(called))
    met = within.meet(whole)
    want = occurrences(texts, called)
    for ranking, score in (
        (met.earliness(len(called)), lambda n, at: n / (1 + at)),
        (met.length(len(called)), lambda n, at: n + 1 / (1 + at)),
    ):
        got = ranking.matrix(len(called)).to_dense()
        for pair, places in want.items():
            assert abs(got[pair] - max(score(*place) for place in places)) < 1e-5
        assert int((got > 0).sum()) == len(want)


@given(texts=_rows, called=_rows)
def test_both_directions_are_one_join(texts: Rows, called: Rows) -> None:
    """Whole names that meet runs find the transposed pairs of runs that meet whole names."""
    within = Phrases.within(Csr.from_lists(texts, 4))
    whole = Phrases.whole(Csr.from_lists(called, 4), torch.arange(len(called)), len(called))
    one, other = within.meet(whole), whole.meet(within)
    pairs = sorted(
        zip(one.rows.tolist(), one.columns.tolist(), one.positions.tolist(), strict=True)
    )
    back = zip(other.columns.tolist(), other.rows.tolist(), other.positions.tolist(), strict=True)
    assert pairs == sorted(back)


def test_a_name_that_everything_has_is_kept_a_hundred_times() -> None:
    """An index holds the earliest owners of a phrase, so that no query meets them all."""
    late = [[0] * 5 + [1], [1]]
    rows = [late[i == 150] for i in range(200)]
    index = Phrases.within(Csr.from_lists(rows, 2)).common()
    met = Phrases.whole(Csr.from_lists([[1]], 2), torch.zeros(1, dtype=torch.int64), 1).meet(index)
    assert len(met.columns) == 100
    assert met.earliness(1).ids.item() == 150


def test_parts_of_a_title_are_names() -> None:
    """The whole title and its parts, each once; nothing of an empty one."""
    found, owner = names(["a; b", "  ", "c"])
    assert found == ["a; b", "a", "b", "c"]
    assert owner.tolist() == [0, 0, 0, 2]


def test_plurals_are_one_with_their_singular_only_where_that_is_a_word() -> None:
    """The three rules of the S stemmer, their exceptions, and a word without a singular."""
    words = ["pony", "ponies", "horse", "horses", "gas", "bus", "boss", "dog", "dogs", "zebras"]
    assert singular(words).tolist() == [0, 0, 2, 2, 4, 5, 6, 7, 7, 9]


def test_an_index_comes_back_from_its_state() -> None:
    """Saved and read it ranks alike, and ranks something."""
    labels = Texts(["a", "b"], ["elephant", "mammal"], ["a large mammal", "a warm animal"])
    vocabulary = learn(labels.all() * 2, n_pieces=60)
    index = NameIndex.of(vocabulary, labels)
    back = NameIndex.of_state(index.state_dict(), vocabulary, len(labels))
    texts = Texts(["x", "y"], ["mammal", ""], ["an elephant", ""])
    ways = zip(index.rankings(texts, 2), back.rankings(texts, 2), strict=True)
    for one, other in ways:
        assert torch.equal(one.ids, other.ids)
        assert one.ids.tolist() != [[-1, -1], [-1, -1]]
