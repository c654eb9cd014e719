"""Loader: depth, threads and resuming change nothing but time; threads and errors end well."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from shoal.core.block import Batch, Block
from shoal.core.errors import InputError
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdam
from shoal.training.loader import Loader, batch_generator

N = 50
ROWS = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(N)


class Shuffled:
    """A batch sampler whose order depends on its epoch."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch))
        return iter(order.split(self.size))

    def __len__(self) -> int:
        return -(-N // self.size)


def three_random_rows(seeds: Tensor, generator: torch.Generator) -> list[Block]:
    """Every seed reads three random rows; some batches take longer, so that threads race."""
    drawn = torch.randint(N, (len(seeds), 3), generator=generator)
    time.sleep(0.002 * float(torch.rand((), generator=generator)))
    src, local = torch.unique(drawn, return_inverse=True)
    indptr = torch.arange(len(seeds) + 1) * 3
    return [Block(seeds, src, indptr, local.flatten(), drawn.flatten())]


def loader(**options) -> Loader:
    return Loader(Shuffled(), three_random_rows, ROWS, TARGET, seed=3, **options)


def numbers(batch: Batch) -> list[list]:
    """Everything that a batch holds."""
    blocks = [x for b in batch.blocks for x in (b.dst, b.src, b.indptr, b.indices, b.edges)]
    target = [] if batch.target is None else [batch.target]
    return [x.tolist() for x in (batch.seeds, batch.src, *target, *blocks)]


def stream(loader: Loader, epochs: int = 2) -> list[list]:
    return [numbers(batch) for _ in range(epochs) for batch in loader]


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("shoal-loader")]


# -- the law -------------------------------------------------------------------------------------


def test_depth_and_threads_change_nothing() -> None:
    """Two epochs are equal for 0, 1 and 4 batches prefetched by 1 to 3 threads."""
    expected = stream(loader(prefetch=0))
    assert len(expected) == 14 and expected[:7] != expected[7:]
    for prefetch in (1, 2, 4, 20):
        for workers in (1, 2, 3):
            assert stream(loader(prefetch=prefetch, workers=workers)) == expected
    assert loader_threads() == []


def test_the_only_batch_needs_no_thread() -> None:
    """Nothing could be made while it is worked on; the last one of an epoch is such a one, too."""
    for batches, position in ([[0, 3]], 0), ([[0, 3], [1]], 1):
        one = Loader(batches, three_random_rows, ROWS, TARGET, seed=3)
        one.position = position
        for _ in one:
            assert loader_threads() == []
        assert (one.epoch, one.position) == (1, 0)


