"""Who may ask: a token that all share, a rate for each client, and what is counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.serve.access import Access
from shoal.serve.app import Served, make_app
from shoal.serve.requests import Refusal
from tests.serve.fakes import LABELS, LIMITS, Known, refused, with_client

TOKEN = "a-token-of-some-length"
QUESTION = {"texts": ["a", "b"], "k": 2}


def test_a_token_opens_what_it_protects() -> None:
    """Predictions and metrics need it, to the last letter; health, page and description do not."""
    wrong = ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}é"]

    async def job(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        for header in [None, *wrong]:
            headers = {} if header is None else {"authorization": header.encode()}
            found = await client.post("/predict", json=QUESTION, headers=headers)
            assert TOKEN not in found.text and found.headers["www-authenticate"] == "Bearer"
            refused(found, 401, "authorization")
            refused(await client.get("/metrics", headers=headers), 401, "authorization")
        for scheme in ("Bearer", "bearer", "BEARER "):
            headers = {"authorization": f"{scheme} {TOKEN}"}
            assert (await client.get("/metrics", headers=headers)).status_code == 200
            found = await client.post("/predict", json=QUESTION, headers=headers)
            assert found.status_code == 200

    predictor = Known()
    with_client(job, predictor, token=TOKEN)
    assert [text for batch in predictor.batches for text in batch] == ["a", "b"] * 3


@pytest.mark.parametrize("token", ["", " ", "two words", "línea", "a\nb", "\x7f"])
def test_tokens_that_no_header_carries(token: str) -> None:
    """Each is refused before anything starts, and not shown."""
    with pytest.raises(InputError, match=r"token: expected .*not shown"):
        make_app(Served(Known(), LABELS), LIMITS, "known", token)


@given(st.lists(st.floats(0, 3), max_size=60), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_client_gets_its_rate_and_no_more(gaps: list[float], rate: float) -> None:
    """In any second of any pattern: at most rate + one burst; who keeps to the rate is let in."""
    now = 0.0
    access = Access(None, rate, lambda: now)
    admitted: list[float] = []
    for gap in gaps:
        now += gap
        try:
            access.expect("client", "")
            admitted.append(now)
        except Refusal as refusal:
            assert refusal.status == 429 and int(refusal.headers["retry-after"]) >= 1
            # so many since that second's begin that one more would have been too many
            assert any(
                sum(begin <= x <= now for x in admitted) + 1 > rate * (now - begin) + max(1, rate)
                for begin in admitted
            )
    for i, begin in enumerate(admitted):
        for j, end in enumerate(admitted[i:], 1):
            assert j <= rate * (end - begin) + max(1, rate) + 1e-3
    for _ in range(9):
        now += 1 / rate + 1
        access.expect("client", "")


def test_clients_are_counted_apart_and_few_are_remembered() -> None:
    """One client's haste costs no other; the 64 bits of an IPv6 network are one client."""
    access = Access(None, 1.0, lambda: 0.0)
    access.expect("192.0.2.1", "")
    access.expect("192.0.2.2", "")
    access.expect("2001:db8::1", "")
    for same in ("192.0.2.1", "192.0.2.2", "2001:db8::2"):
        with pytest.raises(Refusal, match="1 requests a second"):
            access.expect(same, "")
    for i in range(20_000):
        access.expect(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", "")
    assert len(access._free) == 10_000


def test_haste_is_told_how_long_to_wait() -> None:
    """The third request of two a second is 429; trying tokens is bounded by it as well."""
    limits = replace(LIMITS, max_rate=2.0)

    async def job(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/predict", json=QUESTION) for _ in range(3)]

    one, two, three = with_client(job, limits=limits)
    assert one.status_code == two.status_code == 200
    refused(three, 429, "client")
    assert three.headers["retry-after"] == "1"
    one, two, three = with_client(job, limits=limits, token=TOKEN)
    assert (one.status_code, two.status_code, three.status_code) == (401, 401, 429)


SAMPLE = re.compile(r'(shoal_\w+)((?:\{\w+="[^"\n]*"(?:,\w+="[^"\n]*")*\})?) (\S+)')


def test_metrics_count_what_was_asked() -> None:
    """Requests by path and status, times by bucket, texts; unknown paths share one series."""

    async def job(client: httpx.AsyncClient) -> httpx.Response:
        for _ in range(3):
            await client.post("/predict", json=QUESTION)
        await client.post("/predict", json={})
        for path in ("/absent", '/"}', "/predict/"):
            await client.get(path)
        return await client.get("/metrics")

    found = with_client(job)
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    typed, values = set(), {}
    for line in found.text.splitlines():
        if line.startswith("#"):
            typed.add(line.split()[2])
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        name, labels, value = match.groups()
        assert re.sub("_(bucket|sum|count)$", "", name) in typed
        values[name + labels] = float(value)
    assert found.text.endswith("\n") and len(values) == len(found.text.splitlines()) - 2 * 8
    assert values['shoal_requests_total{path="/predict",status="200"}'] == 3
    assert values['shoal_requests_total{path="/predict",status="422"}'] == 1
    assert values['shoal_requests_total{path="other",status="404"}'] == 3
    assert values["shoal_texts_total"] == 6 and values["shoal_ready"] == 1
    assert values["shoal_labels"] == LABELS and values["shoal_waiting_texts"] == 0
    buckets = [x for name, x in values.items() if name.startswith("shoal_predict_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 3
    assert values["shoal_predict_seconds_count"] == 3


def test_the_description_is_what_is_read() -> None:
    """OpenAPI 3.1: the request's schema has the limits; a token is described where one is asked."""
    found = with_client(lambda client: client.get("/openapi.json")).json()
    assert found["openapi"] == "3.1.0" and set(found["paths"]) == {
        "/health",
        "/metrics",
        "/predict",
    }
    asked = found["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    texts, k = (asked["schema"]["properties"][name] for name in ("texts", "k"))
    assert texts["maxItems"] == LIMITS.max_texts
    assert texts["items"]["maxLength"] == LIMITS.max_characters
    assert (k["minimum"], k["maximum"], k["default"]) == (1, LIMITS.max_k, 5)
    assert "token" not in json.dumps(found)
    with_token = with_client(lambda client: client.get("/openapi.json"), token=TOKEN).json()
    assert with_token["paths"]["/predict"]["post"]["security"] == [{"token": []}]
    assert with_token["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
