"""Predictions that come true? The largest rate that trains, against what a spectrum says before.

For each network, optimizer and seed: a warm-up at batch size 64; one spectrum there (Gauss–Newton,
for AdamW in its metric); then, at each batch size, the largest learning rate that trains from the
warmed state, by bisection. A rate trains if after the run the mean loss of the last quarter of its
steps is at most halfway between the losses of the network as it began and as it was warmed.

absolute    measured rate over what `learning_rate` calls safe, over where the law is unstable, and
            over the edge that trial runs of 50 steps find (`find_lr`); less than 1 would be unsafe
calibrated  from the rate measured at 64 to the other batch sizes, by every rule: the worst ratio of
            predicted to measured, either way up

Every result is a line in --results, and what stands there is not run again; a line holds the
spectrum, so that predictions are made anew from it.

    python benchmarks/steps.py --sections digits --results steps.jsonl
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
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from steps_.nets import SECTIONS, Net, forever
from torch import nn

from shoal.curvature.measure import spectrum
from shoal.curvature.spectrum import Spectrum
from shoal.step.find_lr import find_lr
from shoal.step.rules import rates
from shoal.step.size import EDGE, learning_rate

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
}
RULES = ("constant", "linear", "sqrt", "noise", "additive", "spectral")
REFERENCE = 64


def train(
    net: Net, model: nn.Module, optimizer: torch.optim.Optimizer, b: int, seed: int, steps: int
) -> float:
    """Mean loss over the last quarter; infinite where it is no number."""
    model.train()
    losses: list[float] = []
    for batch in islice(forever(net.loader(b, seed)), steps):
        optimizer.zero_grad()
        loss = net.loss_fn(net.forward(model, batch), batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or losses[-1] > 1e6:
            return math.inf
        loss.backward()
        optimizer.step()
    return statistics.mean(losses[-max(1, steps // 4) :])


def mean_loss(net: Net, model: nn.Module, b: int) -> float:
    """Over some batches of a size, without a step; batch normalization reads the batch."""
    model.train()
    with torch.no_grad():
        batches = islice(forever(net.loader(b, 99)), max(2, 256 // b))
        return statistics.mean(net.loss_fn(net.forward(model, x), x).item() for x in batches)


def largest(trains: Any, first: float, rounds: int) -> float | None:
    """The largest rate that trains: by factors of two from `first`, then bisected."""
    high = low = None
    rate = first
    for _ in range(16):
        if trains(rate):
            low = rate
            rate *= 2
        else:
            high = rate
            rate /= 2
        if low is not None and high is not None:
            break
    if low is None or high is None:
        return low
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trains(middle) else (low, middle)
    return low


def measure(
    net: Net, name: str, seed: int, sizes: list[int], warm: int, steps: int, rounds: int
) -> dict[str, Any]:
    """One row: spectrum, advice, and what trains at each batch size."""
    begin = time.process_time()
    torch.manual_seed(seed)
    model = net.build()
    fresh = [mean_loss(net, model, b) for b in sizes]
    optimizer = OPTIMIZERS[name](model.parameters())
    train(net, model, optimizer, REFERENCE, seed, warm)
    warmed = [mean_loss(net, model, b) for b in sizes]
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    inside = {"precondition": optimizer} if name == "adamw" else {}
    found = spectrum(
        model, net.loss_fn, net.loader(REFERENCE, seed), forward=net.forward,
        dataset_size=net.samples, sampling=net.sampling, max_batches=16, mode="train", **inside,
    )  # fmt: skip
    began = begun(fresh[sizes.index(REFERENCE)], found)
    plans = [
        learning_rate(found, b, optimizer, after_warmup=True, initial_loss=began) for b in sizes
    ]
    found_rates = find_lr(
        model, net.loss_fn, lambda b: net.loader(b, seed), optimizer, sizes, forward=net.forward
    )  # fmt: skip
    tried = [found_rates.edge[b] for b in sizes]
    measured: list[float | None] = []
    for i, b in enumerate(sizes):

        def trains(lr: float, i: int = i, b: int = b) -> bool:
            model.load_state_dict(copy.deepcopy(state[0]))
            optimizer.load_state_dict(copy.deepcopy(state[1]))
            for group in optimizer.param_groups:
                group["lr"] = lr
            end = train(net, model, optimizer, b, seed + 1, steps)
            return end <= (fresh[i] + warmed[i]) / 2

        measured.append(largest(trains, plans[i].edge, rounds))
    kept = replace(found, noise=replace(found.noise, top=torch.zeros(0, 0, 0)))
    return {
        "net": net.name,
        "optimizer": name,
        "seed": seed,
        "sizes": sizes,
        "losses": {"fresh": fresh, "warmed": warmed},
        "measured": measured,
        "tried": tried,
        "spectrum": json.loads(kept.to_json()),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def begun(fresh: float, found: Spectrum) -> float | None:
    """The loss at which training began, unless warming up has gained nothing yet."""
    return fresh if fresh > found.loss else None


def predictions(row: dict[str, Any]) -> dict[str, Any]:
    """What the spectrum of a row says of each batch size: absolute, and from the rate at 64."""
    found = Spectrum.from_json(json.dumps(row["spectrum"]))
    name, sizes = row["optimizer"], row["sizes"]
    began = begun(row["losses"]["fresh"][sizes.index(REFERENCE)], found)
    plans = [learning_rate(found, b, name, after_warmup=True, initial_loss=began) for b in sizes]
    known, rules = row["measured"][sizes.index(REFERENCE)], {}
    if known is not None:
        made = [rates(found, known, REFERENCE, b, name, initial_loss=began) for b in sizes]
        rules = {rule: [getattr(x, rule) for x in made] for rule in RULES}
    absolute = {"safe": [x.safe for x in plans], "law": [x.edge / EDGE for x in plans]}
    return {**absolute, "tried": [x or None for x in row["tried"]], "rules": rules}


def worst(rows: list[dict[str, Any]], rule: str) -> float:
    """The worst ratio of predicted to measured over rows and batch sizes, either way up."""
    ratios = [1.0]
    for row in rows:
        made = predictions(row)["rules"].get(rule, [])
        for predicted, seen in zip(made, row["measured"], strict=False):
            if seen is not None:
                ratios.append(max(predicted / seen, seen / predicted))
    return max(x if math.isfinite(x) else math.nan for x in ratios)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a network and optimizer."""
    made = []
    for key in dict.fromkeys((row["net"], row["optimizer"]) for row in rows):
        mine = [row for row in rows if (row["net"], row["optimizer"]) == key]
        pairs = [(row["measured"], predictions(row)) for row in mine]
        over = {
            name: [
                m / p for seen, x in pairs for m, p in zip(seen, x[name], strict=True) if m and p
            ]
            for name in ("safe", "law", "tried")
        }
        ranges = {
            f"measured/{name}": [round(min(x), 2), round(max(x), 2)]
            for name, x in over.items()
            if x
        }
        rules = {rule: round(worst(mine, rule), 2) for rule in RULES}
        made.append({"net": key[0], "optimizer": key[1], "seeds": len(mine), **ranges, **rules})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small: under two minutes")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=["digits"])
    parser.add_argument("--data", type=Path, default=os.environ.get("SHOAL_DATA"))
    parser.add_argument("--results", type=Path, default=None, help="lines to add to and go on from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--warm", type=int, default=150, help="steps of warm-up at 64")
    asked = parser.parse_args()
    sizes, rounds = ([8, 64], 1) if asked.quick else ([8, 64, 512], 3)
    steps, seeds = (60, [0]) if asked.quick else (asked.steps, asked.seeds)
    rows = []
    if asked.results is not None and asked.results.exists():
        rows = [json.loads(line) for line in asked.results.read_text().splitlines()]
    settings = {"steps": steps, "warm": asked.warm, "quick": asked.quick}
    done = {(row["net"], row["optimizer"], row["seed"]) for row in rows if row["ran"] == settings}
    rows = [row for row in rows if row["ran"] == settings]
    for section in asked.sections:
        for net in SECTIONS[section](asked.data and Path(asked.data), asked.quick):
            for name, seed in ((o, s) for o in OPTIMIZERS for s in seeds):
                if (net.name, name, seed) in done:
                    continue
                row = measure(net, name, seed, sizes, asked.warm, steps, rounds)
                row["ran"] = settings
                rows.append(row)
                if asked.results is not None:
                    with asked.results.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                shown = {k: row[k] for k in ("net", "optimizer", "seed", "measured", "tried")}
                print(shown | {"cpu_seconds": row["cpu_seconds"]}, file=sys.stderr, flush=True)
    table = summary(rows)
    for line in table:
        print("  ".join(f"{name} {value}" for name, value in line.items()), file=sys.stderr)
    print(json.dumps({"benchmark": "steps", **settings, "sizes": sizes, "table": table}))


if __name__ == "__main__":
    main()
