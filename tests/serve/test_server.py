"""The service on a real socket and in a real process: load, bad clients, signals, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import httpx
import pytest

import shoal
from shoal import LabelModel
from shoal.serve.app import Served, make_app
from shoal.serve.limits import Limits
from shoal.serve.server import bound_socket, make_server, stopped_by_signals
from tests import command
from tests.serve.fakes import LABELS, LIMITS, Known, answer, as_json, refused, serving, wait_for


@pytest.mark.whole
def test_hundreds_of_requests_at_once() -> None:
    """200 requests of 32 clients, a quarter bad: each gets its own answer, and batches are full."""
    predictor = Known()

    async def ask(client: httpx.AsyncClient, i: int) -> None:
        texts, k = [f"{i} {j}" for j in range(i % 5)], 1 + i % 3
        bad = {3: {"texts": "bare"}, 7: {"texts": texts, "k": 99}}.get(i % 8)
        response = await client.post("/predict", json=bad or {"texts": texts, "k": k})
        if bad:
            refused(response, 422, "k" if "k" in bad else "texts")
        else:
            assert response.json() == {"predictions": as_json([answer(x, k) for x in texts])}

    async def load(port: int) -> None:
        pool = httpx.Limits(max_connections=32)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, limits=pool, timeout=20) as client:
            await asyncio.gather(*(ask(client, i) for i in range(200)))

    limits = replace(LIMITS, max_waiting=1000, max_wait_ms=300.0)
    with serving(predictor, limits) as port:
        asyncio.run(load(port))
    asked = sum(len(batch) for batch in predictor.batches)
    assert len(predictor.batches) < asked / 2
    # requests are not split, so a batch is full where the next one might not fit
    full = limits.max_batch - limits.max_texts
    assert full < max(len(batch) for batch in predictor.batches) <= limits.max_batch


# The command as it is, but an answer to "slow" takes a second and says on stdout when it begins,
# and one to "endless" takes a minute.
SLOW = """
import sys, time, torch
torch.set_num_threads(1)
from shoal.cli import main as cli
import shoal
from shoal import LabelModel
predict = LabelModel.predict
def slowly(model, texts, *rest):
    if "slow" in texts:
        print("begun", flush=True)
        time.sleep(1)
    if "endless" in texts:
        time.sleep(60)
    return predict(model, texts, *rest)
LabelModel.predict = slowly
cli.main()
"""


@contextmanager
def process(run: Path, *options: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address it tells when it is ready."""
    words = [sys.executable, "-c", SLOW, "serve", str(run), "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(words, env=environment, **streams)  # pyright: ignore
    with child:
        try:
            assert child.stdout is not None
            ready = json.loads(child.stdout.readline())
            assert ready.keys() == {"url", "run", "labels"} and ready["labels"] == 16
            yield child, ready["url"]
        finally:
            child.kill()


def ask(url: str, text: str) -> bytes:
    return httpx.post(f"{url}/predict", json={"texts": [text], "k": 3}, timeout=20).content


def asked_slowly(child: subprocess.Popen[str], url: str) -> tuple[threading.Thread, list[bytes]]:
    """A request in flight: its thread, and its answer if it ever comes."""
    answers: list[bytes] = []

    def job() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(ask(url, "slow"))

    thread = threading.Thread(target=job)
    thread.start()
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    return thread, answers


@pytest.mark.slow
def test_killed_and_started_again_it_answers_the_same(run: Path, labeler: LabelModel) -> None:
    """After kill -9 in a request the same port serves the same bytes; SIGTERM ends it with 0.

    A second service at the same address is told in one line; the request in flight at SIGTERM is
    answered, later ones find nobody.
    """
    with process(run, "--port", "0") as (child, url):
        before = ask(url, "w1 w2")
        port = url.rpartition(":")[2]
        taken = command.shoal("serve", run, "--port", port)
        assert taken.status == 2
        assert taken.err.startswith(f"shoal: 127.0.0.1:{port}: expected a free")
        thread, answers = asked_slowly(child, url)
        child.kill()
        thread.join()
        assert answers == [] and child.wait() == -signal.SIGKILL
    with process(run, "--port", port) as (child, again):
        assert again == url and ask(url, "w1 w2") == before
        thread, answers = asked_slowly(child, url)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=20)
        thread.join()
        assert child.returncode == 0 and out == ""
        said = f"{run}: 16 labels at {url}; Ctrl-C ends it\nended\n"
        assert err == said
    expected = as_json(labeler.predict(["w1 w2"], 3))
    assert json.loads(before) == {"predictions": expected}
    assert len(json.loads(answers[0])["predictions"][0]) == 3


