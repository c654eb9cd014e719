"""No tuning at all: the spectral learner against a tuned schedule and others that promise the same.

For each network, with five seeds, batches of 64 and equal steps:

tuned          warm-up and linear decay from the best of a grid of half-decades, chosen with another
               seed on the first half of the held-out rows
range test     the same from the rate that a range test suggests: a hundred steps of growing rate,
               the steepest fall of the smoothed loss (Smith, 1506.01186, as Lightning reads it)
prodigy        Prodigy (Mishchenko and Defazio, 2306.06101) with rate 1 and the same decay
schedule-free  AdamW schedule-free (Defazio et al., 2405.15682) with its own defaults, warm-up
spectral       shoal's learner on the network's own optimizer, from one rate for all (SGD with
               momentum 0.02, Adam 0.001), times the same decay
law alone      the same without the range test

Accuracy is that of the second half of the held-out rows; seconds are CPU time of training, looks
and range test included, tuning told apart. A second table trains on from one warmed state at
growing batch sizes, with the advice for each: loss by samples seen, and where the critical batch
is said to be. Every result is a line in --results, and what stands there is not run again.

    pip install 'shoal[rivals]'
    python benchmarks/schedules.py --results schedules.jsonl
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from steps_.nets import SECTIONS, Net, forever
from torch import nn

from shoal.core.optimizers import optimizer_info
from shoal.curvature.measure import spectrum
from shoal.curvature.problem import Supervised
from shoal.step.estimator import CurvatureEstimator
from shoal.step.learner import StepLearner
from shoal.step.rules import rescale
from shoal.step.size import learning_rate

METHODS = ("tuned", "range test", "prodigy", "schedule-free", "spectral", "law alone")
BATCH, WARMUP = 64, 50
# steps, and whether the network is one that people train by Adam
NETS = {
    "tanh-ce": (600, False),
    "relu-ce": (600, False),
    "cnn-group": (800, False),
    "cnn-batch": (800, False),
    "pre-resnet": (800, False),
    "transformer": (2000, True),
    "nodes": (600, True),
}
SIZES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Task:
    """A network and how long it is trained."""

    net: Net
    steps: int
    adam: bool

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The network's own optimizer."""
        if self.adam:
            return torch.optim.Adam(model.parameters(), lr=lr)
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    def batches(self, seed: int, steps: int, size: int = BATCH) -> Iterator[Any]:
        """As many batches, epoch after epoch."""
        return islice(forever(self.net.loader(size, seed)), steps)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Mean over the batch."""
        return self.net.loss_fn(self.net.forward(model, batch), batch)


def decay(step: int, steps: int) -> float:
    """Linear up over the warm-up, linear down to zero."""
    return min(1.0, (step + 1) / WARMUP) * (1 - step / steps)


def fit(
    task: Task,
    seed: int,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    free: bool = False,
    learner: Callable[[nn.Module, torch.optim.Optimizer], StepLearner] | None = None,
) -> tuple[nn.Module, float]:
    """Train a new model; also the CPU seconds that it took."""
    torch.manual_seed(seed)
    model = task.net.build()
    optimizer = make(model)
    learns = None if learner is None else learner(model, optimizer)
    lr, begin = optimizer.param_groups[0]["lr"], time.process_time()
    for step, batch in enumerate(task.batches(seed, task.steps)):
        model.train()
        if free:
            optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            for group in optimizer.param_groups:
                group["lr"] = (lr if learns is None else learns.lr) * decay(step, task.steps)
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        if learns is not None:
            learns.observe([batch], loss.item())
    if free:
        optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
    return model, time.process_time() - begin


# -- methods -------------------------------------------------------------------------------------


def grid(task: Task) -> list[float]:
    """Half-decades around what people use."""
    first = -4.0 if task.adam else -3.0
    return [10 ** (first + i / 2) for i in range(8)]


def tune(task: Task) -> dict[str, Any]:
    """The best of the grid, by another seed and the other half of the held-out rows."""
    found, total = {}, 0.0
    for lr in grid(task):
        model, seconds = fit(task, 100, lambda m, lr=lr: task.optimizer(m, lr))
        found[lr] = accuracy(task, model, 0)
        total += seconds
    return {"lr": max(found, key=lambda lr: found[lr]), "grid": found, "cpu": round(total, 1)}


def range_test(task: Task, seed: int, steps: int = 100) -> float:
    """The rate of the steepest fall of the smoothed loss by the rate's logarithm."""
    torch.manual_seed(seed)
    model = task.net.build()
    model.train()
    optimizer = task.optimizer(model, 1e-6)
    mean, best, curve = 0.0, math.inf, []
    for step, batch in enumerate(task.batches(seed, steps)):
        rate = 1e-6 * (10 / 1e-6) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        mean = 0.9 * mean + 0.1 * loss.item()
        smooth = mean / (1 - 0.9 ** (step + 1))
        best = min(best, smooth)
        if not math.isfinite(smooth) or (step > 10 and smooth > 4 * best):
            break
        curve.append((rate, smooth))
        loss.backward()
        optimizer.step()
    falls = [(b[1] - a[1], a[0]) for a, b in pairwise(curve[10:])]
    return min(falls)[1]


