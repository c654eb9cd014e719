"""``shoal.sklearn.LabelClassifier`` in the real scikit-learn: cloned, piped, searched, pickled."""

from __future__ import annotations

import inspect
import pickle
import sys
from copy import copy
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import shoal
import shoal.sklearn
from shoal.core.errors import InputError

FAST = {"encoder": shoal.BagEncoder(dim=16), "steps": 30, "valid": 0, "device": "cpu"}
WEIGHED = {"valid": 0.5, "classifiers": None}  # held out twice: then scores are probabilities
COLORS, THINGS = ("red", "blue", "green"), ("mug", "hat", "lamp", "coat")
PAIRS = [(color, thing) for color in COLORS for thing in THINGS]
TEXTS = [f"a {color} {thing} number {i}" for i in range(4) for color, thing in PAIRS]
ONE = [color for _ in range(4) for color, _ in PAIRS]
SEVERAL = [list(pair) for _ in range(4) for pair in PAIRS]


@pytest.fixture(autouse=True)
def sklearn() -> Any:
    """The package."""
    return pytest.importorskip("sklearn", reason="needs the extra sklearn")


def made(**options: Any) -> Any:
    """A small classifier."""
    return shoal.sklearn.LabelClassifier(**{**FAST, **options})


@pytest.fixture(scope="module")
def sure() -> Any:
    """A classifier of several labels that gives probabilities: 200 texts are held out."""
    pytest.importorskip("sklearn", reason="needs the extra sklearn")
    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    return made(**WEIGHED).fit(texts, SEVERAL * 9)


def test_every_argument_of_the_model_is_a_parameter() -> None:
    """What LabelModel takes can be set and searched, and is stored as it was given."""
    names = set(inspect.signature(shoal.LabelModel).parameters)
    encoder = shoal.BagEncoder(dim=8)
    model = made(encoder=encoder)
    assert names <= set(model.get_params()) and model.encoder is encoder
    defaults = inspect.signature(shoal.LabelModel).parameters
    plain = shoal.sklearn.LabelClassifier().get_params()
    assert all(repr(plain[name]) == repr(defaults[name].default) for name in names)
    assert model.set_params(seed=3).seed == 3


def test_a_clone_has_the_same_parameters_and_no_model() -> None:
    """clone copies parameters; predicting with it is scikit-learn's own error."""
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    model = made(seed=5).fit(TEXTS, ONE)
    same = clone(model)
    assert same.seed == 5 and repr(same.encoder) == repr(model.encoder)
    with pytest.raises(NotFittedError):
        same.predict(TEXTS)


@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, dtype=object)])
def test_one_label_per_text_comes_back_as_an_array(kind: Any) -> None:
    """Names in, names out; the score is the accuracy."""
    model = made().fit(kind(TEXTS), kind(ONE))
    found = model.predict(kind(["a blue mug", "a red lamp", "a green hat"]))
    assert found.tolist() == ["blue", "red", "green"]
    assert model.classes_.tolist() == sorted(COLORS) and model.score(TEXTS, ONE) > 0.9


def test_numbers_are_classes() -> None:
    """Labels that are numbers stay numbers."""
    model = made().fit(TEXTS, [COLORS.index(color) + 10 for color in ONE])
    assert model.predict(["blue"]).tolist() == [11] and model.classes_.tolist() == [10, 11, 12]


@pytest.mark.whole
def test_lists_of_labels_come_back_as_lists(sure: Any) -> None:
    """Labels of at least the threshold, none twice; P@1 is the score."""
    found = sure.predict(["a red mug", "a blue hat"])
    assert [sorted(row) for row in found] == [["mug", "red"], ["blue", "hat"]]
    assert sure.score(TEXTS, SEVERAL) == 1.0
    more = clone_of(sure, threshold=0.0).predict(["a red mug"])
    assert {"mug", "red"} < set(more[0])


def clone_of(model: Any, **options: Any) -> Any:
    """The same fitted classifier with other parameters."""
    return copy(model).set_params(**options)


def indicators() -> tuple[np.ndarray, list[str]]:
    """The labels as a matrix, and the names of its columns."""
    names = sorted({*COLORS, *THINGS})
    return np.array([[int(name in row) for name in names] for row in SEVERAL]), names


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csr_array])
def test_an_indicator_matrix_comes_back_as_one(kind: Any) -> None:
    """The same type, of zeros and ones, and scikit-learn's metrics read it."""
    from sklearn.metrics import f1_score

    matrix, _ = indicators()
    truth = kind(matrix)
    model = made(**WEIGHED, threshold=0.3).fit(TEXTS, truth)
    found = model.predict(TEXTS)
    assert type(found) is type(truth) and found.shape == truth.shape
    dense = found.toarray() if scipy.sparse.issparse(found) else found
    assert set(np.unique(dense)) == {0, 1} and model.classes_.tolist() == list(range(7))
    assert f1_score(truth, found, average="micro") > 0.4
    assert model.score(TEXTS, truth) > 0.6


