"""The service without a network: what it answers, and with which status it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from shoal import LabelModel
from shoal.core.errors import InputError
from shoal.serve.app import Served, make_app
from shoal.serve.limits import Limits
from tests.serve.fakes import LABELS, LIMITS, Known, answer, as_json, refused, with_client

JSON = {"content-type": "application/json"}


def post(
    body: bytes | dict[str, Any], headers: dict[str, str] = JSON, **more: Any
) -> httpx.Response:
    """The answer to one POST to /predict."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return with_client(
        lambda client: client.post("/predict", content=content, headers=headers), **more
    )


def get(path: str, **more: Any) -> httpx.Response:
    return with_client(lambda client: client.get(path), **more)


def test_predictions_are_those_of_the_predictor() -> None:
    """Texts of any script are answered in their order with k labels each, scores falling."""
    texts = ["red mug", "", "čaj ☕ 茶"]
    response = post({"texts": texts, "k": 3})
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert response.json() == {"predictions": as_json([answer(text, 3) for text in texts])}
    assert "čaj" in response.text  # UTF-8, not escapes


def test_k_may_be_left_out() -> None:
    """Five labels a text, or all where there are fewer; no text is no prediction and no work."""
    assert [len(x) for x in post({"texts": ["a"]}).json()["predictions"]] == [5]
    predictor = Known()
    assert post({"texts": []}, predictor=predictor).json() == {"predictions": []}
    assert predictor.batches == []


def test_health_names_the_model() -> None:
    """Model, number of labels, ready."""
    response = get("/health")
    assert response.status_code == 200
    assert response.json() == {"model": "known", "labels": LABELS, "ready": True}


def test_page_asks_nobody_else() -> None:
    """The page is whole in itself: no address but its own, and its policy admits no other code."""
    response = get("/")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert policy.count("'sha256-") == 2
    page = response.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert re.findall(r"""https?:|["'(=]//|@import|src=""", page) == []
    assert 'lang="en"' in page and '<label for="text"' in page and 'role="status"' in page


BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "body"),
    "cut": (b'{"texts": ["a"', 400, "body"),
    "not UTF-8": (b'{"texts": ["\xff"]}', 400, "body"),
    "deep": (b'{"texts": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "body"),
    "nested": (b'{"texts": [["a"]]}', 422, "texts[0]"),
    "very long number": (b'{"texts": [], "k": ' + b"1" * 1900 + b"}", 422, "k"),
    "a list": (b'["a"]', 422, "body"),
    "null": (b"null", 422, "body"),
    "another name": (b'{"texts": ["a"], "K": 3}', 422, "body"),
    "no texts": (b"{}", 422, "texts"),
    "one text bare": (b'{"texts": "a"}', 422, "texts"),
    "a number as text": (b'{"texts": ["a", 3]}', 422, "texts[1]"),
    "half a pair": (b'{"texts": ["\\ud800"]}', 400, "body"),
    "half a pair as a name": (b'{"\\ud800": 1}', 400, "body"),
    "UTF-16": ('{"texts": ["a"]}'.encode("utf-16"), 400, "body"),
    "too many texts": (b'{"texts": ["a", "a", "a", "a", "a"]}', 422, "texts"),
    "too long a text": (b'{"texts": ["' + b"a" * 51 + b'"]}', 422, "texts[0]"),
    "k 0": (b'{"texts": ["a"], "k": 0}', 422, "k"),
    "k too large": (b'{"texts": ["a"], "k": 7}', 422, "k"),
    "k true": (b'{"texts": ["a"], "k": true}', 422, "k"),
    "k broken": (b'{"texts": ["a"], "k": 2.5}', 422, "k"),
    "k NaN": (b'{"texts": ["a"], "k": NaN}', 422, "k"),
    "k null": (b'{"texts": ["a"], "k": null}', 422, "k"),
    "too large": (b" " * 2001, 413, "body"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_body_is_refused(name: str) -> None:
    """Each with its status and the part that is wrong; the predictor is not asked."""
    body, status, part = BAD_BODIES[name]
    predictor = Known()
    refused(post(body, predictor=predictor), status, part)
    assert predictor.batches == []


def test_limits_admit_what_they_name() -> None:
    """The largest request within all limits is answered: each limit above is the tight one."""
    body = json.dumps({"texts": ["a" * 50] * 4, "k": 6}).encode().ljust(2000)
    assert [len(row) for row in post(body).json()["predictions"]] == [6] * 4


def test_deep_brackets_are_no_json() -> None:
    """Brackets deeper than Python reads are refused, not a crash."""
    body = b"[" * 200_000
    told = refused(post(body, limits=replace(LIMITS, max_body=10**6)), 400, "body")
    assert told["expected"] == "JSON in UTF-8"


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "json"])
def test_another_content_type_is_refused(kind: str) -> None:
    """415, which also keeps pages of other sites from asking: JSON needs leave across origins."""
    headers = {"content-type": kind} if kind else {}
    refused(post({"texts": ["a"]}, headers), 415, "content-type")
    charset = {"content-type": "Application/JSON; charset=utf-8"}
    assert post({"texts": ["a"]}, charset).status_code == 200


def test_another_method_or_path_is_refused() -> None:
    """405 names the methods allowed, 404 the paths known; both as JSON."""
    refused(get("/predict"), 405, "method")
    assert get("/predict").headers["allow"] == "POST"
    refused(with_client(lambda client: client.delete("/")), 405, "method")
    refused(with_client(lambda client: client.post("/health")), 405, "method")
    for path in ("/absent", "/predict/", "/../etc/passwd", "/%00", "/page.html"):
        refused(get(path), 404, "path")


