"""What is behind the metrics of a run on labels, for its record.

``deciles``   how well rare and frequent labels are found (:func:`shoal.core.metrics.deciles`)
``examples``  test points with what was predicted, the first label right or wrong
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core import metrics
from shoal.data.texts import LabelData
from shoal.rank.predictor import named
from shoal.training.run import Run

# Of each kind; characters of their texts and titles; true labels named.
_EXAMPLES, _TEXT, _TITLE, _LABELS = 6, 280, 80, 8


def record(
    run: Run, data: LabelData, scores: Float[Tensor, "n k"], top: Int[Tensor, "n k"]
) -> None:
    """Write deciles and examples of the test points' predictions to a run's record.

    Args:
        run: whose record.
        data: its test points are the n rows; its training points say which labels are rare.
        scores: of the predictions.
        top: predicted labels, best first; -1 for none.
    """
    truth, seen = data.test.labels, data.train.labels.with_values(None).coalesce()
    if truth.nnz:
        frequency = torch.bincount(seen.indices, minlength=seen.n_cols)
        parts = metrics.deciles(top, truth, frequency, top.shape[1])
        run.write("deciles", {name: [round(x, 2) for x in part] for name, part in parts.items()})
    run.write("examples", examples(data, scores, top))


def examples(
    data: LabelData, scores: Float[Tensor, "n k"], top: Int[Tensor, "n k"], seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Test points drawn without choice, whose first prediction is ``right`` or ``wrong``.

    Args:
        data: its test points are the n rows.
        scores: of the predictions.
        top: predicted labels, best first; -1 for none.
        seed: of the draw, the same points for the same data and predictions.

    Returns:
        for each point its ``text`` and true ``labels``, long ones cut, and what was ``predicted``:
        title, uid, score, and whether it is true. A point without a true label is none of them.
    """
    truth = data.test.labels.with_values(None).coalesce()
    hit = metrics.hits(top.long(), truth)
    order = torch.randperm(len(top), generator=torch.Generator().manual_seed(seed))
    order = order[truth.degrees()[order] > 0]
    kinds = {"right": order[hit[order, 0]], "wrong": order[~hit[order, 0]]}
    return {
        kind: [_example(data, i, scores[i], top[i], hit[i]) for i in ids[:_EXAMPLES].tolist()]
        for kind, ids in kinds.items()
    }


def _example(data: LabelData, i: int, scores: Tensor, top: Tensor, hit: Tensor) -> dict[str, Any]:
    labels, own = data.labels, data.test.labels.rows(torch.tensor([i])).indices.tolist()
    (found,) = named(labels, scores[None], top[None])
    return {
        "text": _cut(data.test.texts.text(i), _TEXT),
        "labels": [_cut(labels.titles[x] or labels.uids[x], _TITLE) for x in own[:_LABELS]],
        "labels_left_out": max(len(own) - _LABELS, 0),
        "predicted": [
            {
                "title": _cut(p.title, _TITLE),
                "uid": _cut(p.uid, _TITLE),
                "score": round(p.score, 3),
                "true": true,
            }
            for p, true in zip(found, hit.tolist(), strict=False)
        ],
    }


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:width].rstrip() + "…"
