"""Nouns of the label jobs: points with text, labels with text, and the matrix between them.

A point is a document; a label is one too, since it has a text of its own. ``labels[i]`` lists the
labels of point i. ``drop[i]`` lists labels that a prediction for point i must not be judged by (the
point itself seen as a label; pairs whose reverse stands in the training split): they are taken out
of the *predictions* and never stand in the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids


@dataclass(frozen=True, eq=False)
class Texts:
    """Documents in a fixed order.

    Attributes:
        uids: the source's name of each document.
        titles: a short text each, perhaps empty.
        contents: a longer text each, perhaps empty.
        features: ``[n, f]``, where the source has weights of numbered words instead of texts; a
            title then spells the words (:func:`shoal.data.reduce.spelled`).

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
        expect(got == (n, n), "titles, contents", f"{n} each, as uids", got, "pass one a document")
        rows = n if self.features is None else self.features.n_rows
        expect(rows == n, "features", f"{n} rows, as uids", rows, "pass one a document")

    @staticmethod
    def of(texts: Sequence[str]) -> Texts:
        """Plain texts, as titles; their uids are their numbers."""
        return Texts([str(i) for i in range(len(texts))], list(texts), [""] * len(texts))

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
        """These documents, then those; without features."""
        uids, titles = self.uids + below.uids, self.titles + below.titles
        return Texts(uids, titles, self.contents + below.contents)


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set.

    Attributes:
        texts: the n documents.
        labels: ``[n, L]`` with sorted rows; values are relevances, None where all are one.
        drop: ``[n, L]``, labels that predictions for a point must ignore; empty where the source
            names none (:func:`no_pairs`).
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

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, ids: Int[Tensor, " b"]) -> Examples:
        """Examples `ids` in that order, repeats allowed.

        Raises:
            InputError: if an id is out of range.
        """
        return Examples(self.texts.subset(ids), self.labels.rows(ids), self.drop.rows(ids))


@dataclass(frozen=True, eq=False)
class LabelData:
    """A data set whose labels have texts.

    Attributes:
        name: what reports call it.
        train: the points to learn from.
        test: the points to be judged on, disjoint from `train`.
        labels: the L label texts; columns of both splits' matrices are positions here.
    """

    name: str
    train: Examples
    test: Examples
    labels: Texts

    def __post_init__(self) -> None:
        """Check that both splits count the same labels.

        Raises:
            InputError: if they do not.
        """
        for name, points in (("train.labels", self.train), ("test.labels", self.test)):
            width = points.labels.n_cols
            want = f"{len(self.labels)} columns, one a label"
            expect(width == len(self.labels), name, want, width, "build it over these labels")


def no_pairs(n: int, n_labels: int) -> Csr:
    """The ``[n, n_labels]`` matrix without an entry: a split whose source names no filter pairs.

    Example:
        >>> no_pairs(2, 5)
        Csr(2 x 5, nnz=0, torch.int64)
    """
    return Csr(torch.zeros(n + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), n_labels)


