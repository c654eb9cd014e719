"""Number the distinct ids of a hop: global columns in, local positions out.

A sparse set (Briggs and Torczon, "An efficient representation for sparse sets", ACM LOPLAS 1993): a
list `src` of the members and a map `place` over all columns, with ``src[place[id]] == id`` exactly
for members. The map is never cleared, since a wrong guess in it is found out by looking at `src`:
a hop costs what it touches, without a sort and without a pass over all columns.
"""

from __future__ import annotations

import threading

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr


class Scratch(threading.local):
    """One reusable int32 map over columns for each thread that expands: 4 bytes per column.

    A fresh map would cost a page fault for nearly every column it touches, more than the hop itself
    from some millions of columns on. Its content is never cleared (see :func:`distinct`).
    """

    def __init__(self) -> None:
        self.map = torch.empty(0, dtype=torch.int32)

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        """Travel to another process empty-handed."""
        return Scratch, ()

    def columns(self, csr: Csr) -> Int[Tensor, " m"]:
        """Return this thread's map for the columns of `csr`, its content arbitrary."""
        if self.map.numel() < csr.n_cols or self.map.device != csr.device:
            self.map = torch.empty(csr.n_cols, dtype=torch.int32, device=csr.device)
        return self.map


def distinct(ids: Int[Tensor, " e"], place: Int[Tensor, " m"]) -> Int[Tensor, " s"]:
    """Return each id once, in the order of first appearance, and number them.

    Equivalent to ``list(dict.fromkeys(ids))``; afterwards ``place[src] == arange(s)``. What `place`
    held before does not matter.

    Args:
        ids: numbers in ``[0, m)``, repeats allowed.
        place: int32 map ``[m]``, overwritten at `ids`.

    Example:
        >>> distinct(torch.tensor([5, 2, 5, 0]), torch.empty(6, dtype=torch.int32)).tolist()
        [5, 2, 0]
    """
    turns = torch.arange(ids.numel(), dtype=torch.int32, device=ids.device)
    # amin, not a plain write: which of several writers wins must not depend on the device.
    place.scatter_reduce_(0, ids, turns, "amin", include_self=False)
    first = (place.index_select(0, ids) == turns).nonzero().squeeze(1)
    src = ids.index_select(0, first)
    place.scatter_(0, src, turns[: src.numel()])
    return src


def locate(
    ids: Int[Tensor, " e"], src: Int[Tensor, " s"], place: Int[Tensor, " m"]
) -> tuple[Int[Tensor, " e"], Bool[Tensor, " e"]]:
    """Find ids in the `src` that :func:`distinct` numbered.

    Returns:
        the position in `src` of each id (meaningless where it is not there), and whether it is.

    Example:
        >>> place = torch.empty(6, dtype=torch.int32)
        >>> src = distinct(torch.tensor([5, 2]), place)
        >>> locate(torch.tensor([2, 4]), src, place)[1].tolist()
        [True, False]
    """
    local = place.index_select(0, ids).long().clamp_(0, src.numel())
    return local, pad(src, (0, 1), value=-1).index_select(0, local) == ids
