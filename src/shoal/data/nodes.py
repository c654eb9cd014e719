"""The noun of the node job: a graph whose nodes have features and one class each.

Also :func:`read` for graphs kept as plain arrays in one ``.npz``, and :func:`tf_idf` for nodes
whose features are texts: the value of word w in document d is count(w, d) ln(n / documents with w),
rows are scaled to length 1 (Salton and Buckley, "Term-weighting approaches in automatic text
retrieval", 1988).
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from shoal._checks import InputError, expect, expect_finite, expect_ids
from shoal.csr import Csr
from shoal.data.lines import as_tensor
from shoal.data.matrix import read_arrays
from shoal.data.texts import random_split


@dataclass(frozen=True, eq=False)
class NodeData:
    """A graph to classify the nodes of.

    Attributes:
        name: what reports call it.
        graph: ``[n, n]``; row v lists the nodes that v reads.
        features: ``[n, f]``, sparse, float values: a bag of words or the like.
        target: the class of each node, int64 ``[n]``.
        train: ids of the nodes to learn from.
        valid: ids of the nodes to choose by.
        test: ids of the nodes to be judged on; no id stands in two of the three.
        class_names: one a class.
    """

    name: str
    graph: Csr
    features: Csr
    target: Int[Tensor, " n"]
    train: Int[Tensor, " n_train"]
    valid: Int[Tensor, " n_valid"]
    test: Int[Tensor, " n_test"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if sizes differ, a class has no name, or splits overlap.
        """
        n = len(self.target)
        expect(self.graph.shape == (n, n), "graph", f"{n} x {n}", self.graph.shape, "align it")
        rows = self.features.n_rows
        expect(rows == n, "features", f"{n} rows, one a node", rows, "align them")
        expect_ids("target", self.target, len(self.class_names))
        splits = torch.cat([self.train, self.valid, self.test])
        expect_ids("train, valid, test", splits, n)
        twice = len(splits) - len(splits.unique())
        expect(twice == 0, "train, valid, test", "no id twice", f"{twice} repeats", "split again")


def read(path: str | Path, *, valid: float = 0.2, test: float = 0.2, seed: int = 0) -> NodeData:
    """Read a graph from an ``.npz`` of plain arrays.

    Keys: ``indptr``, ``indices`` (the graph, row = source, as stored), ``x_indptr``, ``x_indices``,
    ``x_data``, ``x_shape`` (the features), ``y`` (the classes, counted from 0, named by number).

    Args:
        path: the file.
        valid: share of the nodes to choose by, in (0, 1).
        test: share of the nodes to be judged on, in (0, 1); 60/20/20 is usual for these graphs.
        seed: of the random split.

    Returns:
        the graph, named after the file.

    Raises:
        InputError: naming the file and the key, if one is missing or damaged, or a feature is NaN.
    """
    path = Path(path)
    keys = ("indptr", "indices", "x_indptr", "x_indices", "x_data", "x_shape", "y")
    arrays = {key: torch.from_numpy(array) for key, array in read_arrays(path, keys).items()}
    try:
        graph = _csr(arrays, "", len(arrays["y"]))
        features = _csr(arrays, "x_", int(arrays["x_shape"][1]), arrays["x_data"].float())
        expect_finite("x_data", arrays["x_data"])
        target = arrays["y"].long()
        rest, held = random_split(len(target), test, seed)
        kept, chosen = random_split(len(rest), valid / (1 - test), seed + 1)
        names = tuple(str(i) for i in range(int(target.max()) + 1))
        return NodeData(path.stem, graph, features, target, rest[kept], rest[chosen], held, names)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _csr(arrays: dict[str, Tensor], prefix: str, n_cols: int, values: Tensor | None = None) -> Csr:
    indptr, indices = arrays[f"{prefix}indptr"], arrays[f"{prefix}indices"]
    return Csr(indptr.long(), indices.long(), n_cols, values).validate()


def tf_idf(texts: list[str], min_documents: int = 2) -> Csr:
    """Weigh the words of texts: one row a text, one column a word, rows of length 1.

    A word is a run of letters, digits or underscores, in lower case. Columns stand in the order in
    which words first occur; a row without words that count is empty.

    Args:
        texts: the documents.
        min_documents: words in fewer documents are left out; a word of one document cannot tell
            two documents to be alike.

    Returns:
        ``[n, words]``, float32, sorted rows.

    Example:
        >>> tf_idf(["red cup", "blue cup", "red hat"]).to_dense()
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000],
                [1.0000, 0.0000]])
    """
    row, col, n_words = _words(texts)
    key, times = torch.unique(row * n_words + col, return_counts=True)
    row, col = key // max(n_words, 1), key % max(n_words, 1)
    documents = torch.bincount(col, minlength=n_words)
    kept = documents >= min_documents
    row, col, times = row[kept[col]], col[kept[col]], times[kept[col]]
    value = times * (len(texts) / documents[col]).log()
    norm = torch.zeros(len(texts)).index_add_(0, row, value.square()).sqrt()
    # A word that every text holds weighs 0; a row of such words alone has no length to scale to.
    value = value / norm[row].clamp(min=torch.finfo(norm.dtype).tiny)
    column = kept.cumsum(0) - 1
    return Csr.from_coo(row, column[col], (len(texts), int(kept.sum())), value)


def _words(texts: list[str]) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], int]:
    """(text, word) of every word of every text, words numbered as they first occur, how many."""
    ids: defaultdict[str, int] = defaultdict(count().__next__)
    find = re.compile(r"\w+").findall
    flat, ends = array("q"), array("q", [0])
    for text in texts:
        flat.extend([ids[word] for word in find(text.lower())])
        ends.append(len(flat))
    row = torch.arange(len(texts)).repeat_interleave(as_tensor(ends).diff())
    return row, as_tensor(flat), len(ids)
