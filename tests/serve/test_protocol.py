"""Bad clients on a real socket: no HTTP, too slow, too large, too many; each is told why."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from dataclasses import replace

import httpx

from shoal.serve.server import bound_socket
from tests.serve.fakes import LIMITS, Known, refused, serving, wait_for


def exchange(port: int, sent: bytes, end: bool = False) -> bytes:
    """All that comes back on one connection until the server ends it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        if end:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def told(raw: bytes) -> tuple[int, dict[str, str]]:
    """Status and error of a raw response."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), raw
    return int(head.split()[1]), json.loads(body)["error"]


GET = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"


def test_what_is_no_http_is_refused_as_json() -> None:
    """Noise, other protocols and versions, two lengths, a broken chunk: 400, once, and the end."""
    noise = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 99\r\n\r\n0\r\n\r\n" + GET,
        POST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        GET.replace(b"1.1", b"3.0"),
        GET.replace(b"1.1", b"2.0"),
        GET.replace(b" HTTP/1.1", b""),
    ]
    with serving(Known(), LIMITS) as port:
        for sent in noise:
            status, error = told(exchange(port, sent))
            assert (status, error["name"]) == (400, "request"), sent[:40]
            assert exchange(port, sent).count(b"HTTP/1.1 ") == 1, sent[:40]
        chunk = POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n"
        assert told(exchange(port, chunk))[0] == 400
        left = exchange(port, POST + b"content-length: 9\r\n\r\n{", end=True)
        assert left == b"" or told(left)[0] == 400
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_a_head_that_is_too_large_is_refused() -> None:
    """In one line or in many, at once or piece by piece: 431, and neither is held or parsed on."""
    heads = [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        GET[:-2] + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
        GET[:-2] + b"a: b\r\n" * 10_000 + b"\r\n",
        GET[:-2] + b"a: b\r\n" * 100 + b"\r\n",  # few bytes, but a line too many
        GET[:-2] + b"a: b\r\n" * 10_000,  # without an end
    ]
    with serving(Known(), LIMITS) as port:
        for sent in heads:
            status, error = told(exchange(port, sent))
            assert (status, error["name"]) == (431, "head")
        assert (
            exchange(port, GET[:-2] + b"a: b\r\n" * 99 + b"connection: close\r\n\r\n")[9:12]
            == b"431"
        )
        answered = exchange(port, GET[:-2] + b"a: b\r\n" * 98 + b"connection: close\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200")


def test_what_has_been_answered_is_answered_once() -> None:
    """A request refused before its body came has no second answer for what follows."""
    late = POST + b"content-length: 9999\r\n\r\n"  # announced as too long
    broken = POST.replace(b"json", b"yaml") + b"transfer-encoding: chunked\r\n\r\n"
    with serving(Known(), replace(LIMITS, timeout=0.3)) as port:
        assert told(exchange(port, late))[0] == 413
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(broken)
            received = client.recv(1 << 16)
            client.sendall(b"zz\r\n")
            received += b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert told(received)[0] == 415 and received.count(b"HTTP/1.1 ") == 1


def test_a_huge_body_is_refused_and_its_client_reads_why() -> None:
    """The client of 20 MB reads its 413, though it is sent before the last byte has come."""
    with serving(Known(), LIMITS) as port:
        url = f"http://127.0.0.1:{port}/predict"
        headers = {"content-type": "application/json"}
        whole = httpx.post(url, content=b" " * 20_000_000, headers=headers)
        assert refused(whole, 413, "body")["got"] == "20000000"
        parts = (b" " * 100_000 for _ in range(50))
        refused(httpx.post(url, content=parts, headers=headers), 413, "body")


def test_slow_clients_lose_their_connection() -> None:
    """No head, half a head, half a second head, half a body: each ends within the timeout."""
    limits = replace(LIMITS, timeout=0.3)
    get = b"GET /health HTTP/1.1\r\nhost: a\r\n"
    with serving(Known(), limits) as port:
        begin = time.monotonic()
        for sent in (b"", get, POST + b"content-length: 9\r\n\r\n{"):
            assert told(exchange(port, sent))[0] == 408
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(get + b"\r\n")
            received = b""
            while not received.endswith(b"}"):
                received += client.recv(1 << 16)
            assert received.startswith(b"HTTP/1.1 200")
            client.sendall(get)
            assert told(b"".join(iter(lambda: client.recv(1 << 16), b"")))[0] == 408
        endless = threading.Thread(target=send_forever, args=(port,))
        endless.start()
        endless.join(timeout=20)
        assert not endless.is_alive() and time.monotonic() - begin < 20


def send_forever(port: int) -> None:
    """A body without an end, until the server has enough of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
                time.sleep(0.001)


def test_small_answers_are_sent_at_once() -> None:
    """No answer waits 40 ms for the acknowledgment of its head: Nagle's algorithm is off."""

    async def job() -> int:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        class Look(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted = transport.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with bound_socket("127.0.0.1", 0) as bound:
            async with await loop.create_server(Look, sock=bound):
                with socket.create_connection(bound.getsockname()):
                    return await found

    assert asyncio.run(job()) == 1


def test_connections_beyond_the_limit_are_refused() -> None:
    """The third connection of two reads why; when one has gone there is room again."""
    limits = replace(LIMITS, max_connections=2)
    with serving(Known(), limits) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        status, error = told(exchange(port, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"))
        assert (status, error["expected"]) == (503, "at most 2 connections")
        for client in held:
            client.close()
        wait_for(lambda: get_status(port) == 200)


def get_status(port: int) -> int:
    return httpx.get(f"http://127.0.0.1:{port}/health").status_code
