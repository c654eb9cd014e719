"""The noun of the node job: a graph whose nodes have features and classes, one each or several.

Also :func:`tf_idf` for nodes whose features are texts: the value of word w in document d is
count(w, d) ln(n / documents with w), rows are scaled to length 1 (Salton and Buckley,
"Term-weighting approaches in automatic text retrieval", 1988).
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, fail
from shoal.data.graph import GraphData
from shoal.data.lines import as_tensor
from shoal.data.splits import random_split
from shoal.data.texts import plain_texts

_log = logging.getLogger("shoal")

CLASSES = 2**20
"""The most classes: each has a row of weights, and a score for each node."""


@dataclass(frozen=True, eq=False)
class NodeData:
    """A graph to classify the nodes of.

    Attributes:
        name: what reports call it.
        graph: ``[n, n]``; row v lists the nodes that v reads.
        features: ``[n, f]``: sparse with float values, a bag of words or the like, or dense; None
            where there are none.
        target: the class of each node, int64 ``[n]``, -1 where it is not known; or bool ``[n, c]``,
            where a node may have any number of classes.
        train: ids of the nodes to learn from.
        valid: ids of the nodes to choose by.
        test: ids of the nodes to evaluate on; no id stands in two of the three.
        class_names: one per class.
    """

    name: str
    graph: Csr
    features: Csr | Float[Tensor, "n f"] | None
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
        rows = n if self.features is None else self.features.shape[0]
        expect(rows == n, "features", f"{n} rows, one per node", rows, "align them")
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


def node_data(
    graph: GraphData, *, valid: float = 0.2, test: float = 0.2, seed: int = 0
) -> NodeData:
    """The nodes of a graph with the source's own split, or one drawn at random.

    Args:
        graph: with classes; features may be absent.
        valid: share of the nodes with a class to choose by, in (0, 1), where there is no split.
        test: share to test on, in (0, 1); 60/20/20 is usual for these graphs.
        seed: of the random split.

    Raises:
        InputError: if classes are missing, or parts do not fit together.
    """
    if graph.y is None:
        fail("arrays", "classes", "no ['y']", "add them, or predict links, which need none")
    target = target_of(graph.y)
    known = torch.ones(len(target), dtype=torch.bool) if target.dim() == 2 else target >= 0
    n = graph.graph.n_rows
    expect(len(known) == n, "y", f"{n}, one per node", len(known), "align them")
    few = int(known.sum())
    expect(few >= 3, "y", "at least three nodes with a class", few, "add classes")
    if graph.parts:
        parts = _own_parts(graph, n, seed)
    else:
        shares = 0 < test < 1 and 0 < valid < 1 - test
        expect(shares, "valid, test", "shares that leave some nodes", (valid, test), "try 0.2, 0.2")
        ids = known.nonzero().squeeze(1)
        rest, held = random_split(few, test, seed)
        kept, chosen = random_split(len(rest), valid / (1 - test), seed + 1)
        parts = ids[rest[kept]], ids[rest[chosen]], ids[held]
    names = graph.class_names or class_names_of(target)
    if target.dim() == 1 and graph.class_names is None:
        counts = torch.bincount(target[target >= 0], minlength=len(names))
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            told = "%s: y: %d of %d classes have no node, number %d first; if that is not meant, "
            told += "number them anew from 0"
            _log.warning(told, graph.name, len(empty), len(names), empty[0])
    return NodeData(graph.name, graph.graph, graph.features, target, *parts, names)


def _own_parts(graph: GraphData, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the nodes of the three parts, which are masks or ids already.

    Of several splits, the columns of masks, the seed chooses one.
    """
    names = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
    found = [names[part] for part in names if part in graph.parts]
    remedy = "add the others, or leave all out"
    expect(len(found) == 3, "masks", ", ".join(names.values()), found, remedy)
    masks = {names[x]: graph.parts[x] for x in names if graph.parts[x].dtype == torch.bool}
    splits = {key: mask.shape[1] if mask.dim() == 2 else 1 for key, mask in masks.items()}
    alike, remedy = len(set(splits.values())) <= 1, "pick one split of each, such as mask[:, 0]"
    expect(alike, "masks", "as many splits in each", splits, remedy)
    several = max(splits.values(), default=1)
    if several > 1:
        told = "%s: %d splits: number %d is read; another seed (--seed) reads another"
        _log.warning(told, graph.name, several, seed % several)
    train, valid, test = (_ids_of(names[x], graph.parts[x], n, seed) for x in names)
    return train, valid, test


