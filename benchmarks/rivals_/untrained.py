"""Rivals without an encoder: PECOS XR-Linear, and sums of tf-idf cosines that train nothing."""

from __future__ import annotations

import itertools
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import torch

from rivals_.common import DEEP, TOP, Asked, Clock, Outcome, Skipped, threads, to_tune, without
from shoal.core.csr import Csr
from shoal.core.metrics import evaluate
from shoal.data.formats.npz import write_pecos
from shoal.data.texts import Examples, LabelData
from shoal.rank.lexical import LexicalIndex
from shoal.rank.ranking import Ranking, votes

# What the untrained sum chooses from, on validation.
CHARACTERS = (0.5, 1.0, 2.0)
NEIGHBORS = (10, 30, 100)
POWERS = (1.0, 2.0, 4.0)
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
# training points searched at a time
PART = 65536


def pecos(asked: Asked) -> Outcome:
    """XR-Linear by a Python of its own."""
    python = which(asked.pecos_python)
    if python is None:
        raise Skipped("no Python with libpecos: make pecos, or name one by --pecos-python")
    probe = subprocess.run([python, "-c", "import pecos.xmc.xlinear"], capture_output=True)
    if probe.returncode:
        raise Skipped(f"{python} has no libpecos: make pecos")
    write_pecos(to_tune(asked.data), asked.folder / "tune")
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
        raise Skipped("no scikit-learn: pip install 'shoal[rivals]'")
    clock = Clock()
    with clock.stage("tune"):
        found = sweep(to_tune(asked.data), 300 if asked.quick else 1000)
        best = max(found, key=lambda option: found[option])
    characters, k, power, weight = best
    with clock.stage("train"):
        index = Index(Grams(asked.data), characters)
    with clock.stage("predict"):
        names, near = index.search(index.vectors(asked.data.test), k)
        top = add(names, near, asked.data.train.labels, power, weight, asked.data.test)
    options = dict(zip(("characters", "neighbors", "power", "votes_weight"), best, strict=True))
    return Outcome(top, clock, {**options, "validation_P@1_plus_R@5": round(found[best], 2)})


class Grams:
    """tf-idf of words and of character n-grams within them, of training points and label texts.

    Attributes:
        points: of the training points, words and n-grams, rows of length one.
        names: of the labels.
    """

    def __init__(self, data: LabelData) -> None:
        from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingImports]
            TfidfVectorizer,
        )

        grams = {"analyzer": "char_wb", "ngram_range": (3, 5), "min_df": 2}
        self.vectorizers: list[Any] = [
            TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **options)  # pyright: ignore[reportArgumentType]
            for options in ({}, grams)
        ]
        n, texts = len(data.train), data.train.texts.all() + data.labels.all()
        every = [vectorizer.fit_transform(texts).tocsr() for vectorizer in self.vectorizers]
        self.points, self.names = [part[:n] for part in every], [part[n:] for part in every]

    def of(self, points: Examples) -> list[Any]:
        """The same of other points."""
        return [vectorizer.transform(points.texts.all()) for vectorizer in self.vectorizers]


class Index:
    """Search by the weighted mean of the cosines of words and of n-grams.

    The training points stand in parts, so that a query's sums over one of them stay in the cache.
    """

    def __init__(self, grams: Grams, characters: float) -> None:
        self.grams, self.weights = grams, (1.0, characters)
        self.names = LexicalIndex.of(self.join(grams.names))
        points = self.join(grams.points)
        starts = torch.arange(0, points.n_rows, PART)
        self.points = [
            LexicalIndex.of(points.rows(ids)) for ids in torch.arange(points.n_rows).split(PART)
        ]
        self.starts = starts

    def join(self, parts: list[Any]) -> Csr:
        """Rows of length one whose inner product is that mean."""
        from scipy.sparse import hstack

        total = sum(self.weights)
        scaled = [(w / total) ** 0.5 * x for w, x in zip(self.weights, parts, strict=True)]
        return Csr.from_scipy(hstack(scaled, format="csr"))

    def vectors(self, points: Examples) -> Csr:
        """Of other points."""
        return self.join(self.grams.of(points))

    def search(self, queries: Csr, k: int) -> tuple[Ranking, Ranking]:
        """The most alike labels, and the k nearest training points."""
        found = [part.search(queries, k) for part in self.points]
        scores = torch.cat([part.scores for part in found], 1)
        ids = torch.cat(
            [
                torch.where(part.ids < 0, -1, part.ids + start)
                for part, start in zip(found, self.starts, strict=True)
            ],
            1,
        )
        scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
        return self.names.search(queries, DEEP), Ranking(scores, ids.gather(1, order))


def add(
    names: Ranking, near: Ranking, labels: Csr, power: float, weight: float, points: Examples
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
    grams, found, labels = Grams(data), {}, data.train.labels
    for characters in CHARACTERS:
        index = Index(grams, characters)
        names, near = index.search(index.vectors(points), max(NEIGHBORS))
        for k, power, weight in itertools.product(NEIGHBORS, POWERS, WEIGHTS):
            nearest = Ranking(near.scores[:, :k], near.ids[:, :k])
            top = add(names, nearest, labels, power, weight, points)
            result = evaluate(top, points.labels, torch.ones(len(data.labels)), ks=(1, TOP))
            found[characters, k, power, weight] = result["P@1"] + result[f"R@{TOP}"]
    return found
