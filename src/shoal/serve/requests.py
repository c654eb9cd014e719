"""What a request may ask for: its body read within a limit, and its JSON checked part by part.

Whatever is wrong ends in one :class:`Refusal`, which the service answers with its status and
``{"error": {"name", "expected", "got", "remedy"}}``: the same four parts as shoal's other messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

from shoal.serve.limits import Limits

RETRY = {"retry-after": "1"}
_DEFAULT_K = 5
_SHOWN = 60
_HALF_PAIR = re.compile("[\ud800-\udfff]")


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


@dataclass(frozen=True)
class Question:
    """What one request asks: the `k` best labels of each text."""

    texts: list[str]
    k: int


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
        got = _seen(content_type) if content_type else "none"
        raise Refusal(415, "content-type", "application/json", got, "set the header")


def read_question(body: bytes, limits: Limits, labels: int) -> Question:
    """Read what a body asks for.

    Args:
        body: the JSON object ``{"texts": [text, …], "k": 5}``; `k` may be left out.
        limits: how much one request may ask for.
        labels: how many labels there are; a smaller number than 5 is the default of `k`.

    Raises:
        Refusal: 400 if the body is no JSON, 422 if it asks for something else or for too much.

    Example:
        >>> read_question(b'{"texts": ["a red mug"]}', Limits(), labels=100)
        Question(texts=['a red mug'], k=5)
    """
    asked = _parse(body)
    if not isinstance(asked, dict):
        _refuse("body", 'an object with "texts"', _seen(asked), "wrap the texts in one")
    for name in asked:
        if name not in ("texts", "k"):
            _refuse("body", 'only "texts" and "k"', _seen(name), "leave it out")
    most = min(limits.max_k, labels)
    k = asked.get("k", min(_DEFAULT_K, labels))
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        _refuse("k", f"a whole number in 1 … {most}", _seen(k), "change it or leave it out")
    return Question(_texts(asked.get("texts"), limits), k)


def _texts(texts: object, limits: Limits) -> list[str]:
    """Check that `texts` are strings, neither too many nor too long.

    Raises:
        Refusal: 422 naming the first that is not.
    """
    if not isinstance(texts, list):
        _refuse("texts", "a list of strings", _seen(texts), "put even one text into a list")
    if len(texts) > limits.max_texts:
        _refuse("texts", f"at most {limits.max_texts}", len(texts), "split the request")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse(f"texts[{i}]", "a string", _seen(text), "quote it")
        if len(text) > limits.max_characters:
            expected = f"at most {limits.max_characters} characters"
            _refuse(f"texts[{i}]", expected, len(text), "shorten it")
        # JSON can spell half of a pair of surrogates, which is no character.
        if _HALF_PAIR.search(text):
            _refuse(f"texts[{i}]", "Unicode text", "half of a surrogate pair", "mend its encoding")
    return texts


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        got = "brackets too deep"
    except ValueError as error:
        got = str(error)
    raise Refusal(400, "body", "JSON", got, "correct its syntax")


def _refuse(name: str, expected: str, got: object, remedy: str) -> NoReturn:
    """Raise for a body that is JSON, but asks for something else.

    Raises:
        Refusal: 422 always.
    """
    raise Refusal(422, name, expected, got, remedy)


def _seen(value: object) -> str:
    """A JSON value as a message shows it: lists and objects by kind, the rest cut where too long.

    Example:
        >>> _seen([1, 2]), _seen("a"), _seen(None)
        ('a list', '"a"', 'null')
    """
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
