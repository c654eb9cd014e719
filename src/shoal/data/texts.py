"""Nouns of the label tasks: examples with text, labels with text, and the matrix between them.

An example is a document; a label is one too, since it has a text of its own. ``labels[i]`` lists
the labels of example i. ``drop[i]`` lists its filter pairs: labels that are taken out of the
*predictions* for example i before these are evaluated (the example itself seen as a label; pairs
whose reverse is in the training split). They never stand in the truth.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, fail
from shoal.data.label_cells import is_list, joined_by
from shoal.data.lines import shorten
from shoal.data.matrix import positive

_log = logging.getLogger("shoal")

LABELS = 4_000_000
"""As many labels a file that only counts them may have, however few examples it has."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Documents in a fixed order.

    Attributes:
        uids: the source's name of each document.
        titles: one short text per document, perhaps empty.
        contents: one longer text per document, perhaps empty.
        features: ``[n, f]``, where the source has weights of numbered columns instead of texts.

    Example:
        >>> texts = Texts(["a", "b"], ["red mug", "tea"], ["holds tea", ""])
        >>> texts.text(0), len(texts)
        ('red mug holds tea', 2)
        >>> texts.subset(torch.tensor([1])).all()
        ['tea']
    """

    uids: list[str]
    titles: list[str]
    contents: list[str]
    features: Csr | None = None

    def __post_init__(self) -> None:
        """Check that all parts are equally long.

        Raises:
            InputError: if they are not.
        """
        n = len(self.uids)
        got = (len(self.titles), len(self.contents))
        expect(got == (n, n), "titles, contents", f"{n} each, as uids", got, "pass one per uid")
        rows = n if self.features is None else self.features.n_rows
        expect(rows == n, "features", f"{n} rows, as uids", rows, "pass one per uid")

    @staticmethod
    def of(titles: Sequence[str], uids: Sequence[str] | None = None) -> Texts:
        """Plain texts, as titles; their uids are their positions unless they are given."""
        titles = plain_texts(titles, "titles")
        uids = row_names(len(titles)) if uids is None else list(uids)
        return Texts(uids, titles, [""] * len(titles))

    @staticmethod
    def of_features(features: Csr) -> Texts:
        """Documents that have features and no text; their uids are their positions."""
        n = features.n_rows
        return Texts(row_names(n), [""] * n, [""] * n, features)

    def spelled(self) -> Texts:
        """Features as texts of numbered words: feature i is ``f<i>``, once, whatever it weighs.

        Example:
            >>> texts = Texts.of_features(Csr.from_lists([[0, 7], []], n_cols=8)).spelled()
            >>> texts.all(), texts.uids
            (['f0 f7', ''], ['0', '1'])
        """
        if self.features is None:
            return self
        words = [f"f{i}" for i in self.features.indices.tolist()]
        titles = [" ".join(words[a:b]) for a, b in pairwise(self.features.indptr.tolist())]
        return Texts(self.uids, titles, [""] * len(titles))

    def __len__(self) -> int:
        return len(self.uids)

    def text(self, i: int) -> str:
        """Title and content of document i, one space between them, none at the ends."""
        return f"{self.titles[i]} {self.contents[i]}".strip()

    def all(self) -> list[str]:
        """:meth:`text` of every document."""
        pairs = zip(self.titles, self.contents, strict=True)
        return [f"{title} {content}".strip() for title, content in pairs]

    def subset(self, ids: Int[Tensor, " b"]) -> Texts:
        """Documents `ids` in that order, repeats allowed.

        Raises:
            InputError: if an id is out of range.
        """
        expect_ids("ids", ids, len(self))
        order = ids.tolist()
        parts = ([x[i] for i in order] for x in (self.uids, self.titles, self.contents))
        return Texts(*parts, features=None if self.features is None else self.features.rows(ids))

    def stack(self, below: Texts) -> Texts:
        """These documents, then those; with features where both have them."""
        uids, titles = self.uids + below.uids, self.titles + below.titles
        features = None
        if self.features is not None and below.features is not None:
            features = self.features.stack(below.features)
        return Texts(uids, titles, self.contents + below.contents, features)


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set.

    Attributes:
        texts: the n documents.
        labels: ``[n, L]`` with sorted rows; values are relevances, None where all are one.
        drop: ``[n, L]``, filter pairs: labels that predictions for an example must ignore; empty
            where the source names none (:func:`no_pairs`).
    """

    texts: Texts
    labels: Csr
    drop: Csr

    def __post_init__(self) -> None:
        """Check that texts, labels and drop agree.

        Raises:
            InputError: if they differ in rows or columns.
        """
        shape = (len(self.texts), self.labels.n_cols)
        for name, csr in (("labels", self.labels), ("drop", self.drop)):
            expect(csr.shape == shape, name, f"a Csr of {shape}", csr.shape, "align it with texts")

    @staticmethod
    def of(texts: Texts, labels: Csr) -> Examples:
        """Examples without filter pairs."""
        return Examples(texts, labels, no_pairs(*labels.shape))

    def __len__(self) -> int:
        return len(self.texts)

    def describing(self, labels: Texts) -> Texts:
        """The labels as these examples describe them: each with the mean of their features.

        Labels of texts come back as they are. A label's own features count as one more example; a
        label that has none, nor an example, has no entry.

        Args:
            labels: the L labels.

        Raises:
            InputError: if labels have features of another width.

        Example:
            >>> features = Csr.from_dense(torch.tensor([[1.0, 0.0], [2.0, 4.0]]))
            >>> examples = Examples.of(Texts.of_features(features), Csr.from_lists([[0], [0]], 2))
            >>> examples.describing(numbered_labels(2)).features.to_dense().tolist()
            [[1.5, 2.0], [0.0, 0.0]]
        """
        features, has = self.texts.features, self.labels.with_values(None)
        if features is None:
            return labels
        if labels.features is not None:
            width = features.n_cols
            want, remedy = f"{width}, as those of examples", "leave the file of them out"
            good = labels.features.n_cols == width
            expect(good, "features of labels", want, labels.features.n_cols, remedy)
            each = torch.arange(len(labels)).unsqueeze(1).tolist()
            has = has.stack(Csr.from_lists(each, len(labels)))
            features = weighted(features).stack(weighted(labels.features))
        count = torch.bincount(has.indices, minlength=len(labels)).clamp(min=1)
        sums = Csr.from_scipy((has.to_scipy().T @ weighted(features).to_scipy()).tocsr())
        assert sums.values is not None
        mean = sums.with_values((sums.values / count[sums.row_ids()]).float())
        return replace(labels, features=mean)

    def subset(self, ids: Int[Tensor, " b"]) -> Examples:
        """Examples `ids` in that order, repeats allowed.

        Raises:
            InputError: if an id is out of range.
        """
        return Examples(self.texts.subset(ids), self.labels.rows(ids), self.drop.rows(ids))

    def stack(self, below: Examples) -> Examples:
        """These examples, then those, of the same labels."""
        labels, drop = self.labels.stack(below.labels), self.drop.stack(below.drop)
        return Examples(self.texts.stack(below.texts), labels, drop)


