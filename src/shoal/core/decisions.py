"""How good decisions are, and how honest probabilities: metrics that look at no order.

Of pairs of example and label, T are true, G are given and H are both::

    precision = H / G        recall = H / T        F1 = 2 H / (G + T)

over all pairs at once (micro), or F1 of each label by itself and then the mean over labels (macro),
as in Lewis, Yang, Rose, Li, "RCV1" (JMLR 2004). Probabilities are honest where of answers that are
stated with probability p a share p is true: answers are put into bins by p, and the expected
calibration error is the mean distance of both over answers (Naeini, Cooper, Hauskrecht, 2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.metrics import hits


def decisions(given: Int[Tensor, "n k"], truth: Csr) -> dict[str, float]:
    """Precision, recall and F1 of labels that are given to examples.

    Args:
        given: distinct labels in each row, -1 for none.
        truth: the true labels ``[n, l]``; values are ignored, doubles count once.

    Returns:
        per cent under the names ``F1``, ``F1_macro``, ``precision`` and ``recall``.

    Example:
        >>> truth = Csr.from_lists([[0], [1, 2]], n_cols=4)
        >>> found = decisions(torch.tensor([[0, 3], [1, -1]]), truth)
        >>> {name: round(value, 1) for name, value in found.items()}
        {'F1': 66.7, 'F1_macro': 50.0, 'precision': 66.7, 'recall': 66.7}
    """
    truth = truth.with_values(None).coalesce()
    hit, there = hits(given.long(), truth), given >= 0
    right, made = int(hit.sum()), int(there.sum())
    count = torch.bincount(truth.indices, minlength=truth.n_cols)
    return {
        "F1": 200 * right / max(made + truth.nnz, 1),
        "F1_macro": 100 * macro_f1(given[there], hit[there], count),
        "precision": 100 * right / max(made, 1),
        "recall": 100 * right / max(truth.nnz, 1),
    }


def macro_f1(
    labels: Int[Tensor, " e"], true: Bool[Tensor, " e"], count: Int[Tensor, " l"]
) -> float:
    """The mean F1, in [0, 1], of labels that some example has or is given.

    Args:
        labels: of the answers given.
        true: which of them are.
        count: examples that truly have each label.

    Example:
        >>> labels, true = torch.tensor([0, 0, 1]), torch.tensor([True, False, False])
        >>> round(macro_f1(labels, true, torch.tensor([1, 0, 1, 0])), 4)
        0.2222
    """
    made = torch.bincount(labels, minlength=len(count)) + count
    right = torch.bincount(labels[true], minlength=len(count))
    return float((2 * right[made > 0] / made[made > 0]).mean()) if bool(made.any()) else 0.0


def calibration_error(bins: Mapping[str, Sequence[int | float]]) -> float:
    """The expected calibration error of bins of probability, in percentage points.

    Args:
        bins: of each, how many answers it holds (``of``), and in per cent the mean that was
            ``said`` and the share that is ``true``.

    Example:
        >>> calibration_error({"of": [1, 3], "said": [10.0, 50.0], "true": [0.0, 52.0]})
        4.0
    """
    rows = list(zip(bins["of"], bins["said"], bins["true"], strict=True))
    return sum(n * abs(p - share) for n, p, share in rows) / max(sum(n for n, *_ in rows), 1)
