"""Texts of requests that arrive together, predicted together.

One product of a batch's embeddings with all label embeddings reads the labels once, whether the
batch has one row or sixty-four: on 100,000 labels a text of a full batch takes a tenth of the time
that it takes alone. So texts wait in one queue, and one thread takes as many as a batch may hold:
those that came while it predicted the batch before, and those that come within a short wait after
the first. An answer depends on its own text and k, never on what else is in the batch, as far as
the predictor's own rows do not; to the rounding of float32, those of a LabelModel don't.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Protocol, runtime_checkable

from shoal.rank.predictor import Prediction

Answer = list[Prediction] | Exception


@runtime_checkable
class Predictor(Protocol):
    """Whatever predicts labels of texts: a fitted LabelModel, for one."""

    def predict(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        """The k best labels of each text."""
        ...


class Full(Exception):
    """More texts wait already than may."""


@dataclass(frozen=True, eq=False)
class _Item:
    """One text that waits for its answer, since a time by the monotonic clock."""

    text: str
    k: int
    since: float
    answer: asyncio.Future[list[Prediction]]


class Batcher:
    """A queue of texts and the thread that predicts them; use it as a context manager.

    Args:
        predictor: called by that thread alone, so it need not be safe for several.
        size: texts a batch at most.
        wait: seconds that the first text of a batch waits for others at most.
        room: texts that may wait at a time, those of the batch in hand among them.
        patience: seconds a batch may take before the predictor counts as stuck.

    Example:
        >>> class Echo:
        ...     def predict(self, texts, k):
        ...         return [[Prediction(text, text, 1.0, 0)] * k for text in texts]
        >>> async def ask():
        ...     with Batcher(Echo(), size=8, wait=0.002, room=64, patience=9.0) as batcher:
        ...         return await batcher.ask(["red", "blue"], k=1)
        >>> [row[0].title for row in asyncio.run(ask())]
        ['red', 'blue']
    """

    def __init__(
        self, predictor: Predictor, *, size: int, wait: float, room: int, patience: float
    ) -> None:
        self._predictor = predictor
        self._size, self._wait, self._room, self._patience = size, wait, room, patience
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._waiting = 0  # read and written by the event loop's thread alone
        self._since: float | None = None  # when the batch in hand was begun
        self._thread = threading.Thread(target=self._work, name="shoal-batches", daemon=True)

    def __enter__(self) -> Batcher:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Let the thread end after what it has been given; a stuck one is left behind."""
        self._queue.put(None)
        self._thread.join(timeout=1)

    @property
    def ready(self) -> bool:
        """Whether a text would be answered: the thread runs and is not stuck in a batch."""
        since = self._since
        stuck = since is not None and time.monotonic() - since > self._patience
        return self._thread.is_alive() and not stuck

    async def ask(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        """Predict the k best labels of each text, in the order of the texts.

        Cancelling it takes back those texts that no batch holds yet.

        Raises:
            Full: if there is no room for all texts, or nobody would answer.
        """
        if self._waiting + len(texts) > self._room or not self.ready:
            raise Full
        loop, now = asyncio.get_running_loop(), time.monotonic()
        items = [_Item(text, k, now, loop.create_future()) for text in texts]
        self._waiting += len(items)
        try:
            for item in items:
                self._queue.put(item)
            return list(await asyncio.gather(*(item.answer for item in items)))
        finally:
            self._waiting -= len(items)

    def _work(self) -> None:
        """Predict batch after batch, each k of it for itself."""
        while batch := self._take():
            self._since = time.monotonic()
            batch = [item for item in batch if not item.answer.cancelled()]
            batch.sort(key=lambda item: item.k)  # stable: order of arrival within each k
            for k, group in groupby(batch, key=lambda item: item.k):
                items = list(group)
                _deliver(items, self._answers([item.text for item in items], k))
            self._since = None

    def _take(self) -> list[_Item]:
        """The next batch; none after the end."""
        first = self._queue.get()
        if first is None:
            return []
        batch, until = [first], first.since + self._wait
        while len(batch) < self._size:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            batch.append(item)
        return batch

    def _answers(self, texts: list[str], k: int) -> Sequence[Answer]:
        """Predict texts together; where that fails each alone, so that none suffers for another."""
        try:
            rows = self._predictor.predict(texts, k)
            return [row for _, row in zip(texts, rows, strict=True)]
        except Exception as error:
            if len(texts) == 1:
                return [error]
            return [answer for text in texts for answer in self._answers([text], k)]


def _deliver(items: list[_Item], answers: Sequence[Answer]) -> None:
    """Hand answers to those who wait, in their event loop's thread."""
    with suppress(RuntimeError):  # a closed loop: nobody waits any more
        items[0].answer.get_loop().call_soon_threadsafe(_set, items, answers)


def _set(items: list[_Item], answers: Sequence[Answer]) -> None:
    for item, answer in zip(items, answers, strict=True):
        if item.answer.done():
            continue
        if isinstance(answer, Exception):
            item.answer.set_exception(answer)
        else:
            item.answer.set_result(answer)
