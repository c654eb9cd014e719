"""``shoal serve``: a model, an address, and a server that ends cleanly.

The address is taken before the model is loaded, so that a port in use is said at once, and answers
only after: whoever connects finds the service ready. SIGTERM and SIGINT let requests in flight be
answered. SIGHUP loads the model again and puts it in the old one's place, which answers meanwhile.
"""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.serve.access import expect_token
from shoal.serve.app import Served, Service, make_app
from shoal.serve.limits import Limits, expect_limits
from shoal.serve.protocol import guarded

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from uvicorn import Server

_BACKLOG = 2048
_GRACE = 1  # seconds beyond the timeout of a request, after which the end no longer waits for any

_logger = logging.getLogger("shoal.serve")


class ServiceDied(Exception):
    """The service ended by itself, since it would not have predicted any more."""


def serve(
    load: Callable[[], Any],
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    token: str | None = None,
    announce: Callable[[str, int], None] = lambda url, labels: None,
) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        load: makes the model, once the address is taken: ``predict(texts, k)``, and ``labels`` with
            a length. Called again at SIGHUP, in a thread of its own.
        name: of the model, as ``/health`` has it.
        host: address to serve at.
        port: port to serve at; 0 takes any that is free.
        limits: on each request and on all together.
        token: that requests for predictions and metrics must bring; None lets everybody ask.
        announce: called with the URL and the number of labels when the service is ready, and when
            another model is.

    Raises:
        InputError: if the extra is missing, a limit or the token makes no sense, or the address
            cannot be taken, besides those of `load`.
        ServiceDied: if nothing would have been predicted any more.
    """
    limits, dead = limits or Limits(), []
    _expect_extra()
    expect_limits(limits)
    expect_token(token)

    def died(reason: str) -> None:
        dead.append(reason)
        server.should_exit = True

    def reload() -> None:
        model = load_beside(load, app.state.service)
        if model is not None:
            announce(_url(bound), model.labels)

    with bound_socket(host, port) as bound:
        model = _loaded(load)
        with _refusals_told(host, port):
            bound.listen(_BACKLOG)
        app = make_app(model, limits, name, token, died)
        server = make_server(app, limits)
        with stopped_by_signals(server), called_by_hangup(reload):
            announce(_url(bound), model.labels)
            server.run(sockets=[bound])
    if dead:
        raise ServiceDied(dead[0])


def _loaded(load: Callable[[], Any]) -> Served:
    model = load()
    model.predict(["warm"], 1)  # what is computed once is computed before the first request
    return Served(model, len(model.labels))


def load_beside(load: Callable[[], Any], service: Service) -> Served | None:
    """Load a model while another one is served, then serve it; None where it cannot be loaded."""
    try:
        model = _loaded(load)
    except BaseException as error:  # as in batching: a panic is no Exception
        service.metrics.failed_loads += 1
        _logger.error("the old model is still served, since the new one could not be: %s", error)
        return None
    service.batcher.call(lambda: service.replace(model))
    service.metrics.loads += 1
    return model


@contextmanager
def called_by_hangup(function: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread at each SIGHUP, one call after the other.

    Yields:
        nothing.
    """
    if not hasattr(signal, "SIGHUP"):  # Windows
        yield
        return
    calls: SimpleQueue[bool] = SimpleQueue()  # whose put a signal handler may call

    def work() -> None:
        while calls.get():
            function()

    before = signal.signal(signal.SIGHUP, lambda number, frame: calls.put(True))
    thread = threading.Thread(target=work, name="shoal-hangup", daemon=True)
    thread.start()
    try:
        yield
    finally:
        calls.put(False)
        signal.signal(signal.SIGHUP, before)


def _expect_extra() -> None:
    """Raise unless the extra is installed.

    Raises:
        InputError: if it is not.
    """
    for module in ("starlette", "uvicorn", "pydantic"):
        require(module, "serve", "serve")


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has taken an address, but does not listen yet.

    Its protocol is named, not left to the system: only then does asyncio send small answers at
    once, and otherwise each waits 40 ms for the client's acknowledgment.

    Raises:
        InputError: if the address cannot be taken.

    Yields:
        the socket.
    """
    expect(0 <= port < 2**16, "port", "a number in 0 … 65535", port, "name another; 0 takes any")
    with _refusals_told(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    with bound:
        with _refusals_told(host, port):
            # The connections of a service that was killed keep its port for a minute otherwise.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        yield bound


@contextmanager
def _refusals_told(host: str, port: int) -> Iterator[None]:
    """Say in one line why the system does not give an address.

    Raises:
        InputError: if it does not.
    """
    try:
        yield
    except (OSError, UnicodeError) as error:
        got = getattr(error, "strerror", None) or str(error)
        remedy = "name another --host or --port; port 0 takes any that is free"
        fail(f"{host}:{port}", "a free address to serve at", got, remedy)


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Starlette, limits: Limits) -> Server:
    """Uvicorn around the service: HTTP/1.1 and nothing else, its own words only for errors."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=guarded(limits, app.state.service.metrics),
        ws="none",
        loop="asyncio",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="error",
        timeout_graceful_shutdown=math.ceil(limits.timeout) + _GRACE,
    )
    return uvicorn.Server(config)


@contextmanager
def stopped_by_signals(server: Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the server, whenever they come.

    While it runs uvicorn catches them itself; when it has stopped it raises them once more for
    those who were there before, and by default the last would end the process by the signal.
    """

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
