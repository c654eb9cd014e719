"""Labels that come after training: found by their texts, while old ones stay what they were."""

from __future__ import annotations

import pytest
import torch

from shoal import with_labels
from shoal.core.errors import InputError
from shoal.data.texts import Texts
from shoal.rank.fused import FusedLabeler, Memory, Words, fuse
from shoal.rank.predictor import BagRows, Labeler, Lexicon
from shoal.tasks.prepared import prepare
from shoal.text.vocabulary import Vocabulary, random_rows
from tests.planted import planted_labels

DATA = planted_labels(n=300, n_labels=12, noise=0.2)
NEW = Texts(["new"], [DATA.test.texts.titles[0]], [""])


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    """An untrained bag over planted data."""
    lexicon = prepare(DATA, 0.0, 0).lexicon
    rows = random_rows(lexicon.label_bags, 16, seed=0)
    return Labeler(lexicon, BagRows(rows))


@pytest.fixture(scope="module")
def fused(labeler: Labeler) -> FusedLabeler:
    """The same with words, votes and a head of double length."""
    train = DATA.train.subset(torch.arange(100))
    words = labeler.lexicon.vocabulary
    vocabulary = words if isinstance(words, Vocabulary) else words.words  # pyright: ignore
    head = 2 * labeler.label_embeddings
    lexical = Words.of(vocabulary, DATA.labels, train.texts)
    memory = Memory(labeler.encode(train.texts), train.labels, lexical, head)
    held_out = DATA.train.subset(torch.arange(100, len(DATA.train)))
    return FusedLabeler(labeler, memory, fuse(labeler, memory, held_out))


def test_old_labels_keep_scores_and_order(labeler: Labeler) -> None:
    """Without the new label, a ranking is the old one, bit for bit; the labeler given stays."""
    longer = with_labels(labeler, NEW)
    scores, ids = labeler.rank(DATA.test.texts, 12)
    more_scores, more = longer.rank(DATA.test.texts, 13)
    old = more < 12
    assert torch.equal(more[old].view_as(ids), ids)
    assert torch.equal(more_scores[old].view_as(scores), scores)
    assert len(labeler.lexicon.labels) == 12 and len(longer.lexicon.labels) == 13


def test_a_new_label_is_found_by_its_text(labeler: Labeler, fused: FusedLabeler) -> None:
    """The text that it was named after finds it first by embeddings, and among few when fused."""
    text = NEW.titles[0]
    (best,) = with_labels(labeler, NEW).predict([text], k=1)[0]
    assert (best.label, best.uid, best.title) == (12, "new", text)
    found = with_labels(fused, NEW).predict([text], k=3)[0]
    assert "new" in [x.uid for x in found]


def test_nobody_has_voted_for_it(fused: FusedLabeler) -> None:
    """Its frequency is 0 and words and names know it; weights, points and votes stay."""
    longer = with_labels(fused, NEW)
    assert isinstance(longer, FusedLabeler)
    assert longer.memory.frequency.tolist() == [*fused.memory.frequency.tolist(), 0]
    assert longer.memory.words is not None and longer.fusion is fused.fusion
    assert longer.memory.words.labels.by_token.shape[1] == 13
    rankings = longer.memory.rankings(longer.labeler, Texts.of(NEW.titles))
    # text, head, votes of embeddings, (plain,) then those of words
    by_text = [ranking.ids[0].tolist() for ranking in rankings]
    assert 12 in by_text[0] and 12 in by_text[1] and 12 not in by_text[2]
    assert sum(12 in ids for ids in by_text) >= 6


def test_a_new_classifier_is_as_long_as_those_around_it(fused: FusedLabeler) -> None:
    """Classifiers of twice the embeddings' length: the new one is twice its embedding."""
    longer = with_labels(fused, NEW)
    assert isinstance(longer, FusedLabeler)
    expected = 2 * longer.labeler.label_embeddings
    head = longer.memory.head
    assert head is not None and head.shape == (13, 16)
    torch.testing.assert_close(head, expected)


def test_as_if_they_had_been_there(labeler: Labeler) -> None:
    """Six labels and then six more are the twelve at once: the same bags, vectors and answers."""
    half = torch.arange(6)
    lexicon = labeler.lexicon
    few = Lexicon(lexicon.vocabulary, DATA.labels.subset(half), lexicon.label_bags.rows(half))
    again = with_labels(Labeler(few, labeler.encoder), DATA.labels.subset(half + 6))
    assert torch.equal(again.lexicon.label_bags.indices, lexicon.label_bags.indices)
    assert again.predict(["w1 w2"]) == labeler.predict(["w1 w2"])


def test_a_taken_name_is_refused(labeler: Labeler) -> None:
    """By an old label or by another new one; plain texts are their own names."""
    for texts in ([DATA.labels.uids[3]], ["twice", "twice"]):
        with pytest.raises(InputError, match="uid: expected one that no label has yet, got"):
            with_labels(labeler, texts)
    assert with_labels(labeler, ["w1 w2"]).lexicon.labels.uids[-1] == "w1 w2"
