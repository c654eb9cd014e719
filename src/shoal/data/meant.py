"""Whether what was read can be meant: data from which nothing can be learned was read wrongly.

A column of ids in place of labels, matrices that stand in for one another: all are read without a
fault of form. What cannot be meant is refused
before training, what hardly is is said.
"""

from __future__ import annotations

import logging
import re

import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError, fail
from shoal.data.splits import digests
from shoal.data.texts import LabelData

_log = logging.getLogger("shoal")
_FEW = 20  # examples of which anything may be true
_NUMBER = re.compile(r"[^\s\d]{0,4}\d+|[0-9a-f-]{16,}", re.IGNORECASE)


def is_number(text: str) -> bool:
    """Whether a label's text is a number or an id, which says nothing of what the label means.

    Example:
        >>> [is_number(text) for text in ("17", "l0", "Q42", "red mug", "")]
        [True, True, True, False, False]
    """
    return _NUMBER.fullmatch(text) is not None


def expect_learnable(data: LabelData) -> None:
    """Raise if nothing can be learned from the training examples, and warn if hardly anything can.

    Raises:
        InputError: if all examples read alike, each has one label of its own that is a number, or
            labels are weighed as features are.
    """
    texts, labels = data.train.texts, data.train.labels
    _say_unknowable(data)
    if len(texts) < _FEW:
        return
    if len(digests(texts).unique()) == 1:
        got = f"{len(texts)} times the same"
        fail(data.name, "examples that differ", got, "choose another column or file of texts")
    if _unit_rows(labels):
        remedy = "check that label and feature files are not swapped (Y.trn.npz, X.trn.npz)"
        fail(data.name, "labels", "rows of length 1, as features have", remedy)
    every = labels.stack(data.test.labels)
    counts = torch.bincount(every.indices, minlength=every.n_cols)
    if len(data.labels) < _FEW or int(counts.max()) > 1 or int((counts == 1).sum()) < _FEW:
        return
    named = [title for title in data.labels.all() if not is_number(title)]
    if not named and bool((every.degrees() == 1).all()):
        got = f"{len(data.labels)} numbers, each of one example"
        remedy = "choose the column or file of labels (of a table: --labels-column)"
        fail(data.name, "labels that several examples share", got, remedy)
    told = "%s: no label has more than one example: only the words of its name say what it means"
    _log.warning(told, data.name)


def _say_unknowable(data: LabelData) -> None:
    """Log what examples of features leave unread, and which labels nothing is known of."""
    features, labels = data.train.texts.features, data.labels
    if features is None:
        return
    if any(text and not is_number(text) for text in labels.all()):
        told = "%s: examples are features, so labels are known by their examples: their texts are "
        _log.warning(told + "names alone", data.name)
    alone = torch.bincount(data.train.labels.indices, minlength=len(labels)) == 0
    if labels.features is not None:
        alone &= labels.features.degrees() == 0
    if bool(alone.any()):
        told = (
            "%s: %d of %d labels have no training example, nor features: they are hardly ever found"
        )
        _log.warning(told, data.name, int(alone.sum()), len(labels))


def doubt(data: LabelData) -> str | None:
    """Why :func:`expect_learnable` refuses data, if it does."""
    try:
        expect_learnable(data)
    except InputError as error:
        return str(error)
    return None


def _unit_rows(labels: Csr) -> bool:
    """Whether relevances are weights in rows of length 1, as those of words often are."""
    if labels.values is None:
        return False
    squares = torch.zeros(labels.n_rows).index_add_(0, labels.row_ids(), labels.values.square())
    several = labels.degrees() > 1
    unit = (squares - 1).abs() < 1e-3
    return bool(several.any()) and bool(unit[several].float().mean() > 0.9)
