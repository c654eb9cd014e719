"""Requests of strangers: valid ones with a few bytes changed, parts swapped, cut, or repeated.

Whatever comes, the service writes whole HTTP responses with JSON and a known status, or closes the
connection; it never writes more responses than there were requests; it never blocks, and answers
right afterwards.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import httpx
import pytest

from tests.serve.fakes import LIMITS, Known, answer, as_json, serving

BODY = b'{"texts": ["red mug", "\xc4\x8daj"], "k": 3}'
STATUSES = {200, 400, 404, 405, 408, 413, 415, 422, 431, 503}
LINES = [
    b"content-length: 5",
    b"content-length: -1",
    b"content-length: 99999999999999999999999",
    b"content-length: 0x10",
    b"content-length: 3, 3",
    b"transfer-encoding: chunked",
    b"transfer-encoding: identity, chunked",
    b"transfer-encoding : chunked",
    b"Transfer-Encoding:\tchunked",
    b"connection: close",
    b"connection: upgrade\r\nupgrade: h2c",
    b"connection: upgrade\r\nupgrade: websocket",
    b"expect: 100-continue",
    b"host: b",
    b" folded: line",
    b"no colon",
    b"a: \x00",
    b"\xff: b",
    b"content-type: text/plain",
    b"authorization: Bearer \xff",
    b"a: " + b"b" * 40_000,
]
STARTS = [b"GET / HTTP/1.1", b"DELETE /health HTTP/1.1", b"TRACE / HTTP/1.1", b"PRI * HTTP/2.0"] + [
    b"POST " + path + b" HTTP/1.1"
    for path in (b"*", b"http://a/predict", b"/predict?k=1", b"/%ff", b"/../x", b"//", b"/" * 9000)
]
BODIES = [b"", b"{", b"[" * 5000, b"null", b'{"texts": [' + b'"a",' * 400 + b'"a"]}', b"\xff" * 99]


def whole(body: bytes, chance: random.Random) -> bytes:
    """A request that is answered with 200, its body in one piece or in chunks."""
    head = [b"POST /predict HTTP/1.1", b"host: a", b"content-type: application/json"]
    if chance.random() < 0.5:
        head.append(b"content-length: %d" % len(body))
    else:
        head.append(b"transfer-encoding: chunked")
        cut = chance.randrange(1, len(body)) if len(body) > 1 else 0
        parts = [part for part in (body[:cut], body[cut:]) if part]
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def requests(count: int, seed: int) -> Iterator[bytes]:
    """What a connection sends: one to three requests, each changed in up to three ways."""
    chance = random.Random(seed)
    for _ in range(count):
        sent = b""
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            body = BODY if chance.random() < 0.7 else chance.choice(BODIES)
            one = bytearray(whole(body, chance))
            for _ in range(chance.randrange(4)):
                change(one, chance)
            sent += one
        yield sent


def change(one: bytearray, chance: random.Random) -> None:
    """Change a request in one way."""
    head = one.find(b"\r\n\r\n")
    where = chance.randrange(len(one)) if one else 0
    how = chance.randrange(8)
    if how == 0 and one:
        one[where] ^= 1 << chance.randrange(8)
    elif how == 1:
        del one[where:]
    elif how == 2:
        del one[where : where + chance.randrange(1, 20)]
    elif how == 3:
        one[where:where] = chance.randbytes(chance.randrange(1, 40))
    elif how == 4 and head > 0:
        one[head:head] = b"\r\n" + chance.choice(LINES)
    elif how == 5 and one.find(b"\r\n") > 0:
        one[: one.find(b"\r\n")] = chance.choice(STARTS)
    elif how == 6:
        one[:] = one.replace(b"\r\n", chance.choice([b"\n", b"\r", b"\r\n\r\n"]), 3)
    elif how == 7:
        piece = bytes(one[where : where + 50])
        one[where:where] = piece * chance.randrange(1, 200)


def exchange(port: int, sent: bytes) -> bytes:
    """All that comes back until the service closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            client.sendall(sent)
            while part := client.recv(1 << 16):
                received += part
        except ConnectionError:  # it had enough, and said so or not
            pass
    return received


def responses(raw: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each response; fails where one is not whole."""
    found = []
    while raw:
        head, end, raw = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert end and first.startswith(b"HTTP/1.1 "), head
        status = int(first[9:12])
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines)}
        if status == 100:  # which expect: 100-continue asks for
            continue
        size = int(headers[b"content-length"])
        assert len(raw) >= size, head
        found.append((status, raw[:size]))
        raw = raw[size:]
    return found


@pytest.mark.parametrize(
    "count", [60, pytest.param(3000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_no_request_stops_the_service(count: int) -> None:
    """Each connection ends; its responses are whole, few enough, and of a known status."""
    seen: Counter[int | None] = Counter()
    limits = replace(LIMITS, timeout=0.5, max_waiting=99)
    with serving(Known(), limits) as port, ThreadPoolExecutor(60) as clients:
        asked = list(requests(count, seed=7))
        for sent, raw in zip(asked, clients.map(partial(exchange, port), asked), strict=True):
            found = responses(raw)
            for status, body in found:
                assert status in STATUSES, (status, sent[:200])
                if status != 200:
                    assert list(json.loads(body)["error"]) == ["name", "expected", "got", "remedy"]
            # a request needs a line that names HTTP; one more is what does not come in time
            assert len(found) <= sent.count(b"HTTP") + 1, sent[:200]
            seen.update([status for status, _ in found] or [None])
        ok = httpx.post(f"http://127.0.0.1:{port}/predict", json={"texts": ["a"], "k": 2})
        assert ok.json() == {"predictions": as_json([answer("a", 2)])}
    assert seen[200] > count / 10 and seen[400] > count / 10 and seen[422] > 0
