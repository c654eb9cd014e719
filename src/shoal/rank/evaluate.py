"""How well labels are ranked: validation during training, test metrics, and examples of them.

All in per cent, as the field prints them; filter pairs are taken out of the predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core import metrics
from shoal.core.csr import Csr
from shoal.core.decisions import calibration_error, decisions
from shoal.data.texts import Examples, Texts
from shoal.rank.calibration import Rule, kept
from shoal.rank.predictor import Predictor, named

KS = (1, 3, 5)
# labels that a threshold may give to a text
_DEEP = 100
# Of each kind; characters of their texts and titles; true labels named.
_EXAMPLES, _TEXT, _TITLE, _LABELS = 6, 280, 80, 8
# Test examples that each ranker of an ensemble ranks alone, and bins of probabilities.
_ALONE, _BINS = 1000, 10


def validate(
    rank: Callable[[int, Csr], tuple[Tensor, Tensor]], held_out: Examples
) -> dict[str, float]:
    """P@1, P@5 and R@5 (or as many as there are labels), in per cent; the first decides.

    Args:
        rank: ``(k, drop)`` → scores and ids of the k best labels of each held-out example.
        held_out: those examples.
    """
    k = min(KS[-1], held_out.labels.n_cols)
    _, top = rank(k, held_out.drop)
    inverse = torch.ones(held_out.labels.n_cols)
    result = metrics.evaluate(top.cpu(), held_out.labels, inverse, ks=(1, k))
    return {f"valid_{name}": result[name] for name in ("P@1", f"P@{k}", f"R@{k}")}


def evaluate(
    predictor: Predictor,
    test: Examples,
    known: Csr,
    threshold: float | Rule | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of test examples, and what is behind them.

    Args:
        predictor: ranks labels.
        test: whose labels may be more than the predictor's: those can never be found.
        known: labels of the training examples, ``[n, l]``, which decide propensities; with fewer
            than three examples they are one.
        threshold: from which on labels are given; by default, where it has been learned, ``f1``.

    Returns:
        metrics in per cent (:func:`shoal.core.metrics.evaluate`), with a threshold those of
        :func:`shoal.core.decisions.decisions` and of probabilities ``ECE``; and for a run's log
        ``deciles``, how well rare and frequent labels are found, ``examples`` (:func:`examples`),
        ``possible``, what P@k can be at most, and of an ensemble ``alone`` and ``calibration``.
    """
    k = min(KS[-1], len(predictor.labels))
    if threshold is None and predictor.thresholds is not None:
        threshold = "f1"
    wide = test.labels.n_cols
    drop = (
        test.drop
        if wide == len(predictor.labels)
        else first_columns(test.drop, len(predictor.labels))
    )
    deep = k if threshold is None else min(_DEEP, len(predictor.labels))
    scores, every = (x.cpu() for x in predictor.rank(test.texts, deep, drop))
    top = every[:, :k]
    seen = known.with_values(None).coalesce()
    seen = Csr(seen.indptr, seen.indices, wide)
    # below three examples the propensity model says nothing: every label weighs the same
    inverse = metrics.inverse_propensity(seen) if seen.n_rows > 2 else torch.ones(wide)
    result = metrics.evaluate(top, test.labels, inverse, ks=[x for x in KS if x <= k])
    behind: dict[str, Any] = {"examples": examples(predictor.labels, test, scores[:, :k], top)}
    if threshold is not None:
        given = every.masked_fill(~kept(scores, every, threshold, predictor.thresholds), -1)
        result |= decisions(given, test.labels)
    if test.labels.nnz:
        frequency = torch.bincount(seen.indices, minlength=wide)
        parts = metrics.deciles(top, test.labels, frequency, top.shape[1])
        behind["deciles"] = {name: [round(x, 2) for x in part] for name, part in parts.items()}
        truth = test.labels.with_values(None).coalesce()
        behind["possible"] = possible(truth, k)
        if predictor.combiner is not None and len(predictor.rankers) > 1:
            behind["alone"] = alone(predictor, test, drop)
        if predictor.probabilities:
            hit, found = metrics.hits(top.long(), truth), top >= 0
            behind["calibration"] = calibration(scores[:, :k][found], hit[found])
            result["ECE"] = calibration_error(behind["calibration"])
    return result, behind


