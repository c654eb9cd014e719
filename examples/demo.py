"""The main job on the shipped data: random against NGAME batches, then three queries.

Trains two encoders of WordNet's 93,311 documents and 103,827 labels that differ in one setting, who
is in the batch, for the same number of steps; judges both, and the second fused with all that its
training points tell, on all 9,115 test points; asks the fused one three questions. Run it again and
it shows what it has; stop it and it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shoal.cli.settings import Train
from shoal.data import load
from shoal.tasks import labels
from shoal.tasks.fusing import predictor_of
from shoal.tasks.use import answer
from shoal.training.run import Run

QUERIES = (
    "a large African animal with a long trunk",
    "to cook something slowly in hot water",
    "someone who studies the stars and planets",
)
COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@5")


def main() -> None:
    """Train, compare, query."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of each of the two runs")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the two runs")
    parser.add_argument("--source", default="wordnet", help="another data set of texts and labels")
    parser.add_argument("--seed", type=int, default=0)
    choices = ("schedule", "spectral")
    parser.add_argument("--step", choices=choices, default="schedule", help="see docs/steps.md")
    asked = parser.parse_args()
    results = {}
    for batches in ("random", "ngame"):
        print(f"-- {asked.source}, {batches} batches, {asked.steps} steps", file=sys.stderr)
        results[batches] = train(asked, batches)
        if results[batches]["stopped"] == "interrupt":
            sys.exit("stopped and saved; run the same command to go on")
    results["fused"] = results["ngame"] | {"metrics": results["ngame"]["test"]}
    print(table(results))
    best = predictor_of(Run.open(results["ngame"]["run"]))
    for text in QUERIES:
        print(f"\n{text}")
        for found in answer(best, text, k=3):
            print(f"  {found['score']:.2f}  {found['title']}")


def train(asked: argparse.Namespace, batches: Any) -> dict[str, Any]:
    """One run; an unfinished one is resumed, a finished one is only shown."""
    out = asked.out / f"demo-{batches}"
    resume = (out / "last.safetensors").exists()
    settings = Train(
        source=asked.source,
        out=out,
        steps=asked.steps,
        batches=batches,
        seed=asked.seed,
        step=asked.step,
        rank="fused" if batches == "ngame" else "encoder",
        resume=resume,
    )
    result = labels.train(settings)
    if result["stopped"] == "interrupt":
        return result
    encoder = labels.labeler_of(Run.open(result["run"]))
    return result | {"metrics": labels.judge(encoder, load(asked.source))}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The metrics of both runs side by side, in per cent, and what each took."""
    lines = ["batches " + "".join(f"{name:>8}" for name in COLUMNS) + "   seconds"]
    for batches, result in results.items():
        cells = "".join(f"{result['metrics'][name]:8.2f}" for name in COLUMNS)
        lines.append(f"{batches:<8}{cells}{result['train_seconds']:10.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
