"""Random against NGAME batches on labels: accuracy at equal steps, three seeds, all test points.

Both systems are the same encoder, loss, learning rate and number of steps; only who is in the batch
differs. With --half, NGAME is run again with half of the steps, to see whether it reaches what
random batches reach with all of them. Curves are measured on the test points, which choose nothing.

    python benchmarks/labels.py --out docs/results/labels.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core.block import Batch
from shoal.data import load
from shoal.data.texts import LabelData
from shoal.rank.predictor import BagRows, Labeler
from shoal.tasks.labels import judge, make_job, prepare
from shoal.training.job import Budget
from shoal.training.loop import fit

COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@5")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--points", type=int, default=4, help="points of each curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--half", action="store_true", help="NGAME with half of the steps as well")
    parser.add_argument("--out", type=Path, help="also append every measurement to this file")
    parser.add_argument("--quick", action="store_true", help="60 steps, one seed")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.points, asked.seeds = 60, 1, [0]
    data = load(asked.source)
    finals: dict[str, list[dict[str, float]]] = {}
    for seed in asked.seeds:
        systems = [("random", "random", asked.steps), ("ngame", "ngame", asked.steps)]
        if asked.half:
            systems.append(("ngame, half the steps", "ngame", asked.steps // 2))
        for system, batches, steps in systems:
            row: dict[str, Any] = {}
            for row in curve(data, asked, batches, steps, seed):
                row = {"system": system, **row}
                report(row, asked.out)
            finals.setdefault(system, []).append(row["metrics"])
    print(json.dumps(summary(finals)))


def curve(
    data: LabelData, asked: argparse.Namespace, batches: Any, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Train once; yield the test metrics at evenly spaced steps, and at the end."""
    settings = Train(source=asked.source, batches=batches, seed=seed, valid=0.0)
    prepared = prepare(data, settings.valid, seed)
    job = make_job(prepared, settings)
    rows: list[dict[str, Any]] = []
    every = max(steps // asked.points, 1)
    start = {"wall": time.perf_counter(), "cpu": time.process_time()}

    table = job.table
    assert table is not None  # the label job trains its rows

    def measure(step: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = judge(Labeler(prepared.lexicon, BagRows(table.as_subclass(Tensor))), data)
        rows.append(
            {
                "data": data.name,
                "seed": seed,
                "step": step,
                "of": steps,
                "train_seconds": round(wall - start["wall"], 1),
                "train_cpu_seconds": round(cpu - start["cpu"], 1),
                "metrics": {name: round(metrics[name], 2) for name in COLUMNS},
            }
        )
        start["wall"] += time.perf_counter() - wall
        start["cpu"] += time.process_time() - cpu

    taken = 0

    def observe(batch: Batch, outputs: Tensor) -> None:
        nonlocal taken
        taken += 1
        if taken % every == 0 and taken < steps:
            measure(taken)

    fit(dataclasses.replace(job, observe=observe), Budget(steps=steps))
    measure(steps)
    yield from rows


def report(row: dict[str, Any], out: Path | None) -> None:
    """One line to read, and one to keep."""
    cells = "".join(f"{name} {row['metrics'][name]:6.2f}  " for name in COLUMNS)
    where = f"{row['system']:<22} seed {row['seed']} step {row['step']:>5} of {row['of']:>5}"
    print(f"{where}  {cells}{row['train_seconds']:.0f} s", file=sys.stderr)
    if out is not None:
        about = {
            "command": shlex.join(["python", *sys.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            flat = {key: value for key, value in row.items() if key != "metrics"}
            file.write(json.dumps(flat | row["metrics"] | about) + "\n")


def machine() -> str:
    """What measured: cores, threads, torch."""
    cores = f"{os.cpu_count()} shared CPU cores ({platform.machine()}), no GPU"
    return f"{cores}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def summary(finals: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Mean over seeds of each system's final metrics, and each seed's gain of P@1."""
    means = {
        system: {name: round(statistics.mean(run[name] for run in runs), 2) for name in COLUMNS}
        for system, runs in finals.items()
    }
    pairs = zip(finals["ngame"], finals["random"], strict=True)
    return {"mean": means, "gain_P@1": [round(a["P@1"] - b["P@1"], 2) for a, b in pairs]}


if __name__ == "__main__":
    main()
