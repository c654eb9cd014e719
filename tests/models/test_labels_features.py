"""Examples of features: a weighted bag or standard scores, and labels known by their examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.nn.functional import normalize

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.formats import FORMATS
from shoal.data.read import read_texts_to_predict
from shoal.data.texts import Examples, LabelData, Texts, label_data, numbered_labels
from shoal.rank.linear import ridge_regression
from shoal.text.features import FeatureColumns
from tests.command import shoal as command
from tests.models.test_labels_runs import Interrupt, expect_same

LABELS, WIDTH = 12, 30


def planted(n: int, dense: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features whose largest says the label, among noise: counts of a few words, or numbers."""
    chance = np.random.default_rng(seed)
    y = chance.integers(0, LABELS, n)
    x = chance.normal(size=(n, WIDTH)) if dense else chance.poisson(0.15, (n, WIDTH))
    x = x.astype(np.float32)
    x[np.arange(n), y] += 4
    return x, np.eye(LABELS)[y]


def small(**parts: Any) -> shoal.LabelModel:
    """A narrow linear encoder on small batches."""
    usual: dict[str, Any] = {
        "encoder": shoal.BagEncoder(dim=16),
        "batches": shoal.Clustered(40, 8),
        "classifiers": shoal.Classifiers(epochs=2),
        "combiner": shoal.NetworkCombiner(epochs=4),
        "device": "cpu",
    }
    return shoal.LabelModel(**usual | parts)


def fit(model: shoal.LabelModel, dense: bool = True, **options: Any) -> shoal.Result:
    """160 examples, and others to weigh the rankers by."""
    usual: dict[str, Any] = {"valid": planted(60, dense, seed=9), "epochs": 2}
    return model.fit(*planted(160, dense), **usual | options)


