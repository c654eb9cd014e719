"""The service as an ASGI application: a page, its state, and predictions, all errors as JSON.

==================  ============================================================================
GET /               the page, where a person types text and sees labels with scores
GET /health         ``{"model", "labels", "ready"}``; status 503 where it is not ready
POST /predict       ``{"texts": [text, …], "k": 5}`` → ``{"predictions": [[{"label", …}]]}``
GET /metrics        counts and times, as Prometheus reads them
GET /openapi.json   the last three, described for programs
==================  ============================================================================

A request ends within `timeout` seconds: 408 if its body did not come, 503 if its answer did not.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any

from shoal.rank.predictor import Prediction
from shoal.serve.access import Access
from shoal.serve.batching import Batcher, Full, Predictor
from shoal.serve.limits import Limits, expect_limits
from shoal.serve.metrics import CONTENT_TYPE, Metrics
from shoal.serve.requests import RETRY, Refusal, expect_json_type, read_body, to_json
from shoal.serve.schema import openapi, question_type, read_question

if TYPE_CHECKING:
    from pydantic import BaseModel
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_PLAIN = {"x-content-type-options": "nosniff"}
_logger = logging.getLogger("shoal.serve")


@dataclass(frozen=True, eq=False)
class Served:
    """A model as it is served: what predicts, and how many labels it has."""

    predictor: Predictor
    labels: int


def make_app(
    model: Served,
    limits: Limits,
    name: str,
    token: str | None = None,
    died: Callable[[str], None] = lambda reason: None,
) -> Starlette:
    """The service around one model, as ``state.service`` of the application.

    Args:
        model: its predictor is called by one thread, with batches of texts.
        limits: on each request and on all that wait.
        name: of the model, as ``/health`` tells it.
        token: that requests for predictions and metrics must bring; None lets everybody ask.
        died: called with the reason where nothing will be predicted any more.

    Raises:
        InputError: if a limit or the token makes no sense.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    expect_limits(limits)
    service = Service(model, limits, name, Access(token, limits.max_rate), died)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with service.batcher:
            yield

    routes = [
        Route("/", service.page, methods=["GET"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/metrics", service.measured, methods=["GET"]),
        Route("/openapi.json", service.described, methods=["GET"]),
    ]
    service.metrics = Metrics([route.path for route in routes])
    handlers: dict[Any, Any] = {Refusal: _refused, HTTPException: _not_found}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False  # another path is unknown, even by a slash
    app.add_middleware(_Counted, metrics=service.metrics)
    app.state.service = service
    return app


class Service:
    """What the addresses answer, and the model that may be replaced meanwhile."""

    def __init__(
        self,
        model: Served,
        limits: Limits,
        name: str,
        access: Access,
        died: Callable[[str], None],
    ) -> None:
        self.limits, self.name, self.access = limits, name, access
        self.metrics = Metrics([])
        self.batcher = Batcher(
            model.predictor,
            size=limits.max_batch,
            wait=limits.max_wait_ms / 1000,
            room=limits.max_waiting,
            patience=limits.timeout,
            died=died,
        )
        self.replace(model)

    def replace(self, model: Served) -> None:
        """Serve another model from the next request on; those asked before get the old one's."""
        self.labels, self.batcher.predictor = model.labels, model.predictor
        self.question: type[BaseModel] = question_type(self.limits, model.labels)

    async def page(self, request: Request) -> Response:
        """The page for people."""
        from starlette.responses import HTMLResponse

        page = resources.files("shoal.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(page, headers={"content-security-policy": _policy(page)} | _PLAIN)

    async def health(self, request: Request) -> Response:
        """What is served, and whether it answers."""
        ready = self.batcher.ready
        facts = {"model": self.name, "labels": self.labels, "ready": ready}
        return _json(to_json(facts), 200 if ready else 503, None if ready else RETRY)

    async def described(self, request: Request) -> Response:
        """The description for programs."""
        return _json(to_json(openapi(self.question, self.access.token is not None)))

    async def measured(self, request: Request) -> Response:
        """Counts, times and what is so now."""
        from starlette.responses import Response

        self._expect_access(request)
        now = {
            "ready": int(self.batcher.ready),
            "labels": self.labels,
            "waiting_texts": self.batcher.waiting,
        }
        return Response(self.metrics.text(now), 200, _PLAIN | {"content-type": CONTENT_TYPE})

    async def predict(self, request: Request) -> Response:
        """Answer one question, or refuse it.

        Raises:
            Refusal: with the status that says why.
        """
        self._expect_access(request)
        expect_json_type(request.headers.get("content-type", ""))
        stage = 408, "body", "to come", "send it faster"
        try:
            async with asyncio.timeout(self.limits.timeout):
                body = await self._body(request)
                stage = 503, "answer", "to be ready", "ask again"
                question = read_question(body, self.question)
                rows = await self.batcher.ask(question.texts, question.k)
                self.metrics.texts += len(rows)
                predictions = [[_facts(x) for x in row] for row in rows]
                return _json(to_json({"predictions": predictions}))
        except TimeoutError:
            status, what, expected, remedy = stage
            expected = f"{expected} within {self.limits.timeout:g} seconds"
            headers = RETRY if status == 503 else {"connection": "close"}
            raise Refusal(status, what, expected, "nothing", remedy, headers) from None
        except Full:
            expected = f"room among the {self.limits.max_waiting} texts that may wait"
            raise Refusal(503, "service", expected, "none", "ask again later", RETRY) from None
        except Refusal:
            raise
        except Exception as error:
            _logger.error("no answer: %s: %s", type(error).__name__, error)
            remedy = "tell who runs the service: its log says more"
            raise Refusal(500, "service", "an answer", "an error inside", remedy) from None

    def _expect_access(self, request: Request) -> None:
        """Raise unless who asks may.

        Raises:
            Refusal: 401 or 429.
        """
        client = request.client.host if request.client else ""
        self.access.expect(client, request.headers.get("authorization", ""))

    async def _body(self, request: Request) -> bytes:
        """Read the body.

        Raises:
            Refusal: 413 if it is too long, 400 if the client left.
        """
        from starlette.requests import ClientDisconnect

        announced = request.headers.get("content-length", "")
        try:
            return await read_body(request.stream(), announced, self.limits.max_body)
        except ClientDisconnect:
            raise Refusal(400, "body", "its end", "a closed connection", "send it all") from None


@dataclass(frozen=True, eq=False)
class _Counted:
    """An application whose answers are counted."""

    app: Callable[..., Any]
    metrics: Metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begin = time.perf_counter()

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - begin
                self.metrics.answered(scope["path"], message["status"], seconds)
            await send(message)

        await self.app(scope, receive, sent)


def _facts(found: Prediction) -> dict[str, Any]:
    """One prediction as JSON; the score to six digits, which is what float32 holds for certain."""
    score = float(f"{found.score:.6g}")
    return {"label": found.label, "title": found.title, "score": score, "position": found.position}


def _json(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(content, status, _PLAIN | (headers or {}), "application/json")


async def _refused(request: Request, refusal: Refusal) -> Response:
    return _json(refusal.body, refusal.status, refusal.headers)


async def _not_found(request: Request, error: Any) -> Response:
    """Answer what the router raised: no such path, or another method."""
    path, status = request.url.path, error.status_code
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        refusal = Refusal(status, "method", allowed, request.method, "use it", error.headers)
    else:
        known = "/, /health, /predict, /metrics or /openapi.json"
        refusal = Refusal(status, "path", known, path[:200], "correct the address")
    return await _refused(request, refusal)


def _policy(page: str) -> str:
    """Allow the page its own script and style, and questions to where it came from; no more."""

    def hashed(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    parts = {
        "default-src": "'none'",
        "script-src": hashed("script"),
        "style-src": hashed("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {allowed}" for name, allowed in parts.items())
