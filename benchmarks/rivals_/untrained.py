"""Rivals without an encoder: PECOS XR-Linear, and sums of tf-idf cosines that train nothing."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import torch

from rivals_.common import DEEP, TOP, Asked, Clock, Outcome, Skipped, threads, without
from shoal.csr import Csr
from shoal.data.npz import write_pecos
from shoal.data.texts import LabelData, Points, validation_split
from shoal.metrics import evaluate
from shoal.models.lexical import LexicalIndex
from shoal.models.neighbors import votes
from shoal.ranking import Ranking

VALID = 0.05
# What the untrained sum chooses from, on validation.
CHARACTERS = (0.5, 1.0, 2.0)
NEIGHBORS = (10, 30, 100)
POWERS = (1.0, 2.0, 4.0)
WEIGHTS = (0.25, 0.5, 1.0, 2.0)


def pecos(asked: Asked) -> Outcome:
    """XR-Linear by a Python of its own."""
    python = which(asked.pecos_python)
    if python is None:
        raise Skipped("no Python with libpecos: make pecos, or name one by --pecos-python")
    probe = subprocess.run([python, "-c", "import pecos.xmc.xlinear"], capture_output=True)
    if probe.returncode:
        raise Skipped(f"{python} has no libpecos: make pecos")
    train, valid = validation_split(asked.data, VALID, seed=0)
    write_pecos(replace(asked.data, train=train, test=valid), asked.folder / "tune")
    write_pecos(asked.data, asked.folder / "final")
    script = Path(__file__).with_name("with_pecos.py")
    command = [python, str(script), str(asked.folder), str(threads())]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    answer = json.loads(said.splitlines()[-1])
    top = torch.from_numpy(np.load(asked.folder / "top.npy"))
    facts = answer["facts"] | {"peak_mib": answer["peak_mib"]}
    return Outcome(without(top, asked.data.test.drop), Clock(answer["seconds"]), facts)


def tfidf(asked: Asked) -> Outcome:
    """Votes of the nearest training points plus the likeness of the label's text."""
    if find_spec("sklearn") is None:
        raise Skipped("no scikit-learn: pip install scikit-learn")
    clock = Clock()
    with clock.stage("tune"):
        train, valid = validation_split(asked.data, VALID, seed=0)
        found = sweep(replace(asked.data, train=train, test=valid), 300 if asked.quick else 1000)
        best = max(found, key=lambda option: found[option])
    characters, k, power, weight = best
    with clock.stage("train"):
        index = Index(asked.data, characters)
    with clock.stage("predict"):
        names, near = index.search(asked.data.test, k)
        top = add(names, near, index.labels, power, weight, asked.data.test)
    options = dict(zip(("characters", "neighbors", "power", "votes_weight"), best, strict=True))
    return Outcome(top, clock, {**options, "validation_P@1_plus_R@5": round(found[best], 2)})


class Index:
    """tf-idf of words and of character n-grams within them; training points and label texts."""

    def __init__(self, data: LabelData, characters: float) -> None:
        from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
            TfidfVectorizer,
        )

        grams = {"analyzer": "char_wb", "ngram_range": (3, 5), "min_df": 2}
        self.parts: list[tuple[float, Any]] = [
            (weight, TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options))  # pyright: ignore[reportArgumentType]
            for weight, options in ((1.0, {}), (characters, grams))
        ]
        points, names = data.train.texts.all(), data.labels.all()
        for _, vectorizer in self.parts:
            vectorizer.fit(points + names)
        self.labels = data.train.labels
        self.names = LexicalIndex.of(self.vectors(names))
        self.points = LexicalIndex.of(self.vectors(points))

    def vectors(self, texts: list[str]) -> Csr:
        """Unit rows: their inner product is the weighted mean of both cosines."""
        from scipy.sparse import hstack

        total = sum(weight for weight, _ in self.parts)
        parts = [(w / total) ** 0.5 * part.transform(texts) for w, part in self.parts]
        return Csr.from_scipy(hstack(parts, format="csr"))

    def search(self, points: Points, k: int) -> tuple[Ranking, Ranking]:
        """The most alike labels, and the k nearest training points."""
        queries = self.vectors(points.texts.all())
        return self.names.search(queries, DEEP), self.points.search(queries, k)


def add(
    names: Ranking, near: Ranking, labels: Csr, power: float, weight: float, points: Points
) -> torch.Tensor:
    """The best labels by cosine of the text plus `weight` times the share of the votes."""
    cast = votes(near, labels, DEEP, power).matrix(labels.n_cols)
    assert cast.values is not None
    scores = names.matrix(labels.n_cols).to_scipy() + weight * cast.to_scipy()
    return without(Ranking.of(Csr.from_scipy(scores), DEEP).ids, points.drop, TOP)


def sweep(data: LabelData, most: int) -> dict[tuple[float, int, float, float], float]:
    """P@1 + R@5 of every choice, on at most so many of the held-out points."""
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    points = data.test.subset(order[:most])
    found = {}
    for characters in CHARACTERS:
        index = Index(data, characters)
        names, near = index.search(points, max(NEIGHBORS))
        for k, power, weight in itertools.product(NEIGHBORS, POWERS, WEIGHTS):
            nearest = Ranking(near.scores[:, :k], near.ids[:, :k])
            top = add(names, nearest, index.labels, power, weight, points)
            result = evaluate(top, points.labels, torch.ones(len(data.labels)), ks=(1, TOP))
            found[characters, k, power, weight] = result["P@1"] + result[f"R@{TOP}"]
    return found