def test_probabilities_have_a_column_per_class(sure: Any) -> None:
    """In [0, 1], in the order of classes_, and those above the threshold are predicted."""
    shares = sure.predict_proba(TEXTS[:12])
    assert shares.shape == (12, 7) and shares.min() >= 0 and shares.max() <= 1
    rows = [sorted(sure.classes_[row >= 0.5].tolist()) for row in shares]
    assert rows == [sorted(row) for row in sure.predict(TEXTS[:12])]


@pytest.mark.whole
def test_probabilities_of_one_label_sum_to_one() -> None:
    """And the best of them is what is predicted; scikit-learn's scorers read them."""
    from sklearn.metrics import get_scorer

    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    model = made(**WEIGHED).fit(texts, ONE * 9)
    shares = model.predict_proba(TEXTS)
    assert np.allclose(shares.sum(1), 1)
    assert (model.classes_[shares.argmax(1)] == model.predict(TEXTS)).all()
    assert get_scorer("roc_auc_ovr")(model, TEXTS, ONE) > 0.99
    assert get_scorer("neg_log_loss")(model, TEXTS, ONE) > -0.5


def test_cosines_are_no_probabilities() -> None:
    """predict_proba of a model without a combiner: one line with a remedy."""
    model = made().fit(TEXTS, ONE)
    with pytest.raises(InputError, match=r"predict_proba: expected .*; raise valid or add texts"):
        model.predict_proba(TEXTS)


def test_a_pipeline_and_a_search_over_objects() -> None:
    """Steps before it may change the texts; encoders are searched over, folds are stratified."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipe = make_pipeline(lower, made())
    encoders = [shoal.BagEncoder(dim=dim) for dim in (8, 16)]
    grid = {"labelclassifier__encoder": encoders, "labelclassifier__seed": [0]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise")
    search.fit([text.upper() for text in TEXTS], ONE)
    assert search.best_score_ > 0.8 and search.predict(["A BLUE MUG"]).tolist() == ["blue"]
    assert len(search.cv_results_["params"]) == 2


@pytest.mark.parametrize("lists", [True, False])
def test_cross_validation_of_several_labels(lists: bool) -> None:
    """Matrices with any cv; lists with folds that are not stratified."""
    from sklearn.model_selection import KFold, cross_val_score

    y = SEVERAL if lists else indicators()[0]
    cv = KFold(2, shuffle=True, random_state=0) if lists else 2
    assert cross_val_score(made(), TEXTS, y, cv=cv).min() > 0.3


def test_a_fitted_classifier_is_pickled() -> None:
    """What comes back predicts the same, and is of the same class."""
    model = made().fit(TEXTS, ONE)
    back = pickle.loads(pickle.dumps(model))
    assert type(back) is shoal.sklearn.LabelClassifier
    assert (back.predict(TEXTS) == model.predict(TEXTS)).all()
    same = [back.model_.predict(TEXTS, k=3), model.model_.predict(TEXTS, k=3)]
    assert same[0] == same[1]


@pytest.mark.whole
def test_a_fit_after_a_fit_begins_anew() -> None:
    """Another form of labels replaces the first."""
    model = made(**WEIGHED).fit(TEXTS, SEVERAL).fit(TEXTS, ONE)
    assert model.predict(["blue"]).tolist() == ["blue"] and len(model.classes_) == 3


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (TEXTS, ["red", 1] * 24, "y: expected labels of one type"),
        (TEXTS, ONE[:-1], "labels: expected 48, one per text, got 47"),
        ("one text", ["red"], "texts: expected a list of texts"),
        (TEXTS, None, "y: expected one label or a list of labels per text, got NoneType"),
        (TEXTS, np.array([["red"]] * 48), "y: expected an indicator matrix of numbers"),
        ([None, *TEXTS[1:]], ONE, r"texts\[0\]: expected a string"),
    ],
)
def test_bad_input_is_one_line(X: Any, y: Any, message: str) -> None:
    """Expected, got, remedy."""
    with pytest.raises(InputError, match=message) as caught:
        made().fit(X, y)
    assert "\n" not in str(caught.value)


def test_targets_of_a_regression_are_refused() -> None:
    """By scikit-learn's own check."""
    with pytest.raises(ValueError, match="continuous"):
        made().fit(TEXTS, np.linspace(0, 1, 48))


def test_the_example_of_the_docstring() -> None:
    """It answers as it says."""
    code = shoal.sklearn.LabelClassifier.__doc__.split("Example:")[1].split("::\n")[1]
    *lines, last = inspect.cleandoc(code).splitlines()
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    call, answer = last.split("  # ")
    assert repr(eval(call, space)) == answer


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: Any) -> None:
    """One line, and only when the class is asked for."""
    monkeypatch.delitem(vars(shoal.sklearn), "LabelClassifier", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(InputError, match=r"pip install '.*shoal\[sklearn\]'"):
        shoal.sklearn.LabelClassifier  # noqa: B018
    with pytest.raises(AttributeError, match="absent"):
        shoal.sklearn.absent  # noqa: B018
