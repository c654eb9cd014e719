"""Batches: whatever arrives together, each text is answered as if it had come alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal import LabelModel
from shoal.rank.predictor import Prediction
from shoal.serve.batching import Batcher, Full
from tests.serve.fakes import Known, T, answer

Rows = list[list[Prediction]]


def run(
    predictor: Known | LabelModel,
    job: Callable[[Batcher], Awaitable[T]],
    size: int = 8,
    wait: float = 0.0,
    room: int = 1000,
) -> T:
    """Run one job with a batcher, to its end."""

    async def inside() -> T:
        with Batcher(predictor, size=size, wait=wait, room=room, patience=9.0) as batcher:
            return await job(batcher)

    return asyncio.run(inside())


async def held(predictor: Known, batcher: Batcher) -> asyncio.Task[Rows]:
    """Ask one text whose batch waits at the gate, so that what comes next comes together."""
    predictor.gate.clear()
    first = asyncio.create_task(batcher.ask(["first"], 1))
    while not predictor.batches:
        await asyncio.sleep(0.001)
    return first


QUESTIONS = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=4), st.integers(1, 3)), max_size=9
)


@given(QUESTIONS, st.integers(1, 12))
def test_answers_are_those_of_each_text_alone(
    questions: list[tuple[list[str], int]], size: int
) -> None:
    """Requests of any texts and k, all at once: each gets its own, in order, as if alone.

    No batch is larger than it may be; those that wait are joined, in order of arrival.
    """
    predictor = Known()

    async def job(batcher: Batcher) -> list[Rows]:
        first = await held(predictor, batcher)
        asked = [asyncio.create_task(batcher.ask(texts, k)) for texts, k in questions]
        await asyncio.sleep(0)
        predictor.gate.set()
        await first
        return list(await asyncio.gather(*asked))

    answers = run(predictor, job, size)
    assert answers == [[answer(text, k) for text in texts] for texts, k in questions]
    assert all(len(batch) <= size for batch in predictor.batches)
    if len({k for _, k in questions}) == 1:
        flat = [text for texts, _ in questions for text in texts]
        cut = [flat[i : i + size] for i in range(0, len(flat), size)]
        assert predictor.batches[1:] == cut


@pytest.mark.parametrize(("wait", "joined"), [(5.0, True), (0.0, False)])
def test_a_text_waits_for_others(wait: float, joined: bool) -> None:
    """A full batch does not wait to the end; without a wait, what comes later comes too late."""
    predictor = Known()

    async def job(batcher: Batcher) -> None:
        early = asyncio.create_task(batcher.ask(["early"], 1))
        if joined:
            await asyncio.sleep(0.02)
        else:
            await early
        await batcher.ask(["late"], 1)
        await early

    begin = time.monotonic()
    run(predictor, job, size=2, wait=wait)
    assert predictor.batches == ([["early", "late"]] if joined else [["early"], ["late"]])
    assert time.monotonic() - begin < 4


def test_a_lone_text_waits_no_longer_than_it_may() -> None:
    """The wait is counted from arrival, and ends without company."""
    predictor = Known()
    begin = time.monotonic()
    assert run(predictor, lambda batcher: batcher.ask(["alone"], 2), wait=0.05) == [
        answer("alone", 2)
    ]
    assert 0.05 <= time.monotonic() - begin < 4


def test_a_failing_text_harms_nobody_else() -> None:
    """Joined with a text that the predictor cannot answer, the others are answered."""
    predictor = Known()

    async def job(batcher: Batcher) -> list[Rows | BaseException]:
        first = await held(predictor, batcher)
        texts = ["a", "poison", "b"]
        asked = [asyncio.create_task(batcher.ask([text], 1)) for text in texts]
        await asyncio.sleep(0)
        predictor.gate.set()
        await first
        return list(await asyncio.gather(*asked, return_exceptions=True))

    a, poison, b = run(predictor, job)
    assert a == [answer("a", 1)] and b == [answer("b", 1)]
    assert isinstance(poison, RuntimeError)
    assert ["a", "poison", "b"] in predictor.batches


def test_a_panic_is_an_error_of_its_text_alone() -> None:
    """What is no Exception, as errors of a library in Rust, harms neither others nor the thread."""
    predictor = Known()

    async def job(batcher: Batcher) -> list[Rows | BaseException]:
        first = await held(predictor, batcher)
        asked = [asyncio.create_task(batcher.ask([text], 1)) for text in ("a", "panic")]
        await asyncio.sleep(0)
        predictor.gate.set()
        await first
        found = list(await asyncio.gather(*asked, return_exceptions=True))
        return [*found, await batcher.ask(["b"], 1)]

    a, panic, b = run(predictor, job)
    assert a == [answer("a", 1)] and b == [answer("b", 1)]
    assert isinstance(panic, RuntimeError) and str(panic).startswith("Panic: ")


def test_a_predictor_may_be_replaced() -> None:
    """A text is answered by the predictor there was when it came, though another one stands now."""
    old, new = Known(), Known()

    async def job(batcher: Batcher) -> None:
        first = await held(old, batcher)
        before = asyncio.create_task(batcher.ask(["before"], 1))
        await asyncio.sleep(0)
        batcher.predictor = new
        after = asyncio.create_task(batcher.ask(["after"], 1))
        await asyncio.sleep(0)
        old.gate.set()
        await asyncio.gather(first, before, after)

    run(old, job)
    assert old.batches == [["first"], ["before"]] and new.batches == [["after"]]


@pytest.mark.parametrize("stuck", [True, False])
def test_who_waits_for_a_dead_thread_is_told(stuck: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread dies, or a batch has no end: those who wait are told, and so is who listens."""
    predictor, reasons, patience = Known(), [], 0.1 if stuck else 9.0

    def fail(items: list[object], answers: list[object]) -> None:
        raise MemoryError("no room")

    async def job() -> None:
        with Batcher(
            predictor, size=8, wait=0.0, room=8, patience=patience, died=reasons.append
        ) as batcher:
            if stuck:
                predictor.gate.clear()
            else:
                monkeypatch.setattr("shoal.serve.batching._deliver", fail)
            with pytest.raises(Full):
                await batcher.ask(["a"], 1)
            assert not batcher.ready and batcher.waiting == 0
            with pytest.raises(Full):
                await batcher.ask(["b"], 1)
            predictor.gate.set()

    asyncio.run(job())
    died = "the thread that predicts died of MemoryError: no room"
    want = "no end of a batch in 0.4 seconds" if stuck else died
    assert reasons == [want]


