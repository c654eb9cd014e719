"""One bar for all long work: how far it is, on standard error.

Silent where that is no terminal, and in all processes but the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from shoal.core.ranks import rank

_T = TypeVar("_T")
# Work that is done sooner shows no bar at all.
_AFTER = 1.0


class Bar(tqdm):
    """A bar of tqdm's without its thread, which only redraws bars that stand still."""

    monitor_interval = 0


def progress(parts: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """The parts as they are, with a bar of how many have been taken, which is erased at the end.

    Args:
        parts: of the work.
        what: the work, as a verb: ``cluster``, ``encode``, ``search``.
        total: how many parts there are, where they have no length.

    Example:
        >>> list(progress([1, 2], "count"))
        [1, 2]
    """
    silent = True if rank() else None  # None: where there is no terminal
    return iter(
        Bar(parts, desc=what, total=total, unit="part", delay=_AFTER, leave=False, disable=silent)
    )
