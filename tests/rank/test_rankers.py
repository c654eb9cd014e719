"""Rankers and their ensemble: rankings, parts on disk, queries that do not touch one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.splits import validation_split
from shoal.data.texts import Texts
from shoal.rank.fusing import evidence, fit_ensemble, with_known
from shoal.rank.predictor import Predictor
from tests.planted import planted_labels

DATA = planted_labels(n=400, n_labels=30, noise=0.3)
TRAIN, HELD_OUT = validation_split(DATA, 0.5, seed=0)


@pytest.fixture(scope="module")
def alone() -> Predictor:
    """An untrained bag over the training half."""
    spec = shoal.BagEncoder(dim=16)
    encoder, tokens = spec.begin(TRAIN.texts, DATA.labels, seed=0, device="cpu", folder=None)
    label_tokens = tokens.span(len(TRAIN), tokens.n_rows)
    return Predictor(encoder, DATA.labels, label_tokens, (shoal.EncoderRanker(),))


@pytest.fixture(scope="module")
def classifiers() -> torch.Tensor:
    """Some for each label."""
    return torch.randn(30, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ensemble(alone: Predictor, classifiers: torch.Tensor) -> Predictor:
    """All rankers, combined on the held-out half."""
    combiner = shoal.NetworkCombiner()
    seen = evidence(alone, shoal.RANKERS, TRAIN, HELD_OUT, classifiers, seed=0)
    return fit_ensemble(alone, shoal.RANKERS, combiner, seen, TRAIN, classifiers, seed=0)


def hits(top: torch.Tensor) -> float:
    """Share of test examples whose first prediction is true."""
    truth = DATA.test.labels.to_dense() > 0
    return float(truth[torch.arange(len(top)), top[:, 0]].float().mean())


def test_an_ensemble_beats_the_encoder_alone(alone: Predictor, ensemble: Predictor) -> None:
    """On fresh examples, neighbors and words add to an untrained encoder."""
    one, together = (x.rank(DATA.test.texts, 1)[1] for x in (alone, ensemble))
    assert hits(together) > hits(one) + 0.05


def test_rankers_that_have_nothing_to_offer_are_left_out(
    alone: Predictor, ensemble: Predictor
) -> None:
    """Without classifiers there is no ranker by them, and without fields no plain one; their
    features are counted."""
    every = [ranker.kind for ranker in ensemble.rankers]
    assert every == ["encoder", "classifiers", "neighbors", "plain", "words", "names"]
    assert sum(len(ranker.features) for ranker in ensemble.rankers) == 13
    plain = alone.encoder.without_fields(alone.label_tokens)
    assert plain is not None
    bare = replace(alone, encoder=plain[0], label_tokens=plain[1])
    found = with_known(bare, shoal.RANKERS, TRAIN)
    assert [ranker.kind for ranker in found.rankers] == ["encoder", "neighbors", "words", "names"]


@pytest.mark.parametrize("kind", ["encoder", "classifiers", "neighbors", "plain", "words", "names"])
def test_a_ranker_ranks_alone(ensemble: Predictor, kind: str) -> None:
    """Each finds true labels more often than chance, by its first feature, scores falling."""
    (own,) = [ranker for ranker in ensemble.rankers if ranker.kind == kind]
    predictor = replace(ensemble, rankers=(own,), combiner=None)
    scores, ids = predictor.rank(DATA.test.texts, 3)
    assert bool((scores.nan_to_num(neginf=-9).diff(dim=1) <= 0).all())
    assert not predictor.probabilities
    if kind not in ("classifiers", "names"):  # random classifiers; few texts name a label here
        assert hits(ids) > 0.15
    again = own.of_state(own.state_dict(), ensemble)
    same, twin = replace(predictor, rankers=(again,)).rank(DATA.test.texts, 3)
    torch.testing.assert_close(same, scores, atol=2e-3, rtol=2e-3)
    assert (twin == ids).float().mean() > 0.97  # votes of rows in half precision may swap


def test_a_query_is_answered_alike_alone_and_among_others(
    ensemble: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither company nor the size of a chunk changes an answer."""
    texts = DATA.test.texts
    scores, ids = ensemble.rank(texts, 3)
    monkeypatch.setattr("shoal.rank.predictor._TEXTS", 7)
    again, same = ensemble.rank(texts, 3)
    assert torch.equal(ids, same)
    torch.testing.assert_close(scores, again)
    alone, one = ensemble.rank(texts.subset(torch.tensor([5])), 3)
    assert torch.equal(one[0], ids[5])
    torch.testing.assert_close(alone[0], scores[5])
    assert ensemble.rank(Texts.of([]), 3)[1].shape == (0, 3)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few labels and examples are searched as many are."""
    for module in ("predictor", "rankers"):
        monkeypatch.setattr(f"shoal.rank.{module}.SKETCHED", 1)


@pytest.mark.usefixtures("everywhere")
def test_a_pool_of_all_labels_changes_nothing(
    ensemble: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every label is in the pool, each ranking has the scores of a whole search."""
    monkeypatch.setattr("shoal.rank.predictor._FOUND", 30)
    monkeypatch.setattr("shoal.rank.rankers._LIKELY", 10**6)
    texts, whole = DATA.test.texts, replace(ensemble, pooled=False)
    pooled = replace(ensemble, pooled=True)
    assert pooled.sketch is not None and whole.sketch is None
    names = [name for ranker in ensemble.rankers for name in ranker.features]
    one, two = (x.rankings(x._query(texts)) for x in (pooled, whole))
    for name, mine, theirs in zip(names, one, two, strict=True):
        torch.testing.assert_close(mine.scores, theirs.scores, msg=name)


