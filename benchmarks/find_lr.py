"""Is the rate that short trial runs find the one that trains best, and what is lost if it is not?

For each network, optimizer, seed and batch size: the loss on held-out data after training on
--examples from a fresh network, the rate falling linearly to zero, over rates by factors of
4, of 2 and then of 1.25 around the lowest. Held against it:

found       by `find_lr` at each batch size, begun at the optimizer's usual rate
from one    by `find_lr` at 64 alone, carried to the other sizes by each rule
carried     from the best rate of the sweep at 64, by each rule: constant, linear, square root, and
            `rescale` from one spectrum, measured after 150 steps at that rate

A line: how many times a rate is off the best (either way up), and the loss after training at it
over the best loss. The choices inside find_lr were made on tanh-ce, cnn-group and transformer
(DEVELOPED), and that runs become longer after a first table of relu-ce, tanh-mse, regression and
factors, with a seed that is not used here; the tables are of the others.

    python benchmarks/find_lr.py --sections regression factors --results find-lr.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from steps import OPTIMIZERS
from steps_.nets import SECTIONS, Net, forever
from torch import nn

from shoal.core.errors import InputError
from shoal.curvature.measure import spectrum
from shoal.step.find_lr import find_lr
from shoal.step.rules import rescale

SIZES, KNOWN = (8, 64, 512), 64
DEVELOPED = ("tanh-ce", "cnn-group", "transformer")
HELD_OUT = ("digits", "cnn-batch", "regression", "factors", "gru", "gpt", "labels", "nodes")


def trained(
    net: Net, name: str, lr: float, b: int, seed: int, steps: int
) -> tuple[nn.Module, torch.optim.Optimizer] | None:
    """A fresh network after `steps`, the rate falling to zero; None where the loss ended."""
    torch.manual_seed(seed)
    model = net.build()
    optimizer = OPTIMIZERS[name](model.parameters())
    model.train()
    for step, batch in enumerate(islice(forever(net.loader(b, seed)), steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss = net.loss_fn(net.forward(model, batch), batch)
        if not math.isfinite(loss.item()):
            return None
        loss.backward()
        optimizer.step()
    return model, optimizer


def judged(net: Net, model: nn.Module) -> float:
    """Loss on what is held out; where nothing is, on 2,048 samples in another order."""
    if net.held is not None:
        found = net.held(model)
    else:
        model.train()
        with torch.no_grad():
            batches = list(islice(forever(net.loader(256, 99)), 8))
            found = statistics.mean(float(net.loss_fn(net.forward(model, x), x)) for x in batches)
    return found if math.isfinite(found) else math.inf


def best_of(loss: Callable[[float], float], begin: float) -> float:
    """The rate of the lowest loss: downhill from `begin` by factors of 4, of 2 and of 1.25."""
    best = begin
    while loss(best) >= 1e9:
        best /= 16
    for factor in (4.0, 2.0, 1.25):
        for direction in (factor, 1 / factor):
            while loss(best * direction) < loss(best):
                best *= direction
    return best


def measure(net: Net, name: str, seed: int, examples: int, steps: int) -> dict[str, Any]:
    """One row: the best rate at each batch size, and what each rule makes of it."""
    begin, usual = time.process_time(), OPTIMIZERS[name](net.build().parameters())

    @cache
    def after(lr: float, b: int) -> float:
        made = trained(net, name, lr, b, seed, max(1, examples // b))
        return 1e9 if made is None else min(judged(net, made[0]), 1e9)

    torch.manual_seed(seed)
    model = net.build()
    optimizer = OPTIMIZERS[name](model.parameters())
    clock = time.process_time()
    found = find_lr(
        model, net.loss_fn, lambda b: net.loader(b, seed), optimizer, SIZES, steps=steps,
        forward=net.forward,
    )  # fmt: skip
    search = time.process_time() - clock
    alone = found.lr[KNOWN]
    first = float(usual.param_groups[0]["lr"])
    best: dict[int, float] = {}
    for b in sorted(SIZES, key=lambda x: abs(x - KNOWN)):
        near = best.get(KNOWN, first) * math.sqrt(b / KNOWN)
        best[b] = best_of(lambda lr, b=b: after(lr, b), near)
    asked: dict[str, dict[int, float]] = {"found": dict(found.lr)}
    for word, known in (("from one", alone), ("carried", best[KNOWN])):
        others = [b for b in SIZES if b != KNOWN]
        asked |= {
            f"{word}, constant": {b: known for b in others},
            f"{word}, linear": {b: known * b / KNOWN for b in others},
            f"{word}, square root": {b: known * math.sqrt(b / KNOWN) for b in others},
        }
        law = _by_law(net, name, seed, known, others)
        asked |= {f"{word}, rescale": law} if law else {}
    return {
        "net": net.name,
        "optimizer": name,
        "seed": seed,
        "examples": examples,
        "best": best,
        "loss": {b: after(best[b], b) for b in SIZES},
        "rules": {
            rule: {b: (lr, after(lr, b)) for b, lr in rates.items()}
            for rule, rates in asked.items()
        },
        "gradients": found.gradients,
        "search_cpu_seconds": round(search, 1),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def _by_law(net: Net, name: str, seed: int, known: float, sizes: list[int]) -> dict[int, float]:
    """`rescale` from a spectrum after 150 steps at the known rate; nothing where it refuses."""
    warmed = trained(net, name, known, KNOWN, seed, 150)
    if warmed is None:
        return {}
    model, optimizer = warmed
    inside: dict[str, Any] = {"precondition": optimizer} if name == "adamw" else {}
    try:
        measured = spectrum(
            model, net.loss_fn, net.loader(KNOWN, seed), forward=net.forward, mode="train",
            dataset_size=net.samples, sampling=net.sampling, max_batches=16, **inside,
        )  # fmt: skip
        return {b: rescale(measured, known, KNOWN, b, optimizer).safe for b in sizes}
    except InputError as error:
        print(f"{net.name}, {name}: no law: {error}", file=sys.stderr)
        return {}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each optimizer and rule: off the best rate, and loss over the best loss."""
    made = []
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        mine = [row for row in rows if row["optimizer"] == name]
        for rule in dict.fromkeys(rule for row in mine for rule in row["rules"]):
            cells = [
                (max(lr / row["best"][b], row["best"][b] / lr), after / row["loss"][b])
                for row in mine
                for b, (lr, after) in row["rules"].get(rule, {}).items()
            ]
            off, lost = zip(*cells, strict=True)
            made.append({
                "optimizer": name,
                "rule": rule,
                "cells": len(cells),
                "median_off": round(statistics.median(off), 2),
                "within_1.5": sum(x <= 1.5 for x in off),
                "median_loss": round(statistics.median(lost), 3),
                "within_2_per_cent": sum(x <= 1.02 for x in lost),
                "worst_loss": round(max(lost), 2),
            })  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small: under two minutes")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(HELD_OUT))
    parser.add_argument("--data", type=Path, default=os.environ.get("SHOAL_DATA"))
    parser.add_argument("--results", type=Path, default=None, help="lines to add to and go on from")
    parser.add_argument("--optimizers", nargs="+", default=["momentum", "adamw"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=16, help="of the shortest trial runs")
    parser.add_argument("--examples", type=int, default=16_384, help="of each training")
    asked = parser.parse_args()
    sections = ["regression"] if asked.quick else asked.sections
    examples = 2048 if asked.quick else asked.examples
    rows: list[dict[str, Any]] = []
    if asked.results is not None and asked.results.exists():
        rows = [json.loads(line) for line in asked.results.read_text().splitlines()]
    done = {(row["net"], row["optimizer"], row["seed"], row["examples"]) for row in rows}
    for section in sections:
        for net in SECTIONS[section](asked.data and Path(asked.data), asked.quick):
            for name, seed in ((o, s) for o in asked.optimizers for s in asked.seeds):
                if net.name in DEVELOPED or (net.name, name, seed, examples) in done:
                    continue
                # through JSON, so that rows of now and of before are alike
                row = json.loads(json.dumps(measure(net, name, seed, examples, asked.steps)))
                rows.append(row)
                if asked.results is not None:
                    with asked.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                print(json.dumps(row), file=sys.stderr, flush=True)
    table = summary(rows)
    for line in table:
        print("  ".join(f"{name} {value}" for name, value in line.items()), file=sys.stderr)
    print(json.dumps({"benchmark": "find_lr", "sizes": SIZES, "rows": len(rows), "table": table}))


if __name__ == "__main__":
    main()
