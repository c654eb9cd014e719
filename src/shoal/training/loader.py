"""The loader: seeds → blocks → rows → :class:`~shoal.core.block.Batch`, ahead of the step.

While the step works on batch k, threads expand and gather batches k + 1, …, k + prefetch. The law:
batch k of epoch e is a pure function of (seed, e, k), of the sampler's state and of the table's
rows, so the number of threads and how far they run ahead change nothing but time, and a loader that
is resumed at k yields what the uninterrupted one would have. Three rules make it hold:

1. seeds are drawn in order, by one thread;
2. the generator of batch k is seeded from (seed, e, k) alone (:func:`batch_generator`);
3. rows of a table that learns are gathered at hand-over, after the step before; only rows that stay
   as they are may be read ahead.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from shoal.core.block import Batch, Block
from shoal.core.errors import expect, expect_positive
from shoal.fetch.gather import gather_rows
from shoal.fetch.threads import main_interrupted, pool, result_of
from shoal.fetch.unified import unified
from shoal.sample.parts import shared

_Event = torch.cuda.Event | torch.Event
# a batch, and on a device the event that says it has arrived
_Made = tuple[Batch, _Event | None]


@runtime_checkable
class BatchSampler(Protocol):
    """Who is in the batch: yields the current epoch's seeds, batch by batch.

    Its ``set_epoch(epoch)``, where it has one, is called before each epoch; its attribute
    ``sampling``, where it has one, says how a batch's examples are drawn, ``"independent"`` or
    ``"clustered"``. torch's samplers of lists of integers will do.
    """

    def __iter__(self) -> Iterator[Tensor | Sequence[int]]:
        """Seeds of one batch after the other."""
        ...

    def __len__(self) -> int:
        """Batches per epoch."""
        ...


BlockSampler = Callable[[Tensor, torch.Generator], Sequence[Block]]
"""What seeds touch: blocks, input hop first."""


@runtime_checkable
class Table(Protocol):
    """How rows arrive. A table with ``trainable`` true is read at hand-over, not ahead.

    Its ``refresh()``, where it has one, is called at the end of each epoch, when nothing is read.
    """

    def gather(self, ids: Int[Tensor, " s"]) -> Shaped[Tensor, "s ..."]:
        """Rows `ids`."""
        ...


def batch_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return the generator of batch `index` of an epoch.

    The three numbers are hashed together (numpy's SeedSequence): neighboring batches, epochs and
    seeds share no stream, as they would with seed + epoch + index.

    Example:
        >>> draws = [torch.rand(1, generator=batch_generator(0, *at)) for at in [(1, 2), (2, 1)]]
        >>> bool(draws[0] == draws[1])
        False
    """
    (state,) = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


