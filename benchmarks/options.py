"""What each part of a label model is worth, on examples held out from training, not on test ones.

A fifth of the training examples is held out: 4,000 of them teach the combiner, 5,000 others are
evaluated on. Each variant differs from the default in the parts that it names, at equal steps.
Variants of what comes after the encoder share one encoder, whose seconds are not theirs.

    python benchmarks/options.py --variants default "random batches" --out options.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from labels_ import Begun, metrics_of

import shoal
from shoal.data.splits import validation_split
from shoal.tasks.labels import Parts

TUNED = shoal.Classifiers()
WITHOUT_WORDS = tuple(ranker for ranker in shoal.RANKERS if not ranker.lexical)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no classifiers": {"classifiers": None},
    "classifiers, texts alone": {"classifiers": replace(TUNED, label_texts=False)},
    "classifiers, 3 epochs": {"classifiers": replace(TUNED, epochs=3)},
    "classifiers, 10 epochs": {"classifiers": replace(TUNED, epochs=10)},
    "classifiers 0.003": {"classifiers": replace(TUNED, lr=0.003)},
    "classifiers 0.03": {"classifiers": replace(TUNED, lr=0.03)},
    "classifiers, no dropout": {"classifiers": replace(TUNED, dropout=0.0)},
    "no words": {"rankers": WITHOUT_WORDS},
    "rare": {"combiner": shoal.NetworkCombiner(rare=1.0)},
    "tree": {"combiner": shoal.TreeCombiner()},
    "no fields": {"encoder": shoal.BagEncoder(fields=False)},
    "random batches": {"batches": shoal.Random(1024)},
    "clusters of 256": {"batches": shoal.Clustered(1024, cluster=256)},
    "one positive": {"positives": 1},
    "triplets": {"loss": shoal.hardest_triplets},
}
COLUMNS = ("P@1", "P@5", "PSP@1", "R@5")


def main() -> None:
    asked = parse()
    data = shoal.load_labels(asked.source)
    train, held_out = validation_split(data, 0.2, asked.seed)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))
    taught, judged = (held_out.subset(part) for part in (order[:4000], order[4000:9000]))
    if not len(judged):  # little data
        taught, judged = held_out, held_out
    bench = Bench(data.labels, train, taught, judged, asked)
    rows = []
    for name in asked.variants:
        row = {"variant": name, "steps": asked.steps, "seed": asked.seed, **bench.measure(name)}
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
        if asked.out is not None:
            with asked.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(json.dumps({"source": asked.source, "rows": rows}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="wordnet", help="a data set of texts and labels")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--ensemble", action="store_true", help="evaluate the ensemble as well")
    parser.add_argument("--out", type=Path, help="also append every row to this file")
    parser.add_argument("--quick", action="store_true", help="20 steps, three variants")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.variants = 20, ["default", "no classifiers", "triplets"]
    return asked


@dataclass
class Bench:
    """The examples, and the encoders that were trained: variants of later stages share them."""

    labels: shoal.Texts
    train: shoal.Examples
    taught: shoal.Examples
    judged: shoal.Examples
    asked: argparse.Namespace
    encoders: dict[str, Begun] = field(default_factory=dict)

    def measure(self, name: str) -> dict[str, Any]:
        """Train one variant; evaluate encoder, classifiers and the ensemble."""
        parts = Parts(**VARIANTS[name], seed=self.asked.seed)
        begin = time.perf_counter()
        begun, new = self.encoder(parts, name)
        begin = begin if new else time.perf_counter()
        base, weights = begun.predictor, None
        if parts.classifiers is not None:
            weights, _ = parts.classifiers.fit(
                begun.encoder.embed(begun.documents),
                base.label_embeddings,
                self.train.labels,
                parts.batch_sampler(),
                warmup=parts.encoder.warmup,
                seed=parts.seed,
            )
        seconds = round(time.perf_counter() - begin, 1)
        result = {"seconds": seconds, "encoder": self.evaluate(base)}
        if weights is not None:
            alone = shoal.with_known(base, (shoal.ClassifierRanker(),), self.train, weights)
            result["classifiers"] = self.evaluate(alone)
        if self.asked.ensemble and parts.combiner is not None:
            learned = self.train, self.taught, weights, parts.seed
            seen = shoal.evidence(base, parts.rankers, *learned)
            ensemble = shoal.fit_ensemble(
                base, parts.rankers, parts.combiner, seen, self.train, weights, parts.seed
            )
            result["ensemble"] = self.evaluate(ensemble)
        return result

    def encoder(self, parts: Parts, name: str) -> tuple[Begun, bool]:
        """A trained encoder, and whether it was trained for this variant."""
        own = {"encoder", "batches", "loss", "positives"} & set(VARIANTS[name])
        key = name if own else "default"
        new = key not in self.encoders
        if new:
            begun = Begun.of(parts, self.train, self.labels)
            shoal.fit(begun.job(), shoal.Budget(steps=self.asked.steps))
            self.encoders[key] = begun
        return self.encoders[key], new and key == name

    def evaluate(self, predictor: shoal.Predictor) -> dict[str, float]:
        """Metrics of examples that neither encoder nor combiner has seen, in per cent."""
        found = metrics_of(predictor, self.judged, self.train.labels, ks=(1, 5))
        return {name: round(found[name], 2) for name in COLUMNS}


def line(row: dict[str, Any]) -> str:
    """One variant to read."""
    parts = [f"{row['variant']:<24} {row['seconds']:>6} s"]
    for part in ("encoder", "classifiers", "ensemble"):
        found = row.get(part)
        cells = "".join(f"{found[x]:>7.2f}" for x in COLUMNS) if found else " " * 28
        parts.append(f"{part} {cells}")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