@dataclass(frozen=True, eq=False)
class LabelData:
    """A data set whose labels have texts.

    Attributes:
        name: what reports call it.
        train: the examples to learn from.
        test: the examples to evaluate on, disjoint from `train`.
        labels: the L label texts; columns of both splits' matrices are positions here.
        own_split: whether the source says which examples are for testing. Where it does not,
            readers put all of them into `train`, and :func:`shoal.data.splits.split_test` holds
            some out.
    """

    name: str
    train: Examples
    test: Examples
    labels: Texts
    own_split: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Check that both splits count the same labels.

        Raises:
            InputError: if they do not.
        """
        for name, examples in (("train.labels", self.train), ("test.labels", self.test)):
            width = examples.labels.n_cols
            want = f"{len(self.labels)} columns, one per label"
            expect(width == len(self.labels), name, want, width, "build it over these labels")

    @staticmethod
    def unsplit(name: str, examples: Examples, labels: Texts) -> LabelData:
        """The data set of a source that names no test examples: all are in `train`."""
        nobody = examples.subset(torch.zeros(0, dtype=torch.int64))
        return LabelData(name, examples, nobody, labels, own_split=False)


def is_dense(features: Csr) -> bool:
    """Whether features are measurements that most examples have, rather than words of a few.

    Example:
        >>> is_dense(Csr.from_lists([[0, 1], [0]], n_cols=2)), is_dense(Csr.from_lists([[0]], 3))
        (True, False)
    """
    return 2 * features.nnz >= features.n_rows * features.n_cols > 0


def weighted(features: Csr) -> Csr:
    """Features with a float weight for each entry: one, where there are none.

    Example:
        >>> weighted(Csr.from_lists([[1]], n_cols=2)).values
        tensor([1.])
    """
    values = features.values
    return features.with_values(torch.ones(features.nnz) if values is None else values.float())


def no_pairs(n: int, n_labels: int) -> Csr:
    """The ``[n, n_labels]`` matrix without an entry: a split whose source names no filter pairs.

    Example:
        >>> no_pairs(2, 5)
        Csr(2 x 5, nnz=0, torch.int64)
    """
    return Csr(torch.zeros(n + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), n_labels)


def row_names(n: int, prefix: str = "") -> list[str]:
    """Uids of documents that have no name: their positions.

    Example:
        >>> row_names(2, prefix="l")
        ['l0', 'l1']
    """
    return [f"{prefix}{i}" for i in range(n)]


def numbered_labels(n: int) -> Texts:
    """Label texts for a source that only counts its labels: ``l0``, ``l1``, …."""
    return Texts.of(row_names(n, "l"))


def matrix_of(rows: Iterable[Iterable[str]], names: Sequence[str]) -> Csr:
    """The matrix of rows of label names; a name that stands twice in a row counts once.

    Example:
        >>> matrix_of([["red", "cup", "red"], []], ["cup", "red"]).to_dense()
        tensor([[1., 1.],
                [0., 0.]])
    """
    ids = {name: i for i, name in enumerate(names)}
    return Csr.from_lists([[ids[name] for name in row] for row in rows], len(ids)).coalesce()


def names_of(labels: Csr, names: list[str]) -> Iterator[list[str]]:
    """The names of the labels of each example.

    Yields:
        one list per example.

    Example:
        >>> list(names_of(Csr.from_lists([[1], []], 2), ["cup", "red"]))
        [['red'], []]
    """
    ids = labels.indices.tolist()
    for start, end in pairwise(labels.indptr.tolist()):
        yield [names[i] for i in ids[start:end]]


# -- texts and labels in memory ----------------------------------------------------------------

_HALVES = re.compile("[\ud800-\udfff]")  # what UTF-8 and every tokenizer refuse


def as_texts(value: Any, name: str = "texts") -> tuple[Texts, bool]:
    """One text or many, as every public function that reads texts takes them.

    Args:
        value: a string, or any ordered collection of them (a list, a pandas column, an array); a
            pair (title, content) may stand for a string in it. Or a matrix of features, a row an
            example: of scipy, or of numbers in an array, a tensor or a frame. Texts come back as
            they are.
        name: of the argument, for messages.

    Returns:
        the texts, and whether `value` was one text alone, which deserves one answer, not a list.

    Raises:
        InputError: naming the position, if an item is no string or holds half of a character.

    Example:
        >>> one, single = as_texts("red mug")
        >>> one.all(), single
        (['red mug'], True)
        >>> many, single = as_texts([("red mug", "holds tea"), "tea"])
        >>> many.titles, many.contents, single
        (['red mug', 'tea'], ['holds tea', ''], False)
    """
    if isinstance(value, Texts):
        return value, False
    if _is_matrix(value):
        return Texts.of_features(_matrix(value, "features", features=True)), False
    single = isinstance(value, str)
    items = [value] if single else as_list(value, name, "a text or a list of texts")
    titles, contents = [""] * len(items), [""] * len(items)
    for i, item in enumerate(items):
        pair = (item, "") if isinstance(item, str) else item
        if not (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and all(isinstance(part, str) for part in pair)
        ):
            want = "a string or a pair (title, content)"
            fail(f"{name}[{i}]", want, shorten(item), "replace it or leave it out")
        titles[i], contents[i] = pair
        if _HALVES.search(titles[i]) or _HALVES.search(contents[i]):
            remedy = 'pass text.encode("utf-8", "replace").decode()'
            fail(f"{name}[{i}]", "a text of whole characters", shorten(item), remedy)
    return Texts(row_names(len(items)), titles, contents), single


def plain_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Strings as a list; one string is a list of one, not of its characters.

    Raises:
        InputError: naming the position, if an item is no string.

    Example:
        >>> plain_texts("red mug"), plain_texts(iter(["red mug", "tea"]))
        (['red mug'], ['red mug', 'tea'])
    """
    if isinstance(texts, str):
        return [texts]
    found = as_list(texts, name, "a text or a list of texts")
    bad = next((i for i, text in enumerate(found) if not isinstance(text, str)), None)
    if bad is not None:
        fail(f"{name}[{bad}]", "a string", shorten(found[bad]), "replace it or leave it out")
    return found