class Loader:
    """Iterate over the batches of one epoch, built ahead of the step.

    Iteration begins at :attr:`position`, and at its end the loader stands at the next epoch's first
    batch. The position counts a batch from the moment it is handed over.

    Args:
        batch_sampler: yields seeds, as tensors or lists of integers.
        block_sampler: ``(seeds, generator) → blocks``, input hop first; must be safe to call from
            several threads, as functions of their arguments are.
        table: rows for ``blocks[0].src`` (for the seeds, where there are no blocks): a tensor, or
            anything with ``gather(ids)``; None gives ``src`` of width 0.
        target: one row a point of the data, gathered for the seeds.
        seed: of all block samplers' randomness; at least 0.
        prefetch: batches in the making beyond the one handed over; 0 builds each when it is asked
            for, without threads, as the only batch of an epoch is. Each holds its rows: 2 hides the
            making wherever it is faster than the step.
        workers: threads that build them.
        device: where batches are handed over; None leaves them in host memory.

    Attributes:
        shared: whether batches come as one of several processes works on them
            (:func:`shoal.sample.parts.shared`); :func:`shoal.fit` decides.

    Raises:
        InputError: if a number is out of range.

    Example:
        >>> def alone(seeds, generator):
        ...     indptr = torch.arange(len(seeds) + 1)
        ...     return [Block(seeds, seeds, indptr, indptr[:-1], seeds, dst_in_src=True)]
        >>> loader = Loader([[0, 3], [1]], alone, torch.tensor([[0.], [1.], [2.], [3.]]), seed=0)
        >>> [batch.src.flatten().tolist() for batch in loader]
        [[0.0, 3.0], [1.0]]
        >>> loader.epoch, loader.position
        (1, 0)
    """

    def __init__(
        self,
        batch_sampler: BatchSampler,
        block_sampler: BlockSampler,
        table: Table | Shaped[Tensor, "n ..."] | np.ndarray | None = None,
        target: Shaped[Tensor, "points ..."] | None = None,
        *,
        seed: int,
        prefetch: int = 2,
        workers: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        expect(seed >= 0, "seed", "a whole number of at least 0", seed, "drop the sign")
        expect(prefetch >= 0, "prefetch", "at least 0 batches", prefetch, "raise it")
        expect_positive("workers", workers)
        self.batch_sampler = batch_sampler
        self.block_sampler = block_sampler
        self.table = unified(table) if isinstance(table, Tensor | np.ndarray) else table
        self.target = target
        self.seed, self.prefetch, self.workers = seed, prefetch, workers
        self.epoch, self.position = 0, 0
        self.shared = False
        # one side stream a loader: each further one would keep a memory pool of its own
        on_device = device is not None and torch.device(device).type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_device else None

    def __len__(self) -> int:
        """Batches an epoch, those before the position included."""
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of `epoch`; where it is the current one, stay at the position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next batch stands; the batch sampler saves what it itself remembers."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue with the batch that was next when `state` was taken.

        Raises:
            InputError: if the state is that of a loader with another seed.
        """
        same = state["seed"] == self.seed
        expect(same, "seed", f"the saved run's, {state['seed']}", self.seed, "use the same seed")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        """Go through the current epoch from the position on.

        Threads live from the first batch asked for to the end of the iterator, however it ends: it
        waits half a second at most for batches in the making, which nobody will see. An error in a
        thread surfaces where its batch would have come.

        Yields:
            one batch after the other.

        Raises:
            KeyboardInterrupt: also in another thread than the main one, once Ctrl-C has ended that.
        """
        epoch = self.epoch
        with contextlib.closing(self._ahead(epoch)) as ahead:
            for index, made in ahead:
                if main_interrupted():  # what this thread works for is gone
                    raise KeyboardInterrupt
                batch = self._hand_over(*made)
                self.position = index + 1
                yield batch
        self.epoch, self.position = epoch + 1, 0
        refresh = getattr(self.table, "refresh", None)
        if refresh is not None:
            refresh()

    def _seeds(self, epoch: int) -> Iterator[tuple[int, Tensor]]:
        set_epoch = getattr(self.batch_sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        for index, seeds in enumerate(self.batch_sampler):
            if index >= self.position:
                yield index, torch.as_tensor(seeds, dtype=torch.int64)

    def _ahead(self, epoch: int) -> Generator[tuple[int, _Made]]:
        # batches in order, with up to `prefetch` of them in the making
        seeds = self._seeds(epoch)
        # a thread for the only batch would be waited for, and begin and end with every epoch
        if self.prefetch == 0 or len(self.batch_sampler) - self.position < 2:
            yield from ((index, self._make(epoch, index, ids)) for index, ids in seeds)
            return
        # with all of torch's threads for each of them, making and step wait for one another, which
        # took 1.25 × the time of a step on two cores
        share = max(torch.get_num_threads() // (self.workers + 1), 1)
        threads = pool(self.workers, "shoal-loader", share)
        making: deque[tuple[int, Future[_Made]]] = deque()

        def submit(count: int) -> None:
            try:
                for index, ids in itertools.islice(seeds, count):
                    making.append((index, threads.submit(self._make, epoch, index, ids)))
            except Exception as error:  # the sampler's: the batches before it come first
                making.append((-1, Future()))
                making[-1][1].set_exception(error)

        try:
            submit(self.prefetch)
            while making:
                index, future = making.popleft()
                submit(1)
                yield index, result_of(future)
        finally:
            threads.close()

    def _make(self, epoch: int, index: int, seeds: Tensor) -> _Made:
        """Build a batch, but for trainable rows; with prefetch, in a worker's thread."""
        blocks = tuple(self.block_sampler(seeds, batch_generator(self.seed, epoch, index)))
        target = None if self.target is None else gather_rows(self.target, seeds)
        batch = Batch(seeds, blocks, torch.empty(0, 0), target)
        batch = shared(batch) if self.shared else batch
        batch = replace(batch, src=torch.empty(len(_source(batch)), 0))
        if self._trainable and blocks and self._stream is None:
            _ = batch.blocks[0].back  # kept by the block: the rows' gradient will need it
        if self._stream is None:
            return batch if self._trainable else self._with_rows(batch), None
        with torch.cuda.stream(self._stream):
            batch = batch.map(_pinned).to(self._stream.device)
            batch = batch if self._trainable else self._with_rows(batch)
            return batch, self._stream.record_event()

    def _hand_over(self, batch: Batch, arrived: _Event | None) -> Batch:
        """Finish a batch on the consumer's thread and, on a device, on the consumer's stream."""
        if arrived is not None and self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(arrived)
            # the side stream's allocator may reuse this memory only when the step is done with it
            batch.map(lambda tensor: _recorded(tensor, current))
        return self._with_rows(batch) if self._trainable else batch

    def _with_rows(self, batch: Batch) -> Batch:
        """Gather rows; they arrive where the ids are."""
        if self.table is None:
            return batch
        return replace(batch, src=self.table.gather(_source(batch)))

    @property
    def _trainable(self) -> bool:
        return getattr(self.table, "trainable", False)


def _source(batch: Batch) -> Tensor:
    return batch.blocks[0].src if batch.blocks else batch.seeds


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.numel() else tensor


def _recorded(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor
