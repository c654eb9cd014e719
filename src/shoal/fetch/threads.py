"""Threads that share work out, while torch keeps to its own.

torch divides one operation among its threads and lets them meet at its end. Where an operation is
over in some microseconds, as on pieces that fit the cache, meeting costs more than it saves; and
two Python threads that each call up all of torch's threads wait for one another's. The threads of a
:func:`pool` are given a count of their own, and :func:`for_each` divides the pieces instead of the
operations.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

import torch

_T = TypeVar("_T")
_Job = Callable[[], None]
_GLANCE = 0.25  # seconds between two looks at whether anybody still waits for a job
_MOMENT = 0.5  # seconds that a pool's end waits for the jobs in hand


class Pool:
    """Threads of :func:`pool`; use it as a context manager.

    They are daemons: after Ctrl-C, and when the interpreter ends, nobody waits longer than a moment
    for what they are doing. (Threads of :mod:`concurrent.futures` are waited for without end.)
    """

    def __init__(self, threads: list[threading.Thread], todo: SimpleQueue[_Job | None]) -> None:
        self._threads, self._todo = threads, todo
        self._closed = threading.Event()
        self.owner = threading.get_ident()
        _pools.add(self)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have a thread call ``function(*arguments)``."""
        future: Future[_T] = Future()

        def job() -> None:
            if self._closed.is_set():
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        self._todo.put(job)
        return future

    def close(self) -> None:
        """Begin nothing more, and wait a moment for what is being done; once."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in self._threads:
            self._todo.put(None)
        until = time.monotonic() + _MOMENT
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))


_pools: WeakSet[Pool] = WeakSet()


@atexit.register
def _close_pools() -> None:
    """Let threads end before the interpreter does: inside torch, that would abort the process."""
    pools, until = list(_pools), time.monotonic() + _MOMENT
    others = {one.owner for one in pools} - {threading.get_ident()}
    # Those that read a loader end after their step. Not by join: one that Ctrl-C interrupted counts
    # as done before Python 3.13.
    while main_interrupted() and others & sys._current_frames().keys() and time.monotonic() < until:
        time.sleep(0.01)
    for one in pools:
        one.close()


def pool(workers: int, name: str, torch_threads: int = 1) -> Pool:
    """Start threads, all at once, in which torch's operations use `torch_threads` threads.

    The counts of the calling thread and of threads to come stay as they are.

    Raises:
        RuntimeError: if the system gives no more threads; those that did start end.

    Example:
        >>> count = torch.get_num_threads()
        >>> with pool(2, "example") as workers:
        ...     workers.submit(torch.get_num_threads).result()
        1
        >>> torch.get_num_threads() == count
        True
    """
    todo: SimpleQueue[_Job | None] = SimpleQueue()
    ready = threading.Barrier(workers + 1)

    def work() -> None:
        torch.get_num_threads()  # the first call gives the thread its count; later ones keep ours
        torch.set_num_threads(torch_threads)
        with suppress(threading.BrokenBarrierError):
            ready.wait()
            while (job := todo.get()) is not None:
                job()
                del job  # and with it what it holds, before the next one comes

    threads = [
        threading.Thread(target=work, name=f"{name}_{i}", daemon=True) for i in range(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        ready.wait()
    except BaseException:
        ready.abort()
        raise
    finally:
        # torch holds one count per thread and one for threads to come, which workers have changed
        torch.set_num_threads(torch.get_num_threads())
    return Pool(threads, todo)


def main_interrupted() -> bool:
    """Whether Ctrl-C has ended the main thread: the process then ends when its other threads do."""
    ended_by = getattr(sys, "last_value", None)
    return not threading.main_thread().is_alive() and isinstance(ended_by, KeyboardInterrupt)


def result_of(future: Future[_T]) -> _T:
    """What a job came to, once it has.

    Raises:
        KeyboardInterrupt: if Ctrl-C comes first, here or in the main thread.
    """
    while not wait([future], timeout=_GLANCE).done:
        if main_interrupted():
            raise KeyboardInterrupt
    return future.result()


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
    try:
        wait(done)
    except BaseException:  # Ctrl-C: the pieces in hand are the last
        todo.clear()
        raise
    for future in done:
        future.result()


@functools.cache
def _shared_pool(workers: int, process: int) -> Pool:
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