@pytest.mark.whole
def test_files_overwritten_under_it_change_nothing_until_it_is_told(
    run: Path, tmp_path: Path
) -> None:
    """Other files in place, then none: the old answers. SIGHUP: the old ones, then the new ones."""
    folder, new = tmp_path / "served", tmp_path / "new"
    shutil.copytree(run, folder)
    shoal.open(run).add(labels=["w1 w2"]).export(new)
    with process(folder, "--port", "0") as (child, url):
        before = ask(url, "w1 w2")
        for path in folder.rglob("*.safetensors"):
            path.write_bytes(b"")
        assert ask(url, "w1 w2") == before
        child.send_signal(signal.SIGHUP)  # which finds no model
        wait_for(lambda: metric(url, "shoal_failed_loads_total") == 1)
        assert ask(url, "w1 w2") == before
        shutil.rmtree(folder)
        shutil.copytree(new, folder)
        assert ask(url, "w1 w2") == before
        child.send_signal(signal.SIGHUP)
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["labels"] == 17
        assert ask(url, "w1 w2") != before
        assert httpx.get(f"{url}/health").json()["labels"] == 17


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.whole
def test_a_service_that_cannot_predict_ends(run: Path) -> None:
    """A text without an end: 503 after the timeout, and the process ends with status 1."""
    with process(run, "--port", "0", "--timeout", "0.25") as (child, url):
        assert httpx.post(f"{url}/predict", json={"texts": ["endless"]}).status_code == 503
        _, err = child.communicate(timeout=30)
        assert child.returncode == 1
        assert err.endswith("shoal: the service ended: no end of a batch in 1 seconds\n")


@pytest.mark.whole
def test_a_token_comes_from_the_environment(run: Path) -> None:
    """SHOAL_TOKEN, which the list of processes does not show."""
    with process(run, "--port", "0", SHOAL_TOKEN="secret") as (_, url):
        asked = {"json": {"texts": ["w1"]}}
        assert httpx.post(f"{url}/predict", **asked).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.post(f"{url}/predict", headers=headers, **asked).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_ends_it_whenever_it_comes(number: signal.Signals, early: bool) -> None:
    """Before uvicorn catches signals, or after: the server returns, and handlers are as before."""
    before = signal.getsignal(number)
    server = make_server(make_app(Served(Known(), LABELS), LIMITS, "known"), LIMITS)

    def raise_once_started() -> None:
        wait_for(lambda: server.started)
        os.kill(os.getpid(), number)

    with bound_socket("127.0.0.1", 0) as bound, stopped_by_signals(server):
        if early:
            signal.raise_signal(number)
        else:
            threading.Thread(target=raise_once_started).start()
        server.run(sockets=[bound])
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        "--port -1",
        "--port 70000",
        "--host no.such.host.invalid",
        "--host 192.0.2.1",  # of nobody, by RFC 5737
        "--host " + "a" * 80,
        "--max-batch 0",
        "--max-rate 0",
        "--token=",
        "--timeout nan",
    ],
)
def test_bad_options_are_one_line(run: Path, options: str) -> None:
    """Each ends with status 2 and one line that says what to do."""
    port = [] if "--port" in options else ["--port", 0]
    assert command.shoal("serve", run, *port, *options.split(), "--json").refused


def test_without_the_extra_its_name_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part of the extra is missing the remedy names the extra."""
    for missing in ("starlette", "uvicorn", "pydantic"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            found = command.shoal("serve", run, "--port", 0)
        assert found.refused and "pip install 'torch-shoal[serve]'" in found.err


def test_every_limit_is_an_option() -> None:
    """The command has a flag for each limit of its service."""
    text = command.shoal("serve", "--help").out
    assert all(f"--{x.name.replace('_', '-')} " in text for x in fields(Limits))