def as_list(value: Any, name: str, want: str) -> list[Any]:
    """The items of a list, a pandas column, an array or the like.

    Raises:
        InputError: if `value` has no items, or none in an order.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    unordered = isinstance(value, str | bytes | Mapping | AbstractSet)
    if unordered or not isinstance(value, Iterable):
        fail(name, want, type(value).__name__, "pass a list")
    return list(value)


def label_data(
    texts: Any,
    labels: Any,
    *,
    label_names: Sequence[str] | None = None,
    name: str = "data in memory",
) -> LabelData:
    """A data set of texts and labels in memory; nothing is held out.

    Args:
        texts: a list of strings or of pairs (title, content), a pandas column, an array; a matrix
            of features, as :func:`as_texts` has it; or Texts.
        labels: per text, the name of its label or a list of names; or a matrix with one row per
            text and one column per label, of scipy, numpy, torch or pandas, whose entries above 0
            are relevances.
        label_names: of all labels, in the order of the columns; by default those that occur,
            sorted, and ``l0``, ``l1``, … for a matrix without names. Where they are given, labels
            may also be positions in them.
        name: what reports call it.

    Returns:
        the data set, all of it in `train`.

    Raises:
        InputError: naming the position, if a text or a label is none; if there are no texts, not as
            many labels as texts, or no label at all.

    Example:
        >>> data = label_data(["red mug", "tea"], [["cup", "red"], "drink"])
        >>> data.labels.titles, data.train.labels.to_dense().tolist()
        (['cup', 'drink', 'red'], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> label_data(["red mug", "tea"], [0, 1], label_names=["cup", "drink"]).train.labels.nnz
        2
    """
    documents, single = as_texts(texts)
    expect(not single, "texts", "a list of texts", "one text", "pass [text], and [labels]")
    expect(len(documents) > 0, "texts", "at least one", "none", "pass some to learn from")
    twice = [] if label_names is None else sorted(label_names)
    twice = [name for name, other in pairwise(twice) if name == other]
    expect(not twice, "label_names", "each name once", f"{twice[:3]} twice", "rename or remove it")
    if getattr(labels, "ndim", 1) == 2:
        if label_names is None and hasattr(labels, "columns"):  # a pandas frame of indicators
            label_names = [str(column) for column in labels.columns]
        matrix = _matrix(labels, "labels")
        names = row_names(matrix.n_cols, "l") if label_names is None else list(label_names)
        right = len(names) == matrix.n_cols
        expect(right, "label_names", f"{matrix.n_cols}, one per column", len(names), "name each")
    else:
        cells = as_list(labels, "labels", "a label or a list of labels per text")
        rows = [_names(cell, i, label_names) for i, cell in enumerate(cells)]
        found = {name for row in rows for name in row}
        names = sorted(found) if label_names is None else list(label_names)
        unknown = sorted(found - set(names))
        expect(not unknown, "labels", "names of label_names", unknown[:3], "add them there")
        matrix = matrix_of(rows, names)
    n, rows_found = len(documents), matrix.n_rows
    expect(rows_found == n, "labels", f"{n}, one per text", rows_found, "pass as many as texts")
    expect(len(names) > 0, "labels", "at least one label", "none", "name the labels of some text")
    if label_names is None and matrix.nnz == n:
        _say_joined(names, n)
    if documents.features is None:
        _say_repeated(documents, matrix)
    return LabelData.unsplit(name, Examples.of(documents, matrix), Texts.of(names, names))


def _say_joined(names: list[str], texts: int) -> None:
    """Log labels, one a text, that look like several."""
    joined, lists = joined_by(names, texts), sum(map(is_list, names))
    count, how = (lists, "are lists as text") if lists else (joined[1] if joined else 0, "hold")
    how += "" if lists or joined is None else f" {joined[0]!r}, as if they were several"
    if count:
        _log.warning("labels: %d %s; pass lists of labels where they are several", count, how)


def _say_repeated(texts: Texts, labels: Csr) -> None:
    """Log texts that stand several times with different labels."""
    first: dict[tuple[str, str], int] = {}
    ends, ids, differ = labels.indptr.tolist(), labels.indices.tolist(), set()
    for i, key in enumerate(zip(texts.titles, texts.contents, strict=True)):
        j = first.setdefault(key, i)
        if i != j and ids[ends[i] : ends[i + 1]] != ids[ends[j] : ends[j + 1]]:
            differ.add(j)
    if differ:
        said = "texts: %d stand several times with different labels: each time the others' labels "
        said += "count as wrong; pass each text once, with all its labels"
        _log.warning(said, len(differ))


def _names(cell: Any, i: int, names: Sequence[str] | None) -> list[str]:
    """The names in a cell, where integers are positions among `names`, if there are any."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    found = []
    for label in cell if isinstance(cell, list | tuple | AbstractSet) else [cell]:
        if isinstance(label, int) and not isinstance(label, bool) and names is not None:
            inside = 0 <= label < len(names)
            want = f"positions in the {len(names)} label_names"
            expect(inside, f"labels[{i}]", want, label, "count from 0")
            twice = names[label] in found
            want = "each position once"
            expect(not twice, f"labels[{i}]", want, cell, "pass np.array(labels) if it is a matrix")
            found.append(names[label])
        elif isinstance(label, str) and label.strip():
            found.append(label)
        else:
            remedy = "pass str(label), or label_names= to count labels by position"
            fail(f"labels[{i}]", "names of labels, as strings", shorten(label), remedy)
    return found


def _is_matrix(value: Any) -> bool:
    """Whether a value is a matrix of numbers, rather than a collection of texts."""
    if getattr(value, "ndim", 1) != 2 or hasattr(value, "tocsr"):
        return hasattr(value, "tocsr")
    kinds = value.dtypes if hasattr(value, "dtypes") else [getattr(value, "dtype", None)]
    return all(getattr(kind, "kind", "f") in "biuf" for kind in kinds)


def _matrix(given: Any, name: str, features: bool = False) -> Csr:
    """The matrix of labels or features that one of another library is; zeros are no entries."""
    try:
        if hasattr(given, "tocsr"):
            sparse = given.tocsr().copy()
            sparse.eliminate_zeros()
            csr = Csr.from_scipy(sparse)
        else:
            dense = given.to_numpy() if hasattr(given, "to_numpy") else given
            csr = Csr.from_dense(torch.from_numpy(np.asarray(dense).copy()))  # theirs may be frozen
        values = None if csr.values is None else csr.values.float()
    except (TypeError, ValueError) as error:  # an InputError of Csr is a ValueError
        fail(name, "a matrix of numbers", error, f"pass scipy.sparse.csr_matrix({name})")
    return positive(name, csr.with_values(values), features)
