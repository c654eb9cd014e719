"""Metrics of graphs: how well nodes are classified and links are ranked, in per cent.

For nodes of one class each: accuracy; the macro-averaged F1, the mean over the classes that occur
of 2 TP / (2 TP + FP + FN); and where there are two classes, the area under the ROC curve of the
second one, which leads: it alone says something where one class is rare. For nodes of several
classes: the micro-averaged F1, of the sums over all nodes and classes, a class being predicted
where its logit is above 0.

A link (u, v) is ranked against every node that u is not linked with, itself left out (the filtered
setting of Bordes et al., "Translating embeddings for modeling multi-relational data", NIPS 2013):

    rank    = 1 + #{w : s(u, w) > s(u, v)} + #{w : s(u, w) = s(u, v)} / 2
    MRR     = mean 1 / rank          hits@k = share with rank ≤ k
    AUC     = mean of the share of those nodes that the link outranks, ties half
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_finite, expect_ids

# scores held at a time: 64 MiB of float32
_SCORES = 2**24


def accuracy(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    """Share of the nodes whose class has the highest logit, in per cent.

    Example:
        >>> accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
        50.0
    """
    return 100 * float((logits.argmax(1) == target).float().mean())


def micro_f1(logits: Float[Tensor, "n c"], target: Bool[Tensor, "n c"]) -> float:
    """Micro-averaged F1 of the classes whose logit is above 0, in per cent; 0 where there is none.

    Example:
        One of two found, one found wrongly: 2 / (2 + 1 + 1).

        >>> micro_f1(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[True, True, False]]))
        50.0
    """
    predicted = logits > 0
    right = int((predicted & target).sum())
    return 100 * 2 * right / max(int(predicted.sum()) + int(target.sum()), 1)


def macro_f1(logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    """Mean F1 of the classes that occur among targets or predictions, in per cent.

    Example:
        Class 0 is found once of twice, class 1 once too often: both have an F1 of 2 / 3.

        >>> logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> round(macro_f1(logits, torch.tensor([0, 0, 1])), 2)
        66.67
    """
    classes, predicted = logits.shape[1], logits.argmax(1)
    right = torch.bincount(target[predicted == target], minlength=classes)
    total = torch.bincount(torch.cat([predicted, target]), minlength=classes)
    occurs = total > 0
    return 100 * float((2 * right[occurs] / total[occurs]).mean())


def roc_auc(scores: Float[Tensor, " n"], target: Int[Tensor, " n"]) -> float:
    """Share of the pairs of a node of class 1 and one of class 0 that are in order, in per cent.

    Ties count half. There are nodes of both classes.

    Example:
        >>> roc_auc(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 0, 1]))
        75.0
    """
    _, level, times = torch.unique(scores, return_inverse=True, return_counts=True)
    ends = times.cumsum(0).double()
    rank = (ends - (times - 1) / 2)[level]  # the mean of the ranks of those level with it
    ones = int(target.sum())
    above = float(rank[target == 1].sum()) - ones * (ones + 1) / 2
    return 100 * above / (ones * (len(target) - ones))


def node_metrics(
    logits: Float[Tensor, "n c"], target: Int[Tensor, " n"] | Bool[Tensor, "n c"]
) -> dict[str, float]:
    """The metrics of nodes, in per cent; models are chosen by the first one.

    Returns:
        ``accuracy`` and ``macro_F1`` where a node has one class, before them ``ROC_AUC`` where
        there are two classes and nodes of both; ``micro_F1`` where a node has several.

    Example:
        >>> node_metrics(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([1]))
        {'accuracy': 100.0, 'macro_F1': 100.0}
    """
    if target.dim() == 2:
        return {"micro_F1": micro_f1(logits, target)}
    found = {"accuracy": accuracy(logits, target), "macro_F1": macro_f1(logits, target)}
    if logits.shape[1] == 2 and 0 < int(target.sum()) < len(target):
        return {"ROC_AUC": roc_auc(logits[:, 1] - logits[:, 0], target)} | found
    return found


def link_ranks(
    scores: Float[Tensor, "n d"] | Callable[[Tensor], Tensor],
    pairs: Int[Tensor, "2 t"],
    known: Csr,
) -> tuple[Float[Tensor, " t"], Int[Tensor, " t"]]:
    """Rank each link among the nodes that its source is not linked with.

    Args:
        scores: from sources ``[s]`` to the scores of all nodes ``[s, n]``; or one embedding per
            node, whose inner products they are.
        pairs: links, sources above targets.
        known: all links; none of them is a candidate.

    Returns:
        each link's rank, from 1, and how many nodes it was ranked against.

    Raises:
        InputError: if an id is out of range, or an embedding is not finite.

    Example:
        Node 0 is linked with 1, which scores 2; 2 and 3 score 3 and 1.

        >>> rows = torch.tensor([[1.0], [2.0], [3.0], [1.0]])
        >>> known = Csr.from_lists([[1], [], [], []], n_cols=4)
        >>> link_ranks(rows, torch.tensor([[0], [1]]), known)
        (tensor([2.]), tensor([2]))
    """
    n = known.n_cols
    expect_ids("pairs", pairs.flatten(), n)
    if isinstance(scores, Tensor):
        expect_finite("embeddings", scores)
    ranks, against = [], []
    for sources, targets in zip(
        *(x.split(max(_SCORES // max(n, 1), 1)) for x in pairs), strict=True
    ):
        of_all = scores[sources] @ scores.T if isinstance(scores, Tensor) else scores(sources)
        own = of_all[torch.arange(len(sources)), targets]
        # 1 above, 0 level, -1 below: of m candidates, above + level / 2 is (m + their sum) / 2
        signs = of_all.sub(own.unsqueeze(1)).sign_()
        row, col = _no_candidates(sources, targets, known)
        many = n - torch.bincount(row, minlength=len(sources))
        total = signs.sum(1).index_add(0, row, -signs[row, col])
        ranks.append(1 + (many + total) / 2)
        against.append(many)
    return torch.cat(ranks), torch.cat(against)


def _no_candidates(
    sources: Int[Tensor, " t"], targets: Int[Tensor, " t"], known: Csr
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"]]:
    """Which link may not be ranked against which node, each pair once."""
    n, here = known.n_cols, torch.arange(len(sources))
    taken = known.rows(sources.cpu())
    row = torch.cat([taken.row_ids(), here, here])
    col = torch.cat([taken.indices.long(), sources.cpu(), targets.cpu()])
    key = torch.unique(row * n + col).to(sources.device)
    return key // n, key % n


def link_metrics(
    ranks: Float[Tensor, " t"], against: Int[Tensor, " t"], ks: Sequence[int] = (1, 10, 50)
) -> dict[str, float]:
    """MRR, AUC and hits@k of ranked links, in per cent.

    Args:
        ranks: from :func:`link_ranks`, and so is the next.
        against: how many nodes each link was ranked against.
        ks: the ranks to stop at.

    Raises:
        InputError: if there is no link.

    Example:
        >>> link_metrics(torch.tensor([1.0, 4.0]), torch.tensor([4, 4]), ks=(1,))
        {'MRR': 62.5, 'hits@1': 50.0, 'AUC': 62.5}
    """
    expect(len(ranks) > 0, "ranks", "at least one link", "none", "pass some links")
    outranked = 1 - (ranks - 1) / against.clamp(min=1)
    return {
        "MRR": 100 * float((1 / ranks).mean()),
        **{f"hits@{k}": 100 * float((ranks <= k).float().mean()) for k in ks},
        "AUC": 100 * float(outranked.mean()),
    }
