"""LabelModel: what is fitted, saved, opened, predicted, evaluated and extended."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.data.texts import LabelData, label_data
from shoal.training.run import Run
from tests.planted import planted_labels

DATA = planted_labels(n=520, n_labels=24, noise=0.4)
TEXTS = [*DATA.test.texts.titles[:10], "w1 w2", "?"]


def small(**parts: Any) -> shoal.LabelModel:
    """A narrow bag on small batches, two epochs of classifiers."""
    usual: dict[str, Any] = {
        "encoder": shoal.BagEncoder(dim=16, lr=0.02),
        "batches": shoal.Clustered(60, 6),
        "classifiers": shoal.Classifiers(epochs=2, lr=0.02),
        "device": "cpu",
    }
    return shoal.LabelModel(**usual | parts)


def by_encoder(**parts: Any) -> shoal.LabelModel:
    """One that ranks by its encoder alone."""
    alone = {"rankers": [shoal.EncoderRanker()], "combiner": None, "classifiers": None}
    return small(**alone | parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[shoal.LabelModel, shoal.Result]:
    """An ensemble and what its fit came to."""
    model = small()
    out = tmp_path_factory.mktemp("labels") / "run"
    return model, model.fit(DATA, valid=0.5, epochs=2, out=out)


# -- small data ---------------------------------------------------------------------------------


def test_small_data_is_held_out_in_turn(tmp_path: Path) -> None:
    """Sixty examples: every one is held out once, all are known in the end, scores are
    probabilities, and no checkpoint stays."""
    train = DATA.train.subset(torch.arange(60))
    model = small(combiner=shoal.NetworkCombiner(epochs=2))
    data = LabelData("few", train, DATA.test, DATA.labels)
    model.fit(data, valid=0.3, epochs=1, out=tmp_path / "run")
    (told,) = [x for x in Run.open(tmp_path / "run").log() if x["event"] == "ensemble"]
    assert (told["held_out"], told["folds"]) == (60, 4)
    assert model.probabilities and model.predictor.truth.n_rows == 60
    left = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not left & {"last.safetensors", "best.safetensors", "tokens"}
    found = model.predict(TEXTS, k=24, threshold="f1")
    assert 0 < sum(map(len, found)) < 24 * len(TEXTS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.whole
def test_rules_are_named(run: Any) -> None:
    """One that does not exist, and one where scores are no probabilities."""
    model, _ = run
    with pytest.raises(
        InputError, match=r"threshold: expected a probability in \[0, 1\] or one of f1"
    ):
        model.predict("w1", threshold="best")
    alone = shoal.Predictor(
        model.encoder, model.labels, model.predictor.label_tokens, (shoal.EncoderRanker(),)
    )
    with pytest.raises(InputError, match="threshold: expected a model whose scores are prob"):
        model.with_predictor(alone).predict("w1", threshold="f1")


# -- fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [shoal.Clustered(24, 6), shoal.Random(24)])
def test_training_beats_the_untrained_bag(batches: Any) -> None:
    """P@1 on the test examples clearly exceeds that of the bag at the start."""
    data = planted_labels(n=240, n_labels=32, noise=0.3)
    spec = shoal.BagEncoder(dim=32, lr=0.02)
    model = by_encoder(encoder=spec, batches=batches)
    begun, tokens = spec.begin(data.train.texts, data.labels, seed=0, device="cpu", folder=None)
    label_tokens = tokens.span(240, tokens.n_rows)
    before = shoal.Predictor(begun, data.labels, label_tokens, (shoal.EncoderRanker(),))
    untrained = model.with_predictor(before).evaluate(data)
    result = model.fit(data, valid=0.0, epochs=6)
    assert result.test["P@1"] > untrained["P@1"] + 8
    assert (result.stopped, result.steps, result.valid) == ("steps", 60, {})


def test_an_ensemble_beats_its_encoder(run: Any) -> None:
    """On fresh examples, with probabilities where the encoder has cosines."""
    model, result = run
    alone = shoal.Predictor(
        model.encoder, model.labels, model.predictor.label_tokens, (shoal.EncoderRanker(),)
    )
    by_cosine = model.with_predictor(alone)
    assert result.test["P@1"] > by_cosine.evaluate(DATA)["P@1"] + 2
    assert model.probabilities and not by_cosine.probabilities
    assert list(result.valid) == ["valid_P@1", "valid_P@5", "valid_R@5"]


def test_classifiers_alone_beat_the_encoder() -> None:
    """They begin as label embeddings and learn from noisy label texts."""
    alone: dict[str, Any] = {"combiner": None, "rankers": [shoal.ClassifierRanker()]}
    options = shoal.Classifiers(epochs=6, lr=0.02)
    model = small(classifiers=options, **alone)
    result = model.fit(DATA, valid=0.1, epochs=2)
    encoder = by_encoder().fit(DATA, valid=0.1, epochs=2)
    assert result.test["P@1"] > encoder.test["P@1"] + 2
    assert not model.probabilities


def test_a_saved_model_predicts_the_same_bits(run: Any, tmp_path: Path) -> None:
    """The model in memory, the run's folder, a saved model, and that saved again."""
    model, result = run
    expected = model.predict(TEXTS, k=5)
    model.save(tmp_path / "one")
    shoal.open(tmp_path / "one").save(tmp_path / "two")
    for folder in (result.folder, tmp_path / "one", tmp_path / "two"):
        again = shoal.open(folder, device="cpu")
        assert isinstance(again, shoal.LabelModel)
        assert again.predict(TEXTS, k=5) == expected
        assert again.probabilities and again.evaluate(DATA) == result.test
        assert torch.equal(again.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("kind", ["tree", "encoder", "random"])
def test_every_kind_of_model_is_saved(kind: str, tmp_path: Path) -> None:
    """Other combiners, other batches, no combiner: opened they predict as they did."""
    rankers = (shoal.EncoderRanker(), shoal.ClassifierRanker())
    made: dict[str, Callable[[], shoal.LabelModel]] = {
        "tree": lambda: small(combiner=shoal.TreeCombiner(), rankers=rankers),
        "encoder": by_encoder,
        "random": lambda: small(encoder=shoal.BagEncoder(dim=8, fields=False)),
    }
    model = made[kind]()
    model.fit(DATA, valid=DATA.test, epochs=1, out=tmp_path / "run")
    assert shoal.open(tmp_path / "run").predict(TEXTS) == model.predict(TEXTS)


@pytest.mark.whole
def test_a_fit_after_a_fit_begins_anew() -> None:
    """The same data give the same bits again, other data those of a new model."""
    other = planted_labels(n=120, n_labels=8, seed=1)
    model, new = small(), small()
    options: dict[str, Any] = {"epochs": 1, "valid": DATA.test}
    model.fit(DATA, **options)
    first = model.predict(TEXTS)
    options = {"epochs": 1, "valid": other.test}
    model.fit(other, **options)
    new.fit(other, **options)
    assert model.predict(TEXTS) == new.predict(TEXTS) != first
    model.fit(DATA, epochs=1, valid=DATA.test)
    assert model.predict(TEXTS) == first


@pytest.mark.whole
def test_the_seed_decides(tmp_path: Path) -> None:
    """With and without a folder the same bits; with another seed others."""
    found = []
    for seed, out in ((0, None), (0, tmp_path / "run"), (1, None)):
        model = small(seed=seed)
        model.fit(DATA, epochs=1, valid=DATA.test, out=out)
        found.append(model.predict(TEXTS))
    assert found[0] == found[1] != found[2]


def test_fit_without_a_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where temporary files are nor where one works; the result has no folder."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    model = small()
    result = model.fit(DATA, epochs=1, valid=DATA.test)
    assert (result.folder, result.size) == (None, 0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "temporary"]
    assert model.predict("w1 w2", k=1)


def test_labels_in_every_form_are_the_same_data() -> None:
    """Names, lists of names, matrices of numpy, scipy and torch, pandas columns."""
    pandas = pytest.importorskip("pandas")
    from scipy.sparse import csr_matrix

    names = ["blue", "hat", "mug", "red"]
    texts = [f"{c} {t} {i}" for i in range(4) for c in ("red", "blue") for t in ("mug", "hat")]
    lists = [text.split()[:2] for text in texts]
    dense = np.array([[name in row for name in names] for row in lists], dtype=float)
    forms: list[tuple[Any, Any]] = [
        (texts, lists),
        (pandas.Series(texts, index=range(5, 21)), pandas.Series(lists)),
        (texts, pandas.DataFrame(dense, columns=pandas.Index(names))),
        (label_data(texts, csr_matrix(dense), label_names=names), None),
        (np.array(texts), [tuple(row) for row in lists]),
    ]
    found = []
    for data, labels in forms:
        model = by_encoder()
        model.fit(data, labels, valid=0.0, steps=3)
        found.append([(p.label, p.score) for p in model.predict("a red hat", k=4)])
    assert all(one == found[0] for one in found)


def test_given_validation_and_test_examples(caplog: pytest.LogCaptureFixture) -> None:
    """They are judged as given: labels that training lacks are left out or count as missed."""
    texts = [f"{color} thing {i}" for i in range(8) for color in ("red", "blue")]
    labels = [text.split()[0] for text in texts]
    model = by_encoder(batches=shoal.Clustered(8, 4))
    valid = (["a red one", "a green one"], [["red", "warm"], ["green"]])
    test = (["a red one", "a green one"], ["red", "green"])
    result = model.fit(texts, labels, valid=valid, test=test, epochs=4, valid_every=2)
    assert result.valid["valid_R@2"] == 100.0  # of the one known label
    assert result.test["P@1"] == 50.0 and result.test["R@1"] == 50.0
    assert "no probabilities" not in caplog.text
    with pytest.raises(InputError, match="valid: expected examples with labels of the data"):
        model.fit(texts, labels, valid=(["green"], ["green"]))


# -- predict -----------------------------------------------------------------------------------


def test_one_text_has_a_list_and_many_a_list_of_lists(run: Any) -> None:
    """Strings, pairs, columns and arrays; scores fall; k is at most the number of labels."""
    pandas = pytest.importorskip("pandas")

    model, _ = run
    one = model.predict("w1 w2", k=3)
    assert [type(found) for found in one] == [shoal.Prediction] * 3
    scores = [found.score for found in one]
    assert scores == sorted(scores, reverse=True) and all(0 <= x <= 1 for x in scores)
    assert one[0].title == DATA.labels.titles[one[0].position]
    assert one[0].label == DATA.labels.uids[one[0].position]
    many: list[Any] = [["w1 w2"], ("w1 w2",), np.array(["w1 w2"]), pandas.Series(["w1 w2"])]
    assert all(model.predict(texts, k=3) == [one] for texts in many)
    assert model.predict([], k=3) == []
    assert len(model.predict("w1", k=1000)) == 24
    assert len(model.predict([("w1", "w2 w3"), "w1"])) == 2


@pytest.mark.usefixtures("unchecked")
def test_a_threshold_leaves_out_what_scores_less(run: Any) -> None:
    """Probabilities are cut where it says; nothing is left above one."""
    model, _ = run
    whole, cut = (model.predict(TEXTS, k=5, threshold=x) for x in (None, 0.2))
    assert cut == [[p for p in row if p.score >= 0.2] for row in whole] != whole
    for bad in (1.5, -0.1, math.nan, "a"):
        with pytest.raises(InputError, match=r"threshold: expected a probability in \[0, 1\]"):
            model.predict("w1", threshold=bad)


def test_explanations_name_rankers_words_and_examples(run: Any) -> None:
    """For each label; the ones of the first label say that rankers found it."""
    model, _ = run
    text = DATA.train.texts.titles[0]
    for found in model.predict(text, k=5, explain=True):
        assert set(found.explanation) == {"rankers", "examples", "words"}
    first, *_ = model.predict([text], k=1, explain=True)[0]
    names = {name for ranker in model.predictor.rankers for name in ranker.features}
    assert set(first.explanation["rankers"]) <= names and first.explanation["rankers"]
    (again,) = model.predict(text, k=1)
    assert again.score == first.score and again.explanation is None
    near = model.predict(text, k=24, explain=True)
    quoted = {x["text"] for p in near for x in p.explanation["examples"]}
    assert text[:80] in quoted  # it was trained on, so it is its own neighbor


def test_texts_of_unknown_words_are_warned_of(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are answered, and a line says how many they are."""
    model, _ = run
    with caplog.at_level(logging.WARNING, "shoal"):
        model.predict(["w1", "?", ""], k=1)
    assert "2 of 3 texts hold no known word" in caplog.text
    assert model.unknown(["w1", "?"]).tolist() == [False, True]


def test_encode_gives_unit_vectors(run: Any) -> None:
    """Of one text one vector, of many one each; zeros where nothing is known."""
    model, _ = run
    vectors = model.encode(["w1 w2", "w3", "?"])
    assert vectors.shape == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(model.encode("w1 w2"), vectors[0])
    assert model.encode([]).shape == (0, 16)


def test_an_approximate_search_finds_the_same(run: Any, tmp_path: Path) -> None:
    """Where there are few keys a graph misses none."""
    pytest.importorskip("usearch", reason="approximate search needs the extra ann")
    model, result = run
    search = shoal.HnswSearch(tmp_path, lambda facts: None)
    again = shoal.open(result.folder, search=search)
    one, two = ([[p.label for p in row] for row in x.predict(TEXTS)] for x in (model, again))
    assert one == two and list(tmp_path.iterdir())


# -- evaluate ----------------------------------------------------------------------------------


def test_evaluate_counts_unknown_labels_as_missed() -> None:
    """Two of four labels are none of the model's: half is found; the names match, not positions."""
    texts = [f"{color} thing {i}" for i in range(8) for color in ("red", "blue")]
    model = by_encoder(batches=shoal.Clustered(8, 4))
    model.fit(texts, [text.split()[0] for text in texts], valid=0.0, epochs=6)
    known = model.evaluate(["red", "blue"], ["red", "blue"])
    assert known["P@1"] == known["R@1"] == 100.0 and "P@3" not in known
    some = model.evaluate(["red", "blue"], [["azure", "red"], ["navy"]])
    assert some["P@1"] == 50.0 and some["R@1"] == 25.0
    with pytest.raises(InputError, match="labels: expected 2, one per text, got 1"):
        model.evaluate(["red", "blue"], ["red"])


def test_a_table_that_grew_is_judged_on_what_was_not_trained_on(
    tmp_path: Path,
) -> None:
    """Labels by chance: appended, sorted or thinned out, a table's metrics say that nothing was
    learned; its test rows stay the same ones."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(0, 20, (120, 5), generator=generator).tolist()
    rows = [f"t{i} {' '.join(f'v{x}' for x in row[1:])},l{row[0]}" for i, row in enumerate(draws)]
    path = tmp_path / "noise.csv"

    def written(lines: list[str]) -> str:
        path.write_text("\n".join(["text,labels", *lines]) + "\n")
        return str(path)

    spec = shoal.BagEncoder(dim=16, lr=0.1)
    model = by_encoder(encoder=spec, batches=shoal.Clustered(16, 4))
    result = model.fit(written(rows), valid=0.1, epochs=30)
    learned = model.evaluate([row.split(",")[0] for row in rows], [r.split(",")[1] for r in rows])
    assert learned["P@1"] > result.test["P@1"] + 25
    again = model.evaluate(written(rows))
    assert again == result.test
    for lines in ([*rows, "t120 v1 v2,l3"], sorted(rows), rows[: len(rows) // 2]):
        assert model.evaluate(written(lines))["P@1"] < 30
    # a source that is trained on as a whole has nothing left to judge
    own = model.test_examples(written(rows))
    everything = [text for text, _ in (row.split(",") for row in rows)]
    assert 0 < len(own) < len(everything)
    trained = [text for text in everything if text not in own.texts.titles]
    path.write_text("text,labels\n" + "\n".join(f"{text},l1" for text in trained) + "\n")
    with pytest.raises(InputError, match="expected examples to evaluate on, got none"):
        model.evaluate(str(path))


def test_all_rows_of_a_test_file_are_judged(tmp_path: Path) -> None:
    """A file of other rows has no training part: wrong labels count, in whichever fifth."""
    texts = [f"{color} thing {i}" for i in range(12) for color in ("red", "blue")]
    model = by_encoder(batches=shoal.Clustered(8, 4))
    model.fit(texts, [text.split()[0] for text in texts], valid=0.0, epochs=20)
    rows = [f"a {color} one {i}" for i in range(10) for color in ("red", "blue")]
    wrong = {"red": "blue", "blue": "red"}
    lines = [f"{x},{x.split()[1] if i < 5 else wrong[x.split()[1]]}" for i, x in enumerate(rows)]
    for column, ends in (("text,labels", [""] * 20), ("text,labels,split", [",test"] * 20)):
        body = [line + end for line, end in zip(lines, ends, strict=True)]
        (tmp_path / "other.csv").write_text("\n".join([column, *body]) + "\n")
        found = model.test_examples(str(tmp_path / "other.csv"))
        assert len(found) == 20
        assert model.evaluate(str(tmp_path / "other.csv"))["P@1"] == 25.0


def test_numbered_labels_are_matched_by_their_texts(tmp_path: Path) -> None:
    """Where names are numbers of lines, the same labels in another order give the same metrics."""
    data = planted_labels(n=120, n_labels=8, noise=0.1)
    order = torch.arange(7, -1, -1)
    xc.write(data, tmp_path / "a")
    moved = [
        shoal.Examples.of(x.texts, shoal.Csr.from_dense(x.labels.to_dense()[:, order]))
        for x in (data.train, data.test)
    ]
    other = shoal.LabelData("other", *moved, data.labels.subset(order))
    by_line = [
        shoal.Texts([str(i) for i in range(8)], x.titles, x.contents)
        for x in (data.labels, other.labels)
    ]
    one, two = (
        shoal.LabelData(x.name, x.train, x.test, labels)
        for x, labels in zip((data, other), by_line, strict=True)
    )
    model = by_encoder(batches=shoal.Clustered(24, 6))
    result = model.fit(one, valid=0.0, epochs=3)
    assert result.test["P@1"] > 40
    assert model.evaluate(two) == result.test


# -- add ---------------------------------------------------------------------------------------


def test_labels_are_added_without_training(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are found by their texts, the model stays as it was, and a useless one is warned of."""
    model, _ = run
    text = DATA.test.texts.titles[3]
    longer = model.add(text)
    assert text in [found.label for found in longer.predict(text, k=3)]
    assert (len(model.labels), len(longer.labels)) == (24, 25)
    assert "no known word" not in caplog.text
    model.add(["?", "w1"])
    assert "1 of 2 new labels hold no known word" in caplog.text
    for bad, message in ((DATA.labels.uids[:1], "not there yet"), ([None], r"labels\[0\]")):
        with pytest.raises(InputError, match=message):
            model.add(shoal.Texts.of(["x"], bad) if isinstance(bad[0], str) else bad)
    with pytest.raises(InputError, match="add: expected labels or examples, got neither"):
        model.add()


def test_examples_that_are_added_vote(run: Any, tmp_path: Path) -> None:
    """A text that was added with a label has that label's votes, new labels included; saved and
    opened it does so still, and its card counts the labels."""
    model, _ = run
    texts = ["w240 w241 w242 w243", "w250 w251"]
    more = model.add(examples=(texts, [["brand new"], [DATA.labels.uids[2]]]))
    assert more.labels.uids[-1] == "brand new" and len(model.labels) == 24
    found = more.predict(texts[0], k=25, explain=True)
    (new,) = [p for p in found if p.label == "brand new"]
    assert new.explanation["rankers"]["neighbors"] > 0
    assert new.explanation["examples"][0]["text"] == texts[0]
    more.save(tmp_path / "more")
    again = shoal.open(tmp_path / "more")
    one, two = ([p.label for p in x.predict(texts[0], k=5)] for x in (more, again))
    assert one == two
    with pytest.raises(InputError, match="examples: expected a model that keeps examples"):
        alone = by_encoder()
        alone.fit(DATA, valid=0.0, steps=1)
        alone.add(examples=(["a"], [DATA.labels.uids[0]]))


# -- small and odd data ------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["red mug"], ["a"]),
        (["red mug", "blue hat"], ["a", "b"]),
        (["red mug"] * 5, ["a", "b", "a", "b", "a"]),
        (["red mug", "blue hat", "old tea"] * 5, ["a"] * 15),
        (["", "red mug", "", "blue hat"] * 4, ["a", "b", "c", "d"] * 4),
        (["", "?"], ["a", "b"]),
        (["red mug", "blue hat", "tea"], [["a"], [], ["b"]]),
        ([("red", "mug"), ("", "hat")], [["a", "b"], ["b"]]),
        ([f"w{i} w{i % 7}" for i in range(65)], [f"l{i % 7}" for i in range(65)]),
    ],
    ids=["one", "two", "same text", "one label", "empty texts", "no words", "none", "pairs", "65"],
)
def test_tiny_data_just_work(texts: Any, labels: Any, valid: float, tmp_path: Path) -> None:
    """Every default: it trains, predicts, evaluates, is saved and opened."""
    model = shoal.LabelModel(device="cpu")
    result = model.fit(texts, labels, valid=valid, out=tmp_path / "run", steps=3)
    assert result.steps == 3
    n_labels = len(model.labels)
    row = model.predict("a red mug", k=5)
    assert len(row) == min(5, n_labels)
    again = shoal.open(tmp_path / "run", device="cpu")
    assert again.predict(["a red mug", ""], k=5)[0] == model.predict(["a red mug", ""], k=5)[0]
    assert model.evaluate(["red"], [model.labels.uids[0]])["P@1"] in (0.0, 100.0)


