"""Ids for rows of (anchor, positive) texts: what the trainer must carry to loss and sampler.

The trainer tokenizes every column of a data set but ``label``, which reaches the loss as it is. So
the pair [document id, label id] travels there: an anchor is a document, a positive is a label, and
equal texts are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail

COLUMN = "label"
"""The one column name that sentence-transformers hands to a loss untouched."""


def number_pairs(*datasets: Any) -> tuple[list[Any], Csr]:
    """Add ``label`` = [document id, label id] to data sets of (anchor, positive) texts.

    Labels are numbered over all data sets together. Documents are numbered within each, one data
    set after the other, so that what one of them knows of a text masks nothing in another: a pair
    held out for evaluation never tells a training step which labels are positive.

    Args:
        datasets: ``datasets.Dataset`` of exactly two text columns, the training set first. A
            document with several labels has a row for each.

    Returns:
        the data sets with their new column, and all known positives, documents x labels.

    Raises:
        InputError: if a data set has not exactly two columns, or no rows.

    Example:
        Two rows of one document; its two labels, and one of another document.

        >>> from datasets import Dataset  # doctest: +SKIP
        >>> rows = Dataset.from_dict({"q": ["a", "a", "b"], "d": ["x", "y", "x"]})  # doctest: +SKIP
        >>> (train,), known = number_pairs(rows)  # doctest: +SKIP
        >>> train["label"][:], known.to_dense().int().tolist()  # doctest: +SKIP
        ([[0, 0], [0, 1], [1, 0]], [[1, 1], [1, 0]])
    """
    labels: dict[str, int] = {}
    pairs: list[Tensor] = []
    first = 0
    for dataset in datasets:
        names = dataset.column_names
        expect(len(names) == 2, "datasets", "two columns, (anchor, positive)", names, "drop others")
        expect(len(dataset) > 0, "datasets", "some rows", 0, "drop the empty data set")
        documents: dict[str, int] = {}
        column = [documents.setdefault(text, first + len(documents)) for text in dataset[names[0]]]
        other = [labels.setdefault(text, len(labels)) for text in dataset[names[1]]]
        pairs.append(torch.tensor([column, other]))
        first += len(documents)
    row, col = torch.cat(pairs, dim=1)
    known = Csr.from_coo(row, col, (first, len(labels))).coalesce()
    numbered = zip(datasets, pairs, strict=True)
    return [data.add_column(COLUMN, ids.T.tolist()) for data, ids in numbered], known


def ids_of(dataset: Any) -> Int[Tensor, "n 2"]:
    """The ids that :func:`number_pairs` put into a data set.

    Raises:
        InputError: if it has none.
    """
    names = dataset.column_names
    remedy = "pass what number_pairs returns"
    expect(COLUMN in names, "dataset", f"a column {COLUMN!r} of ids", names, remedy)
    return expect_pairs("dataset", torch.tensor(dataset[COLUMN][:]))


def expect_pairs(name: str, ids: Tensor | None) -> Int[Tensor, "n 2"]:
    """Return `ids` if they are [document id, label id] pairs.

    Raises:
        InputError: if they are not.
    """
    wanted, remedy = "[document id, label id] a row", "pass what number_pairs returns"
    if ids is None:
        fail(name, wanted, "no such column", remedy)
    good = ids.dim() == 2 and ids.shape[1] == 2 and ids.dtype == torch.int64
    expect(good, name, wanted, f"{ids.dtype} {tuple(ids.shape)}", remedy)
    return ids


def texts_of(dataset: Any, rows: Sequence[int]) -> list[str]:
    """The anchors of some rows: the first column that holds no ids."""
    (name, *_) = (name for name in dataset.column_names if name != COLUMN)
    return dataset.select_columns([name])[rows][name]
