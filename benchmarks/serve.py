"""The service under load: requests that arrive together predicted together, or each alone.

Both services run in this process around the same model, on a port each, and are asked in turn,
A B A B, by 1, 8 and 64 clients, each with one text after the other on a connection of its own.
Without --run the model is the product that a labeler makes: a random row a text against 100,000
label embeddings of width 256, and their exact top k. Clients and server share the processor, as in
a small machine they do.

With --soak the batched service runs in a process of its own and 64 clients send so many requests:
percentiles of the first and the last tenth, and the process's memory after each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import shoal
from shoal.core.search import top_k
from shoal.rank.predictor import Prediction
from shoal.serve.app import Served, make_app
from shoal.serve.batching import Predictor
from shoal.serve.limits import Limits
from shoal.serve.server import bound_socket, make_server

CLIENTS = (1, 8, 64)


class Product:
    """The product of a labeler, without its words."""

    def __init__(self, labels: int, dim: int) -> None:
        rows = torch.randn(labels, dim, generator=torch.Generator().manual_seed(0))
        self.keys = torch.nn.functional.normalize(rows, dim=1)

    def predict(self, texts: Sequence[str], k: int) -> list[list[Prediction]]:
        """The k best labels of each text."""
        ids = torch.tensor([hash(text) % len(self.keys) for text in texts])
        scores, found = top_k(self.keys[ids], self.keys, k)
        rows = zip(found.tolist(), scores.tolist(), strict=True)
        return [
            [Prediction(str(i), f"label {i}", s, i) for i, s in zip(*row, strict=True)]
            for row in rows
        ]


@dataclass(frozen=True)
class Load:
    """What one load made of a service: latencies in seconds, wall and CPU seconds in all."""

    latencies: list[float]
    wall: float
    cpu: float


def start(stack: ExitStack, predictor: Predictor, labels: int, limits: Limits) -> int:
    """A service in threads of this process: its port."""
    bound = stack.enter_context(bound_socket("127.0.0.1", 0))
    bound.listen()
    server = make_server(make_app(Served(predictor, labels), limits, "benchmark"), limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    stack.callback(thread.join)
    stack.callback(setattr, server, "should_exit", True)
    return bound.getsockname()[1]


def ask(port: int, texts: Sequence[str], latencies: list[float]) -> None:
    """One client: a text after the other."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for text in texts:
        begin = time.perf_counter()
        body = json.dumps({"texts": [text]})
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        latencies.append(time.perf_counter() - begin)
    connection.close()


def load(port: int, clients: int, requests: int) -> Load:
    """All clients at once, `requests` between them."""
    latencies: list[float] = []
    each = max(1, requests // clients)
    threads = [
        threading.Thread(target=ask, args=(port, [f"{c} of {i}" for i in range(each)], latencies))
        for c in range(clients)
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(latencies, time.perf_counter() - wall, time.process_time() - cpu)


def summary(loads: list[Load]) -> dict[str, float]:
    """The median of the repeats' rates, and percentiles of all their latencies."""
    latencies = [x for one in loads for x in one.latencies]
    ranks = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "requests_s": round(statistics.median(len(x.latencies) / x.wall for x in loads), 1),
        "cpu_ms": round(1e3 * sum(x.cpu for x in loads) / len(latencies), 2),
        "p50_ms": round(1e3 * ranks[49], 1),
        "p99_ms": round(1e3 * ranks[98], 1),
    }


def compare(ports: dict[str, int], clients: int, requests: int, repeats: int) -> dict[str, object]:
    """Both services under the same load, in turn."""
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    for _ in range(repeats):
        for name, port in ports.items():
            loads[name].append(load(port, clients, requests))
    found = {name: summary(of) for name, of in loads.items()}
    ratio = found["batched"]["requests_s"] / found["alone"]["requests_s"]
    return {"clients": clients, **found, "ratio_requests_s": round(ratio, 2)}


def serve_alone(answer: Connection) -> None:
    """The batched service as a process: it sends its port and runs until it is ended."""
    torch.set_num_threads(1)
    predictor, limits = Product(100_000, 256), Limits()
    predictor.predict(["warm"], 5)
    with bound_socket("127.0.0.1", 0) as bound:
        bound.listen()
        answer.send(bound.getsockname()[1])
        app = make_app(Served(predictor, 100_000), limits, "benchmark")
        make_server(app, limits).run(sockets=[bound])


def resident_mib(pid: int) -> float:
    """The memory that a process holds now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS"))


def soak(requests: int) -> dict[str, object]:
    """One service, 64 clients, and so many requests in ten parts."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve_alone, args=(there,))
    process.start()
    port, parts, memory = here.recv(), [], []
    for _ in range(10):
        parts.append(load(port, 64, requests // 10))
        memory.append(round(resident_mib(process.pid or 0), 1))
        print(f"{summary(parts[-1:])}  {memory[-1]} MiB", file=sys.stderr)
    process.terminate()
    process.join()
    first, last = summary(parts[:1]), summary(parts[-1:])
    return {"requests": requests, "clients": 64, "first": first, "last": last, "memory_mib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="48 requests a load, 2 repeats")
    parser.add_argument("--run", type=Path, help="a label model in place of the bare product")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait-ms", type=float, default=Limits.max_wait_ms)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--soak", type=int, help="so many requests of 64 clients, and memory")
    args = parser.parse_args()
    if args.soak is not None:
        print(json.dumps({"benchmark": "serve-soak", **soak(args.soak)}))
        return
    torch.set_num_threads(args.threads)
    requests, repeats = (48, 2) if args.quick else (args.requests, args.repeats)
    predictor, labels = Product(100_000, 256), 100_000
    if args.run is not None:
        predictor = shoal.open(args.run)
        labels = len(predictor.labels)
    predictor.predict(["warm"], 5)
    with ExitStack() as stack:
        ports = {
            "batched": start(stack, predictor, labels, Limits(max_wait_ms=args.wait_ms)),
            "alone": start(stack, predictor, labels, Limits(max_batch=1, max_wait_ms=0.0)),
        }
        results = [compare(ports, clients, requests, repeats) for clients in CLIENTS]
    for result in results:
        print(*(f"{name} {value}" for name, value in result.items()), sep="  ", file=sys.stderr)
    shape = {"labels": labels, "threads": args.threads, "wait_ms": args.wait_ms}
    print(json.dumps({"benchmark": "serve", **shape, "results": results}))


if __name__ == "__main__":
    main()
