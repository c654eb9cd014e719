"""What each option of the label job is worth, on points held out from training, not on test ones.

A fifth of the training points is held out: 4,000 of them fit the fusion, 5,000 others judge. Each
variant differs from the default in the options that it names, at equal steps. Variants of the head
share one encoder, whose seconds are not theirs.

    python benchmarks/options.py --variants default symmetric --out options.jsonl
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
from jaxtyping import Float
from shoal.cli.settings import Train
from shoal.rank.fused import FusedLabeler, Memory, Words, fuse
from shoal.tasks.heads import frozen_job
from shoal.tasks.prepared import Prepared, prepare
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.metrics import evaluate, inverse_propensity
from shoal.data import load
from shoal.data.texts import Examples, Texts
from shoal.rank.predictor import BagRows, Labeler
from shoal.rank.ranking import Ranking
from shoal.tasks.labels import make_job
from shoal.text.fields import FieldVocabulary
from shoal.text.vocabulary import Vocabulary
from shoal.training.job import Budget
from shoal.training.loop import fit

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no head": {"head": "none"},
    "joint": {"head": "joint"},
    "joint, no dropout": {"head": "joint", "head_dropout": 0.0},
    "joint, 0.1": {"head": "joint", "head_lr": 0.1},
    "head, points alone": {"head_texts": False},
    "head, 3 epochs": {"head_epochs": 3},
    "head, 10 epochs": {"head_epochs": 10},
    "head, 20 epochs": {"head_epochs": 20},
    "head 0.003": {"head_lr": 0.003},
    "head 0.03": {"head_lr": 0.03},
    "head, no dropout": {"head_dropout": 0.0},
    "head, dropout 0.3": {"head_dropout": 0.3},
    "head, mined": {"head_negatives": "mined"},
    "random batches": {"batches": "random"},
    "one positive": {"positives": 1},
    "symmetric": {"symmetric": True},
    "propensity": {"positives_by": "propensity"},
    "text+labels": {"cluster_by": "text+labels"},
    "label side": {"side": "label"},
    "curriculum": {"curriculum": True},
    "triplet": {"loss": "triplet"},
}
COLUMNS = ("P@1", "P@5", "PSP@1", "R@5")


def main() -> None:
    asked = parse()
    data = load(asked.source)
    prepared = prepare(data, 0.2, asked.seed)
    bench = Bench(prepared, asked)
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
    parser.add_argument("--fuse", action="store_true", help="judge all evidence fused as well")
    parser.add_argument("--out", type=Path, help="also append every row to this file")
    parser.add_argument("--quick", action="store_true", help="20 steps, three variants")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.variants = 20, ["default", "no head", "joint"]
    return asked


@dataclass
class Bench:
    """The data, and the default's encoder, on which variants of the head are trained."""

    prepared: Prepared
    asked: argparse.Namespace
    labeler: Labeler | None = None
    lexical: Words | None = None

    def measure(self, name: str) -> dict[str, Any]:
        """Train one variant; judge encoder, head and all evidence fused."""
        default = Train(source=self.asked.source, seed=self.asked.seed, steps=self.asked.steps)
        options = VARIANTS[name]
        settings, begin = replace(default, **options), time.perf_counter()
        shared = settings.head != "joint" and all(option.startswith("head") for option in options)
        if not shared:
            labeler, head = self.encoder(settings)
        else:
            self.labeler = self.labeler or self.encoder(replace(default, head="none"))[0]
            labeler, head, begin = self.labeler, None, time.perf_counter()
        if settings.head == "frozen":
            head = self.frozen(labeler, settings)
        seconds = round(time.perf_counter() - begin, 1)
        result = {"seconds": seconds, "encoder": self.judge(labeler)}
        if head is not None:
            result["head"] = self.judge(replace(labeler, classifiers=head))
        if self.asked.fuse:
            result["fused"] = self.judge(self.fused(labeler, head))
        return result

    def encoder(self, settings: Train) -> tuple[Labeler, Float[Tensor, "l d"] | None]:
        """A trained encoder, and the head that was trained with it."""
        job = make_job(replace(self.prepared, valid=None), settings)
        fit(job, Budget(steps=self.asked.steps))
        assert job.table is not None  # bags
        labeler = Labeler(self.prepared.lexicon, BagRows(job.table.as_subclass(Tensor)))
        head = job.tables.get("head")
        return labeler, None if head is None else head.as_subclass(Tensor)

    def frozen(self, labeler: Labeler, settings: Train) -> Float[Tensor, "l d"]:
        """A head trained on a finished encoder."""
        x = labeler.encoder.embed(self.prepared.bags)
        job = frozen_job(labeler, x, replace(self.prepared, valid=None), settings)
        fit(job, Budget(epochs=settings.head_epochs))
        assert job.table is not None
        return job.table.as_subclass(Tensor)

    def fused(self, labeler: Labeler, head: Float[Tensor, "l d"] | None) -> FusedLabeler:
        """All evidence, weighed on held-out points that do not judge."""
        train = self.prepared.train
        memory = Memory(labeler.encode(train.texts), train.labels, self.words(), head)
        return FusedLabeler(labeler, memory, fuse(labeler, memory, self.held_out(0, 4000)))

    def judge(self, labeler: Labeler | FusedLabeler) -> dict[str, float]:
        """Metrics on points that were held out, in per cent."""
        points = self.held_out(4000, 9000)
        _, top = labeler.rank(points.texts, 5, points.drop)
        found = evaluate(top, points.labels, inverse_propensity(self.prepared.train.labels), (1, 5))
        return {name: round(found[name], 2) for name in COLUMNS}

    def held_out(self, first: int, last: int) -> Examples:
        """Some of the points held out, in random order."""
        valid = self.prepared.valid
        assert valid is not None
        order = torch.randperm(len(valid), generator=torch.Generator().manual_seed(0))
        return valid.subset(order[first:last].sort().values)

    def words(self) -> Words:
        """The lexical side, made once."""
        if self.lexical is None:
            vocabulary = self.prepared.lexicon.vocabulary
            assert isinstance(vocabulary, FieldVocabulary | Vocabulary)
            words = vocabulary.words if isinstance(vocabulary, FieldVocabulary) else vocabulary
            labels, points = self.prepared.lexicon.labels, self.prepared.train.texts
            self.lexical = Remembered(**vars(Words.of(words, labels, points)))
        return self.lexical


@dataclass(frozen=True, eq=False)
class Remembered(Words):
    """Words that rank the same texts once: they are the same for every encoder."""

    ranked: dict[Any, list[Ranking]] = field(default_factory=dict)

    def rankings(self, texts: Texts, labels_of_points: Csr, k: int) -> list[Ranking]:
        """Rank texts, or say what came of it before."""
        key = tuple(texts.uids)
        if key not in self.ranked:
            self.ranked[key] = super().rankings(texts, labels_of_points, k)
        return self.ranked[key]


def line(row: dict[str, Any]) -> str:
    """One variant to read."""
    parts = [f"{row['variant']:<24} {row['seconds']:>6} s"]
    for part in ("encoder", "head", "fused"):
        found = row.get(part)
        cells = "".join(f"{found[x]:>7.2f}" for x in COLUMNS) if found else " " * 28
        parts.append(f"{part} {cells}")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
