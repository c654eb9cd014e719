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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Protocol, runtime_checkable

from shoal.rank.predictor import Prediction

Answer = list[Prediction] | Exception
_GIVE_UP = 4  # times the patience with a batch, after which nobody expects its end


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
    predictor: Predictor
    since: float
    answer: asyncio.Future[list[Prediction]]


class Batcher:
    """A queue of texts and the thread that predicts them; use it as a context manager.

    Where the thread dies, or a batch takes four times the patience, nobody would be answered any
    more: those who wait are told, and so is `died`.

    Args:
        predictor: called by that thread alone, so it need not be safe for several. It may be
            replaced at any time; a text is answered by the one there was when it came.
        size: texts a batch at most.
        wait: seconds that the first text of a batch waits for others at most.
        room: texts that may wait at a time, those of the batch in hand among them.
        patience: seconds a batch may take before the predictor counts as stuck.
        died: called in the event loop's thread with the reason when the batcher is at its end.

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
        self,
        predictor: Predictor,
        *,
        size: int,
        wait: float,
        room: int,
        patience: float,
        died: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.predictor = predictor
        self._size, self._wait, self._room, self._patience = size, wait, room, patience
        self._died = died
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        # The event loop's thread alone reads and writes these.
        self._asked: set[asyncio.Future[list[Prediction]]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._failed = False
        self._since: float | None = None  # when the batch in hand was begun
        self._thread = threading.Thread(target=self._run, name="shoal-batches", daemon=True)

    def __enter__(self) -> Batcher:
        """Start the thread, in a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._watch()
        return self

    def __exit__(self, *error: object) -> None:
        """Let the thread end after what it has been given; a stuck one is left behind."""
        if self._look is not None:
            self._look.cancel()
        self._queue.put(None)
        self._thread.join(timeout=1)

    @property
    def ready(self) -> bool:
        """Whether a text would be answered: the thread runs and is not stuck in a batch."""
        since = self._since
        stuck = since is not None and time.monotonic() - since > self._patience
        return self._thread.is_alive() and not stuck and not self._failed

    @property
    def waiting(self) -> int:
        """Texts that wait for their answers."""
        return len(self._asked)

    async def ask(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        """Predict the k best labels of each text, in the order of the texts.

        Cancelling it takes back those texts that no batch holds yet.

        Raises:
            Full: if there is no room for all texts, or nobody would answer.
        """
        if self.waiting + len(texts) > self._room or not self.ready:
            raise Full
        loop, now, by = asyncio.get_running_loop(), time.monotonic(), self.predictor
        items = [_Item(text, k, by, now, loop.create_future()) for text in texts]
        answers = [item.answer for item in items]
        self._asked.update(answers)
        try:
            for item in items:
                self._queue.put(item)
            return list(await asyncio.gather(*answers))
        finally:
            self._asked.difference_update(answers)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function in the event loop's thread, between two requests; from any thread."""
        if self._loop is None:  # there are no requests yet
            function()
        else:
            with suppress(RuntimeError):  # a closed loop: nor are there any more
                self._loop.call_soon_threadsafe(function)

    def _watch(self) -> None:
        """Look now and then whether the batch in hand has an end."""
        since = self._since
        if since is not None and time.monotonic() - since > _GIVE_UP * self._patience:
            self._fail(f"no end of a batch in {_GIVE_UP * self._patience:g} seconds")
        else:
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(self._patience, self._watch)

    def _fail(self, reason: str) -> None:
        """Tell all who wait that nobody answers."""
        self._failed = True
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(Full())
        self._died(reason)

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except BaseException as error:
            reason = f"the thread that predicts died of {type(error).__name__}: {error}"
            self.call(lambda: self._fail(reason))

    def _work(self) -> bool:
        """Predict one batch, each k of it for itself; false at the end.

        Nothing of a batch is held until the next, nor a predictor that has been replaced.
        """
        batch = self._take()
        if not batch:
            return False
        self._since = time.monotonic()
        batch = [item for item in batch if not item.answer.cancelled()]
        batch.sort(key=_together)  # stable: order of arrival within each
        for _, group in groupby(batch, key=_together):
            items = list(group)
            texts = [item.text for item in items]
            _deliver(items, _answers(items[0].predictor, texts, items[0].k))
        self._since = None
        return True

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


def _together(item: _Item) -> tuple[int, int]:
    """Equal for texts that may be predicted together."""
    return item.k, id(item.predictor)


def _answers(predictor: Predictor, texts: list[str], k: int) -> Sequence[Answer]:
    """Predict texts together; where that fails each alone, so that none suffers for another."""
    try:
        rows = predictor.predict(texts, k)
        return [row for _, row in zip(texts, rows, strict=True)]
    # BaseException: a panic of the tokenizers library, which is written in Rust, is no Exception
    except BaseException as error:
        if len(texts) > 1:
            return [answer for text in texts for answer in _answers(predictor, [text], k)]
        plain = isinstance(error, Exception)
        return [error if plain else RuntimeError(f"{type(error).__name__}: {error}")]


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