def _ids_of(name: str, part: Tensor, n: int, seed: int) -> Int[Tensor, " k"]:
    if part.dtype != torch.bool:
        return part.long()
    good = part.shape[:1] == (n,) and part.dim() in (1, 2) and part.numel() > 0
    expect(good, name, f"a mask [{n}]", tuple(part.shape), "align it")
    chosen = part[:, seed % part.shape[1]] if part.dim() == 2 else part
    return chosen.nonzero().squeeze(1)


def target_of(y: Tensor) -> Int[Tensor, " n"] | Bool[Tensor, "n c"]:
    """The classes of nodes: ids with -1 for unknown, or one truth value per node and class.

    NaN, as OGB has it, is unknown. A matrix of one column is a vector.

    Raises:
        InputError: if there is a number that is neither a class nor a truth value.

    Example:
        >>> target_of(torch.tensor([[2.0], [float("nan")]]))
        tensor([ 2, -1])
        >>> target_of(torch.tensor([[0, 1], [1, 1]]))
        tensor([[False,  True],
                [ True,  True]])
    """
    good = y.dim() in (1, 2) and len(y) > 0
    expect(good, "y", "[nodes] or [nodes, classes]", tuple(y.shape), "reshape it")
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if y.dim() == 2:
        truth = bool(((y == 0) | (y == 1)).all())
        expect(truth, "y", "0 and 1 in a matrix of classes", "other numbers", "threshold it")
        return y.bool()
    known = torch.where(y.isnan(), -1, y) if y.is_floating_point() else y
    whole = bool((known == known.long()).all())
    expect(whole, "y", "whole numbers, or one column per class", "fractions", "number the classes")
    return known.long()


def in_classes(
    target: Int[Tensor, " n"] | Bool[Tensor, "n c"],
    own: Sequence[str],
    names: Sequence[str],
    where: str,
) -> Int[Tensor, " n"] | Bool[Tensor, "n k"]:
    """A target whose classes are called `own`, as one of classes called `names`.

    Args:
        target: as of :class:`NodeData`.
        own: its names, in order.
        names: those of a model.
        where: what to name in errors.

    Raises:
        InputError: if the model lacks a class.

    Example:
        >>> in_classes(torch.tensor([0, 1, -1]), ["cat", "dog"], ["ant", "dog", "cat"], "y")
        tensor([ 2,  1, -1])
    """
    if list(own) == list(names):
        return target
    place = {name: i for i, name in enumerate(names)}
    lacks = [name for name in own if name not in place]
    got = f"{len(own)}, {lacks[0]!r} among them" if lacks else ""
    expect(not lacks, where, f"the model's {len(names)} classes", got, "use data of its kind")
    at = torch.tensor([place[name] for name in own])
    if target.dim() == 1:
        return torch.where(target < 0, target, at[target.clamp(min=0)])
    found = target.new_zeros(len(target), len(names))
    found[:, at] = target
    return found


def class_names_of(target: Int[Tensor, " n"] | Bool[Tensor, "n c"]) -> tuple[str, ...]:
    """The classes by number: one per column, or all up to the largest.

    Raises:
        InputError: if there are more than :data:`CLASSES`: their numbers are no numbering.

    Example:
        >>> class_names_of(torch.tensor([2, -1]))
        ('0', '1', '2')
    """
    classes = target.shape[1] if target.dim() == 2 else int(target.max()) + 1
    few = classes <= CLASSES
    expect(few, "y", f"classes counted from 0, below {CLASSES}", classes - 1, "number them anew")
    return tuple(map(str, range(classes)))


def tf_idf(texts: Sequence[str], min_documents: int = 2) -> Csr:
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
    texts = plain_texts(texts)
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