def random_split(
    n: int, fraction: float, seed: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Split ``range(n)`` at random; neither part is empty.

    Args:
        n: how many ids, at least 2.
        fraction: the share that is held out, in (0, 1), rounded to whole ids.
        seed: of the permutation.

    Returns:
        ids that are kept and ids that are held out, each sorted.

    Raises:
        InputError: if n or fraction is out of range.

    Example:
        >>> kept, held = random_split(10, 0.2, seed=0)
        >>> len(kept), len(held), torch.cat([kept, held]).sort().values.tolist() == list(range(10))
        (8, 2, True)
    """
    expect(n >= 2, "points", "at least 2 to split", n, "add points")
    expect(0 < fraction < 1, "fraction", "a share in (0, 1)", fraction, "try 0.2")
    held = min(max(round(n * fraction), 1), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


def split_at_random(name: str, points: Examples, labels: Texts) -> LabelData:
    """The data set of one file: a fifth of its points, seeded, is held out for testing."""
    kept, held = random_split(len(points), 0.2, seed=0)
    return LabelData(name, points.subset(kept), points.subset(held), labels)


def validation_split(data: LabelData, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Hold training points out for validation: at random, never a prefix, and as the test split is.

    Sources list points in an order that means something (WordNet's by part of speech). Where labels
    are points too (one uid), the reverse of a held-out pair may stand in what is left to train on:
    such pairs, and each point's own label, move from the truth to `drop`, as published test splits
    have it, and points without any truth left are dropped.

    Args:
        data: its training points are split.
        fraction: the share held out, in (0, 1).
        seed: of the permutation.

    Returns:
        the points to train on, and those to validate on.

    Raises:
        InputError: if there are fewer than 2 points or fraction is out of range.

    Example:
        Two points that are each other's labels: the held-out pair is known from its reverse.

        >>> texts = Texts(["a", "b", "c"], ["", "", ""], ["", "", ""])
        >>> labels = Csr.from_lists([[1], [0], [0]], n_cols=3)
        >>> points = Examples(texts, labels, no_pairs(3, 3))
        >>> train, valid = validation_split(LabelData("tiny", points, points, texts), 0.4, seed=5)
        >>> train.texts.uids, valid.texts.uids
        (['a', 'b'], ['c'])
    """
    kept, held = random_split(len(data.train), fraction, seed)
    train, valid = data.train.subset(kept), data.train.subset(held)
    twin = _find_uids(data.labels.uids, train.texts.uids)
    own = _find_uids(valid.texts.uids, data.labels.uids)
    row, col = valid.labels.row_ids(), valid.labels.indices.long()
    known = (twin[col] >= 0) & (own[row] >= 0)
    known[known.clone()] = train.labels.find(twin[col[known]], own[row[known]])[0]
    self_row = (own >= 0).nonzero().squeeze(1)
    drop = Csr.from_coo(
        torch.cat([valid.drop.row_ids(), row[known], self_row]),
        torch.cat([valid.drop.indices.long(), col[known], own[self_row]]),
        valid.labels.shape,
    )
    values = None if valid.labels.values is None else valid.labels.values[~known]
    truth = Csr.from_coo(row[~known], col[~known], valid.labels.shape, values)
    judged = Examples(valid.texts, truth, drop.coalesce())
    return train, judged.subset((truth.degrees() > 0).nonzero().squeeze(1))


def _find_uids(wanted: list[str], among: list[str]) -> Int[Tensor, " n"]:
    """The position of each wanted uid, or -1."""
    position = {uid: i for i, uid in enumerate(among)}
    return torch.tensor([position.get(uid, -1) for uid in wanted], dtype=torch.int64)


def describe(data: LabelData) -> dict[str, Any]:
    """Count what `data` holds; the result can be written as JSON.

    ``label_frequency_deciles`` are the 0th, 10th, … 100th percentile of training points a label.
    Empty texts and points without labels are kept by the readers of published splits, and counted
    here: ``empty_texts``, ``unlabeled``.

    Example:
        >>> texts = Texts(["a", "b"], ["red mug", ""], ["", ""])
        >>> points = Examples(texts, Csr.from_lists([[0], []], n_cols=2), no_pairs(2, 2))
        >>> about = describe(LabelData("tiny", points, points, texts))
        >>> about["labels"], about["train"]["empty_texts"], about["train"]["unlabeled"]
        (2, 1, 1)
        >>> about["points_per_label"], about["labels_never_trained"]
        (0.5, 1)
    """
    counts = torch.bincount(data.train.labels.indices, minlength=len(data.labels))
    return {
        "name": data.name,
        "train": _describe_points(data.train),
        "test": _describe_points(data.test),
        "labels": len(data.labels),
        "empty_label_texts": _count_empty(data.labels),
        "labels_never_trained": int((counts == 0).sum()),
        "points_per_label": round(_mean(counts), 3),
        "label_frequency_deciles": _deciles(counts),
    }


def _describe_points(points: Examples) -> dict[str, Any]:
    degrees = points.labels.degrees()
    return {
        "points": len(points),
        "pairs": points.labels.nnz,
        "labels_per_point": round(_mean(degrees), 3),
        "filter_pairs": points.drop.nnz,
        "empty_texts": _count_empty(points.texts),
        "unlabeled": int((degrees == 0).sum()),
    }


def _count_empty(texts: Texts) -> int:
    return sum(not text for text in texts.all())


def _mean(counts: Int[Tensor, " n"]) -> float:
    return float(counts.double().mean()) if counts.numel() else 0.0


def _deciles(counts: Int[Tensor, " n"]) -> list[int]:
    """Order statistics at 0, 10, … 100 %: the count at or below each position."""
    if counts.numel() == 0:
        return []
    steps = torch.arange(11) * (counts.numel() - 1) // 10
    return counts.sort().values[steps].tolist()
