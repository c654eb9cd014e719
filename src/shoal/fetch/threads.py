"""Threads that share work out, while torch keeps to its own.

torch divides one operation among its threads and lets them meet at its end. Where an operation is
over in some microseconds, as on pieces that fit the cache, meeting costs more than it saves; and
two Python threads that each call up all of torch's threads wait for one another's. The threads of a
:func:`pool` are given a count of their own, and :func:`for_each` divides the pieces instead of the
operations.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch


def pool(workers: int, name: str, torch_threads: int = 1) -> ThreadPoolExecutor:
    """Start threads, all at once, in which torch's operations use `torch_threads` threads.

    The counts of the calling thread and of threads to come stay as they are.

    Example:
        >>> count = torch.get_num_threads()
        >>> with pool(2, "example") as workers:
        ...     workers.submit(torch.get_num_threads).result()
        1
        >>> torch.get_num_threads() == count
        True
    """
    ready = threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call gives the thread its count; later ones keep ours
        torch.set_num_threads(torch_threads)
        ready.wait()

    executor = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=begin)
    for _ in range(workers):
        executor.submit(int)
    ready.wait()
    # torch holds one count per thread and one for threads to come, which the workers have changed
    torch.set_num_threads(torch.get_num_threads())
    return executor


def for_each(
    function: Callable[..., None],
    pieces: Iterable[tuple[Any, ...]],
    workers: int | None = None,
) -> None:
    """Call ``function(*piece)`` for every piece, on several threads.

    Each call runs in one thread, whatever their number; where pieces write to different memory the
    result is therefore the same for every number of threads.

    Args:
        function: what is called.
        pieces: its arguments; handed out in order.
        workers: how many threads; as many as torch has here if None. More than there are cores
            help where calls wait, as reads of a disk do.

    Example:
        >>> out = torch.zeros(3)
        >>> for_each(lambda i, x: out[i : i + 1].fill_(x), [(0, 5.0), (2, 7.0)])
        >>> out.tolist()
        [5.0, 0.0, 7.0]
    """
    todo = list(pieces)
    workers = torch.get_num_threads() if workers is None else workers
    if workers == 1:
        for piece in todo:
            function(*piece)
        return
    shared = iter(todo)  # a list's iterator hands each piece out once, to whichever thread asks

    def work() -> None:
        for piece in shared:
            function(*piece)

    threads = _shared_pool(workers, os.getpid())
    done = [threads.submit(work) for _ in range(min(workers, len(todo)))]
    wait(done)
    for future in done:
        future.result()


@functools.cache
def _shared_pool(workers: int, process: int) -> ThreadPoolExecutor:
    # threads do not survive a fork: a child process makes its own
    return pool(workers, "shoal-pieces")


class ManyOrOne:
    """Many threads read together, or one changes what they read.

    Example:
        >>> gate = ManyOrOne()
        >>> with gate.many(), gate.many():
        ...     "both read"
        'both read'
        >>> with gate.one():
        ...     "alone"
        'alone'
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._readers = 0

    @contextmanager
    def many(self) -> Iterator[None]:
        """Hold it to read: not while another thread changes.

        Yields:
            nothing.
        """
        with self._free:
            self._readers += 1
        try:
            yield
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold it to change: once all readers are done; new ones wait.

        Yields:
            nothing.
        """
        with self._free:
            self._free.wait_for(lambda: self._readers == 0)
            yield
