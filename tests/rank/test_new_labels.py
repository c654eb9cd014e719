"""Labels and examples that come after training: old answers stay what they were."""

from __future__ import annotations

import pytest
import torch

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.splits import validation_split
from shoal.data.texts import Texts
from shoal.rank.fusing import evidence, fit_ensemble
from shoal.rank.predictor import Predictor
from shoal.rank.ranker import Query
from tests.planted import planted_labels

DATA = planted_labels(n=300, n_labels=12, noise=0.2)
NEW = Texts(["new"], [DATA.test.texts.titles[0]], [""])


@pytest.fixture(scope="module")
def alone() -> Predictor:
    """An untrained bag over planted data."""
    spec, train = shoal.BagEncoder(dim=16), DATA.train
    encoder, tokens = spec.begin(train.texts, DATA.labels, seed=0, device="cpu", folder=None)
    label_tokens = tokens.span(len(train), tokens.n_rows)
    return Predictor(encoder, DATA.labels, label_tokens, (shoal.EncoderRanker(),))


@pytest.fixture(scope="module")
def ensemble(alone: Predictor) -> Predictor:
    """The same with all rankers, classifiers of twice the length of embeddings."""
    train, held_out = validation_split(DATA, 0.6, seed=0)
    combiner, classifiers = shoal.NetworkCombiner(), 2 * alone.label_embeddings
    seen = evidence(alone, shoal.RANKERS, train, held_out, classifiers, seed=0)
    return fit_ensemble(alone, shoal.RANKERS, combiner, seen, train, classifiers, seed=0)


def test_old_labels_keep_scores_and_order(alone: Predictor) -> None:
    """Without the new label, a ranking is the old one, bit for bit; the predictor given stays."""
    longer = alone.with_labels(NEW)
    scores, ids = alone.rank(DATA.test.texts, 12)
    more_scores, more = longer.rank(DATA.test.texts, 13)
    old = more < 12
    assert torch.equal(more[old].view_as(ids), ids)
    assert torch.equal(more_scores[old].view_as(scores), scores)
    assert len(alone.labels) == 12 and len(longer.labels) == 13


def test_a_new_label_is_found_by_its_text(alone: Predictor, ensemble: Predictor) -> None:
    """The text that it was named after finds it first by embeddings, and among few combined."""
    texts = Texts.of(NEW.titles)
    (best,) = alone.with_labels(NEW).predict(texts, k=1)[0]
    assert (best.position, best.label, best.title) == (12, "new", NEW.titles[0])
    # the combiner never met a label without examples, and its seed says what that is worth:
    # places 1 to 7 of 13 (docs/LOG.md)
    found = ensemble.with_labels(NEW).predict(texts, k=5)[0]
    assert "new" in [x.label for x in found]


def test_no_example_votes_for_it(ensemble: Predictor) -> None:
    """Its frequency is 0 and words and names know it; combiner, examples and votes stay."""
    longer = ensemble.with_labels(NEW)
    assert longer.frequency.tolist() == [*ensemble.frequency.tolist(), 0]
    assert longer.combiner is ensemble.combiner
    query = Query(longer, Texts.of(NEW.titles))
    found = {
        name: ranking.ids[0].tolist()
        for ranker in longer.rankers
        for name, ranking in zip(ranker.features, ranker.rank(query, 13), strict=True)
    }
    for name in ("encoder", "classifiers", "encoder without fields", "words of text and label"):
        assert 12 in found[name]
    for name in ("neighbors", "neighbors by words"):
        assert 12 not in found[name]


def test_a_new_classifier_is_as_long_as_those_around_it(ensemble: Predictor) -> None:
    """Classifiers of twice the embeddings' length: the new one is twice its embedding."""
    longer = ensemble.with_labels(NEW)
    (ranker,) = [x for x in longer.rankers if x.kind == "classifiers"]
    torch.testing.assert_close(ranker.weights, 2 * longer.label_embeddings)


def test_as_if_they_had_been_there(alone: Predictor) -> None:
    """Six labels and then six more are the twelve at once: the same tokens, vectors, answers."""
    half = torch.arange(6)
    few = Predictor(
        alone.encoder, DATA.labels.subset(half), alone.label_tokens.rows(half), alone.rankers
    )
    again = few.with_labels(DATA.labels.subset(half + 6))
    assert torch.equal(again.label_tokens.indices, alone.label_tokens.indices)
    texts = Texts.of(["w1 w2"])
    assert again.predict(texts, 12) == alone.predict(texts, 12)


def test_a_taken_name_is_refused(alone: Predictor) -> None:
    """By an old label or by another new one."""
    for texts in (Texts.of(["x"], [DATA.labels.uids[3]]), Texts.of(["x", "y"], ["twice"] * 2)):
        with pytest.raises(InputError, match="label: expected one that is not there yet, got"):
            alone.with_labels(texts)


def test_known_examples_vote(ensemble: Predictor) -> None:
    """An example that is added is its own nearest neighbor by embeddings and by words; others
    vote as before, and the predictor given stays."""
    n = len(ensemble.quotes)
    texts = Texts.of(["w3 w3 w200", "w201 w202"])
    more = ensemble.with_examples(texts, Csr.from_lists([[2], [0, 5]], 12))
    assert ensemble.truth is not None and more.truth is not None
    assert (ensemble.truth.n_rows, more.truth.n_rows) == (n, n + 2)
    assert (more.frequency - ensemble.frequency).tolist() == [1, 0, 1, 0, 0, 1, *[0] * 6]
    (found,) = more.explain(texts.subset(torch.tensor([0])), torch.tensor([[2]]))
    assert found[0]["examples"][0] == {"text": "w3 w3 w200", "cosine": 1.0}
    assert found[0]["rankers"]["neighbors by words"] > 0


def test_a_model_without_examples_takes_none(alone: Predictor) -> None:
    """An encoder that ranks alone has nothing that reads examples."""
    texts = Texts.of(["w1"])
    with pytest.raises(InputError, match="examples: expected a model that keeps examples"):
        alone.with_examples(texts, Csr.from_lists([[0]], 12))
    from dataclasses import replace

    known = replace(alone, truth=DATA.train.labels)
    with pytest.raises(InputError, match="examples: expected a model that keeps examples"):
        known.with_examples(texts, Csr.from_lists([[0]], 12))
