"""Throughput of shortlist training through the bag encoder: documents a second, and a refresh.

Trains the label job on clustered batches as `shoal train` does, in rounds, and reports the median
round: wall and CPU time of a step, and the share of a refresh in an epoch.

    python benchmarks/shortlist.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time

import torch
from labels_ import Begun

import shoal
from shoal.tasks.labels import Parts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="a round")
    parser.add_argument("--positives", type=int, default=2, help="a point; 2 as in shoal train")
    parser.add_argument("--quick", action="store_true", help="one round of ten steps")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.steps = 1, 10
    data = shoal.load_labels(asked.source)
    parts = Parts(batches=shoal.Clustered(1024, warm_epochs=0), positives=asked.positives)
    job = Begun.of(parts, data.train, data.labels).job()
    assert job.refresh is not None
    begin = time.perf_counter()
    job.refresh(0)
    refresh = time.perf_counter() - begin
    training = dataclasses.replace(job, refresh=None)
    shoal.fit(training, shoal.Budget(steps=5))
    rounds = [measure(training, asked.steps) for _ in range(asked.rounds)]
    wall, cpu = (statistics.median(r[i] for r in rounds) for i in (0, 1))
    batch = next(iter(job.loader.batch_sampler))
    epoch = wall * len(job.loader)
    result = {
        "positives": asked.positives,
        "documents_per_second": round(len(batch) / wall),
        "step_ms": round(1000 * wall, 1),
        "step_cpu_ms": round(1000 * cpu, 1),
        "threads": torch.get_num_threads(),
        "refresh_seconds": round(refresh, 2),
        "refresh_share_of_epoch": round(refresh / (refresh + epoch), 3),
    }
    for name, value in result.items():
        print(f"{name:<24}{value}", file=sys.stderr)
    print(json.dumps(result))


def measure(job, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    shoal.fit(job, shoal.Budget(steps=steps))
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


if __name__ == "__main__":
    main()
