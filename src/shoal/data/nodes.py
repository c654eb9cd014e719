"""The noun of the node job: a graph whose nodes have features and classes, one each or several.

Also :func:`read` for graphs kept as plain arrays in one file, and :func:`tf_idf` for nodes whose
features are texts: the value of word w in document d is count(w, d) ln(n / documents with w),
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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids
from shoal.data import arrays as files
from shoal.data.lines import as_tensor


@dataclass(frozen=True, eq=False)
class NodeData:
    """A graph to classify the nodes of.

    Attributes:
        name: what reports call it.
        graph: ``[n, n]``; row v lists the nodes that v reads.
        features: ``[n, f]``: sparse with float values, a bag of words or the like, or dense.
        target: the class of each node, int64 ``[n]``, -1 where it is not known; or bool ``[n, c]``,
            where a node may have any number of classes.
        train: ids of the nodes to learn from.
        valid: ids of the nodes to choose by.
        test: ids of the nodes to be judged on; no id stands in two of the three.
        class_names: one a class.
    """

    name: str
    graph: Csr
    features: Csr | Float[Tensor, "n f"]
    target: Int[Tensor, " n"] | Bool[Tensor, "n c"]
    train: Int[Tensor, " n_train"]
    valid: Int[Tensor, " n_valid"]
    test: Int[Tensor, " n_test"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if sizes differ, a class has no name, a node of a split has no class, or
                splits overlap.
        """
        n = len(self.target)
        expect(self.graph.shape == (n, n), "graph", f"{n} x {n}", self.graph.shape, "align it")
        rows = self.features.shape[0]
        expect(rows == n, "features", f"{n} rows, one a node", rows, "align them")
        splits = torch.cat([self.train, self.valid, self.test])
        expect_ids("train, valid, test", splits, n)
        twice = len(splits) - len(splits.unique())
        expect(twice == 0, "train, valid, test", "no id twice", f"{twice} repeats", "split again")
        for name in ("train", "valid", "test"):
            expect(len(getattr(self, name)) > 0, name, "at least one node", "none", "split again")
        classes = len(self.class_names)
        if self.multi_label:
            columns = self.target.shape[1]
            expect(columns == classes, "target", f"{classes} columns", columns, "name each class")
            return
        expect_ids("target", self.target[self.target >= 0], classes)
        lacks = splits[self.target[splits] < 0]
        got = f"none for node {int(lacks[0])}" if len(lacks) else ""
        remedy = "leave nodes without a class out of the splits"
        expect(not len(lacks), "target", "a class for each node of the splits", got, remedy)

    @property
    def multi_label(self) -> bool:
        """Whether a node may have several classes, or none."""
        return self.target.dim() == 2


def read(path: str | Path, *, valid: float = 0.2, test: float = 0.2, seed: int = 0) -> NodeData:
    """Read a graph from an ``.npz`` or ``.safetensors`` of plain arrays.

    Keys: those of :mod:`shoal.data.arrays` in either layout, and ``y``, the classes counted from 0
    and named by number, or a matrix of truth values.

    Args:
        path: the file.
        valid: share of the nodes to choose by, in (0, 1), where the file has no masks.
        test: share of the nodes to be judged on, in (0, 1); 60/20/20 is usual for these graphs.
        seed: of the random split.

    Returns:
        the graph, named after the file.

    Raises:
        InputError: naming the file and the key, if one is missing or damaged, or a feature is NaN.
    """
    path = Path(path)
    with files.naming(path):
        return of_arrays(path.stem, files.read(path), valid=valid, test=test, seed=seed)


def of_arrays(
    name: str, arrays: files.Arrays, *, valid: float = 0.2, test: float = 0.2, seed: int = 0
) -> NodeData:
    """Put named arrays together, as :func:`read` does with those of a file.

    Raises:
        InputError: naming the key, if one is missing or does not fit.
    """
    graph = files.graph_of(arrays)
    features = files.features_of(arrays, graph.n_rows)
    missing = [key for key, value in {"x": features, "y": arrays.get("y")}.items() if value is None]
    remedy = "add them; links need no y (--task links), and features can be torch.eye(n)"
    expect(not missing, "arrays", "features and classes", f"no {missing}", remedy)
    assert features is not None
    target = files.target_of(arrays["y"])
    known = torch.ones(len(target), dtype=torch.bool) if target.dim() == 2 else target >= 0
    same = len(known) == graph.n_rows
    expect(same, "y", f"{graph.n_rows}, one a node", len(known), "align them")
    few = int(known.sum())
    expect(few >= 3, "y", "at least three nodes with a class", few, "add classes")
    splits = files.splits_of(arrays, known, valid, test, seed)
    return NodeData(name, graph, features, target, *splits, files.class_names_of(target))


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
