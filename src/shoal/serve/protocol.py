"""What stands between uvicorn's HTTP and bad clients: JSON for what is no HTTP, and two bounds.

Uvicorn waits for the head of a request as long as the client likes, and admits any number of
connections, each of which is a file that nobody else can open. Here a head must come in time, and
connections beyond a number are refused.
"""

from __future__ import annotations

import asyncio

from shoal.serve.limits import Limits
from shoal.serve.requests import RETRY, Refusal

_LINGER = 1  # seconds that a refused connection stays open for its client to read


def guarded(limits: Limits) -> type[asyncio.Protocol]:
    """Uvicorn's protocol of one connection, within limits."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Guarded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _ended = False

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
            self._end(Refusal(400, "request", "HTTP/1.1", "something else", "correct its syntax"))

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
            self.transport.write(refusal.raw())
            self.transport.write_eof()
            self._set_timer(self.loop.call_later(_LINGER, self.transport.close))

    return Guarded
