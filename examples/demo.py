"""The label task on the shipped data: random against NGAME batches, then three queries.

Trains two encoders of WordNet's 93,311 texts and 103,827 labels that differ in one argument, which
examples share a batch, for the same number of steps. Both rank all 9,115 test examples alone; then
the second does so in an ensemble with classifiers, neighbors and words, and answers three
questions. Run it again and it shows what it has; stop it and it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import shoal

QUERIES = (
    "a large African animal with a long trunk",
    "to cook something slowly in hot water",
    "someone who studies the stars and planets",
)
COLUMNS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "R@5")
ALONE: dict[str, Any] = {"rankers": (shoal.EncoderRanker(),), "combiner": None}


def main() -> None:
    """Train, compare, query."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of each of the two encoders")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the two runs")
    parser.add_argument("--source", default="wordnet", help="another data set of texts and labels")
    parser.add_argument("--seed", type=int, default=0)
    choices = ("schedule", "spectral")
    parser.add_argument(
        "--step", choices=choices, default="schedule", help="docs/concepts/steps.md"
    )
    asked = parser.parse_args()
    data = shoal.load(asked.source)
    step = shoal.spectral_step if asked.step == "spectral" else None
    common: dict[str, Any] = {"seed": asked.seed, "step": step}
    models = {
        "random": shoal.LabelModel(batches=shoal.Random(1024), classifiers=None, **ALONE, **common),
        "ngame": shoal.LabelModel(batches=shoal.Clustered(1024, cluster=64), **common),
    }
    rows = {}
    for name, model in models.items():
        out = asked.out / f"demo-{name}"
        models[name] = model = trained(model, data, out, asked.steps)
        encoder = model.with_predictor(replace(model.predictor, **ALONE))
        rows[name] = (encoder.evaluate(data), seconds(out, "end"))
        if name == "ngame":
            rows["ensemble"] = (shoal.Run.open(out).log()[-1], seconds(out, "test"))
    print(table(rows))
    for text, found in zip(QUERIES, models["ngame"].predict(list(QUERIES), k=3), strict=True):
        print(f"\n{text}")
        for label in found:
            print(f"  {label.title}  {label.score:.2f}")


def trained(model: Any, data: Any, out: Path, steps: int) -> Any:
    """The model of a run; an unfinished one is resumed, a finished one is opened."""
    log = shoal.Run.open(out).log() if out.exists() else []
    if log and log[-1]["event"] == "test":
        return shoal.open(out)
    print(f"-- {data.name}, {out.name}, {steps} steps", file=sys.stderr)
    result = model.fit(data, out=out, steps=steps, resume=(out / "last.safetensors").exists())
    if result.stopped == "interrupt":
        sys.exit("stopped and saved; run the same command to go on")
    return model


def seconds(out: Path, event: str) -> float:
    """Seconds of training so far at the last event of this name: the end of the encoder's."""
    return [line["seconds"] for line in shoal.Run.open(out).log() if line["event"] == event][-1]


def table(rows: dict[str, tuple[dict[str, float], float]]) -> str:
    """The metrics in per cent, and how many seconds of training each row took in all."""
    lines = ["batches " + "".join(f"{name:>8}" for name in COLUMNS) + "   seconds"]
    for name, (metrics, spent) in rows.items():
        cells = "".join(f"{metrics[column]:8.2f}" for column in COLUMNS)
        lines.append(f"{name:<8}{cells}{spent:10.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
