"""Batches of any kind: tensors, tuples, dictionaries, dataclasses, shoal's own, or what can move.

One place that decides how a batch gets to a device and how many samples its parts speak of,
whichever loader made it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.core.block import Batch


def map_tensors(
    tree: Any, change: Callable[[Tensor], Any], others: Callable[[Any], Any] = lambda leaf: leaf
) -> Any:
    """The same nest of tuples, lists, mappings and dataclasses with every tensor changed.

    Args:
        tree: is left as it is; kinds of mappings, tuples and dataclasses are kept.
        change: of tensors.
        others: of all other leaves; by default they stay.

    Example:
        >>> map_tensors({"x": [torch.tensor(1), "a"]}, lambda x: x + 1)
        {'x': [tensor(2), 'a']}
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, list | tuple):
        parts = [map_tensors(part, change, others) for part in tree]
        # a named tuple takes its parts one by one
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    named = _named(tree)
    if not named:
        return others(tree)
    again = {name: map_tensors(part, change, others) for name, part in named}
    if is_dataclass(tree):
        return replace(tree, **again)  # pyright: ignore[reportArgumentType]
    if type(tree) is dict or not isinstance(tree, MutableMapping):
        return again
    made = copy.copy(tree)  # with its attributes, as a tokenizer's batch has them
    made.update(again)
    return made


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`; objects with a method ``to`` move themselves."""
    if isinstance(batch, Batch):
        return batch.to(device)

    def asked(leaf: Any) -> Any:
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf

    return map_tensors(batch, lambda x: x.to(device), asked)


def size_of(batch: Any) -> int:
    """Samples of a batch, as far as its parts tell: the length that most of them can have.

    A tensor or an array can have its first or second axis for samples, a list its own length or
    that of its entries. Where that leaves several, it is the first axis. What a model makes of a
    batch tells more (:func:`~shoal.curvature.samples.counted`).

    Returns:
        0 where nothing tells.

    Example:
        >>> size_of([{"ids": torch.zeros(3, 2)}, torch.zeros(3)])
        3
        >>> size_of((torch.zeros(5, 64, 8), torch.zeros(64)))  # time first
        64
    """
    if isinstance(batch, Batch):
        return len(batch.seeds)
    return next(iter(sizes_of(batch)), 0)


def sizes_of(batch: Any) -> list[int]:
    """The lengths that most parts of a batch can have, a first axis before a second."""
    # of PyG's batches, whose tensors are nodes'
    known = None if isinstance(batch, Mapping) else getattr(batch, "num_graphs", None)
    if isinstance(known, int):
        return [known]
    parts = [x for _, x in _named(batch)] or [batch]
    votes = [vote for part in parts for vote in _votes(part)]
    if not votes and isinstance(batch, Tensor):
        return [1]
    if not votes and isinstance(batch, list | tuple) and all(isinstance(x, str) for x in batch):
        return [len(batch)] if batch else []
    if any(1 not in vote for vote in votes):
        votes = [vote for vote in votes if vote != [1]]  # one number for all samples
    counts = Counter(size for vote in votes for size in dict.fromkeys(vote))
    first = Counter(vote[0] for vote in votes)
    most = max(counts.values(), default=0)
    return sorted((n for n in counts if counts[n] == most), key=lambda n: -first[n])


def _votes(part: Any) -> Iterator[list[int]]:
    """What each tensor or list says.

    Yields:
        the lengths that it could stand for, the likeliest first.
    """
    if isinstance(part, Tensor | np.ndarray):
        if part.ndim:
            yield [int(size) for size in part.shape[:2]]
        return
    inner = [x for _, x in _named(part)]
    if isinstance(part, list | tuple) and inner and len({type(x) for x in inner}) == 1:
        # the two inputs of a model, or sixteen images
        within = [vote[0] for x in inner for vote in _votes(x)]
        yield list(dict.fromkeys([*within, len(inner)]))
        return
    for x in inner:
        yield from _votes(x)


def _named(tree: Any) -> list[tuple[Any, Any]]:
    """The parts of a nest by name or position; none for a leaf."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(part.name, getattr(tree, part.name)) for part in fields(tree) if part.init]
    return list(enumerate(tree)) if isinstance(tree, list | tuple) else []
