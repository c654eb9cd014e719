"""Whether what was read can be meant: data from which nothing can be learned was read wrongly.

A column of ids in place of labels, matrices that stand in for one another, features of which only
the weights say anything: all are read without a fault of form. What cannot be meant is refused
before training, what hardly is is said.
"""

from __future__ import annotations

import logging
import re

import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError, fail
from shoal.data.texts import LabelData

_log = logging.getLogger("shoal")
_FEW = 20  # examples of which anything may be true
_ID = re.compile(r"[^\s\d]{0,4}\d+|[0-9a-f-]{16,}", re.IGNORECASE)


def expect_learnable(data: LabelData) -> None:
    """Raise if nothing can be learned from the training examples, and warn if hardly anything can.

    Raises:
        InputError: if all examples read alike, each has one label of its own that is a number, or
            labels are weighed as features are.
    """
    texts, labels = data.train.texts, data.train.labels
    if len(texts) < _FEW:
        return
    features = texts.features
    if features is not None and 2 * features.nnz >= features.n_rows * features.n_cols:
        share = f"{features.nnz / (features.n_rows * features.n_cols):.0%} of all weights"
        remedy = "pass the texts, or words that are there or not; weights are not read"
        fail(data.name, "features of few words an example", f"{share} that are not 0", remedy)
    if len(set(texts.all())) == 1:
        got = f"{len(texts)} times the same"
        fail(data.name, "examples that differ", got, "choose another column or file of texts")
    if _unit_rows(labels):
        remedy = "check that label and feature files are not swapped (Y.trn.npz, X.trn.npz)"
        fail(data.name, "labels", "rows of length 1, as features have", remedy)
    every = labels.stack(data.test.labels)
    counts = torch.bincount(every.indices, minlength=every.n_cols)
    if len(data.labels) < _FEW or int(counts.max()) > 1 or int((counts == 1).sum()) < _FEW:
        return
    named = [title for title in data.labels.all() if not _ID.fullmatch(title)]
    if not named and bool((every.degrees() == 1).all()):
        got = f"{len(data.labels)} numbers, each of one example"
        remedy = "choose the column or file of labels (of a table: --labels-column)"
        fail(data.name, "labels that several examples share", got, remedy)
    told = "%s: no label has more than one example: only the words of its name say what it means"
    _log.warning(told, data.name)


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