def possible(truth: Csr, k: int) -> dict[str, Any]:
    """How many examples with a label there are, and the most that P@k can be, in per cent.

    Example:
        >>> possible(Csr.from_lists([[0], [0, 1], []], n_cols=9), k=5)
        {'tested': 2, 'most': {'P@1': 100.0, 'P@3': 50.0, 'P@5': 30.0}}
    """
    have = truth.degrees()
    have = have[have > 0].float()
    most = {f"P@{j}": 100 * float(have.clamp(max=j).mean()) / j for j in KS if j <= k}
    return {"tested": len(have), "most": {name: round(x, 2) for name, x in most.items()}}


def alone(predictor: Predictor, test: Examples, drop: Csr) -> dict[str, Any]:
    """P@1 of each ranker of an ensemble by itself, and of the ensemble, on the same examples.

    Args:
        predictor: of several rankers.
        test: of which a thousand are drawn, without choice.
        drop: pairs that must not be predicted.
    """
    ids = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:_ALONE]
    texts, drop = test.texts.subset(ids), drop.rows(ids)
    truth = test.labels.with_values(None).coalesce().rows(ids)
    of = {name: (ranker,) for ranker in predictor.rankers for name in ranker.features[:1]}
    each = {name: replace(predictor, rankers=one, combiner=None) for name, one in of.items()}
    found = {
        name: one.rank(texts, 1, drop)[1] for name, one in {**each, "ensemble": predictor}.items()
    }
    hit = {
        name: metrics.hits(top.cpu().long(), truth).float().mean() for name, top in found.items()
    }
    return {"tested": len(ids), "P@1": {name: round(100 * float(x), 2) for name, x in hit.items()}}


def calibration(scores: Float[Tensor, " n"], hit: Bool[Tensor, " n"]) -> dict[str, Any]:
    """How often predictions of a probability are true, in ten bins of it; empty bins left out.

    Example:
        >>> calibration(torch.tensor([0.75, 0.15, 0.85]), torch.tensor([True, False, True]))
        {'said': [15.0, 75.0, 85.0], 'true': [0.0, 100.0, 100.0], 'of': [1, 1, 1]}
    """
    said, true = scores.double(), hit.double()
    at = (said * _BINS).long().clamp(0, _BINS - 1)
    of, sums, hits = (
        torch.zeros(_BINS, dtype=torch.float64).index_add_(0, at, x)
        for x in (torch.ones_like(said), said, true)
    )
    kept = of > 0
    shares = {"said": sums[kept] / of[kept], "true": hits[kept] / of[kept]}
    percent = {name: [round(100 * x, 2) for x in part.tolist()] for name, part in shares.items()}
    return {**percent, "of": [int(x) for x in of[kept].tolist()]}


def examples(
    labels: Texts,
    test: Examples,
    scores: Float[Tensor, "n k"],
    top: Int[Tensor, "n k"],
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Test examples drawn without choice, whose first prediction is ``right`` or ``wrong``.

    Args:
        labels: of the predictor.
        test: the n examples.
        scores: of the predictions.
        top: predicted labels, best first; -1 for none.
        seed: of the draw, the same examples for the same data and predictions.

    Returns:
        for each example its ``text`` and true ``labels``, long ones cut, and what was
        ``predicted``: title, label, score, and whether it is true. An example without a true label
        is none of them.
    """
    truth = test.labels.with_values(None).coalesce()
    hit = metrics.hits(top.long(), truth)
    order = torch.randperm(len(top), generator=torch.Generator().manual_seed(seed))
    order = order[truth.degrees()[order] > 0]
    kinds = {"right": order[hit[order, 0]], "wrong": order[~hit[order, 0]]}

    def one(i: int) -> dict[str, Any]:
        own = truth.rows(torch.tensor([i])).indices.tolist()
        own = [x for x in own if x < len(labels)]
        (found,) = named(labels, scores[i : i + 1], top[i : i + 1])
        predicted = [
            {
                "title": _cut(p.title, _TITLE),
                "uid": _cut(p.label, _TITLE),
                "score": round(p.score, 3),
                "true": true,
            }
            for p, true in zip(found, hit[i].tolist(), strict=False)
        ]
        return {
            "text": _cut(test.texts.text(i), _TEXT),
            "labels": [_cut(labels.titles[x] or labels.uids[x], _TITLE) for x in own[:_LABELS]],
            "labels_left_out": max(len(own) - _LABELS, 0),
            "predicted": predicted,
        }

    return {kind: [one(i) for i in ids[:_EXAMPLES].tolist()] for kind, ids in kinds.items()}


def first_columns(csr: Csr, n_cols: int) -> Csr:
    """The first columns of a matrix, without its values."""
    row, column = csr.row_ids(), csr.indices.long()
    kept = column < n_cols
    return Csr.from_coo(row[kept], column[kept], (csr.n_rows, n_cols))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width].rstrip() + "…"