@pytest.mark.usefixtures("everywhere")
def test_rankers_of_a_pool_rank_no_other_label(
    ensemble: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pool of three labels and what neighbors and names bring; saved, it is the same model."""
    for name in ("_LIKELY", "_FOUND"):
        monkeypatch.setattr(f"shoal.rank.predictor.{name}", 3)
    ensemble, texts = replace(ensemble), DATA.test.texts
    names = [name for ranker in ensemble.rankers for name in ranker.features]
    by = dict(zip(names, ensemble.rankings(ensemble._query(texts)), strict=True))
    bring = [by[name].ids for name in names if name == "neighbors" or "named" in name]
    for row in range(len(texts)):
        pool = set(by["encoder"].ids[row].tolist())
        assert len(pool - {-1}) <= 3 + 3 * 6
        assert all(set(ids[row].tolist()) <= pool | {-1} for ids in bring)
        assert all(set(ranking.ids[row].tolist()) <= pool | {-1} for ranking in by.values())
    about, state = ensemble.save(tmp_path)
    assert Predictor.open(tmp_path, about, state).sketch is not None
    before = {name: value for name, value in about.items() if name != "pooled"}
    assert Predictor.open(tmp_path, before, state).sketch is None


def test_scores_are_probabilities_and_fall(ensemble: Predictor) -> None:
    """Each row falls within [0, 1], and ids are distinct."""
    scores, ids = ensemble.rank(DATA.test.texts, 5)
    assert ensemble.probabilities
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert bool((scores.diff(dim=1) <= 0).all())
    assert all(len(set(row)) == 5 for row in ids.tolist())


def test_dropped_pairs_are_not_predicted(ensemble: Predictor) -> None:
    """What is dropped gives way to the next best."""
    texts = DATA.test.texts
    _, best = ensemble.rank(texts, 3)
    drop = Csr(torch.arange(len(texts) + 1), best[:, 0].contiguous(), 30)
    _, without = ensemble.rank(texts, 2, drop)
    assert not bool((without == best[:, :1]).any())


def test_the_tree_reads_encoder_and_classifiers(alone: Predictor) -> None:
    """NGAME's combiner over its two rankers ranks all labels that they found, by no probability."""
    classifiers = alone.label_embeddings
    rankers = (shoal.EncoderRanker(), shoal.ClassifierRanker())
    combiner = shoal.TreeCombiner()
    seen = evidence(alone, rankers, TRAIN, HELD_OUT, classifiers, seed=0)
    found = fit_ensemble(alone, rankers, combiner, seen, TRAIN, classifiers, seed=0)
    assert not found.probabilities
    assert hits(found.rank(DATA.test.texts, 1)[1]) > 0.15


def test_a_folder_gives_the_predictor_back(ensemble: Predictor, tmp_path: Path) -> None:
    """Saved (neighbors in half precision) and opened it predicts the same labels; opened twice,
    the same bits."""
    about, state = ensemble.save(tmp_path)
    one, two = (Predictor.open(tmp_path, about, state) for _ in range(2))
    texts = DATA.test.texts.subset(torch.arange(40))
    assert one.predict(texts, 3) == two.predict(texts, 3)
    for before, after in zip(ensemble.predict(texts, 1), one.predict(texts, 1), strict=True):
        assert before[0].score == pytest.approx(after[0].score, abs=0.02)


def test_an_unknown_text_still_has_an_answer(ensemble: Predictor) -> None:
    """Without a known word nothing but label frequency speaks, and nothing breaks."""
    (row,) = ensemble.predict(Texts.of(["\u4e2d"]), 3, explain=True)
    assert all(0 <= found.score <= 1 and found.explanation for found in row)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(ensemble: Predictor, tmp_path: Path) -> None:
    """Parts of two models, k out of range, and kinds that nobody registered."""
    with pytest.raises(InputError, match="truth: expected 30 columns, got 3"):
        replace(ensemble, truth=Csr.from_lists([[0]], 3))
    with pytest.raises(InputError, match="k: expected at most the 30 labels, got 31"):
        ensemble.rank(Texts.of(["a"]), 31)
    about, state = ensemble.save(tmp_path)
    with pytest.raises(InputError, match=r"expected one of classifiers, encoder, .* got mine"):
        Predictor.open(tmp_path, about | {"rankers": ["mine"] * 6}, state)
    with pytest.raises(InputError, match=r"expected an encoder of kind bag, .*got mine"):
        Predictor.open(tmp_path, about | {"encoder": {"kind": "mine"}}, state)
    with pytest.raises(InputError, match="label_tokens: expected a part of the state, got nothing"):
        Predictor.open(tmp_path, about, {})