@pytest.fixture(scope="module", params=[True, False], ids=["dense", "sparse"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path]:
    """A run on features of either kind, with its checkpoints."""
    out = tmp_path_factory.mktemp("features") / "run"
    fit(small(), request.param, out=out, keep_resume=True)
    return request.param, out


# -- laws ---------------------------------------------------------------------------------------


def test_dense_is_standard_scores_times_the_rows(run: tuple[bool, Path]) -> None:
    """The encoder's vectors by plain linear algebra, and the label's: the mean's, and its row."""
    dense, folder = run
    model = shoal.open(folder)
    x, _ = planted(20, dense, seed=1)
    columns, rows = model.encoder.vocabulary, model.encoder.rows
    seen = torch.from_numpy(x)[:, columns.seen]
    scores = (seen - columns.mean if dense else seen) * columns.scale
    expected = normalize(normalize(scores) @ rows[: len(columns.seen)])
    torch.testing.assert_close(model.encode(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
def test_a_label_begins_as_the_mean_of_its_examples(dense: bool) -> None:
    """PIFA by hand; its own row begins at zero, and a label without examples is the zero vector."""
    x, y = planted(40, dense)
    y[:, 3] = 0
    examples = label_data(x, y).train
    described = examples.describing(numbered_labels(LABELS))
    encoder, tokens = shoal.BagEncoder(dim=8).begin(
        examples.texts, described, seed=0, device="cpu", folder=None
    )
    found = encoder.embed_labels(tokens.span(40, 40 + LABELS))
    for label in set(range(LABELS)) - {3}:
        mean = x[y[:, label] > 0].mean(0, keepdims=True)
        (expected,) = encoder.embed(encoder.documents(label_data(mean, [["a"]]).train.texts))
        torch.testing.assert_close(found[label], expected, atol=1e-5, rtol=1e-4)
    none = found[3] if not dense else found[3] * 0  # no features at all are the mean's opposite
    assert none.abs().sum() == 0


def test_a_weight_of_two_is_a_word_twice() -> None:
    """The direction of a bag of weights is that of a bag that repeats its words."""
    columns = FeatureColumns.of(Csr.from_lists([[0, 1], [1, 2], [0], [2]], n_cols=8), 1)
    rows = torch.randn(len(columns), 5, generator=torch.Generator().manual_seed(0))
    weights = Csr.from_lists([[0, 2]], n_cols=8).with_values(torch.tensor([2.0, 1.0]))
    twice = Csr.from_lists([[0, 0, 2]], n_cols=8)
    one, other = (
        normalize(columns.documents(Texts.of_features(x)).to_dense() @ rows)
        for x in (weights, twice)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dense", [True, False])
def test_the_order_of_columns_says_nothing(dense: bool) -> None:
    """Permuted features, in training and test, are as well predicted: the planted law is found."""
    order = np.random.default_rng(1).permutation(WIDTH)
    test = planted(200, dense, seed=1)
    found = []
    for columns in (np.arange(WIDTH), order):
        model, (x, y) = small(), planted(160, dense)
        held_out, truth = planted(60, dense, seed=9)
        model.fit(x[:, columns], y, valid=(held_out[:, columns], truth), epochs=2)
        found.append(model.evaluate(test[0][:, columns], test[1])["P@1"])
    assert min(found) > 80 and abs(found[0] - found[1]) < 8


def test_ridge_regression_is_least_squares() -> None:
    """The closed form equals least squares on rows that carry the penalty."""
    x, y = (torch.from_numpy(part).float() for part in planted(50, dense=False))
    weights, bias = ridge_regression(Csr.from_dense(x), Csr.from_dense(y), 2.0)
    center, target = x - x.mean(0), y - y.mean(0)
    rows = torch.cat([center, 2.0**0.5 * torch.eye(WIDTH)]).double()
    wanted = torch.cat([target, torch.zeros(WIDTH, LABELS)]).double()
    expected = torch.linalg.lstsq(rows, wanted).solution.float()
    torch.testing.assert_close(weights, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(bias, y.mean(0) - x.mean(0) @ expected, atol=1e-4, rtol=1e-3)


def test_a_stopped_run_is_resumed(run: tuple[bool, Path], tmp_path: Path) -> None:
    """Stopped in the encoder: the same model in the end, bit for bit."""
    dense, whole = run
    out = tmp_path / "run"
    stopped = fit(small(), dense, out=out, keep_resume=True, callbacks=[Interrupt(2)])
    assert stopped.stopped == "interrupt"
    fit(small(), dense, out=out, keep_resume=True, resume=True)
    expect_same(whole, out)


def test_a_trained_encoder_goes_on(run: tuple[bool, Path]) -> None:
    """Its columns and rows are those that training begins with."""
    dense, folder = run
    encoder = shoal.open(folder).encoder
    model = small(encoder=encoder)
    fit(model, dense, epochs=1)
    assert torch.equal(model.encoder.vocabulary.scale, encoder.vocabulary.scale)
    assert not torch.equal(model.encoder.rows, encoder.rows)


# -- what users call ----------------------------------------------------------------------------


def test_numpy_scipy_and_torch_are_one(run: tuple[bool, Path]) -> None:
    """The same features in any library; one example asks for one row; explained without words."""
    _, folder = run
    model, (x, y) = shoal.open(folder), planted(6, run[0], seed=2)
    expected = model.predict(x, k=2)
    kinds = (scipy.sparse.csr_matrix, scipy.sparse.coo_array, torch.from_numpy)
    for kind in kinds:
        assert model.predict(kind(x), k=2) == expected
    assert model.probabilities and model.evaluate(x, y)["P@1"] > 60
    kinds_of = [ranker.kind for ranker in model.predictor.rankers]
    assert kinds_of == ["encoder", "classifiers", "neighbors", "linear"]
    (row,) = model.predict(x[:1], k=1, explain=True)
    assert "features, linearly" in row[0].explanation["rankers"]


def test_the_command_trains_evaluates_predicts_and_exports(tmp_path: Path) -> None:
    """From files to predictions; `shoal data` says the kind; serve refuses in one line."""
    train, test = (label_data(*planted(n, True, seed=n)).train for n in (100, 40))
    data = LabelData("planted", train, test, numbered_labels(LABELS))
    FORMATS["bow"].write(data, tmp_path / "data")
    np.save(tmp_path / "x.npy", planted(3, True, seed=5)[0])
    about = json.loads(command("data", tmp_path / "data", "--json").out)
    assert about["examples"] == f"dense features, {WIDTH} an example"
    assert "known by their examples" in about["label_texts"]
    short = "--dim 8 --batch-size 40 --cluster-size 8 --epochs 1 --valid 0.5 --device cpu".split()
    trained = command("train", "labels", tmp_path / "data", *short, "--out", tmp_path / "run")
    assert trained.status == 0, trained.err
    judged = json.loads(command("evaluate", tmp_path / "run", "--json").out)
    assert judged["examples"] == 40 and judged["test"]["P@1"] > 50
    assert command("export", tmp_path / "run", tmp_path / "out").status == 0
    lines = command("predict", tmp_path / "out", tmp_path / "x.npy", "--k", 2).out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["example"] for line in found] == ["0", "1", "2"]
    assert all(len(line["labels"]) == 2 for line in found)
    for words in (["serve", tmp_path / "out"], ["query", "a mug", "--run", tmp_path / "out"]):
        refused = command(*words)
        assert refused.status == 2 and f"{WIDTH}" in refused.err.splitlines()[-1]


# -- what is refused ----------------------------------------------------------------------------


def test_other_features_than_in_training(run: tuple[bool, Path]) -> None:
    """Another width, texts, and features for a model of texts: each one line."""
    model, (x, _) = shoal.open(run[1]), planted(3, True)
    with pytest.raises(InputError, match="expected features, 30 an example, as in training, got"):
        model.predict(x[:, 1:])
    with pytest.raises(InputError, match="expected features, 30 an example, as in training, got"):
        model.encode("a mug")
    with pytest.raises(InputError, match="expected the 12 that it was trained on"):
        model.add(labels=["another"])
    texts = small(rankers=[shoal.EncoderRanker()], combiner=None, classifiers=None)
    texts.fit(["red mug", "blue hat"] * 4, ["a", "b"] * 4, valid=0, epochs=1)
    with pytest.raises(InputError, match="expected texts, as in training, got features, 30 an"):
        texts.predict(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["array", "npy", "npz", "text"])
def test_numbers_that_are_none(tmp_path: Path, bad: float, form: str) -> None:
    """NaN and infinite features are named with their row, from memory and from every file."""
    x, y = planted(8, True)
    x[3, 5] = bad
    path = tmp_path / f"x.{form}"
    if form == "text":
        path = tmp_path / "train.txt"
        path.write_text(f"1 9 2\n0 3:{bad}\n")
    elif form == "npy":
        np.save(path, x)
    elif form == "npz":
        scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(x))
    with pytest.raises(InputError, match="expected finite weights, got"):
        if form == "array":
            label_data(x, y)
        else:
            read_texts_to_predict(path)


def test_matrices_of_other_things(tmp_path: Path) -> None:
    """Three axes, words, and no number at all."""
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2)))
    with pytest.raises(InputError, match="expected a matrix of numbers"):
        read_texts_to_predict(tmp_path / "x.npy")
    with pytest.raises(InputError, match="expected some that are not 0, got none"):
        small().fit(np.zeros((4, 3)), ["a", "b"] * 2, valid=0)
    pairs = np.array([["red", "mug"], ["tea", "cup"]])
    assert label_data(pairs, ["a", "b"]).train.texts.contents == ["mug", "cup"]