def test_a_batch_shrinks_to_the_data(caplog: pytest.LogCaptureFixture) -> None:
    """500 rows and the default batch of 1,024: whole clusters, said in one line; and what too few
    held-out examples mean for scores is said, too."""
    texts = [f"{color} thing {i}" for i in range(250) for color in ("red", "blue")]
    with caplog.at_level(logging.INFO, "shoal"):
        model = shoal.LabelModel(encoder=shoal.BagEncoder(dim=8), device="cpu")
        result = model.fit(texts, [text.split()[0] for text in texts], epochs=2, valid=0.005)
    assert result.steps == 4
    assert "examples: batches of 448 in clusters of 64" in caplog.text
    assert "40 are needed to weigh rankers" in caplog.text
    assert "scores are cosines, no probabilities" in caplog.text
    assert not model.probabilities
    assert model.predict("a red one", k=1)[0].label == "red"


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=6).filter(lambda x: not any("\ud800" <= c <= "\udfff" for c in x)),
            st.lists(st.sampled_from("abc"), max_size=2),
        ),
        min_size=1,
        max_size=5,
    ).filter(lambda rows: any(labels for _, labels in rows))
)
def test_any_texts_and_labels_train(rows: list[tuple[str, list[str]]]) -> None:
    """Whatever the characters, whether labels are missing or twice: one step, and an answer."""
    model = by_encoder()
    model.fit([text for text, _ in rows], [labels for _, labels in rows], steps=1)
    found = model.predict([text for text, _ in rows])
    assert [len(row) for row in found] == [len(model.labels)] * len(rows)