def test_threads_of_torch_are_shared_and_given_back() -> None:
    """A worker has one half of torch's threads, the step keeps its count, and so does torch."""
    counts: set[int] = set()

    def counting(seeds: Tensor, generator: torch.Generator) -> list[Block]:
        counts.add(torch.get_num_threads())
        return three_random_rows(seeds, generator)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        numbered = [numbers(batch) for batch in Loader(Shuffled(), counting, ROWS, TARGET, seed=3)]
        assert (counts, torch.get_num_threads()) == ({2}, 4)
    finally:
        torch.set_num_threads(before)
    assert numbered == stream(loader(), epochs=1)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_transpose_comes_with_rows_that_learn(prefetch: int) -> None:
    """It is made with the batch, not in the step; rows without a gradient need none."""
    learning = unified(ROWS.clone(), RowAdam(0.1))
    for table, made in ((learning, True), (ROWS, False)):
        for batch in Loader(Shuffled(), three_random_rows, table, seed=3, prefetch=prefetch):
            (block,) = batch.blocks
            assert ("back" in vars(block)) == made
            assert torch.equal(block.back.to_dense(), block.csr.to_dense().T)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_at_any_midpoint_and_into_the_next_epoch(prefetch: int) -> None:
    """After any number of batches, a fresh loader with the state yields the rest, then epoch 1."""
    expected = stream(loader(prefetch=prefetch))
    for done in range(len(expected) // 2 + 1):
        first = loader(prefetch=prefetch)
        iterator = iter(first)
        for _ in range(done):
            next(iterator)
        state = first.state_dict()
        assert state == {"seed": 3, "epoch": 0, "position": done}
        second = loader(prefetch=prefetch)
        second.load_state_dict(state)
        assert stream(second) == expected[done:]
        assert second.state_dict() == {"seed": 3, "epoch": 2, "position": 0}


def test_resuming_builds_no_batch_twice() -> None:
    """Batches before the position are skipped, not built."""
    built: list[int] = []

    def counting(seeds: Tensor, generator: torch.Generator) -> list[Block]:
        built.append(int(seeds[0]))
        return three_random_rows(seeds, generator)

    resumed = Loader(Shuffled(), counting, ROWS, seed=3)
    resumed.load_state_dict({"seed": 3, "epoch": 0, "position": 5})
    batches = [int(batch.seeds[0]) for batch in resumed]
    assert built == batches and len(built) == 2


def test_set_epoch_goes_to_any_epoch_and_stays_in_the_current_one() -> None:
    """Epoch 1 can be had first; setting the epoch that is being resumed keeps the position."""
    expected = stream(loader())
    late = loader()
    late.set_epoch(1)
    assert [numbers(batch) for batch in late] == expected[7:]
    resumed = loader()
    resumed.load_state_dict({"seed": 3, "epoch": 0, "position": 4})
    resumed.set_epoch(0)
    assert [numbers(batch) for batch in resumed] == expected[4:7]


def test_generators_are_distinct_and_fixed() -> None:
    """No two of (seed, epoch, batch) share a stream; the first number is recorded for all time."""
    seen = {
        int(torch.randint(2**62, (), generator=batch_generator(s, e, k)))
        for s in range(4)
        for e in range(4)
        for k in range(4)
    }
    assert len(seen) == 64
    assert batch_generator(1, 2, 3).initial_seed() == 12997252459554536576


# -- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_rows_that_learn_are_never_stale(prefetch: int) -> None:
    """Each batch of a learning table holds the rows as the step before left them."""
    table = unified(ROWS.clone(), RowAdam(0.1))
    for batch in Loader(Shuffled(), three_random_rows, table, seed=3, prefetch=prefetch, workers=2):
        ids = batch.blocks[0].src
        assert torch.equal(batch.src, (table + 0)[ids])
        table.update(ids, batch.src)
    assert not torch.equal(table + 0, ROWS)


def test_rows_that_stay_are_gathered_ahead() -> None:
    """Frozen rows are read in the loader's threads, learning ones in the consumer's."""

    class Watched:
        def __init__(self, learns: bool) -> None:
            self.trainable = learns
            self.readers: set[str] = set()

        def gather(self, ids: Tensor) -> Tensor:
            self.readers.add(threading.current_thread().name)
            return ROWS[ids]

    frozen, learning = Watched(False), Watched(True)
    for table in (frozen, learning):
        assert len(list(Loader(Shuffled(), three_random_rows, table, seed=3))) == 7
    assert frozen.readers == {"shoal-loader_0"}
    assert learning.readers == {threading.current_thread().name}


def test_what_a_loader_can_do_without() -> None:
    """No table: src of width 0. No blocks: rows of the seeds. Seeds may be lists of integers, as of
    torch's own samplers; rows may be numpy's.
    """
    bare = next(iter(Loader(Shuffled(), three_random_rows, seed=3)))
    assert bare.src.shape == (len(bare.blocks[0].src), 0) and bare.target is None
    plain = next(iter(Loader([[4, 2]], lambda seeds, generator: [], ROWS.numpy(), seed=3)))
    assert torch.equal(plain.src, ROWS[[4, 2]]) and plain.seeds.tolist() == [4, 2]
    chooser = RandomSampler(range(N), generator=torch.Generator().manual_seed(0))
    torchs = Loader(BatchSampler(chooser, 8, drop_last=False), three_random_rows, ROWS, seed=3)
    assert sorted(x for batch in torchs for x in batch.seeds.tolist()) == list(range(N))
    assert len(torchs) == 7


def test_an_empty_epoch_is_an_epoch() -> None:
    """A sampler without batches yields none, leaves no thread, and the next epoch follows."""
    empty = Loader([], three_random_rows, ROWS, seed=0)
    assert list(empty) == [] and empty.epoch == 1 and loader_threads() == []


# -- ends ----------------------------------------------------------------------------------------


def failing_at(bad: int):
    """A block sampler that fails on the batch whose first seed is that of batch `bad`."""
    first = int(list(Shuffled())[bad][0])

    def sample(seeds: Tensor, generator: torch.Generator) -> list[Block]:
        if int(seeds[0]) == first:
            raise RuntimeError("broken sampler")
        return three_random_rows(seeds, generator)

    return sample


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_surfaces_at_its_batch(prefetch: int) -> None:
    """Batches before a failing one arrive; its own error comes in its place; threads end."""
    broken = Loader(Shuffled(), failing_at(3), ROWS, seed=3, prefetch=prefetch, workers=2)
    arrived = []
    with pytest.raises(RuntimeError, match="broken sampler"):
        arrived.extend(len(batch.seeds) for batch in broken)
    assert arrived == [8, 8, 8] and broken.position == 3
    assert loader_threads() == []


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_of_the_batch_sampler_comes_after_the_batches_before_it(prefetch: int) -> None:
    """A sampler that fails while it is read ahead does not swallow what it gave before."""

    class Broken(Shuffled):
        def __iter__(self) -> Iterator[Tensor]:
            yield from list(super().__iter__())[:2]
            raise RuntimeError("broken order")

    broken = Loader(Broken(), three_random_rows, ROWS, seed=3, prefetch=prefetch)
    with pytest.raises(RuntimeError, match="broken order"):
        for _ in broken:
            pass
    assert broken.position == 2 and loader_threads() == []


def test_threads_end_with_the_iterator() -> None:
    """However the consumer leaves: break, its own error, Ctrl-C, forgetting the iterator."""
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            for _ in loader(prefetch=3, workers=2):
                assert loader_threads()
                if error is not None:
                    raise error
                break
        except (ValueError, KeyboardInterrupt):
            pass
        assert loader_threads() == []
    forgotten = iter(loader(prefetch=3))
    next(forgotten)
    del forgotten
    gc.collect()
    assert loader_threads() == []
    never_asked = iter(loader())
    assert loader_threads() == []
    del never_asked


# Eight workers, each in a batch that takes half a minute, when Ctrl-C comes.
INTERRUPTED = """
import os, signal, sys, threading, time
import torch
from shoal import Loader
signal.signal(signal.SIGINT, signal.default_int_handler)
begun = threading.Barrier(9)
def slow(seeds, generator):
    if begun.broken:
        return []
    begun.wait()
    time.sleep(30)
    return []
def read():
    for _ in Loader([[0]] * 100, slow, torch.zeros(1, 1), seed=0, prefetch=8, workers=8):
        pass
def interrupt():
    begun.wait()
    print(time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
if sys.argv[1] == "main":
    read()
else:
    own = threading.Thread(target=read)
    own.start()
    own.join()
"""


@pytest.mark.parametrize("reader", ["main", "own"])
def test_ctrl_c_ends_a_process_with_busy_workers(reader: str) -> None:
    """In the main thread and in one of one's own, and by the signal; two seconds on a free machine.

    Others work on the machine that tests it, so ten are allowed; the workers would take thirty.
    """
    words = [sys.executable, "-c", INTERRUPTED, reader]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert time.time() - float(found.stdout) < 10
    assert found.returncode == -signal.SIGINT, found.stderr
    assert found.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_named() -> None:
    """Numbers out of range and another run's state: InputError names the argument."""
    for bad in ({"prefetch": -1}, {"workers": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            loader(**bad)
    with pytest.raises(InputError, match="seed: expected a whole number of at least 0, got -1"):
        Loader(Shuffled(), three_random_rows, ROWS, seed=-1)
    with pytest.raises(InputError, match="seed: expected the saved run's, 4, got 3"):
        loader().load_state_dict({"seed": 4, "epoch": 0, "position": 0})


@pytest.mark.gpu
def test_batches_on_a_device_are_those_of_the_host() -> None:
    """Shipped ahead on a side stream or not, frozen or learning, the numbers are the host's."""
    expected = stream(loader())
    for prefetch in (0, 1, 4):
        assert stream(loader(prefetch=prefetch, device="cuda")) == expected
    table = unified(ROWS.clone(), RowAdam(0.1))
    for batch in Loader(Shuffled(), three_random_rows, table, seed=3, device="cuda"):
        ids = batch.blocks[0].src
        assert batch.src.is_cuda and torch.equal(batch.src.cpu(), (table + 0)[ids.cpu()])
        table.update(ids, batch.src)