def test_empty_rows_and_labels_without_examples(caplog: pytest.LogCaptureFixture) -> None:
    """An example without features is answered, with a word of warning; a label of which nothing is
    known is said to be one."""
    x, y = planted(120, dense=False)
    y[y[:, 3] > 0] = np.eye(LABELS)[4]
    x[0] = 0
    model = small()
    model.fit(x, y, valid=planted(60, False, seed=9), epochs=1)
    assert "1 of 12 labels have no training example, nor features" in caplog.text
    assert all(model.predict(x[:30], k=1))
    assert "1 of 30 examples have no known feature" in caplog.text


def test_features_of_labels_count_as_an_example() -> None:
    """They are one more row of the mean; of another width they are refused."""
    examples = Examples.of(
        Texts.of_features(Csr.from_lists([[0], [0]], 2)), Csr.from_lists([[0], [0]], 1)
    )
    labels = Texts.of_features(Csr.from_lists([[1]], 2))
    found = examples.describing(labels).features
    assert found is not None
    torch.testing.assert_close(found.to_dense(), torch.tensor([[2 / 3, 1 / 3]]))
    with pytest.raises(InputError, match="features of labels: expected 2, as those of examples"):
        examples.describing(Texts.of_features(Csr.from_lists([[1]], 3)))
    texts = Texts.of(["red", "mug"])
    assert Examples.of(texts, examples.labels).describing(labels) is labels


def test_a_transformer_reads_no_features(tmp_path: Path) -> None:
    """Refused before training."""
    from tests.tiny import save_tiny_bert

    model = small(encoder=shoal.TransformerEncoder(str(save_tiny_bert(tmp_path)), max_length=8))
    with pytest.raises(InputError, match="expected texts, as in training, got features, 30"):
        fit(model)
