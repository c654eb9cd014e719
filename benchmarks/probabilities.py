"""Whether stated probabilities hold, and what thresholds chosen on held-out examples are worth.

Trains a default label model on each source, or opens the one of --run, and judges it on the
source's test texts. Of the five best answers a text: how often those stated with a probability are
true, in ten bins of it, the expected calibration error in points (ECE) and log loss. Of the hundred
best: micro F1 at the best of all thresholds, which only the test texts know; F1, precision and
recall at the one that held-out examples chose, F1 of as many labels as are expected to be true; and
how many that is a text, beside how many are. "planted" is made here: texts of 1 to 20 labels that
do not exclude one another.

    python benchmarks/probabilities.py planted questions-fi --out docs/results/probabilities.jsonl
    python benchmarks/probabilities.py wordnet --run runs/demo-ngame
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from labels import machine

import shoal
from shoal.core.decisions import decisions
from shoal.core.metrics import hits
from shoal.rank.calibration import kept
from shoal.rank.evaluate import evaluate

ANSWERS, DEEP = 5, 100
# of planted data: labels, words that may name each, most labels a text, share of them named
LABELS, NAMES, MOST, NAMED = 400, 3, 20, 0.8
TRAIN, TEST = 2000, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="+", help="planted, or data sets with labels")
    parser.add_argument("--run", help="folder of a trained model, instead of training one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also append every row to this file")
    asked = parser.parse_args()
    command = shlex.join(["python", *sys.argv])
    if "SHOAL_DATA" in os.environ:
        command = command.replace(os.environ["SHOAL_DATA"], "$SHOAL_DATA")
    about = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    for source in asked.sources:
        data = planted(asked.seed) if source == "planted" else shoal.load_labels(source)
        begin = time.process_time()
        if asked.run is None:
            model = shoal.LabelModel(seed=asked.seed)
            model.fit(data)
        else:
            model = shoal.open(asked.run)
        cpu = time.process_time() - begin
        line = json.dumps(measured(model, data) | {"fit_cpu_s": round(cpu, 1)} | about)
        print(line, flush=True)
        if asked.out is not None:
            with asked.out.open("a") as file:
                file.write(line + "\n")


def measured(model: Any, data: Any) -> dict[str, Any]:
    """Reliability and decisions of a model's answers to test texts."""
    predictor, test = model.predictor, data.test
    found, behind = evaluate(predictor, test, predictor.truth, "f1")
    scores, ids = predictor.rank(test.texts, min(DEEP, len(predictor.labels)), test.drop)
    truth = test.labels.with_values(None).coalesce()
    true = hits(ids.long(), truth) & (ids >= 0)
    some = ids[:, :ANSWERS] >= 0
    p = scores[:, :ANSWERS][some].double().clamp(1e-7, 1 - 1e-7)
    loss = torch.nn.functional.binary_cross_entropy(p, true[:, :ANSWERS][some].double())
    count = ids.masked_fill(~kept(scores, ids, "count", None), -1)
    bins = behind["calibration"]
    return {
        "data": data.name,
        "examples": len(data.train),
        "labels": len(data.labels),
        "test": len(test),
        "P@1": round(found["P@1"], 2),
        "reliability": bins,
        "ECE": round(found["ECE"], 2),
        "log_loss": round(float(loss), 4),
        "best_F1": round(best_f1(scores[ids >= 0], true[ids >= 0], truth.nnz), 2),
        **{name: round(found[name], 2) for name in ("F1", "precision", "recall")},
        "count_F1": round(decisions(count, truth)["F1"], 2),
        "labels_expected": round(float(scores.clamp(min=0).sum(1).mean()), 2),
        "labels_true": round(truth.nnz / len(test), 2),
    }


def best_f1(p: torch.Tensor, true: torch.Tensor, wanted: int) -> float:
    """Micro F1 in per cent at the best threshold."""
    order = p.argsort(descending=True)
    given = torch.arange(1, len(p) + 1)
    return 200 * float((true[order].cumsum(0) / (given + wanted)).max())


def planted(seed: int) -> shoal.LabelData:
    """Texts of 1 to 20 labels, drawn alike often; most labels are named by one of their words."""
    g = torch.Generator().manual_seed(seed)

    def some(n: int) -> shoal.Examples:
        texts, labels = [], []
        for size in torch.randint(1, MOST + 1, (n,), generator=g).tolist():
            own = torch.randperm(LABELS, generator=g)[:size]
            named = own[torch.rand(size, generator=g) < NAMED]
            name = torch.randint(NAMES, (len(named),), generator=g)
            words = [f"w{i}x{j}" for i, j in zip(named.tolist(), name.tolist(), strict=True)]
            texts.append(" ".join([*words, "said"]))
            labels.append(own.tolist())
        return shoal.Examples.of(shoal.Texts.of(texts), shoal.Csr.from_lists(labels, n_cols=LABELS))

    names = shoal.Texts.of([f"topic {i}" for i in range(LABELS)])
    return shoal.LabelData("planted", some(TRAIN), some(TEST), names)


if __name__ == "__main__":
    main()
