"""From rows of label names to matrices and back, for formats that number no labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from shoal.core.csr import Csr
from shoal.data.reduce import of_titles
from shoal.data.texts import Examples, Texts, no_pairs


def numbered(rows: Sequence[Sequence[str]], ids: dict[str, int]) -> Csr:
    """The matrix of rows of names; a name that stands twice in a row counts once.

    Example:
        >>> numbered([["red", "cup", "red"], []], {"cup": 0, "red": 1}).to_dense()
        tensor([[1., 1.],
                [0., 0.]])
    """
    return Csr.from_lists([[ids[name] for name in row] for row in rows], len(ids)).coalesce()


def named_matrix(
    texts: Sequence[Texts], rows: Sequence[Sequence[Sequence[str]]]
) -> tuple[Examples, Examples, Texts]:
    """Examples of two splits whose labels are names, and the labels, sorted by name.

    Args:
        texts: of the training and the test points.
        rows: for each split, the names of the labels of each point.
    """
    names = sorted({name for split in rows for row in split for name in row})
    ids = {name: i for i, name in enumerate(names)}
    matrices = [numbered(split, ids) for split in rows]
    train, test = (
        Examples(some, labels, no_pairs(*labels.shape))
        for some, labels in zip(texts, matrices, strict=True)
    )
    return train, test, of_titles(names, names)


def names_of(labels: Csr, names: Texts) -> Iterator[list[str]]:
    """The names of the labels of each point.

    Yields:
        a list a point.

    Example:
        >>> list(names_of(Csr.from_lists([[1], []], 2), of_titles(["cup", "red"])))
        [['red'], []]
    """
    ids = labels.indices.tolist()
    for start, end in pairwise(labels.indptr.tolist()):
        yield [names.titles[i] for i in ids[start:end]]
