"""``LabelClassifier``: :class:`shoal.LabelModel` as a scikit-learn estimator.

scikit-learn is optional, so the class that inherits from it is made when it is first used.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.core.search import Search, top_k
from shoal.data.texts import as_list, as_texts, label_data
from shoal.models.labels import LabelModel
from shoal.rank.calibration import Rule
from shoal.rank.classifiers import Classifiers
from shoal.rank.ensemble import NetworkCombiner
from shoal.rank.predictor import Prediction
from shoal.rank.rankers import RANKERS
from shoal.tasks.labels import FEWEST
from shoal.text.bag import BagEncoder

# labels above the threshold that a text can get: all rankers together find fewer
_MOST = 1000
_log = logging.getLogger("shoal")


class _LabelClassifier:
    """Texts in, labels out, for ``clone``, ``Pipeline``, ``GridSearchCV`` and the like.

    `y` may be one label per text, a list of labels per text, or an indicator matrix (numpy, scipy)
    with one column per label; ``predict`` answers in the same form. scikit-learn's own metrics and
    stratified folds take no lists of labels: pass the matrix of a ``MultiLabelBinarizer`` to those.

    Args:
        encoder: as for :class:`shoal.LabelModel`, and so are the arguments up to `precision`. All
            are stored as given, so that any of them may be searched over.
        batches: as above.
        loss: as above.
        positives: as above.
        classifiers: as above.
        rankers: as above.
        combiner: as above.
        search: as above.
        step: as above.
        gradients: as above.
        seed: as above.
        device: as above.
        precision: as above.
        valid: share of the texts that ``fit`` holds out, to weigh the rankers by.
        epochs: passes of the encoder over the texts; 6 without any limit.
        steps: optimizer steps of the encoder.
        minutes: of training the encoder.
        threshold: where texts have several labels, ``predict`` returns those of at least this
            probability; 0.5 is the most accurate for each label by itself, ``"f1"`` and the like
            (:meth:`shoal.LabelModel.predict`) are best by F1 on held-out texts.

    Attributes:
        classes_: the labels, in the order of the columns of ``predict_proba``; of an indicator
            matrix the numbers of its columns.
        model_: the fitted :class:`shoal.LabelModel`, such as to save it.

    Example:
        After ``pip install scikit-learn``::

            from shoal.sklearn import LabelClassifier

            texts = [f"{color} {thing}" for color in ("red", "blue") for thing in ("mug", "hat")]
            model = LabelClassifier(valid=0).fit(texts * 4, ["red", "red", "blue", "blue"] * 4)
            model.predict(["a red scarf"])  # array(['red'], dtype='<U4')
    """

    threshold: float | Rule
    classes_: Any
    model_: LabelModel

    def __init__(
        self,
        *,
        encoder: Any = BagEncoder(),
        batches: Callable[[int, int], Any] | None = None,
        loss: Callable[..., Tensor] | None = None,
        positives: int = 2,
        classifiers: Any | None = Classifiers(),
        rankers: Sequence[Any] = RANKERS,
        combiner: Any | None = NetworkCombiner(),
        search: Search = top_k,
        step: Callable[[Any], Any] | None = None,
        gradients: Any | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        valid: float | int = 0.1,
        epochs: int | None = None,
        steps: int | None = None,
        minutes: float | int | None = None,
        threshold: float | int | Rule = 0.5,
    ) -> None:
        given = dict(locals())
        del given["self"]
        vars(self).update(given)

    def fit(self, X: Any, y: Any) -> Any:
        """Train a new model.

        Args:
            X: the texts: a list of strings or of pairs (title, content), a pandas column, an array.
            y: their labels, in one of the three forms.

        Raises:
            InputError: as ``LabelModel.fit``, or if labels of several types cannot be sorted.
        """
        form, rows = _read_labels(y)
        names = None  # of columns: those of a pandas frame, else l0, l1, …
        if form in ("label", "lists"):
            try:
                classes = sorted({label for row in rows for label in row})
            except TypeError as error:
                fail("y", "labels of one type", error, "pass all of them as strings")
            position = {label: i for i, label in enumerate(classes)}
            labels: Any = [sorted({position[label] for label in row}) for row in rows]
            names = [str(label) for label in classes]
        else:
            classes, labels = range(y.shape[1]), y
        data = label_data(X, labels, label_names=names)
        model = LabelModel(
            **{name: getattr(self, name) for name in inspect.signature(LabelModel).parameters}
        )
        limits = {name: getattr(self, name) for name in ("valid", "epochs", "steps", "minutes")}
        model.fit(data, **limits)
        self.model_, self.classes_, self._form = model, np.array(classes), form
        return self

    def predict(self, X: Any) -> Any:
        """The labels of texts, in the form that ``fit`` was given.

        Raises:
            InputError: if an item is no text, or the threshold is out of range.
        """
        if self._fitted()._form == "label":
            return self.classes_[self._best(X)]
        if not self.model_.probabilities:
            _log.warning("scores are no probabilities: the threshold is one of cosines")
        found = self._found(X, _MOST, self.threshold)
        if self._form == "lists":
            names = self.classes_.tolist()
            return [[names[one.position] for one in row] for row in found]
        matrix = self._matrix(found)
        matrix.data = np.ones(len(matrix.data), dtype=np.int64)
        return matrix.toarray() if self._form == "dense" else matrix

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n l"]:
        """The probability of each label, one column per entry of ``classes_``.

        Labels that no ranker finds have 0. Where texts have one label, rows sum to one.

        Raises:
            InputError: if the model gives no probabilities, or an item is no text.
        """
        remedy = f"raise valid or add texts: {FEWEST} held out teach it what scores are worth"
        able = self._fitted().model_.probabilities
        expect(able, "predict_proba", "a model with a combiner", "one of cosines alone", remedy)
        shares = self._matrix(self._found(X, _MOST)).toarray()
        if self._form == "label":
            shares[shares.sum(1) == 0] = 1.0  # nothing was found: any label
            shares /= shares.sum(1, keepdims=True)
        return shares

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of texts whose best label is right, in [0, 1]: P@1; of one label, the accuracy.

        Raises:
            InputError: if an item is no text.
        """
        best, (_, rows) = self._fitted()._best(X), _read_labels(y)
        names = self.classes_.tolist()
        hits = [names[i] in row for i, row in zip(best, rows, strict=True)]
        return float(np.average(hits, weights=sample_weight))

    def _fitted(self) -> Any:
        require("sklearn.utils.validation", "model", "sklearn").check_is_fitted(self, "model_")
        return self

    def _found(
        self, X: Any, k: int, threshold: float | Rule | None = None
    ) -> list[list[Prediction]]:
        texts, single = as_texts(X, "X")
        expect(not single, "X", "a list of texts", "one text", "pass [text]")
        return self.model_.predict(texts, min(k, len(self.classes_)), threshold)

    def _best(self, X: Any) -> list[int]:
        # a ranker of words alone may find nothing: the first label is as good as another
        return [row[0].position if row else 0 for row in self._found(X, 1)]

    def _matrix(self, found: list[list[Prediction]]) -> Any:
        """Scores as a sparse matrix, one row per text and one column per label."""
        from scipy.sparse import csr_array, csr_matrix

        scores = np.array([one.score for row in found for one in row], dtype=np.float64)
        columns = [one.position for row in found for one in row]
        ends = np.cumsum([0, *(len(row) for row in found)])
        kind = csr_matrix if self._form == "csr_matrix" else csr_array
        matrix = kind((scores, columns, ends), shape=(len(found), len(self.classes_)))
        matrix.sort_indices()
        return matrix

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyright: ignore[reportAttributeAccessIssue]
        tags.input_tags.string, tags.input_tags.one_d_array = True, True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags


