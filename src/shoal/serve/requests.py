"""How a request is refused, and its body read within a limit.

Whatever is wrong ends in one :class:`Refusal`, which the service answers with its status and
``{"error": {"name", "expected", "got", "remedy"}}``: the same four parts as shoal's other messages.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable
from http import HTTPStatus

RETRY = {"retry-after": "1"}
_SHOWN = 60


class Refusal(Exception):
    """A request that is not answered with predictions.

    Attributes:
        status: of the response, 400 … 599.
        error: what is wrong, by part: name, expected, got, remedy.
        headers: of the response, beside those that each has.
    """

    def __init__(
        self,
        status: int,
        name: str,
        expected: str,
        got: object,
        remedy: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{name}: expected {expected}, got {got}; {remedy}")
        self.status = status
        self.error = {"name": name, "expected": expected, "got": str(got), "remedy": remedy}
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        """The JSON that tells what is wrong."""
        return to_json({"error": self.error})

    def raw(self) -> bytes:
        """The whole response, where there is no request to answer; the connection ends with it."""
        headers = {"content-type": "application/json", "content-length": len(self.body)}
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (headers | self.headers).items()]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode("ascii") + self.body


def to_json(value: object) -> bytes:
    """JSON as the service writes it: UTF-8, and never NaN, which is none.

    Example:
        >>> to_json({"title": "mug", "score": 0.5})
        b'{"title":"mug","score":0.5}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # The escape that Python writes for half of a surrogate pair is JSON's own.
    return text.encode("utf-8", "backslashreplace")


async def read_body(stream: AsyncIterable[bytes], announced: str, limit: int) -> bytes:
    """Join the parts of a body of at most `limit` bytes.

    Args:
        stream: the parts.
        announced: the content-length header, empty if there is none.
        limit: bytes.

    Raises:
        Refusal: 413 if the body is longer, or is announced to be.
    """
    _expect_size(int(announced) if announced.isdecimal() else 0, limit)
    parts, size = [], 0
    async for part in stream:
        parts.append(part)
        size += len(part)
        _expect_size(size, limit)
    return b"".join(parts)


def _expect_size(size: int, limit: int) -> None:
    """Raise if a body is too long.

    Raises:
        Refusal: 413.
    """
    if size > limit:
        remedy = "send fewer texts at a time"
        raise Refusal(413, "body", f"at most {limit} bytes", size, remedy)


def expect_json_type(content_type: str) -> None:
    """Raise unless a body is declared to be JSON.

    Raises:
        Refusal: 415 if it is not.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        got = seen(content_type) if content_type else "none"
        raise Refusal(415, "content-type", "application/json", got, "set the header")


def seen(value: object) -> str:
    """A JSON value as a message shows it: lists and objects by kind, the rest cut where too long.

    Example:
        >>> seen([1, 2]), seen("a"), seen(None)
        ('a list', '"a"', 'null')
    """
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
