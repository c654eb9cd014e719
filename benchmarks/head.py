"""Classifiers over all labels: memory, and share of the machine's matrix-product peak.

memory    peak resident memory of a process that trains all labels for two steps, above that of the
          same imports alone, as a multiple of the weights; a process of its own for each optimizer.
speed     floating-point operations a second of a step over all labels, relative to the best of
          several matrix products of 2,048 rows and columns in the same run; CPU time of the step's
          own products in the same tiles, and of the same step with materialised logits, autograd
          and torch's own optimizer, A B A B.

How accurate classifiers are: benchmarks/planted.py.

    python benchmarks/head.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.block import Block
from shoal.core.losses import decoupled_softmax
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdagrad, RowAdam
from shoal.rank.loss_skip import one_vs_all_loss
from shoal.rank.one_vs_all import OneVsAll

OPTIMIZERS = {"RowAdagrad": RowAdagrad, "RowAdam": RowAdam}


# -- memory ----------------------------------------------------------------------------------


def status(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (x for x in lines if x.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def every_label(b: int, n_labels: int) -> Block:
    """A block of b points against all labels, three positives each."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(n_labels, (3 * b,), generator=generator)
    return Block(torch.arange(b), torch.arange(n_labels), torch.arange(b + 1) * 3, columns, columns)


def memory_child(optimizer: str, n_labels: int, dim: int) -> None:
    """Train all labels for two steps; print bytes above the bare import and bytes of weights."""
    torch.set_num_threads(1)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the product's own buffers
    bare = status("VmRSS")
    rows = torch.empty(n_labels, dim).uniform_(-0.05, 0.05)
    head = OneVsAll(unified(rows, OPTIMIZERS[optimizer](1e-3)))
    block = every_label(64, n_labels)
    for _ in range(2):
        step(head, torch.randn(64, dim, requires_grad=True), block)
    weights = rows.numel() * rows.element_size()
    print(json.dumps({"peak": status("VmHWM") - bare, "weights": weights}))


def memory(n_labels: int, dim: int) -> dict[str, float]:
    """Peak memory as a multiple of the weights, by optimizer."""
    found = {}
    for name in OPTIMIZERS:
        child = [sys.executable, __file__, "--child", name, str(n_labels), str(dim)]
        out = subprocess.run(child, check=True, capture_output=True, text=True)
        facts = json.loads(out.stdout)
        found[name] = round(facts["peak"] / facts["weights"], 3)
        show(f"memory: {n_labels} x {dim}, {name}: {found[name]} x the weights")
    return found


# -- speed -----------------------------------------------------------------------------------


def seconds(job: Callable[[], Any]) -> float:
    """CPU seconds of a call divided by threads: what the wall shows on an idle machine."""
    begin = time.process_time()
    job()
    return (time.process_time() - begin) / torch.get_num_threads()


def step(head: OneVsAll, x: Tensor, block: Block) -> None:
    """Loss, gradient of x, and one step of the classifiers."""
    one_vs_all_loss(head, x, block).backward()


def dense_step(x: Tensor, rows: Tensor, block: Block, adagrad: torch.optim.Optimizer) -> None:
    """The rival: all logits, autograd, torch.optim.Adagrad."""
    loss = decoupled_softmax(x @ rows.T, block, 0.1)
    loss.backward()
    adagrad.step()
    adagrad.zero_grad()


def products_alone(x: Tensor, rows: Tensor, chunk: int, passes: int) -> None:
    """The matrix products of a step, chunk by chunk, and nothing between them."""
    logits, grad = torch.empty(len(x), chunk), torch.zeros_like(x)
    for pair in range(passes):
        for part in rows.split(chunk):
            out = logits[:, : len(part)]
            torch.mm(x, part.T, out=out)
            if pair == passes - 1:
                grad.addmm_(out, part)
                torch.mm(out.T, x)


def speed(b: int, n_labels: int, dim: int, repeats: int) -> dict[str, Any]:
    """Share of the peak by loss, and the rival's time as a multiple of ours."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2048, 2048, generator=generator)
    x, rows = (torch.randn(n, dim, generator=generator) / 16 for n in (b, n_labels))
    block, times = every_label(b, n_labels), {}
    heads = {kind: OneVsAll.of(rows, RowAdagrad(1e-3), kind) for kind in ("binary", "decoupled")}
    leaf, dense = x.clone().requires_grad_(), rows.clone().requires_grad_()
    jobs: dict[str, Callable[[], Any]] = {
        "peak": lambda: square @ square,
        "dense": partial(dense_step, leaf, dense, block, torch.optim.Adagrad([dense], 1e-3)),
        **{kind: partial(step, head, leaf, block) for kind, head in heads.items()},
        "products": partial(products_alone, x, rows, 2**23 // (4 * b), passes=2),
    }
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name] = min(times.get(name, torch.inf), seconds(job))
    peak = 2 * 2048**3 / times["peak"]
    # four products of b x labels x dim multiplications and additions: the logits twice
    rate = {kind: 4 * 2 * b * n_labels * dim / times[kind] for kind in heads}
    found = {
        "batch": b,
        "labels": n_labels,
        "peak_gflops": round(peak / 1e9, 1),
        "share_of_peak": {kind: round(value / peak, 3) for kind, value in rate.items()},
        "products_over_decoupled": round(times["products"] / times["decoupled"], 3),
        "dense_over_decoupled": round(times["dense"] / times["decoupled"], 2),
    }
    show(f"speed: {found}")
    return found


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: under a minute")
    parser.add_argument("--parts", nargs="+", choices=("memory", "speed"), default=None)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        memory_child(asked.child[0], int(asked.child[1]), int(asked.child[2]))
        return
    parts = asked.parts or ["memory", "speed"]
    result: dict[str, Any] = {"benchmark": "head"}
    if "memory" in parts:
        result["memory"] = memory(100_000 if asked.quick else 1_000_000, 256)
    if "speed" in parts:
        result["speed"] = speed(1024, 20_000, 256, repeats=2 if asked.quick else 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