def _read_labels(y: Any) -> tuple[str, list[list[Any]]]:
    """The form of `y`, and the labels of each text; those of a matrix are numbers of columns.

    The form is label, lists, dense, csr_matrix or csr_array.
    """
    if getattr(y, "ndim", 1) == 2:
        from scipy.sparse import csr_array, issparse, sparray

        try:
            matrix = csr_array(y, copy=True)
        except (TypeError, ValueError) as error:
            fail("y", "an indicator matrix of numbers", error, "pass lists of labels, or use 0, 1")
        matrix.eliminate_zeros()
        rows = [part.tolist() for part in np.split(matrix.indices, matrix.indptr[1:-1])]
        kind = "csr_array" if isinstance(y, sparray) else "csr_matrix"
        return kind if issparse(y) else "dense", rows
    cells = as_list(y, "y", "one label or a list of labels per text")
    if any(isinstance(cell, list | tuple | set | frozenset | np.ndarray) for cell in cells):
        return "lists", [[cell] if isinstance(cell, str) else list(cell) for cell in cells]
    # refuses numbers that are no classes
    require("sklearn.utils.multiclass", "y", "sklearn").check_classification_targets(y)
    return "label", [[cell] for cell in cells]


def __getattr__(name: str) -> Any:
    if name != "LabelClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = require("sklearn.base", name, "sklearn")
    # kept under this name in the module, where pickle looks for it
    kind = type(name, (_LabelClassifier, base.ClassifierMixin, base.BaseEstimator), {})
    kind.__doc__ = _LabelClassifier.__doc__
    return globals().setdefault(name, kind)