def test_scripts_without_spaces_are_learned() -> None:
    """Names of products in Japanese, written without spaces: the things they are."""
    colors, stuffs = ["赤い", "青い", "緑の", "黒い"], ["鋼", "木製", "革", "陶器"]
    things = {"マグカップ": "台所", "フライパン": "調理", "長靴": "靴", "椅子": "家具"}
    rows = [(c + s + t, kind) for c in colors for s in stuffs for t, kind in things.items()]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(rows), generator=generator).tolist()
    train, test = ([rows[i] for i in part] for part in (order[:48], order[48:]))
    model = by_encoder(batches=shoal.Clustered(24, 6), encoder=shoal.BagEncoder(dim=32))
    texts, labels = (list(part) for part in zip(*train, strict=True))
    model.fit(texts, labels, valid=0.0, epochs=10)
    found = model.predict([text for text, _ in test], k=1)
    hits = [row[0].label == kind for row, (_, kind) in zip(found, test, strict=True)]
    assert sum(hits) >= 15  # of 16


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], [], "texts: expected at least one"),
        ("red", ["a"], "texts: expected a list of texts, got one text"),
        (["red", None], ["a", "b"], r"texts\[1\]: expected a string or a pair"),
        ([1, 2], ["a", "b"], r"texts\[0\]: expected a string or a pair"),
        (["red", "blue"], ["a", None], r"labels\[1\]: expected names of labels"),
        (["red", "blue"], [1, 2], r"labels\[0\]: expected names of labels"),
        (["red", "blue"], "ab", "labels: expected a label or a list of labels per text, got str"),
        (["red", "blue"], ["a"], "labels: expected 2, one per text, got 1"),
        (["red", "blue"], [[], []], "labels: expected at least one label, got none"),
        (["red"], None, "source: expected a name, a path"),
        ("no-such-file.csv", None, "no-such-file.csv: expected"),
        ("wordnet-graph", None, "data: expected texts with labels, got"),
    ],
)
def test_data_that_are_none_are_named(texts: Any, labels: Any, message: str) -> None:
    """One line each, before anything is trained."""
    with pytest.raises(InputError, match=message) as caught:
        shoal.LabelModel(device="cpu").fit(texts, labels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts: expected a text or a list of texts, got NoneType"),
        (3, "texts: expected a text or a list of texts, got int"),
        ({"a"}, "texts: expected a text or a list of texts, got set"),
        (b"red", "texts: expected a text or a list of texts, got bytes"),
        ([None], r"texts\[0\]: expected a string or a pair"),
        (["red", 3], r"texts\[1\]: expected a string or a pair"),
        ([["a", "b", "c"]], r"texts\[0\]: expected a string or a pair"),
        ("\ud83d", r"texts\[0\]: expected a text of whole characters"),
    ],
)
def test_texts_that_are_none_are_named(run: Any, texts: Any, message: str) -> None:
    """By everything that reads texts."""
    model, _ = run
    for use in (model.predict, model.encode, model.unknown):
        with pytest.raises(InputError, match=message):
            use(texts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [0, -1, 1.5, None, "3", True])
