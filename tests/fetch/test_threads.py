"""Shared work: each piece once, errors come out, and torch's own counts stay as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shoal.fetch.threads import for_each, pool


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