class Short(Known):
    """Answers one text too few."""

    def predict(self, texts: object, k: int) -> Rows:
        return []


def test_a_missing_answer_is_an_error() -> None:
    """A predictor that answers too few texts leaves nobody waiting."""
    with pytest.raises(ValueError, match="shorter"):
        run(Short(), lambda batcher: batcher.ask(["a"], 1))


def test_texts_beyond_the_room_are_refused() -> None:
    """Room counts texts, not requests; it is given back with the answer, and after a failure."""
    predictor = Known()

    async def job(batcher: Batcher) -> None:
        first = await held(predictor, batcher)
        second = asyncio.create_task(batcher.ask(["a", "b"], 1))
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batcher.ask(["c", "d"], 1)
        third = asyncio.create_task(batcher.ask(["c"], 1))
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, second, third)
        with pytest.raises(RuntimeError):
            await batcher.ask(["poison"] * 4, 1)
        assert len(await batcher.ask(["a"] * 4, 1)) == 4

    run(predictor, job, room=4)


def test_who_leaves_is_not_predicted() -> None:
    """Cancelled texts leave the queue, and their room, without reaching the predictor."""
    predictor = Known()

    async def job(batcher: Batcher) -> None:
        first = await held(predictor, batcher)
        gone = asyncio.create_task(batcher.ask(["gone"] * 3, 1))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        stays = asyncio.create_task(batcher.ask(["stays"] * 3, 1))
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, stays)

    run(predictor, job, room=4)
    assert predictor.batches == [["first"], ["stays"] * 3]


def test_the_thread_ends() -> None:
    """After the end no thread is left, what was asked is answered, and nobody is admitted."""
    batcher = Batcher(Known(), size=4, wait=1.0, room=8, patience=9.0)

    async def job() -> Rows:
        with batcher:
            assert batcher.ready
            asked = asyncio.create_task(batcher.ask(["a"], 1))
            await asyncio.sleep(0)
        return await asked

    assert asyncio.run(job()) == [answer("a", 1)]
    assert "shoal-batches" not in {thread.name for thread in threading.enumerate()}
    assert not batcher.ready
    with pytest.raises(Full):
        asyncio.run(batcher.ask(["a"], 1))


def test_a_labeler_answers_joined_texts_as_alone(labeler: LabelModel) -> None:
    """A trained labeler: labels by name, and scores to the rounding of float32, as alone."""
    texts = [f"w{i} w{i + 1} w{i * i % 30}" for i in range(20)]

    async def job(batcher: Batcher) -> list[Rows]:
        return list(await asyncio.gather(*(batcher.ask([text], 16) for text in texts)))

    joined = run(labeler, job, size=20, wait=0.05)
    for text, (row,) in zip(texts, joined, strict=True):
        (alone,) = labeler.predict([text], 16)
        by_label = sorted(row, key=lambda found: found.label)
        expected = sorted(alone, key=lambda found: found.label)
        assert [(x.label, x.title) for x in by_label] == [(x.label, x.title) for x in expected]
        scores = torch.tensor([x.score for x in by_label])
        torch.testing.assert_close(scores, torch.tensor([x.score for x in expected]))
