"""Predictors whose answers are known, and clients of a service around them."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import httpx

from shoal.rank.predictor import Prediction
from shoal.serve.app import Served, make_app
from shoal.serve.batching import Predictor
from shoal.serve.limits import Limits
from shoal.serve.server import bound_socket, make_server

T = TypeVar("T")
LABELS = 7
LIMITS = Limits(max_body=2000, max_texts=4, max_characters=50, max_k=6, max_batch=8, max_waiting=8)


class Panic(BaseException):
    """What the tokenizers library raises where its own code fails: no Exception."""


class Known:
    """A predictor whose labels are a function of text and k, and that remembers its batches.

    Attributes:
        batches: the texts of each call.
        gate: while it is not set, a call waits.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        self.batches.append(list(texts))
        assert self.gate.wait(timeout=20)
        if "poison" in texts:
            raise RuntimeError("a secret place in the code")
        if "panic" in texts:
            raise Panic("a secret place in another language's code")
        return [answer(text, k) for text in texts]


def answer(text: str, k: int) -> list[Prediction]:
    """What :class:`Known` predicts: distinct by text, k and place; scores of six digits fall."""
    seed = zlib.crc32(f"{text}/{k}".encode())
    labels = [(seed + i) % LABELS for i in range(k)]
    return [Prediction(f"u{x}", f"{text} {x}", 1 / (i + 3), x) for i, x in enumerate(labels)]


def as_json(rows: list[list[Prediction]]) -> list[list[dict[str, Any]]]:
    """Rows as the service writes them."""
    names = ("label", "title", "score", "position")
    return [
        [{n: getattr(x, n) for n in names} | {"score": float(f"{x.score:.6g}")} for x in row]
        for row in rows
    ]


@asynccontextmanager
async def client_of(
    predictor: Predictor, limits: Limits = LIMITS, token: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running service, without a network between."""
    app = make_app(Served(predictor, LABELS), limits, "known", token)
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            yield client


def with_client(
    job: Callable[[httpx.AsyncClient], Awaitable[T]],
    predictor: Predictor | None = None,
    limits: Limits = LIMITS,
    token: str | None = None,
) -> T:
    """Run one job with a client, to its end."""

    async def run() -> T:
        async with client_of(predictor or Known(), limits, token) as client:
            return await job(client)

    return asyncio.run(run())


def refused(response: httpx.Response, status: int, name: str) -> dict[str, str]:
    """The four parts of a refusal, each a non-empty line, after a look at status and name."""
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert told.keys() == {"error"}
    assert list(told["error"]) == ["name", "expected", "got", "remedy"]
    assert all(part and "\n" not in part for part in told["error"].values())
    assert told["error"]["name"] == name, told
    assert "Traceback" not in response.text and "secret" not in response.text
    return told["error"]


@contextmanager
def serving(predictor: Predictor, limits: Limits) -> Iterator[int]:
    """A server in a thread of this process: its port."""
    with bound_socket("127.0.0.1", 0) as bound:
        bound.listen()
        server = make_server(make_app(Served(predictor, LABELS), limits, "known"), limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], object]) -> None:
    """Return when it holds."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
