"""Words and pieces: the bag of a text is the product of its tokens and their pieces."""

from __future__ import annotations

import pytest
import torch

from shoal.core.errors import InputError
from shoal.text.vocabulary import Vocabulary, inverse_document_frequency, learn, random_rows

TEXTS = [
    "The fisherman fished for fishes.",
    "A fishing boat; the fisher-man's boat",
    "Boats and ships, shipping and boating",
    "ships fish boats fisherman shipping",
]


def test_bags_are_tokens_times_pieces() -> None:
    """bags = tokens @ pieces as dense matrices."""
    vocabulary = learn(TEXTS, n_pieces=40)
    tokens = vocabulary.tokens(TEXTS).to_dense()
    expected = tokens @ vocabulary.pieces.to_dense()
    torch.testing.assert_close(vocabulary.bags(TEXTS).to_dense(), expected)


def test_known_words_are_whole_and_unknown_ones_are_cut() -> None:
    """A word seen twice is one token; a word never seen becomes known pieces that spell it."""
    vocabulary = learn(TEXTS, n_pieces=40)
    name = vocabulary.tokenizer.id_to_token
    known = vocabulary.tokens(["Fisherman"]).indices.tolist()
    assert [name(i) for i in known] == ["fisherman"]
    unknown = [name(i) for i in vocabulary.tokens(["shipman"]).indices.tolist()]
    assert len(unknown) > 1
    assert "".join(unknown).replace("##", "") == "shipman"


def test_punctuation_case_and_accents_do_not_matter() -> None:
    """Texts that differ in them only have the same bag; a text of them only has none."""
    vocabulary = learn(TEXTS, n_pieces=40)
    plain, styled, empty = (
        vocabulary.bags([t]).indices.tolist() for t in ("boats fish", "Boäts, FISH!", "… —")
    )
    assert plain == styled and len(plain) >= 2
    assert empty == []


def test_learning_and_saving_are_deterministic() -> None:
    """The same texts in any order learn the same vocabulary, and a saved one reads the same."""
    one, two = learn(TEXTS, n_pieces=40), learn(TEXTS[::-1], n_pieces=40)
    assert one.save() == two.save()
    again = Vocabulary.load(one.save(), one.pieces)
    assert torch.equal(again.bags(TEXTS).indices, one.bags(TEXTS).indices)


def test_random_rows_keep_the_cosines_of_tf_idf() -> None:
    """At d = 4096 an untrained bag's cosines are those of tf-idf within 3/√d."""
    vocabulary = learn(TEXTS, n_pieces=40)
    bags = vocabulary.bags(TEXTS)
    weighted = bags.to_dense() * inverse_document_frequency(bags)
    projected = bags.to_dense() @ random_rows(bags, 4096, seed=0)
    true, kept = (torch.nn.functional.normalize(x, dim=1) for x in (weighted, projected))
    assert (true @ true.T)[0, 1] < 0.9
    torch.testing.assert_close(kept @ kept.T, true @ true.T, atol=3 / 64, rtol=0)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_one_line() -> None:
    """No words to learn from; a damaged tokenizer; pieces of another vocabulary."""
    with pytest.raises(InputError, match="texts: expected some words"):
        learn(["…", ""])
    vocabulary = learn(TEXTS, n_pieces=40)
    with pytest.raises(InputError, match="JSON of a tokenizer"):
        Vocabulary.load("{", vocabulary.pieces)
    with pytest.raises(InputError, match="one a token"):
        Vocabulary.load(vocabulary.save(), vocabulary.pieces.rows(torch.tensor([0])))
