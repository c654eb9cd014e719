"""Shared work: each piece once, errors come out, and torch's own counts stay as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.data.formats import xc
from shoal.fetch.threads import for_each, pool
from tests import command
from tests.planted import planted_labels


@pytest.fixture
def three_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("three_threads")
def test_workers_have_their_own_count() -> None:
    """Two in the workers, three here and in threads to come."""
    with pool(2, "shoal-test", torch_threads=2) as workers:
        together = threading.Barrier(2)  # so that both are asked

        def count() -> int:
            together.wait()
            return torch.get_num_threads()

        futures = [workers.submit(count) for _ in range(2)]
        assert [future.result() for future in futures] == [2, 2]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (3, [3])


def threads_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the system start so many threads and no more."""
    start, left = threading.Thread.start, iter(range(count))

    def limited(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.mark.usefixtures("three_threads")
def test_threads_that_cannot_be_started_end_those_that_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of four start: the error comes out, the two end, and torch's count is as before."""
    threads_after(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool(4, "shoal-few", torch_threads=2)
    for thread in threading.enumerate():
        if thread.name.startswith("shoal-few"):
            thread.join(timeout=20)
            assert not thread.is_alive()
    assert torch.get_num_threads() == 3


def test_a_command_without_threads_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loader's workers cannot start, training is refused and names the limits."""
    xc.write(planted_labels(n=60, n_labels=16), tmp_path / "planted")
    threads_after(monkeypatch, 0)
    options = "--batch-size 12 --cluster-size 4 --dim 8 --steps 3".split()
    found = command.shoal("train", "labels", tmp_path / "planted", *options)
    assert found.status == 2 and "Traceback" not in found.err
    *_, last = found.err.splitlines()
    assert last.startswith("shoal: threads: expected as many as this takes, got can't start")


def test_ctrl_c_stops_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that is interrupted leaves the pieces that no thread has begun."""
    begun, gate = [], threading.Event()

    def piece(i: int) -> None:
        begun.append(i)
        gate.wait(timeout=20)

    def interrupted(futures: list[Future[None]]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal.fetch.threads.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for_each(piece, [(i,) for i in range(100)], workers=2)
    gate.set()
    monkeypatch.undo()
    for_each(lambda i: None, [(i,) for i in range(4)], workers=2)  # the same two threads, after
    assert len(begun) <= 2


@pytest.mark.usefixtures("three_threads")
def test_every_piece_is_done_once_by_threads_that_do_not_divide_it() -> None:
    """Many pieces, or fewer than threads, or none."""
    for n in (0, 1, 2, 100):
        done, counts = torch.zeros(n), set()

        def once(i: int, done: Tensor = done, counts: set[int] = counts) -> None:
            done[i] += 1
            counts.add(torch.get_num_threads())

        for_each(once, ((i,) for i in range(n)))
        assert torch.equal(done, torch.ones(n)) and counts <= {1}


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_out(threads: int) -> None:
    """What a piece raises is raised here, once no thread works on any piece."""

    def refuse(i: int) -> None:
        if i == 3:
            raise ZeroDivisionError

    count = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ZeroDivisionError):
            for_each(refuse, ((i,) for i in range(9)))
    finally:
        torch.set_num_threads(count)
