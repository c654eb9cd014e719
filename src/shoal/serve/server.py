"""``shoal serve``: a model, an address, and a server that ends cleanly.

The address is taken before the model is loaded, so that a port in use is said at once, and answers
only after: whoever connects finds the service ready. SIGTERM and SIGINT let requests in flight be
answered, and the status is 0.
"""

from __future__ import annotations

import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shoal.core.distribution import require
from shoal.core.errors import expect, fail
from shoal.serve.app import make_app
from shoal.serve.limits import Limits, expect_limits
from shoal.serve.protocol import guarded

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from uvicorn import Server

_BACKLOG = 2048
_GRACE = 1  # seconds beyond the timeout of a request, after which the end no longer waits for any


def serve(
    load: Callable[[], Any],
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    announce: Callable[[str, int], None] = lambda url, labels: None,
) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        load: makes the model, once the address is taken: ``predict(texts, k)``, and ``labels`` with
            a length.
        name: of the model, as ``/health`` has it.
        host: address to serve at.
        port: port to serve at; 0 takes any that is free.
        limits: on each request and on all together.
        announce: called with the URL and the number of labels when the service is ready.

    Raises:
        InputError: if the extra is missing, a limit makes no sense, or the address cannot be taken,
            besides those of `load`.
    """
    limits = limits or Limits()
    _expect_extra()
    expect_limits(limits)
    with bound_socket(host, port) as bound:
        model = load()
        labels = len(model.labels)
        model.predict(["warm"], 1)  # what is computed once is computed before the first request
        with _refusals_told(host, port):
            bound.listen(_BACKLOG)
        server = make_server(make_app(model, limits, name, labels), limits)
        with stopped_by_signals(server):
            announce(_url(bound), labels)
            server.run(sockets=[bound])


def _expect_extra() -> None:
    """Raise unless the framework is installed.

    Raises:
        InputError: if it is not.
    """
    for module in ("starlette", "uvicorn"):
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
        http=guarded(limits),
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
