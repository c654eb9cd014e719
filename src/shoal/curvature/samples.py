"""How many samples a batch holds: what k_b, and with it all noise, is measured in.

In this order: what the caller says; shoal's own batches, by their seeds; a torch ``DataLoader``,
whose batches are `batch_size` of its data set, the last one perhaps fewer; else the lengths of the
batch's parts and of what the model makes of it. Where two axes could be the samples', as in token
batches ``[rows, time]`` or ``[time, rows]``, half of the batch is shown to the model: along
the axis of the samples it makes of that half what it makes of it within the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from shoal.core.batches import map_tensors, sizes_of
from shoal.core.block import Batch
from shoal.core.errors import expect

BatchSize = int | Callable[[Any], int] | None
_REMEDY = "pass batch_size=, a number or a function of the batch"


def counted(
    batches: Sequence[Any],
    outputs: Callable[[Any], Any],
    loader: Any = None,
    batch_size: BatchSize = None,
) -> list[int]:
    """Samples of each batch.

    Args:
        batches: the first ones of `loader`, at least one.
        outputs: what the model makes of a batch, in evaluation mode.
        loader: that made them.
        batch_size: what the caller says: of every batch, or a function of the batch.

    Raises:
        InputError: if it cannot be told; the remedy is to say it.

    Example:
        >>> tokens = torch.zeros(5, 64, 8)  # time first
        >>> counted([(tokens, torch.zeros(64))], lambda batch: batch[0][-1])
        [64]
    """
    if batch_size is not None:
        return [_said(batch_size, batch) for batch in batches]
    if all(isinstance(batch, Batch) for batch in batches):
        return [len(batch.seeds) for batch in batches]
    of_loader = _of_loader(loader, len(batches))
    if of_loader:
        return of_loader
    first = _by_parts(batches[0], outputs)
    axis = _axis_of(batches[0], first)
    return [first, *(_further(batch, first, axis) for batch in batches[1:])]


def _said(batch_size: int | Callable[[Any], int], batch: Any) -> int:
    size = batch_size if isinstance(batch_size, int) else batch_size(batch)
    good = isinstance(size, int) and not isinstance(size, bool) and size >= 1
    expect(good, "batch_size", "a whole number of at least 1", size, "count a batch's samples")
    return size


def _of_loader(loader: Any, count: int) -> list[int]:
    """What torch's own batch sampler says; nothing for samplers of other kinds."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return []
    ordered = type(loader.batch_sampler) is BatchSampler and isinstance(loader.sampler, Sized)
    if isinstance(loader.dataset, IterableDataset) or not ordered:
        return []
    size, n = loader.batch_size, len(loader.sampler)  # pyright: ignore[reportArgumentType]
    starts = [i % len(loader) * size for i in range(count)]
    return [min(size, n - start) for start in starts]


def _by_parts(batch: Any, outputs: Callable[[Any], Any]) -> int:
    """Samples of a batch by its parts, and by what the model makes of it where they disagree.

    Raises:
        InputError: if that does not tell either.
    """
    likely, kind = sizes_of(batch), type(batch).__name__
    expect(bool(likely), "batch_size", "parts that say how many samples there are", kind, _REMEDY)
    made = outputs(batch)
    if not isinstance(made, Tensor) or made.dim() == 0:
        return likely[0]
    n, rows = likely[0], len(made)
    fits = rows == 1 if n == 1 else rows % n == 0 or n in made.shape[:2]
    if len(likely) == 1 and fits:
        return n
    apart = (n for n in likely if n > 1 and _comes_apart(batch, n, outputs, made))
    found = next(apart, None)
    got = f"parts of {' or '.join(map(str, likely[:3]))} and outputs {list(made.shape)}"
    expect(found is not None, "batch_size", "samples that can be counted", got, _REMEDY)
    return found or 1


def _comes_apart(batch: Any, n: int, outputs: Callable[[Any], Any], whole: Tensor) -> bool:
    """Whether the second half of the samples alone has the outputs that it has within the whole."""
    axis, half = _axis_of(batch, n), n // 2
    try:
        part = outputs(_cut(batch, axis, n, half))
        if whole.shape[0] == n and axis == 0:
            wanted = whole[half:]
        elif whole.dim() > axis and whole.shape[axis] == n:
            wanted = whole.narrow(axis, half, n - half)
        elif axis == 0:
            wanted = whole[half * (len(whole) // n) :]
        else:  # [time, samples] made flat, or an output of each sample
            wanted = whole.unflatten(0, (-1, n))[:, half:].flatten(0, 1)
        return part.shape == wanted.shape and torch.allclose(part, wanted, 1e-3, 1e-5)
    except Exception:  # a model of batches of one length, or of parts that were not cut
        return False


def _cut(batch: Any, axis: int, n: int, start: int) -> Any:
    """The samples from `start` on of every part that has n of them along `axis`, or else first."""

    def tensor(x: Tensor) -> Tensor:
        for at in dict.fromkeys((axis, 0)):
            if x.dim() > at and x.shape[at] == n:
                return x.narrow(at, start, n - start)
        return x

    def other(x: Any) -> Any:
        return x[start:] if isinstance(x, np.ndarray) and x.ndim and len(x) == n else x

    return map_tensors(batch, tensor, other)


def _axis_of(batch: Any, n: int) -> int:
    """The axis along which a batch's first part has n samples; 0 where none has."""
    found: list[int] = []

    def look(x: Tensor) -> Tensor:
        found.extend(at for at in range(min(x.dim(), 2)) if x.shape[at] == n)
        return x

    map_tensors(batch, look, lambda x: look(torch.from_numpy(x)) if _numbers(x) else x)
    return found[0] if found else 0


def _numbers(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind in "fiub"


def _further(batch: Any, first: int, axis: int) -> int:
    """Samples of a further batch, perhaps a shorter one, counted along the axis of the first."""
    likely = sizes_of(batch)
    if first in likely or not likely:
        return first
    return next((n for n in likely if _axis_of(batch, n) == axis), likely[0])
