"""Batches of any kind: tensors, tuples, dictionaries, shoal's own, or objects that can move.

One place that decides how long a batch is and how it gets to a device, whichever loader made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.core.block import Batch


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest of tuples, lists and dictionaries with every tensor changed; the rest as it is.

    Example:
        >>> map_tensors({"x": [torch.tensor(1), "a"]}, lambda x: x + 1)
        {'x': [tensor(2), 'a']}
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(part, change) for key, part in tree.items()}
    if not isinstance(tree, list | tuple):
        return tree
    parts = [map_tensors(part, change) for part in tree]
    # a named tuple takes its parts one by one
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    if isinstance(batch, Batch):
        return batch.to(device)
    return map_tensors(batch, lambda x: x.to(device))


def size_of(batch: Any) -> int:
    """Samples of a batch: its seeds, or the first axis of its first tensor; 0 where there is none.

    Example:
        >>> size_of([{"ids": torch.zeros(3, 2)}, torch.zeros(3)])
        3
    """
    if isinstance(batch, Batch):
        return len(batch.seeds)
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    if isinstance(batch, Mapping | Sequence) and not isinstance(batch, str):
        parts = batch.values() if isinstance(batch, Mapping) else batch
        return next((size for part in parts if (size := size_of(part)) > 0), 0)
    return 0
