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
from shoal.core.distribution import require
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
        InputError: if one is no ``datasets.Dataset``, has not exactly two columns or one that is
            called label, has no rows, or something else than a text in one.

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
    expect(len(datasets) > 0, "datasets", "one or more", "none", "pass the training set")
    for dataset in datasets:
        names = expect_dataset("datasets", dataset).column_names
        expect(len(names) == 2, "datasets", "two columns, (anchor, positive)", names, "drop others")
        remedy = f"use .rename_column({COLUMN!r}, 'positive'), say"
        expect(COLUMN not in names, "datasets", f"no column {COLUMN!r} yet", names, remedy)
        expect(len(dataset) > 0, "datasets", "some rows", 0, "drop the empty data set")
        documents: dict[str, int] = {}
        anchors, positives = (_texts(dataset, name) for name in names)
        column = [documents.setdefault(text, first + len(documents)) for text in anchors]
        other = [labels.setdefault(text, len(labels)) for text in positives]
        pairs.append(torch.tensor([column, other]))
        first += len(documents)
    row, col = torch.cat(pairs, dim=1)
    known = Csr.from_coo(row, col, (first, len(labels))).coalesce()
    numbered = zip(datasets, pairs, strict=True)
    return [data.add_column(COLUMN, ids.T.tolist()) for data, ids in numbered], known


def _texts(dataset: Any, name: str) -> list[str]:
    """A column of texts."""
    texts = list(dataset[name])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            remedy = "drop or repair such rows, by .filter or .map"
            fail(f"column {name!r}, row {row}", "a text", repr(text), remedy)
    return texts


# How other kinds of data become a Dataset.
_REMEDIES = {
    "DatasetDict": "pass its data sets one by one, as dataset['train']",
    "IterableDatasetDict": "load its data sets one by one, without streaming",
    "dict": "pass its data sets one by one, or Dataset.from_dict(columns)",
    "IterableDataset": "load it without streaming, or use Dataset.from_list(list(rows))",
    "DataFrame": "use Dataset.from_pandas(frame, preserve_index=False)",
    "list": "use Dataset.from_list(rows), each row a dictionary",
}


def expect_dataset(name: str, dataset: Any) -> Any:
    """Return `dataset` if it is a ``datasets.Dataset``.

    Raises:
        InputError: if it is not; or if that package is not installed.
    """
    library = require("datasets", name, "sentence-transformers")
    kind = type(dataset).__name__
    remedy = _REMEDIES.get(kind, "make one by Dataset.from_dict(columns)")
    expect(isinstance(dataset, library.Dataset), name, "a datasets.Dataset", f"a {kind}", remedy)
    return dataset


def ids_of(dataset: Any) -> Int[Tensor, "n 2"]:
    """The ids that :func:`number_pairs` put into a data set.

    Raises:
        InputError: if it is no ``datasets.Dataset``, or has none.
    """
    names = expect_dataset("dataset", dataset).column_names
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


def anchors_of(dataset: Any) -> str:
    """The name of the column of anchors: the first that holds no ids."""
    return next(name for name in dataset.column_names if name != COLUMN)


def texts_of(dataset: Any, rows: Sequence[int]) -> list[str]:
    """The anchors of some rows."""
    name = anchors_of(dataset)
    return dataset.select_columns([name])[rows][name]
