"""Predictors: bags to unit vectors, texts to labels, a folder and back, and explanations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch.nn import functional

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.texts import Examples, Texts
from shoal.rank.fusing import with_known
from shoal.rank.predictor import Predictor
from shoal.text.bag import Bag, embed
from shoal.text.vocabulary import learn, random_rows
from tests.strategies import csrs

TITLES = ["red cup", "blue cup", "old red hat", "tea pot", "hat box"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Five labels over their own words, untrained."""
    vocabulary = learn(TITLES * 2, n_pieces=60)
    bags = vocabulary.bags(TITLES)
    labels = Texts(list("abcde"), TITLES, [""] * 5)
    encoder = Bag(vocabulary, random_rows(bags, 64, seed=0))
    return Predictor(encoder, labels, bags, (shoal.EncoderRanker(),))


@given(csrs(min_cols=1))
def test_embed_is_the_normalized_dense_product(bags: Csr) -> None:
    """embed() equals normalize(dense @ rows), whatever the chunks; empty bags stay zero."""
    bags = bags.with_values(None)
    rows = torch.randn(bags.n_cols, 3, generator=torch.Generator().manual_seed(0))
    expected = functional.normalize(bags.to_dense() @ rows, dim=1)
    torch.testing.assert_close(embed(bags, rows), expected)


def test_embed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More bags than a chunk holds come out as one by one."""
    bags = Csr.from_lists([[i % 3, (i * i) % 3] for i in range(10)], n_cols=3)
    rows = torch.eye(3)
    whole = embed(bags, rows)
    monkeypatch.setattr("shoal.text.bag._CHUNK", 3)
    assert torch.equal(embed(bags, rows), whole)


def test_a_labels_own_text_is_nearest_to_it(predictor: Predictor) -> None:
    """Each title finds its own label first with cosine one; scores fall."""
    for i, row in enumerate(predictor.predict(Texts.of(TITLES), k=5)):
        assert (row[0].position, row[0].title, row[0].label) == (i, TITLES[i], "abcde"[i])
        assert row[0].score == pytest.approx(1.0)
        scores = [found.score for found in row]
        assert scores == sorted(scores, reverse=True) and len({x.label for x in row}) == 5


def test_dropped_pairs_are_not_predicted(predictor: Predictor) -> None:
    """A pair in `drop` never appears; a text whose labels run out has fewer predictions."""
    drop = Csr.from_lists([[0], [0, 1, 2, 3]], n_cols=5)
    _, top = predictor.rank(Texts.of(TITLES[:2]), 3, drop)
    assert 0 not in top[0].tolist() and top[1].tolist() == [4, -1, -1]


def test_texts_without_words(predictor: Predictor) -> None:
    """Nothing known is the zero vector and scores zero everywhere; no text gives no row."""
    assert predictor.encode(Texts.of(["?!", ""])).abs().sum() == 0
    assert {found.score for found in predictor.predict(Texts.of(["?!"]), k=5)[0]} == {0.0}
    assert predictor.predict(Texts.of([]), k=2) == []


def test_a_threshold_cuts_each_row(predictor: Predictor) -> None:
    """What scores less is left out, whole rows too."""
    texts = Texts.of([*TITLES, "?"])
    whole = predictor.predict(texts, 5)
    cut = predictor.predict(texts, 5, threshold=0.5)
    assert cut == [[found for found in row if found.score >= 0.5] for row in whole]
    assert cut[-1] == [] and all(cut[:-1])


def test_a_folder_gives_it_back(predictor: Predictor, tmp_path: Path) -> None:
    """What save() wrote, open() reads: the same labels and predictions, bit for bit."""
    about, state = predictor.save(tmp_path)
    again = Predictor.open(tmp_path, about, state)
    texts = Texts.of(TITLES)
    assert again.predict(texts, 5) == predictor.predict(texts, 5)
    assert vars(again.labels) == vars(predictor.labels)


def test_damage_is_named(predictor: Predictor, tmp_path: Path) -> None:
    """Absent, damaged, or of another model: one line that names the part."""
    about, state = predictor.save(tmp_path)
    few = Texts(["a"], ["red cup"], [""])
    with pytest.raises(InputError, match="label_tokens: expected a Csr of"):
        replace(predictor, labels=few)
    (tmp_path / "examples.json.gz").write_bytes(b"no")
    with pytest.raises(InputError, match="expected the beginnings of known examples"):
        Predictor.open(tmp_path, about, state)
    (tmp_path / "examples.json.gz").unlink()
    Predictor.open(tmp_path, about, state)
    (tmp_path / "bag.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bag\.safetensors: expected a whole checkpoint"):
        Predictor.open(tmp_path, about, state)
    (tmp_path / "bag.safetensors").unlink()
    with pytest.raises(InputError, match=r"bag\.safetensors"):
        Predictor.open(tmp_path, about, state)


def test_an_explanation_by_hand(predictor: Predictor) -> None:
    """Scores of the rankers, words that text and label share, nearest examples that carry it."""
    # those without a known word make the others rare
    known = Texts.of(["red red cup", "a cup of tea", "tea pot", "old hat box", *["?"] * 60])
    truth = Csr.from_lists([[0], [0, 3], [3], [2, 4], *[[1]] * 60], n_cols=5)
    rankers = (shoal.EncoderRanker(), shoal.NeighborRanker(near=2), shoal.WordRanker())
    model = with_known(predictor, rankers, Examples.of(known, truth))
    text = Texts.of(["red cup"])
    ((cup, pot),) = model.explain(text, torch.tensor([[0, 3]]))
    cosines = (model.encode(text) @ model.encode(known).T)[0]
    assert cup["rankers"]["encoder"] == pytest.approx(1.0, abs=1e-4)
    # two neighbors vote with their cosine to the fourth; one of them carries label 3, too
    first, second = cosines[0] ** 4, cosines[1] ** 4
    assert cup["rankers"]["neighbors"] == pytest.approx(1.0, abs=1e-4)
    share = float(second / (first + second))
    assert pot["rankers"]["neighbors"] == pytest.approx(share, abs=1e-4)
    assert sorted(cup["words"]) == ["cup", "red"] and pot["words"] == []
    said = [
        {"text": known.titles[i], "cosine": pytest.approx(float(cosines[i]), abs=1e-4)}
        for i in (0, 1)
    ]
    assert cup["examples"] == said and pot["examples"] == said[1:]
    row = model.predict(text, 5, explain=True)[0]
    assert row[0].label == "a" and row[0].explanation == cup


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused(predictor: Predictor) -> None:
    """k below one or above the labels, rows of another vocabulary."""
    for k in (0, 6):
        with pytest.raises(InputError, match="k: expected"):
            predictor.predict(Texts.of(["red"]), k)
    assert isinstance(predictor.encoder, Bag)
    rows = torch.ones(predictor.encoder.n_tokens, 3)
    for bad in (rows.flatten(), rows[1:]):
        with pytest.raises(InputError, match="rows: expected"):
            Bag(predictor.encoder.vocabulary, bad)
    spoiled = replace(predictor, encoder=Bag(predictor.encoder.vocabulary, rows * torch.nan))
    with pytest.raises(InputError, match="finite rows"):
        spoiled.predict(Texts.of(["red"]), 1)