def test_an_error_inside_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    """500 without a word of the code; the log has one line."""
    with caplog.at_level(logging.ERROR, "shoal.serve"):
        refused(post({"texts": ["poison"]}), 500, "service")
    assert [x.getMessage() for x in caplog.records] == [
        "no answer: RuntimeError: a secret place in the code"
    ]


def test_more_than_may_wait_are_told_to_come_again() -> None:
    """With room for 8 texts, the third request of 4 is refused with 503; the others get theirs."""
    predictor = Known()
    predictor.gate.clear()

    async def job(client: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        asked = [asyncio.ensure_future(ask(client, f"{i}", texts=4)) for i in range(2)]
        while not predictor.batches:
            await asyncio.sleep(0.001)
        late = await ask(client, "late", texts=4)
        predictor.gate.set()
        return list(await asyncio.gather(*asked)), late

    answered, late = with_client(job, predictor)
    refused(late, 503, "service")
    assert int(late.headers["retry-after"]) >= 1
    assert [x.status_code for x in answered] == [200, 200]


async def until_ready(client: httpx.AsyncClient, ready: bool) -> httpx.Response:
    while (health := await client.get("/health")).json()["ready"] != ready:
        await asyncio.sleep(0.001)
    return health


async def ask(client: httpx.AsyncClient, text: str, texts: int = 1) -> httpx.Response:
    return await client.post("/predict", json={"texts": [text] * texts})


def test_late_answers_are_told_to_come_again() -> None:
    """A stuck predictor costs its request the timeout; the service is then not ready, and says so.

    Later requests are refused at once, so that nothing piles up; when it goes on, so do they.
    """
    predictor, limits = Known(), replace(LIMITS, timeout=0.5)
    predictor.gate.clear()

    async def job(client: httpx.AsyncClient) -> list[httpx.Response]:
        late = await ask(client, "a")
        health = await until_ready(client, False)
        second = await ask(client, "b")
        predictor.gate.set()
        await until_ready(client, True)
        return [late, health, second, await ask(client, "c")]

    late, health, second, after = with_client(job, predictor, limits)
    assert refused(late, 503, "answer")["expected"] == "to be ready within 0.5 seconds"
    assert health.status_code == 503 and not health.json()["ready"]
    refused(second, 503, "service")
    assert after.status_code == 200
    assert predictor.batches == [["a"], ["c"]]


def test_slow_body_is_refused() -> None:
    """A body that does not come in time is 408; one without an announced length is cut at 413."""

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"texts":'
        await asyncio.sleep(5)

    async def large() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 1000

    limits = replace(LIMITS, timeout=0.1)
    response = with_client(
        lambda client: client.post("/predict", content=slow(), headers=JSON), limits=limits
    )
    refused(response, 408, "body")
    response = with_client(lambda client: client.post("/predict", content=large(), headers=JSON))
    assert refused(response, 413, "body")["got"] == "3000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_body", 0),
        ("max_texts", -1),
        ("max_batch", 0),
        ("max_connections", 0),
        ("max_wait_ms", float("nan")),
        ("max_wait_ms", -1.0),
        ("max_waiting", 3),
        ("max_rate", 0.0),
        ("max_rate", float("nan")),
        ("timeout", 0.0),
        ("timeout", float("inf")),
    ],
)
def test_limits_that_make_no_sense(name: str, value: float) -> None:
    """Each is refused by name before anything starts."""
    limits = replace(LIMITS, **{name: value})
    with pytest.raises(InputError, match=rf"^{name}: expected .*, got .*; "):
        make_app(Served(Known(), LABELS), limits, "known")


TEXTS = st.text(st.characters(), max_size=12)  # surrogates too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {"texts": st.lists(TEXTS, max_size=5) | VALUES}, optional={"k": st.integers(-1, 8) | VALUES}
)


@given(body=(VALUES | NEARLY).map(lambda x: json.dumps(x).encode()) | st.binary(max_size=60))
@example(body=b'{"texts": ["\\u0000", "\\ud83d\\ude00", "e\\u0301"]}')
@pytest.mark.whole
def test_no_body_whatsoever_is_an_error_inside(labeler: LabelModel, body: bytes) -> None:
    """Any JSON and any bytes: JSON with status 200, 400 or 422, answered by a real labeler."""
    limits = replace(LIMITS, max_texts=5, max_body=10**5)

    async def job(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/predict", content=body, headers=JSON)

    response = with_client(job, labeler, limits)
    assert response.status_code in (200, 400, 422), response.text
    told = response.json()
    if response.status_code == 200:
        asked = json.loads(body)
        expected = labeler.predict(asked["texts"], asked.get("k", 5)) if asked["texts"] else []
        scores = [[found["score"] for found in row] for row in told["predictions"]]
        assert [len(row) for row in scores] == [len(row) for row in expected]
        flat = torch.tensor([x for row in scores for x in row])
        torch.testing.assert_close(flat, torch.tensor([x.score for row in expected for x in row]))
    else:
        refused(response, response.status_code, told["error"]["name"])


def test_limits_by_default_make_sense() -> None:
    """The defaults pass their own check."""
    make_app(Served(Known(), LABELS), Limits(), "known")