def by_prodigy(model: nn.Module) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy  # pyright: ignore[reportMissingImports]

    return Prodigy(model.parameters(), lr=1.0)


def by_schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]

    return AdamWScheduleFree(model.parameters(), warmup_steps=WARMUP)


def spectral(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, range_test: bool
) -> StepLearner:
    objective = Supervised(model, task.net.loss_fn, task.net.forward)
    measure = CurvatureEstimator(objective, optimizer=optimizer if task.adam else None)
    return StepLearner(
        optimizer, measure, warmup=WARMUP, range_test=range_test, **kept(model, optimizer)
    )


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """How the learner puts weights back."""

    def restore(state: Any) -> None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(copy.deepcopy(state[1]))

    def state() -> Any:
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    return {"state": state, "restore": restore}


def measure(task: Task, method: str, seed: int, tuned: float) -> dict[str, Any]:
    """One run of one method."""
    extra, options, lr = time.process_time(), {}, tuned
    if method == "range test":
        lr = range_test(task, seed)
    if method in ("spectral", "law alone"):
        lr, test = 1e-3 if task.adam else 0.02, method == "spectral"
        options = {"learner": lambda model, optimizer: spectral(task, model, optimizer, test)}
    extra = time.process_time() - extra
    make: dict[str, Any] = {"prodigy": by_prodigy, "schedule-free": by_schedule_free}
    made = make.get(method, lambda model: task.optimizer(model, lr))
    model, seconds = fit(task, seed, made, free=method == "schedule-free", **options)
    return {
        "accuracy": round(accuracy(task, model, 1), 2),
        "cpu": round(seconds + extra, 2),
        **({"lr": lr} if method in ("tuned", "range test") else {}),
    }


def accuracy(task: Task, model: nn.Module, half: int) -> float:
    assert task.net.accuracy is not None
    return task.net.accuracy(model, half)


# -- one run at growing batch sizes --------------------------------------------------------------


