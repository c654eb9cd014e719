"""How well labels are ranked: validation during training, test metrics, and examples of them.

All in per cent, as the field prints them; filter pairs are taken out of the predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core import metrics
from shoal.core.csr import Csr
from shoal.data.texts import Examples, Texts
from shoal.rank.predictor import Predictor, named

KS = (1, 3, 5)
# Of each kind; characters of their texts and titles; true labels named.
_EXAMPLES, _TEXT, _TITLE, _LABELS = 6, 280, 80, 8


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
    predictor: Predictor, test: Examples, known: Csr
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of test examples, and what is behind them.

    Args:
        predictor: ranks labels.
        test: whose labels may be more than the predictor's: those can never be found.
        known: labels of the training examples, ``[n, l]``, which decide propensities; with fewer
            than three examples they are one.

    Returns:
        metrics in per cent (:func:`shoal.core.metrics.evaluate`); and for a run's log ``deciles``,
        how well rare and frequent labels are found, and ``examples`` (:func:`examples`).
    """
    k = min(KS[-1], len(predictor.labels))
    wide = test.labels.n_cols
    drop = (
        test.drop
        if wide == len(predictor.labels)
        else first_columns(test.drop, len(predictor.labels))
    )
    scores, top = (x.cpu() for x in predictor.rank(test.texts, k, drop))
    seen = known.with_values(None).coalesce()
    seen = Csr(seen.indptr, seen.indices, wide)
    # below three examples the propensity model says nothing: every label weighs the same
    inverse = metrics.inverse_propensity(seen) if seen.n_rows > 2 else torch.ones(wide)
    result = metrics.evaluate(top, test.labels, inverse, ks=[x for x in KS if x <= k])
    behind: dict[str, Any] = {"examples": examples(predictor.labels, test, scores, top)}
    if test.labels.nnz:
        frequency = torch.bincount(seen.indices, minlength=wide)
        parts = metrics.deciles(top, test.labels, frequency, top.shape[1])
        behind["deciles"] = {name: [round(x, 2) for x in part] for name, part in parts.items()}
    return result, behind


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
