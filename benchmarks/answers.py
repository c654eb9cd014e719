"""What an answer of a trained model costs, and what it is worth.

Opens a folder of a label model and prints, on one thread: seconds and MiB to open it, CPU ms a text
in batches and alone, MiB once it has answered, and metrics of test texts. With --teach the combiner
is taught anew, by the examples that training held out, once with rankers that say how good each
label of a pool is and once with rankers that each search all labels: one line each.

    python benchmarks/answers.py runs/wordnet --source wordnet --teach
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from labels_ import metrics_of

import shoal
from shoal.data.splits import folds

COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@5")


def resident() -> float:
    """MiB that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def cpu(compute: Callable[[], Any], repeats: int = 3) -> float:
    """The least CPU milliseconds of several runs."""
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        compute()
        found.append(time.process_time() - begin)
    return 1e3 * min(found)


def measured(name: str, model: Any, test: Any, texts: int) -> dict[str, Any]:
    """Costs and metrics of a predictor."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    some = test.subset(order[:texts])
    ones = [some.texts.subset(torch.tensor([i])) for i in range(10)]
    model.rank(ones[0], 5)
    row: dict[str, Any] = {"rankers": name, "texts": len(some)}
    row["batch_ms"] = round(cpu(lambda: model.rank(some.texts, 5)) / len(some), 2)
    row["alone_ms"] = round(cpu(lambda: [model.rank(one, 5) for one in ones]) / len(ones), 1)
    metrics = metrics_of(model, some, model.truth)
    return row | {key: round(metrics[key], 2) for key in COLUMNS}


def taught(model: Any, data: Any, pooled: bool) -> Any:
    """The same encoder and classifiers, and a combiner that learned from what was held out."""
    weights = next((r.weights for r in model.rankers if hasattr(r, "weights")), None)
    base = replace(model, rankers=(shoal.EncoderRanker(),), combiner=None, pooled=pooled)
    (fold,) = folds(data, 0.1, 0, 1000)[:1]
    rankers = shoal.RANKERS
    assert fold.held_out is not None
    seen = shoal.evidence(base, rankers, fold.train, fold.held_out, weights, 0)
    combiner = shoal.NetworkCombiner()
    return shoal.fit_ensemble(base, rankers, combiner, seen, data.train, weights, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a label model")
    parser.add_argument("--source", default="wordnet", help="what it was trained on")
    parser.add_argument("--texts", type=int, default=5000, help="test texts")
    parser.add_argument("--teach", action="store_true", help="compare combiners taught anew")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    before, begin = resident(), time.perf_counter()
    model = shoal.open(asked.run).predictor
    row = {"open_s": round(time.perf_counter() - begin, 1), "open_mib": round(resident() - before)}
    model.rank(shoal.Texts.of(["a text"]), 1)
    print(json.dumps(row | {"answered_mib": round(resident() - before)}), flush=True)
    data = shoal.load_labels(asked.source)
    ways = {"pool": True, "whole": False} if asked.teach else {"as trained": None}
    for name, pooled in ways.items():
        own = model if pooled is None else taught(model, data, pooled)
        print(json.dumps(measured(name, own, data.test, asked.texts)), flush=True)


if __name__ == "__main__":
    main()