def growing(task: Task, seed: int, samples: int) -> dict[str, Any]:
    """Train on from one warmed state with batches of several sizes; loss by samples seen.

    Plain gradients take the absolute advice of each size, Adam its own rate at the size of the
    warm-up and what ``rescale`` makes of it at the others.
    """
    torch.manual_seed(seed)
    model = task.net.build()
    optimizer = task.optimizer(model, 1e-3 if task.adam else 0.02)
    losses = list(train(task, model, optimizer, seed, 300, BATCH))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    inside: dict[str, Any] = {"precondition": optimizer} if task.adam else {}
    found = spectrum(
        model, task.net.loss_fn, task.net.loader(BATCH, seed), forward=task.net.forward,
        dataset_size=task.net.samples, sampling=task.net.sampling, max_batches=16, mode="train",
        **inside,
    )  # fmt: skip
    curves, rates, began = {}, {}, max(losses[:5])
    for size in [b for b in SIZES if b <= task.net.samples // 2]:
        model.load_state_dict(copy.deepcopy(state[0]))
        optimizer.load_state_dict(copy.deepcopy(state[1]))
        if task.adam:
            lr = float(optimizer.param_groups[0]["lr"])
            plan = rescale(found, lr, BATCH, size, optimizer_info(optimizer), initial_loss=began)
        else:
            plan = learning_rate(found, size, optimizer, after_warmup=True, initial_loss=began)
        for group in optimizer.param_groups:
            group["lr"] = plan.safe
        curve = list(train(task, model, optimizer, seed + 1, samples // size, size))
        rates[size] = float(f"{plan.safe:.3g}")
        parts = [curve[i * len(curve) // 4 : (i + 1) * len(curve) // 4] for i in range(4)]
        curves[size] = [round(statistics.mean(part), 4) for part in parts if part]
    critical = round(plan.critical_batch, 1)
    return {"rates": rates, "loss by quarter": curves, "critical batch": critical}


def train(
    task: Task, model: nn.Module, optimizer: Any, seed: int, steps: int, size: int
) -> Iterator[float]:
    """Losses before each step."""
    model.train()
    for batch in task.batches(seed, steps, size):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        yield loss.item()


# -- all of it -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small network, one seed")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--data", type=Path, default=os.environ.get("SHOAL_DATA"))
    parser.add_argument("--results", type=Path, help="lines to add to and go on from")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    if asked.quick:
        asked.nets, asked.seeds, asked.methods = ["tanh-ce"], 1, ["tuned", "range test", "spectral"]
    book = Book(asked.results)
    for name in asked.nets:
        task = task_of(name, asked)
        tuned = book.get({"net": name, "what": "tuning"}, lambda t=task: tune(t))
        for seed in range(asked.seeds):
            for method in asked.methods:
                key = {"net": name, "what": method, "seed": seed}
                run = lambda t=task, m=method, s=seed, r=tuned["lr"]: measure(t, m, s, r)  # noqa: E731
                book.get(key, run)
        if name in ("relu-ce", "cnn-group", "nodes"):
            for seed in range(min(asked.seeds, 2)):
                key = {"net": name, "what": "growing", "seed": seed}
                book.get(key, lambda t=task, s=seed: growing(t, s, 65536))
    print(json.dumps({"benchmark": "schedules", "table": table(book.rows)}))


def task_of(name: str, asked: argparse.Namespace) -> Task:
    sections = {"tanh-ce": "digits", "relu-ce": "digits"}
    nets = SECTIONS[sections.get(name, name)](asked.data and Path(asked.data), False)
    steps, adam = NETS[name]
    net = next(net for net in nets if net.name == name)
    return Task(net, 100 if asked.quick else steps, adam)


class Book:
    """Results as lines of a file; what stands there is not made again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        there = path is not None and path.exists()
        self.rows = [json.loads(x) for x in path.read_text().splitlines()] if there else []  # pyright: ignore[reportOptionalMemberAccess]

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a key."""
        for row in self.rows:
            if key.items() <= row.items():
                return row
        row = json.loads(json.dumps({**key, **make()}))
        self.rows.append(row)
        print(row, file=sys.stderr, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a network: mean accuracy, spread, and CPU time in that of the tuned runs."""
    lines = []
    for net in dict.fromkeys(row["net"] for row in rows):
        line: dict[str, Any] = {"net": net}
        mine = [row for row in rows if row["net"] == net and "accuracy" in row]
        tuned = [row["cpu"] for row in mine if row["what"] == "tuned"]
        for method in dict.fromkeys(row["what"] for row in mine):
            found = [row["accuracy"] for row in mine if row["what"] == method]
            spent = [row["cpu"] for row in mine if row["what"] == method]
            line[method] = {
                "mean": round(statistics.mean(found), 2),
                "spread": round(statistics.pstdev(found), 2),
                "time": round(statistics.median(spent) / statistics.median(tuned), 2),
            }
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
