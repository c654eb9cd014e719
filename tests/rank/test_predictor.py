"""The labeler: bags to unit vectors, texts to labels, a folder and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch.nn import functional

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.texts import Texts
from shoal.rank.predictor import BagRows, Labeler, Lexicon, embed
from shoal.text.vocabulary import learn, random_rows
from tests.strategies import csrs

TITLES = ["red cup", "blue cup", "old red hat", "tea pot", "hat box"]


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    """Five labels over their own words, untrained."""
    vocabulary = learn(TITLES * 2, n_pieces=60)
    bags = vocabulary.bags(TITLES)
    lexicon = Lexicon(vocabulary, Texts(list("abcde"), TITLES, [""] * 5), bags)
    return Labeler(lexicon, BagRows(random_rows(bags, 64, seed=0)))


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
    monkeypatch.setattr("shoal.rank.predictor._CHUNK", 3)
    assert torch.equal(embed(bags, rows), whole)


def test_a_labels_own_text_is_nearest_to_it(labeler: Labeler) -> None:
    """Each title finds its own label first with cosine one; scores fall."""
    for i, row in enumerate(labeler.predict(TITLES, k=5)):
        assert (row[0].label, row[0].title, row[0].uid) == (i, TITLES[i], "abcde"[i])
        assert row[0].score == pytest.approx(1.0)
        scores = [found.score for found in row]
        assert scores == sorted(scores, reverse=True) and len({x.label for x in row}) == 5


def test_dropped_pairs_are_not_predicted(labeler: Labeler) -> None:
    """A pair in `drop` never appears; a text whose labels run out has fewer predictions."""
    drop = Csr.from_lists([[0], [0, 1, 2, 3]], n_cols=5)
    _, top = labeler.rank(Texts.of(TITLES[:2]), 3, drop)
    assert 0 not in top[0].tolist() and top[1].tolist() == [4, -1, -1]


def test_texts_without_words(labeler: Labeler) -> None:
    """Nothing known is the zero vector and scores zero everywhere; no text gives no row."""
    assert labeler.encode(Texts.of(["?!", ""])).abs().sum() == 0
    assert {found.score for found in labeler.predict(["?!"], k=5)[0]} == {0.0}
    assert labeler.predict([], k=2) == []


def test_lexicon_round_trip(labeler: Labeler, tmp_path: Path) -> None:
    """What save() wrote, open() reads: the same bags, labels and predictions."""
    labeler.lexicon.save(tmp_path / "lexicon")
    again = Labeler(Lexicon.open(tmp_path / "lexicon"), labeler.encoder)
    assert again.predict(TITLES) == labeler.predict(TITLES)
    assert vars(again.lexicon.labels) == vars(labeler.lexicon.labels)


def test_damaged_lexicons_are_refused(labeler: Labeler, tmp_path: Path) -> None:
    """Absent, without a part, damaged, or of another run: one line that names the part."""
    with pytest.raises(InputError, match="a folder with a lexicon, as runs on labels have one"):
        Lexicon.open(tmp_path / "absent")
    for name, content in (("tokenizer.json", b"\xff"), ("tokenizer.json", b"{}")):
        labeler.lexicon.save(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="expected the JSON of a tokenizer"):
            Lexicon.open(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a file with a tokenizer"):
        Lexicon.open(tmp_path)
    few = Texts(["a"], ["red cup"], [""])
    with pytest.raises(InputError, match="label_bags: expected a Csr of"):
        replace(labeler.lexicon, labels=few)


@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused(labeler: Labeler) -> None:
    """k below one or above the labels, rows of another vocabulary, rows that are not finite."""
    for k in (0, 6):
        with pytest.raises(InputError, match="k: expected"):
            labeler.predict(["red"], k)
    rows = torch.ones(len(labeler.lexicon.vocabulary), 3)
    with pytest.raises(InputError, match="rows: expected"):
        BagRows(rows.flatten())
    with pytest.raises(InputError, match="encoder: expected one of"):
        Labeler(labeler.lexicon, BagRows(rows[1:]))
    with pytest.raises(InputError, match="finite rows"):
        Labeler(labeler.lexicon, BagRows(rows * float("nan"))).predict(["red"], 1)
