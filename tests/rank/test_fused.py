"""The fused labeler: its rankings, its parts on disk, and queries that do not touch one another."""

from __future__ import annotations

import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.splits import validation_split
from shoal.data.texts import Texts
from shoal.rank.fused import FusedLabeler, Memory, Words, fuse
from shoal.rank.predictor import BagRows, Labeler
from shoal.tasks.labels import prepare
from shoal.text.fields import FieldVocabulary
from shoal.text.vocabulary import random_rows
from tests.planted import planted_labels

DATA = planted_labels(n=400, n_labels=30, noise=0.3)
TRAIN, HELD_OUT = validation_split(DATA, 0.5, seed=0)


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    """An untrained bag over the training half."""
    prepared = prepare(DATA, 0.5, seed=0)
    return Labeler(prepared.lexicon, BagRows(random_rows(prepared.tokens, 16, seed=0)))


@pytest.fixture(scope="module")
def memory(labeler: Labeler) -> Memory:
    """All evidence, with classifiers."""
    vocabulary = labeler.lexicon.vocabulary
    assert isinstance(vocabulary, FieldVocabulary)
    words = Words.of(vocabulary.words, DATA.labels, TRAIN.texts)
    head = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    return Memory(labeler.encode(TRAIN.texts), TRAIN.labels, words, head)


@pytest.fixture(scope="module")
def fused(labeler: Labeler, memory: Memory) -> FusedLabeler:
    """Fitted on the held-out half."""
    return FusedLabeler(labeler, memory, fuse(labeler, memory, HELD_OUT))


def hits(top: torch.Tensor) -> float:
    """Share of test points whose first prediction is true."""
    truth = DATA.test.labels.to_dense() > 0
    return float(truth[torch.arange(len(top)), top[:, 0]].float().mean())


def test_fusing_beats_the_encoder_alone(labeler: Labeler, fused: FusedLabeler) -> None:
    """On fresh points, evidence from neighbors adds to that of an untrained encoder."""
    alone, together = (x.rank(DATA.test.texts, 1)[1] for x in (labeler, fused))
    assert hits(together) > hits(alone) + 0.05


def test_there_are_thirteen_rankings_three_without_words_and_head(
    labeler: Labeler, memory: Memory
) -> None:
    """Leaving a side out leaves out its rankings and changes none of the others."""
    every = memory.rankings(labeler, HELD_OUT.texts)
    dense = Memory(memory.points, memory.labels, None, None).rankings(labeler, HELD_OUT.texts)
    assert (len(every), len(dense)) == (13, 3)
    for one, other in zip((every[0], every[2], every[3]), dense, strict=True):
        assert torch.equal(one.ids, other.ids)


def test_a_query_is_answered_alike_alone_and_among_others(
    fused: FusedLabeler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither company nor the size of a chunk changes an answer."""
    texts = DATA.test.texts
    scores, ids = fused.rank(texts, 3)
    monkeypatch.setattr("shoal.rank.fused._TEXTS", 7)
    again, same = fused.rank(texts, 3)
    assert torch.equal(ids, same)
    torch.testing.assert_close(scores, again)
    alone, one = fused.rank(texts.subset(torch.tensor([5])), 3)
    assert torch.equal(one[0], ids[5])
    torch.testing.assert_close(alone[0], scores[5])


def test_scores_are_probabilities_and_fall(fused: FusedLabeler) -> None:
    """Each row falls within [0, 1], and ids are distinct."""
    scores, ids = fused.rank(DATA.test.texts, 5)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert bool((scores.diff(dim=1) <= 0).all())
    assert all(len(set(row)) == 5 for row in ids.tolist())


def test_dropped_pairs_are_not_predicted(fused: FusedLabeler) -> None:
    """What is dropped gives way to the next best."""
    texts = DATA.test.texts
    _, best = fused.rank(texts, 3)
    drop = Csr(torch.arange(len(texts) + 1), best[:, 0].contiguous(), 30)
    _, without = fused.rank(texts, 2, drop)
    assert not bool((without == best[:, :1]).any())


def test_a_memory_comes_back_from_its_state(labeler: Labeler, fused: FusedLabeler) -> None:
    """Saved in half precision and read, it predicts the same labels."""
    memory = Memory.of_state(fused.memory.state_dict())
    back = FusedLabeler(labeler, memory, fused.fusion)
    texts = DATA.test.texts.all()[:40]
    for one, other in zip(fused.predict(texts, 1), back.predict(texts, 1), strict=True):
        assert one[0].score == pytest.approx(other[0].score, abs=0.02)
    assert fused.predict(texts[:1], 3)[0][0].title in DATA.labels.titles


def test_an_unknown_text_still_has_an_answer(fused: FusedLabeler) -> None:
    """Without a known word nothing but label frequency speaks, and nothing breaks."""
    (row,) = fused.predict(["\u4e2d"], 3)
    assert all(0 <= found.score <= 1 for found in row)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(memory: Memory, fused: FusedLabeler) -> None:
    """Parts of two runs, and k out of range."""
    with pytest.raises(InputError, match="points: expected 3, as rows of labels"):
        Memory(memory.points, memory.labels.rows(torch.arange(3)))
    with pytest.raises(InputError, match="head: expected 30 classifiers, got 2"):
        Memory(memory.points, memory.labels, None, torch.zeros(2, 16))
    with pytest.raises(InputError, match="k: expected at most the 30 labels, got 31"):
        fused.rank(Texts.of(["a"]), 31)
