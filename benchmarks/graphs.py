"""Classes of nodes and links by shoal's untuned defaults, beside what is plain and tuned.

Every system runs on every graph in a process of its own, over the same seeds and splits: a seed is
one of the field's ten splits where a graph has them, and draws the split where it has none. The
linear model and the perceptron read features and their neighbor means (:mod:`graphs_.plain`).
CPU seconds are those of one training, without tuning, which is told apart. ``links`` hides links
and ranks them among all nodes, by an encoder, by what needs no training, and by their pool.

    python benchmarks/graphs.py [--data DIR] [--sets cora texas …] [--systems shoal gcn …]

DIR is by default what SHOAL_DATA names.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from graphs_ import plain, sets

from shoal import LinkModel, NodeModel
from shoal.core.memory import peak_mib

SYSTEMS = ("shoal", "sage", "gcn", "gat", "linear", "perceptron", "links")


def main() -> None:
    asked = parse()
    if asked.one:
        print(json.dumps(measure(asked)))
        return
    for name in asked.sets:
        for system in asked.systems:
            report(run(asked, name, system), asked.results)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("SHOAL_DATA"), help="folder of the graphs")
    parser.add_argument("--sets", nargs="+", choices=sets.SETS, default=[*sets.SETS])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS[:-1]])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=10, help="of a rival's single training")
    parser.add_argument("--link-minutes", type=float, help="of training, for links alone")
    parser.add_argument("--results", type=Path, help="append every row to this file")
    parser.add_argument("--quick", action="store_true", help="one seed of the smallest graph")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.quick:
        asked.sets, asked.seeds = ["texas"], [0]
    return asked


def run(asked: argparse.Namespace, name: str, system: str) -> dict[str, Any]:
    """Measure a system on a graph in a process of its own."""
    command = [sys.executable, __file__, "--data", asked.data, "--one", system, "--sets", name]
    command += ["--minutes", str(asked.minutes), "--seeds", *map(str, asked.seeds)]
    if asked.link_minutes is not None:
        command += ["--link-minutes", str(asked.link_minutes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"data": name, "system": system, "failed": f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run one system here."""
    name, system = asked.sets[0], asked.one
    load = partial(sets.nodes, Path(asked.data), name)
    if system == "shoal":
        own = nodes(load, asked.seeds)
    elif system == "links":
        own = links(load, asked.seeds, asked.link_minutes)
    else:
        own = plain.tuned(system, load, asked.seeds, asked.minutes)
    return {
        "data": name,
        "system": system,
        "seeds": asked.seeds,
        **own,
        "peak_mib": round(peak_mib()),
        "threads": torch.get_num_threads(),
        "machine": f"{os.cpu_count()} shared CPU cores, no GPU, torch {torch.__version__}",
    }


def nodes(load: Any, seeds: list[int]) -> dict[str, Any]:
    """Untuned defaults: metrics and CPU seconds of each fit, and what each member reaches."""
    tests, members, begin = [], [], time.process_time()
    for seed in seeds:
        result = NodeModel(seed=seed, device="cpu").fit(load(seed))
        tests.append(result.test)
        members.append([dict(line) for line in result.details["compared"]])
    seconds = (time.process_time() - begin) / len(seeds)
    return {"test": tests, "members": members, "cpu_seconds": round(seconds, 1)}


def links(load: Any, seeds: list[int], minutes: float | None) -> dict[str, Any]:
    """Untuned defaults: metrics and CPU seconds of each fit, and what each score reaches."""
    tests, scores, begin = [], [], time.process_time()
    for seed in seeds:
        result = LinkModel(seed=seed, device="cpu").fit(load(seed), minutes=minutes)
        tests.append(result.test)
        scores.append([dict(line) for line in result.details["compared"]])
    seconds = (time.process_time() - begin) / len(seeds)
    about = {} if minutes is None else {"minutes": minutes}
    return {"test": tests, "scores": scores, "cpu_seconds": round(seconds, 1), **about}


def report(row: dict[str, Any], results: Path | None) -> None:
    """One line to read, and one to keep."""
    if "failed" in row:
        print(f"{row['data']:<20} {row['system']:<11} {row['failed']}", file=sys.stderr)
        return
    cells = []
    for metric in row["test"][0]:
        values = [x[metric] for x in row["test"]]
        cells.append(f"{metric} {statistics.mean(values):5.1f} ± {_spread(values):3.1f}")
    took = f"{row['cpu_seconds']:.0f} CPU s  {row['peak_mib']} MiB"
    print(f"{row['data']:<20} {row['system']:<11} {'  '.join(cells)}  {took}", file=sys.stderr)
    if results is not None:
        command = shlex.join(["python", *sys.argv])
        if "SHOAL_DATA" in os.environ:
            command = command.replace(os.environ["SHOAL_DATA"], "$SHOAL_DATA")
        with results.open("a") as file:
            about = {"command": command, "date": time.strftime("%Y-%m-%d")}
            file.write(json.dumps(row | about) + "\n")


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CSR.*")
    main()
