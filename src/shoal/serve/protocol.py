"""What stands between uvicorn's HTTP and bad clients: JSON for what is no HTTP, and four bounds.

Uvicorn waits for the head of a request as long as the client likes, takes one of any size that
arrives at once, and admits any number of connections, each of which is a file that nobody else can
open. Here a head must be small and come in time, and connections beyond a number are refused. What
two readers could understand in two ways, such as a body with two lengths, is refused as well: a
proxy in front would see another request than the service (RFC 9112, sections 2.3 and 6.1).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shoal.serve.limits import Limits
from shoal.serve.metrics import Metrics
from shoal.serve.requests import RETRY, Refusal

if TYPE_CHECKING:
    import h11

_LINGER = 1  # seconds that a refused connection stays open for its client to read
_HEAD_BYTES, _HEAD_LINES = 2**14, 100
_NO_HTTP = Refusal(400, "request", "HTTP/1.1", "something else", "correct its syntax")


def guarded(limits: Limits, metrics: Metrics) -> type[asyncio.Protocol]:
    """Uvicorn's protocol of one connection, within limits."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(h11.Connection):
        refusal = _NO_HTTP

        def next_event(self) -> Any:
            try:
                event = super().next_event()
            except h11.RemoteProtocolError as error:
                if error.error_status_hint == 431:
                    self.refusal = _too_large("more")
                raise
            refusal = _refusal(event) if isinstance(event, h11.Request) else None
            if refusal is not None:
                self.refusal = refusal
                raise h11.RemoteProtocolError(str(refusal))
            return event

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _ended = False

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.conn: Connection = Connection(h11.SERVER, _HEAD_BYTES)

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._await_head()
            if len(self.connections) > limits.max_connections:
                most = f"at most {limits.max_connections} connections"
                self._end(Refusal(503, "service", most, "one more", "connect again later", RETRY))

        def data_received(self, data: bytes) -> None:
            if self._ended:
                return
            super().data_received(data)
            between = self.cycle is None or self.cycle.response_complete
            if not between:
                self._set_timer(None)
            elif self._timer is None:
                self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._set_timer(None)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._end(self.conn.refusal)

        def _await_head(self) -> None:
            late = Refusal(408, "request", "a head in time", "none", "send it faster")
            self._set_timer(self.loop.call_later(limits.timeout, self._end, late))

        def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = timer

        def _end(self, refusal: Refusal) -> None:
            """Answer and hang up, but not before the client could read why."""
            if self.transport.is_closing() or self._ended:
                return
            self._ended = True
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            # a request that has been answered, or is being, has no second answer
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                metrics.refused(refusal.status)
                self.transport.write(refusal.raw())
            self.transport.write_eof()
            self._set_timer(self.loop.call_later(_LINGER, self.transport.close))

    return Guarded


def _refusal(request: h11.Request) -> Refusal | None:
    """What is wrong with a head that h11 took."""
    size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
    if size > _HEAD_BYTES or len(request.headers) > _HEAD_LINES:
        return _too_large(f"{size} bytes, {len(request.headers)} lines")
    if request.http_version not in (b"1.0", b"1.1"):
        return _NO_HTTP
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        want, got = "one length of the body", "content-length and transfer-encoding"
        return Refusal(400, "request", want, got, "leave one out")
    return _NO_HTTP if request.http_version == b"1.0" else None


def _too_large(got: str) -> Refusal:
    most = f"at most {_HEAD_BYTES} bytes and {_HEAD_LINES} lines"
    return Refusal(431, "head", most, got, "send fewer or shorter headers")
