"""Random against NGAME batches on labels: accuracy at equal steps, three seeds, all test points.

Both systems are the same encoder, loss, learning rate and number of steps; only who is in the batch
differs. With --half, NGAME is run again with half of the steps, to see whether it reaches what
random batches reach with all of them. Curves are measured on the test points, which choose nothing.

    python benchmarks/labels.py --out docs/results/labels.jsonl
"""

from __future__ import annotations

import argparse
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
from labels_ import Begun, metrics_of

import shoal
from shoal.tasks.labels import Parts

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
    data = shoal.load_labels(asked.source)
    batches = {"random": shoal.Random(1024), "ngame": shoal.Clustered(1024, cluster=64)}
    finals: dict[str, list[dict[str, float]]] = {}
    for seed in asked.seeds:
        systems = [("random", "random", asked.steps), ("ngame", "ngame", asked.steps)]
        if asked.half:
            systems.append(("ngame, half the steps", "ngame", asked.steps // 2))
        for system, name, steps in systems:
            row: dict[str, Any] = {}
            for row in curve(data, batches[name], asked.points, steps, seed):
                row = {"system": system, **row}
                report(row, asked.out)
            finals.setdefault(system, []).append(row["metrics"])
    print(json.dumps(summary(finals)))


def curve(
    data: shoal.LabelData, batches: Any, points: int, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Train once; yield the test metrics at evenly spaced steps, and at the end."""
    begun = Begun.of(Parts(batches=batches, seed=seed), data.train, data.labels)
    curve = Curve(begun, data, steps, max(steps // points, 1))
    shoal.fit(begun.job(), shoal.Budget(steps=steps), callbacks=[curve])
    curve.measure(steps)
    for row in curve.rows:
        yield {"data": data.name, "seed": seed, **row}


class Curve(shoal.Callback):
    """Test metrics against seconds of training, those of evaluation left out."""

    def __init__(self, begun: Begun, data: shoal.LabelData, steps: int, every: int) -> None:
        self.begun, self.data, self.steps, self.every = begun, data, steps, every
        self.rows: list[dict[str, Any]] = []
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self, progress: Any, metrics: dict[str, Any]) -> None:
        """Measure every so many steps."""
        if progress.step % self.every == 0 and progress.step < self.steps:
            self.measure(progress.step)

    def measure(self, step: int) -> None:
        """Take one row."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = metrics_of(self.begun.predictor, self.data.test, self.data.train.labels)
        row = {
            "step": step,
            "of": self.steps,
            "train_seconds": round(wall - self.wall, 1),
            "train_cpu_seconds": round(cpu - self.cpu, 1),
            "metrics": {name: round(found[name], 2) for name in COLUMNS},
        }
        self.rows.append(row)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


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
