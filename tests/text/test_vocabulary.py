"""Words and pieces: the bag of a text is the product of its tokens and their pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.data.texts import Texts
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
    assert same_tensors(one.state_dict(), two.state_dict())
    again = Vocabulary.of_state(one.state_dict())
    assert torch.equal(again.bags(TEXTS).indices, one.bags(TEXTS).indices)


UNSPACED = {
    "ja": ("猫", ["白い", "黒い", "大きい"], ["缶詰", "砂場", "首輪"]),
    "zh": ("猫", ["白色", "黑色", "大号"], ["罐头", "砂盆", "项圈"]),
    "th": ("แมว", ["สีขาว", "สีดำ", "ตัวใหญ่"], ["อาหาร", "ทราย", "ปลอกคอ"]),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_scripts_without_spaces_are_cut(script: str) -> None:
    """Texts that share words share tokens, whatever stands around these; nothing is unknown."""
    cat, colors, things = UNSPACED[script]
    texts = [color + cat + thing for color in colors for thing in things]
    vocabulary = learn(texts * 2)
    tokens = [vocabulary.tokens([text]).indices.tolist() for text in texts]
    shortest, longest = min(map(len, tokens)), max(map(len, tokens))
    assert 2 <= shortest <= longest < max(map(len, texts))  # neither one word nor letters alone
    bags = [set(vocabulary.bags([text]).indices.tolist()) for text in texts]
    assert bags[0] & bags[1] and bags[0] & bags[3]  # one color or one thing
    assert vocabulary.tokens([cat * 60]).degrees().item() >= 60  # no longest word
    again = Vocabulary.of_state(vocabulary.state_dict())
    assert [again.tokens([text]).indices.tolist() for text in texts] == tokens


def test_words_among_them_stay_words() -> None:
    """In mixed texts Latin words are what they are without the other script."""
    mixed = learn(["iPhone用ケース iphone cases", "iphone cases 用"] * 3)
    named = mixed.named(mixed.tokens(["IPHONE用cases"]).indices.tolist())
    assert named == ["iphone", "用", "cases"]


@given(st.lists(st.text(alphabet="ab \u3042\u732b\u0e01\u0e41_,", max_size=8), min_size=1))
def test_whatever_was_learned_is_known(texts: list[str]) -> None:
    """Each text with a letter has tokens in the vocabulary of texts that hold it."""
    with_letters = [any(letter.isalnum() for letter in text) for text in texts]
    if not any(with_letters):
        return
    vocabulary = learn(texts, n_pieces=20)
    assert (vocabulary.tokens(texts).degrees() > 0).tolist() == with_letters


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
    state = vocabulary.state_dict()
    with pytest.raises(InputError, match="JSON of a tokenizer"):
        Vocabulary.of_state(state | {"tokenizer": torch.zeros(3, dtype=torch.uint8)})
    few = vocabulary.pieces.rows(torch.tensor([0])).state_dict()
    with pytest.raises(InputError, match="indptr: expected whole numbers"):
        Vocabulary.of_state(state | {"pieces": few})


@given(st.lists(st.tuples(*[st.text("aB é-ß_ก日 ", max_size=9)] * 2), max_size=5))
def test_a_text_is_its_title_and_its_content(pairs: list[tuple[str, str]]) -> None:
    """Read apart and put together, tokens are those of the whole text, accents and scripts too."""
    vocabulary = learn([*TEXTS, "ab é ß", "กก 日日 日日"], n_pieces=60)
    titles, contents = ([pair[i] for pair in pairs] for i in (0, 1))
    texts = Texts([str(i) for i in range(len(pairs))], titles, contents)
    title, content = vocabulary.parts(texts)
    whole = vocabulary.tokens(texts.all())
    assert torch.equal(title.beside(content).indices, whole.indices)
    assert torch.equal(vocabulary.documents(texts).indices, vocabulary.bags(texts.all()).indices)
