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

from shoal.core.csr import Csr, flagged


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
        return self.ids(csr.n_cols, csr.device)

    def ids(self, n: int, device: torch.device) -> Int[Tensor, " m"]:
        """Return this thread's map for ids below `n`, its content arbitrary."""
        if self.map.numel() < n or self.map.device != device:
            self.map = torch.empty(n, dtype=torch.int32, device=device)
        return self.map


def distinct(ids: Int[Tensor, " e"], place: Int[Tensor, " m"], begin: int = 0) -> Int[Tensor, " s"]:
    """Return each id once, in the order of first appearance, and number them.

    Equivalent to ``list(dict.fromkeys(ids))``; afterwards ``place[src] == begin + arange(s)``. What
    `place` held before does not matter.

    Args:
        ids: numbers in ``[0, m)``, repeats allowed.
        place: int32 map ``[m]``, overwritten at `ids`.
        begin: the first number.

    Example:
        >>> distinct(torch.tensor([5, 2, 5, 0]), torch.empty(6, dtype=torch.int32)).tolist()
        [5, 2, 0]
    """
    turns = torch.arange(begin, begin + len(ids), dtype=torch.int32, device=ids.device)
    _write_first(ids, turns, place)
    first = flagged(place.index_select(0, ids) == turns)
    src = ids.index_select(0, first)
    place.scatter_(0, src, turns[: src.numel()])
    return src


def _write_first(
    ids: Int[Tensor, " e"], turns: Int[Tensor, " e"], place: Int[Tensor, " m"]
) -> None:
    """Let ``place[id]`` be the least turn of an id, where turns rise."""
    if ids.is_cpu:  # writes to a vector come one after the other: the last one is the first turn's
        place.scatter_(0, ids.flip(0), turns.flip(0))
    else:  # which of several writers wins would be chance; this takes four times as long on a CPU
        place.scatter_reduce_(0, ids, turns, "amin", include_self=False)


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


class Register:
    """The nodes of a subgraph in the order in which they came, each found again by its id.

    Args:
        ids: those that come first, ``[b]``; one that repeats is found where it stands first.
        place: int32 map over all ids, this register's own while it is used.

    Example:
        >>> register = Register(torch.tensor([5, 2, 5]), torch.empty(9, dtype=torch.int32))
        >>> register.number(torch.tensor([7, 2, 8, 7])).tolist(), register.ids.tolist()
        ([3, 1, 4, 3], [5, 2, 5, 7, 8])
    """

    trees: None = None  # all are of one

    def __init__(self, ids: Int[Tensor, " b"], place: Int[Tensor, " m"]) -> None:
        self.ids, self.place = ids, place
        _write_first(ids, torch.arange(len(ids), dtype=torch.int32, device=ids.device), place)

    def find(
        self, ids: Int[Tensor, " e"], trees: None = None
    ) -> tuple[Int[Tensor, " e"], Bool[Tensor, " e"]]:
        """The position of each id (meaningless where there is none), and whether there is one."""
        return locate(ids, self.ids, self.place)

    def number(self, ids: Int[Tensor, " e"], trees: None = None) -> Int[Tensor, " e"]:
        """The position of each id; those that are new come behind the others."""
        _, known = self.find(ids)
        new = ids.index_select(0, flagged(~known))
        self.ids = torch.cat([self.ids, distinct(new, self.place, len(self.ids))])
        return self.place.index_select(0, ids).long()


class TreeRegister:
    """The same where every seed has a tree of its own, and an id may stand in each of them.

    Args:
        ids: the seeds, ``[b]``.
        trees: the number of each seed's tree, ``[b]``, distinct.
        n: ids are below it.

    Example:
        >>> register = TreeRegister(torch.tensor([5, 5]), torch.tensor([0, 1]), n=9)
        >>> register.number(torch.tensor([7, 5, 7]), torch.tensor([1, 1, 0])).tolist()
        [2, 1, 3]
        >>> register.ids.tolist(), register.trees.tolist()
        ([5, 5, 7, 7], [0, 1, 1, 0])
    """

    def __init__(self, ids: Int[Tensor, " b"], trees: Int[Tensor, " b"], n: int) -> None:
        self.ids, self.trees, self.n = ids, trees, max(n, 1)

    def find(
        self, ids: Int[Tensor, " e"], trees: Int[Tensor, " e"]
    ) -> tuple[Int[Tensor, " e"], Bool[Tensor, " e"]]:
        """The position of each id in its tree, and whether it is there."""
        at, _ = self._ranked(ids, trees)
        return at, at < len(self.ids)

    def number(self, ids: Int[Tensor, " e"], trees: Int[Tensor, " e"]) -> Int[Tensor, " e"]:
        """The position of each id in its tree; those that are new come behind the others."""
        at, new = self._ranked(ids, trees)
        self.ids = torch.cat([self.ids, new % self.n])
        self.trees = torch.cat([self.trees, new // self.n])
        return at

    def _ranked(
        self, ids: Int[Tensor, " e"], trees: Int[Tensor, " e"]
    ) -> tuple[Int[Tensor, " e"], Int[Tensor, " new"]]:
        """The position of each id, those that are new counted in, and the keys of the new ones."""
        # a map over trees times ids would be too large: ranks of keys take the place of ids
        known = self.trees * self.n + self.ids
        keys, ranks = torch.cat([known, trees * self.n + ids]).unique(return_inverse=True)
        place = torch.empty(len(keys), dtype=torch.int32, device=keys.device)
        order = distinct(ranks, place)
        return place.index_select(0, ranks[len(known) :]).long(), keys[order[len(known) :]]
