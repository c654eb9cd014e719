"""Which examples are held out: decided by each example's own text, so that data may change.

An example is held out if a hash of its text is small. So the split stays as it is when rows are
added, removed or sorted, or labels are corrected, and two examples of one text are never on both
sides. How many are held out is left to the hash: a binomial number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.data.texts import Examples, LabelData, Texts

# folds at most: each is a training of its own
_MOST = 10


def digests(texts: Texts, key: str = "") -> Int[Tensor, " n"]:
    """64 bits of BLAKE2b of each example: of its text, or of its features where it has some.

    Args:
        texts: the examples.
        key: other keys give independent digests; at most 64 bytes.

    Example:
        >>> one, same, other = digests(Texts.of(["red mug", "red mug", "tea"])).tolist()
        >>> one == same, one == other
        (True, False)
    """
    secret = key.encode()
    parts = (blake2b(x, digest_size=8, key=secret).digest() for x in _contents(texts))
    return torch.from_numpy(np.frombuffer(b"".join(parts), dtype="<i8").astype(np.int64))


def _contents(texts: Texts) -> Iterator[bytes]:
    if texts.features is None:
        yield from (text.encode("utf-8", "surrogatepass") for text in texts.all())
        return
    ids = texts.features.indices.numpy().astype("<i8")
    values = texts.features.values
    weights = np.ones(len(ids), "<f4") if values is None else values.numpy().astype("<f4")
    for a, b in pairwise(texts.features.indptr.tolist()):
        yield ids[a:b].tobytes() + weights[a:b].tobytes()


def held_out(
    texts: Texts, share: float | int, seed: int, purpose: str = "test", part: int = 0
) -> Bool[Tensor, " n"]:
    """Which examples are held out: those whose digest is among the lowest `share` of all digests.

    In small data, where that would leave a side empty, the text of the lowest digest is held out,
    or that of the highest is not: both sides have examples as soon as there are two texts that
    differ. With fewer nothing is held out. Further parts may be empty.

    Args:
        texts: the examples.
        share: the expected share that is held out, in [0, 1); a larger one holds out the same
            examples and more.
        seed: another one holds out others.
        purpose: what for; of two purposes neither says anything about the other.
        part: the lowest share of digests, or the next one, and so on: parts share no text.

    Raises:
        InputError: if share is out of range.

    Example:
        >>> held = held_out(Texts.of([f"text {i}" for i in range(1000)]), 0.2, seed=0)
        >>> 160 < int(held.sum()) < 240
        True
    """
    expect(0 <= share < 1, "share", "a share in [0, 1)", share, "try 0.2, or 0 for none")
    found = digests(texts, f"{purpose} {seed}")
    if share == 0 or len(found.unique()) < 2:
        return torch.zeros(len(found), dtype=torch.bool)
    # digests are spread over all of int64
    low, high = (min(round(share * i * 2**64), 2**64) - 2**63 for i in (part, part + 1))
    held = torch.zeros_like(found, dtype=torch.bool)
    if low < high:  # a share may be too small for any
        held = (found >= low) & (found <= high - 1)
    if part:
        return held & ~held_out(texts, share, seed, purpose)
    held = held if bool(held.any()) else found == found.min()
    return found != found.max() if bool(held.all()) else held


def random_split(
    n: int, fraction: float, seed: int
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Split ``range(n)`` at random; neither part is empty. For nodes, which have no text.

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
    expect(n >= 2, "nodes", "at least 2 to split", n, "add some")
    expect(0 < fraction < 1, "fraction", "a share in (0, 1)", fraction, "try 0.2")
    held = min(max(round(n * fraction), 1), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


def split_test(data: LabelData, share: float | int = 0.2, seed: int = 0) -> LabelData:
    """The data set with test examples: its own where it has some, otherwise :func:`held_out`.

    Example:
        >>> texts = Texts.of([f"text {i}" for i in range(10)])
        >>> examples = Examples.of(texts, Csr.from_lists([[0]] * 10, 1))
        >>> data = split_test(LabelData.unsplit("ten", examples, Texts.of(["cup"])))
        >>> len(data.train) + len(data.test), 0 < len(data.test) < 10, data.own_split
        (10, True, False)
    """
    if data.own_split:
        return data
    train, test = _divided(data.train, share, seed, "test")
    return replace(data, train=train, test=test)


def validation_split(
    data: LabelData, share: float, seed: int, part: int = 0
) -> tuple[Examples, Examples]:
    """Hold training examples out for validation, by :func:`held_out`, and as the test split is.

    Where labels are examples too (one uid and one title), the reverse of a held-out pair may stand
    in what is left to train on: such pairs, and each example's own label, move from the truth to
    the filter pairs, as published test splits have it, and examples without any truth left are
    left out.

    Args:
        data: its training examples are split.
        share: the share held out, in [0, 1).
        seed: of the split.
        part: which of them, as for :func:`held_out`.

    Returns:
        the examples to train on, and those to validate on: none where fewer than two texts differ.

    Raises:
        InputError: if share is out of range.

    Example:
        Two examples that are each other's labels: the held-out pair is known from its reverse.

        >>> texts = Texts(["a", "b", "c"], ["red", "mug", "tea"], ["", "", ""])
        >>> examples = Examples.of(texts, Csr.from_lists([[1], [0], [0]], n_cols=3))
        >>> train, valid = validation_split(LabelData("tiny", examples, examples, texts), 0.4, 1)
        >>> train.texts.uids, valid.texts.uids
        (['a', 'b'], ['c'])
    """
    train, valid = _divided(data.train, share, seed, "validation", part)
    twin = _find(data.labels, train.texts)
    own = _find(valid.texts, data.labels)
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
    evaluated = Examples(valid.texts, truth, drop.coalesce())
    return train, evaluated.subset((truth.degrees() > 0).nonzero().squeeze(1))


@dataclass(frozen=True, eq=False)
class Fold:
    """Examples to learn from, and others that are held out.

    Attributes:
        train: to learn from.
        held_out: to judge by what was learned; None for none.
    """

    train: Examples
    held_out: Examples | None


def folds(data: LabelData, share: float, seed: int, enough: int = 0) -> list[Fold]:
    """Hold a share of the training examples out, and others in turn until enough were.

    Args:
        data: its training examples are split, each time by :func:`validation_split`.
        share: held out at a time, in (0, 1).
        seed: of the splits.
        enough: held-out examples that are wanted; ten folds are the most.

    Example:
        >>> texts = Texts.of([f"text {i}" for i in range(60)])
        >>> examples = Examples.of(texts, Csr.from_lists([[0]] * 60, 1))
        >>> data = LabelData.unsplit("sixty", examples, Texts.of(["cup"]))
        >>> made = folds(data, 0.25, seed=0, enough=1000)
        >>> len(made), sum(len(fold.held_out.texts) for fold in made)
        (4, 60)
    """
    most = min(math.ceil(1 / share - 1e-9), _MOST)
    wanted = -(-enough // max(round(share * len(data.train)), 1))
    parts = (validation_split(data, share, seed, i) for i in range(max(min(wanted, most), 1)))
    made = [Fold(kept, out if len(out) else None) for kept, out in parts]
    # all of them may be known from their reverse, or be one text
    return [fold for fold in made if fold.held_out is not None] or made[:1]


def _divided(
    examples: Examples, share: float | int, seed: int, purpose: str, part: int = 0
) -> tuple[Examples, Examples]:
    held = held_out(examples.texts, share, seed, purpose, part)
    kept, out = ((held == side).nonzero().squeeze(1) for side in (False, True))
    return examples.subset(kept), examples.subset(out)


def _find(wanted: Texts, among: Texts) -> Int[Tensor, " n"]:
    """The position of each wanted document, or -1.

    Uids alone would not do: where a source has none, examples and labels are both called 0, 1, ….
    """
    position = {key: i for i, key in enumerate(zip(among.uids, among.titles, strict=True))}
    keys = zip(wanted.uids, wanted.titles, strict=True)
    return torch.tensor([position.get(key, -1) for key in keys], dtype=torch.int64)