def test_k_is_a_whole_number(run: Any, k: Any) -> None:
    """Anything else is named."""
    with pytest.raises(InputError, match="k: expected a whole number of at least 1"):
        run[0].predict("w1", k=k)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"positives": 0}, "positives: expected a whole number of at least 1"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"device": "tpu"}, "device: expected a device that torch can use here, got tpu"),
        ({"precision": "half"}, "precision: expected auto, float32 or bfloat16, got half"),
        ({"encoder": None}, r"encoder: expected an object with begin\(\), got None"),
        ({"encoder": shoal.BagEncoder}, r"encoder: expected an object with begin\(\)"),
        ({"batches": 3}, "batches: expected a function, got 3"),
        ({"loss": "triplet"}, "loss: expected a function, got triplet"),
        ({"combiner": 3}, r"combiner: expected an object with fit\(\), got 3"),
        ({"rankers": []}, "rankers: expected at least one, got none"),
    ],
)
def test_parts_that_are_none_are_named(parts: Any, message: str) -> None:
    """When the model is made, not when it trains."""
    with pytest.raises(InputError, match=message):
        shoal.LabelModel(**{"device": "cpu"} | parts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid": 1.0}, r"valid: expected a share in \[0, 1\), got 1.0"),
        ({"valid": "x"}, r"valid: expected \(texts, labels\), got str"),
        ({"test": 3}, r"test: expected \(texts, labels\), got int"),
        ({"epochs": 0}, "epochs: expected a whole number of at least 1"),
        ({"steps": 1.5}, "steps: expected a whole number of at least 1"),
        ({"minutes": 0}, "minutes: expected a number above 0"),
        ({"patience": 0}, "patience: expected a whole number of at least 1"),
        ({"patience": 2, "valid": 0.0}, "patience: expected a job with validation, got none"),
        ({"valid_every": 0}, "valid_every: expected a whole number of at least 1"),
        ({"resume": True}, "out: expected the folder to resume, got None"),
    ],
)
def test_limits_that_are_none_are_named(options: Any, message: str) -> None:
    """One line each."""
    model = by_encoder()
    with pytest.raises(InputError, match=message):
        model.fit(["red mug", "blue hat"] * 4, ["a", "b"] * 4, **options)
    with pytest.raises(InputError, match="model: expected a fitted one"):
        model.predict("red")
    with pytest.raises(InputError, match="model: expected a fitted one"):
        model.save("nowhere")
