"""Data sets made for the tests of formats, and what it means that two are the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from shoal.core.csr import Csr
from shoal.data.formats import FORMATS
from shoal.data.texts import Examples, LabelData, Texts

SUFFIX = {name: form.suffix for name, form in FORMATS.items()}
# everything that a line, a cell, JSON or a name might trip over
PARTS = ["red", "mug", "é漢😀", '"', "'", ",", "|", "\t", "\n", "\r\n", "\u2028", "\x85", "\ufeff"]
PARTS += [" ", "<x>", "_", "\\", "(1)", "0", "::", ":", "\x00"]

words = st.lists(st.sampled_from(PARTS), max_size=4).map("".join)


def features_of(labels: Csr, seed: int) -> Csr:
    """Weights of 9 numbered words for as many documents as `labels` has rows."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(labels.n_rows, 9, generator=generator)
    return Csr.from_dense(dense * (dense > 0.3))


def make_data(seed: int = 0, relevance: bool = False, featured: bool = False) -> LabelData:
    """Random splits of 7 and 5 points over 6 labels, with empty rows, filters and odd texts."""
    generator = torch.Generator().manual_seed(seed)

    def points(prefix: str, n: int) -> Examples:
        dense = torch.rand(n, 6, generator=generator)
        labels = dense * (dense > 0.6) if relevance else dense > 0.6
        labels[0] = 0
        truth = Csr.from_dense(labels)
        spelled = Texts.of_features(features_of(truth, seed))
        texts = spelled if featured else make_texts(prefix, n)
        return Examples(texts, truth, Csr.from_dense(dense < 0.1))

    return LabelData("tiny", points("a", 7), points("b", 5), make_texts("l", 6))


def make_texts(prefix: str, n: int) -> Texts:
    """Texts with everything that JSON and gzip must carry: quotes, tabs, line breaks, emptiness."""
    titles = [f'{prefix} "{i}"\t\n\u2028é漢' if i % 3 else "" for i in range(n)]
    return Texts(
        [f"{prefix}{i}" for i in range(n)], titles, [f"\\ {i}" * (i % 2) for i in range(n)]
    )


@dataclass(frozen=True)
class Drawn:
    """What hypothesis drew: the parts of a data set, which :meth:`build` puts together."""

    texts: tuple[list[list[str]], ...]
    values: tuple[list[float], ...]
    drops: tuple[list[bool], ...]
    featured: bool
    relevance: bool

    def build(self) -> LabelData:
        """The data set."""
        labels = Texts(*self.texts[2])
        splits = (self._points(i, len(labels)) for i in (0, 1))
        return LabelData("tiny", *splits, labels)

    def _points(self, i: int, n_labels: int) -> Examples:
        dense = torch.tensor(self.values[i]).view(-1, n_labels)
        truth = Csr.from_dense(dense if self.relevance else dense > 0)
        drop = Csr.from_dense(torch.tensor(self.drops[i], dtype=torch.bool).view(-1, n_labels))
        texts = Texts(*self.texts[i])
        return Examples(
            Texts.of_features(features_of(truth, i)) if self.featured else texts, truth, drop
        )


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """At most 4 and 3 points over at most 4 labels; texts and uids of anything at all."""
    sizes = draw(st.integers(0, 4)), draw(st.integers(0, 3)), draw(st.integers(1, 4))

    def cells(of: st.SearchStrategy, n: int) -> list:
        return draw(st.lists(of, min_size=n, max_size=n))

    texts = tuple([cells(words, n) for _ in range(3)] for n in sizes)
    kinds = st.sampled_from([0.0, 0.0, 1.0, 0.25, 3.5])
    values = tuple(cells(kinds, n * sizes[2]) for n in sizes[:2])
    drops = tuple(cells(st.booleans(), n * sizes[2]) for n in sizes[:2])
    return Drawn(texts, values, drops, draw(st.integers(0, 3)) == 0, draw(st.booleans()))


def assert_same(data: LabelData, again: LabelData) -> None:
    """Every text, uid, pair, relevance, filter pair and feature weight is the same."""
    for one, other in ((data.train, again.train), (data.test, again.test)):
        assert_same_texts(one.texts, other.texts)
        assert_same_matrix(one.labels, other.labels)
        assert torch.equal(one.drop.to_dense(), other.drop.to_dense())
    assert_same_texts(data.labels, again.labels)


def assert_same_texts(one: Texts, other: Texts) -> None:
    """The three lists are equal, and the features."""
    assert one.uids == other.uids
    assert one.titles == other.titles
    assert one.contents == other.contents
    if len(one):  # no documents have no features, whatever their width
        assert (one.features is None) == (other.features is None)
    if one.features is not None and other.features is not None:
        assert_same_matrix(one.features, other.features)


def assert_same_matrix(one: Csr, other: Csr) -> None:
    """The entries are equal; values that are all one may be left out."""
    assert one.shape == other.shape
    assert torch.equal(one.to_dense(), other.to_dense())
