"""Rows for fields: what is shared, what is apart, and what a damaged vocabulary says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data import load
from shoal.data.texts import Texts
from shoal.text.bag import Bag, embed
from shoal.text.fields import FieldVocabulary
from shoal.text.vocabulary import learn

DOCUMENTS = Texts(list("abc"), ["red cup", "tea pot", "red hat"], ["holds tea", "for tea", ""])
LABELS = Texts(list("xy"), ["cup", "hat"], ["red thing", ""])
WORDS = learn(DOCUMENTS.all() * 2 + LABELS.all() * 2, n_pieces=40)
FIELDS = FieldVocabulary.of(WORDS, DOCUMENTS, LABELS, least=1)


def own(bags: Csr) -> list[list[int]]:
    """Rows that are not those of words and pieces."""
    offsets = bags.indptr.tolist()
    rows = [bags.indices[a:b].tolist() for a, b in pairwise(offsets)]
    return [[i for i in row if i >= len(WORDS)] for row in rows]


def test_a_bag_is_its_words_and_a_row_for_each_field() -> None:
    """Words and pieces stand as without fields; each token adds one row of its field."""
    for bags, texts in ((FIELDS.documents(DOCUMENTS), DOCUMENTS), (FIELDS.labels(LABELS), LABELS)):
        plain, tokens = WORDS.bags(texts.all()), WORDS.tokens(texts.all())
        assert (bags.degrees() == plain.degrees() + tokens.degrees()).all()
        kept = bags.indices < len(WORDS)
        assert torch.equal(bags.indices[kept].long(), plain.indices.long())


def test_without_fields_a_bag_is_that_of_the_words() -> None:
    """The same rows in the same order, of both sides."""
    for bags, texts in ((FIELDS.documents(DOCUMENTS), DOCUMENTS), (FIELDS.labels(LABELS), LABELS)):
        left, plain = FIELDS.without_fields(bags), WORDS.bags(texts.all())
        assert torch.equal(left.indptr, plain.indptr) and torch.equal(left.indices, plain.indices)


def test_fields_are_apart() -> None:
    """The same word has another row in a title, a content, a document and a label; none twice."""
    documents, labels = own(FIELDS.documents(DOCUMENTS)), own(FIELDS.labels(LABELS))
    assert documents[0][0] == documents[2][0]  # "red" in the titles of two documents
    assert documents[0][3] == documents[1][3]  # "tea" in the contents of two documents
    assert documents[1][0] != documents[0][3]  # "tea" in a title and in a content
    assert not {i for row in documents for i in row} & {i for row in labels for i in row}
    assert max(i for row in documents + labels for i in row) == len(FIELDS) - 1


def test_the_opening_of_a_content_is_apart_from_the_rest() -> None:
    """The sixth token of a content opens it, the seventh does not; a title has no opening."""
    six, seven = "tea " * 6, "tea " * 7
    words = learn([seven] * 2, n_pieces=20)
    texts = Texts(["a", "b"], ["", seven], [seven, ""])
    fields = FieldVocabulary.of(words, texts, Texts.of([]), least=1)
    bags = fields.documents(Texts(["c", "d"], ["", ""], [six, seven])).to_dense()[:, len(words) :]
    assert (bags > 0).sum(1).tolist() == [1, 2]
    assert sorted(bags[1].tolist()) == [0, 1, 6]


def test_before_training_fields_change_no_cosine() -> None:
    """Their rows start at zero, so embeddings are those of the words alone."""
    bags = FIELDS.documents(DOCUMENTS)
    rows = FIELDS.first_rows(bags, 8, seed=0)
    words = WORDS.bags(DOCUMENTS.all())
    torch.testing.assert_close(embed(bags, rows), embed(words, rows[: len(WORDS)].contiguous()))


def test_a_pair_that_is_rare_or_new_has_no_row() -> None:
    """What was seen less often than asked is its word alone, and so is what was never seen."""
    twice = FieldVocabulary.of(WORDS, DOCUMENTS, LABELS, least=2)
    (row,) = own(twice.documents(DOCUMENTS.subset(torch.tensor([0]))))
    assert len(row) == 2  # "red" in titles, "tea" in contents: both occur twice
    (none,) = own(FIELDS.labels(Texts.of(["tea"])))
    assert none == []


def test_a_text_is_read_by_the_words_it_has() -> None:
    """As a content where those are likelier in contents; as a title where no document had one."""
    read = FIELDS.read(["red cup", "tea", "for tea"])
    assert read.titles == ["red cup", "", ""]
    assert read.contents == ["", "tea", "for tea"]
    bare = FieldVocabulary.of(WORDS, Texts.of(["red cup", "tea pot"]), LABELS, least=1)
    read = bare.read(["for tea"])
    assert read.titles == ["for tea"]


@pytest.mark.slow
def test_wordnets_own_titles_and_contents_are_told_apart() -> None:
    """Of 1,000 test points nine in ten titles are read as titles, and as many contents as such."""
    data = load("wordnet")
    words = learn(data.train.texts.all(), n_pieces=2000)
    fields = FieldVocabulary.of(words, data.train.texts, data.labels)
    generator = torch.Generator().manual_seed(0)
    some = data.test.texts.subset(torch.randperm(len(data.test), generator=generator)[:1000])
    as_titles = sum(title != "" for title in fields.read(some.titles).titles)
    as_contents = sum(content != "" for content in fields.read(some.contents).contents)
    assert as_titles >= 900 and as_contents >= 900


def test_an_encoder_without_its_fields_is_that_of_the_words() -> None:
    """Its vectors are those of words and pieces alone; it has no plainer one itself."""
    rows = torch.randn(len(FIELDS), 4, generator=torch.Generator().manual_seed(0))
    found = Bag(FIELDS, rows).without_fields(FIELDS.labels(LABELS))
    assert found is not None
    plain, tokens = found
    assert plain.without_fields(tokens) is None
    words = rows[: len(WORDS)].contiguous()
    expected = [embed(WORDS.bags(texts.all()), words) for texts in (DOCUMENTS, LABELS)]
    torch.testing.assert_close(plain.embed(plain.documents(DOCUMENTS)), expected[0])
    torch.testing.assert_close(plain.embed_labels(tokens), expected[1])


@pytest.mark.usefixtures("unchecked")
def test_damage_is_named() -> None:
    """Pairs of another vocabulary."""
    with pytest.raises(InputError, match="seen: expected rising numbers below"):
        FieldVocabulary(WORDS, torch.tensor([3, 2]), torch.tensor([1, 1]), 1)
    with pytest.raises(InputError, match="counts: expected 2, as seen, got 1"):
        FieldVocabulary(WORDS, torch.tensor([2, 3]), torch.tensor([1]), 1)
