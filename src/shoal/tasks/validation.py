"""How points that are held out judge a labeler while it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal.core import metrics
from shoal.core.csr import Csr
from shoal.data.texts import Examples


def validate(
    rank: Callable[[int, Csr], tuple[Tensor, Tensor]], valid: Examples
) -> dict[str, float]:
    """P@1, P@5 and R@5 (or as many as there are labels), in per cent; the first says what is best.

    Args:
        rank: ``(k, drop)`` → scores and ids of the k best labels of each point held out.
        valid: those points.
    """
    k = min(5, valid.labels.n_cols)
    _, top = rank(k, valid.drop)
    inverse = torch.ones(valid.labels.n_cols)
    result = metrics.evaluate(top.cpu(), valid.labels, inverse, ks=(1, k))
    return {f"valid_{name}": result[name] for name in ("P@1", f"P@{k}", f"R@{k}")}
