"""shoal's label job and its rivals, side by side: accuracy on all test points, seconds, memory.

Every system runs in a process of its own with the same number of threads; choices that a rival
leaves open are made on its behalf on held-out training points, and the seconds that this takes are
told apart. Reading the data is not counted. ``R@5 by decile``: pairs of test points and true
labels, sorted by how many training points carry the label and cut into ten equal parts, rarest
first; the share of each part's pairs that is found among the first five predictions.

    make pecos  # an environment of its own, since it needs older numpy and scipy
    python benchmarks/rivals.py --out rivals.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rivals_.common import TOP, Asked, Outcome, Skipped, threads
from rivals_.full import full_softmax
from rivals_.mnrl import mnrl
from rivals_.trained import ENCODER, WORDLESS, by_shoal, explicit, ngame, ngame_literal
from rivals_.untrained import pecos, tfidf
from torch import Tensor

from shoal import NetworkCombiner
from shoal.core.memory import peak_mib
from shoal.core.metrics import deciles, evaluate, inverse_propensity
from shoal.data import load_labels
from shoal.data.formats import xc
from shoal.data.texts import Examples, LabelData

# In this order: explicit mining is given the time that shoal-encoder took.
SYSTEMS: dict[str, Callable[[Asked], Outcome]] = {
    "shoal": by_shoal,
    "shoal-nowords": partial(by_shoal, rankers=WORDLESS),
    "shoal-rare": partial(by_shoal, combiner=NetworkCombiner(rare=1.0)),
    "shoal-encoder": partial(by_shoal, **ENCODER),
    "pecos": pecos,
    "tfidf": tfidf,
    "mnrl": mnrl,
    "ngame": ngame,
    "ngame-literal": ngame_literal,
    "explicit": explicit,
    "explicit-memory": partial(explicit, equal_memory=True),
    "full-softmax": full_softmax,
}
PECOS = ".venv-pecos/bin/python"  # made by make pecos
COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "nDCG@5", "R@5")
SECONDS = ("tune_wall", "train_wall", "train_cpu", "predict_wall", "predict_cpu")


def main() -> None:
    asked = parse()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if asked.quick:
            asked.data = shrink(load_labels(asked.data), Path(folder) / "quick")
            asked.epochs, asked.sweep_steps = 2, 2
        minutes = None
        for system in [name for name in SYSTEMS if name in asked.systems]:
            row = run(asked, system, minutes)
            if system == "shoal-encoder" and "train_cpu" in row:
                minutes = row["train_cpu"] / 60
            rows.append(row)
            report(row, asked.out)
    print(json.dumps({"systems": {row["system"]: row for row in rows}}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, comma between them")
    parser.add_argument("--pecos-python", default=PECOS, help="a Python with libpecos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6, help="of rivals that train encoders")
    parser.add_argument(
        "--minutes", type=float, help="CPU time of explicit mining; shoal-encoder's if run"
    )
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--sweep-steps", type=int, default=150, help="a learning rate tried")
    parser.add_argument("--threads", type=int, help="of every system; torch's default otherwise")
    parser.add_argument("--out", type=Path, help="also append every row to this file")
    parser.add_argument("--quick", action="store_true", help="5000 points, 2 epochs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.systems = asked.systems.split(",")
    unknown = set(asked.systems) - set(SYSTEMS)
    if unknown:
        parser.error(f"--systems: expected some of {', '.join(SYSTEMS)}, got {', '.join(unknown)}")
    return asked


def run(asked: argparse.Namespace, system: str, minutes: float | None) -> dict[str, Any]:
    """Measure a system in a process of its own."""
    command = [sys.executable, __file__, "--one", system, "--data", str(asked.data)]
    for name in ("pecos_python", "seed", "epochs", "batch_size", "sweep_steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    minutes = asked.minutes if minutes is None else minutes
    command += [] if minutes is None else ["--minutes", str(minutes)]
    command += ["--quick"] if asked.quick else []
    count = str(asked.threads or torch.get_num_threads())
    env = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"system": system, "failed": f"exit status {done.returncode}"}
    return {"system": system, **json.loads(done.stdout.splitlines()[-1])}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run one system here and judge it."""
    data = load_labels(asked.data)
    common = ("seed", "epochs", "minutes", "batch_size", "sweep_steps", "pecos_python", "quick")
    with tempfile.TemporaryDirectory() as folder:
        options = {name: getattr(asked, name) for name in common}
        task = Asked(data=data, source=asked.data, folder=Path(folder), **options)
        task = replace(task, batch_size=min(task.batch_size, len(data.train) // 4))
        try:
            outcome = SYSTEMS[asked.one](task)
        except Skipped as reason:
            return {"skipped": str(reason)}
    return {
        "data": data.name,
        "seed": asked.seed,
        "peak_mib": round(outcome.facts.pop("peak_mib", peak_mib())),
        **{name: round(value, 2) for name, value in judge(outcome.top, data).items()},
        "R@5 by decile": rarest_first(outcome.top, data),
        **{name: round(value, 1) for name, value in outcome.clock.seconds.items()},
        **outcome.facts,
        "threads": threads(),
        "machine": f"{os.cpu_count()} shared CPU cores ({platform.machine()}), no GPU",
    }


def judge(top: Tensor, data: LabelData) -> dict[str, float]:
    """The metrics of the table."""
    found = evaluate(top, data.test.labels, inverse_propensity(data.train.labels), ks=(1, 3, TOP))
    return {name: found[name] for name in COLUMNS}


def rarest_first(top: Tensor, data: LabelData) -> list[float]:
    """R@5 of tenths of the test's pairs, by their label's training points."""
    frequency = torch.bincount(data.train.labels.indices, minlength=data.train.labels.n_cols)
    return [round(x, 2) for x in deciles(top, data.test.labels, frequency, TOP)[f"R@{TOP}"]]


def report(row: dict[str, Any], out: Path | None) -> None:
    """One line to read, and one to keep."""
    reason = row.get("skipped") or row.get("failed")
    if reason:
        print(f"{row['system']:<16} not measured: {reason}", file=sys.stderr)
    else:
        cells = "".join(f"{name} {row[name]:5.2f}  " for name in COLUMNS)
        rare = " ".join(f"{value:5.1f}" for value in row["R@5 by decile"][:3])
        took = "  ".join(f"{x} {row[x]:.0f} s" for x in SECONDS if x in row)
        text = f"{cells}rarest three {rare}  {took}  {row['peak_mib']} MiB"
        print(f"{row['system']:<16} {text}", file=sys.stderr)
    if out is not None:
        command = shlex.join(["python", *sys.argv])
        if "SHOAL_DATA" in os.environ:
            command = command.replace(os.environ["SHOAL_DATA"], "$SHOAL_DATA")
        about = {"command": command, "date": time.strftime("%Y-%m-%d")}
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(row | about) + "\n")


def shrink(data: LabelData, folder: Path) -> Path:
    """Write 5000 training and 500 test points, all labels, where every system can read them."""
    xc.write(replace(data, train=_some(data.train, 5000), test=_some(data.test, 500)), folder)
    return folder


def _some(points: Examples, count: int) -> Examples:
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    return points.subset(order[:count])


if __name__ == "__main__":
    main()
