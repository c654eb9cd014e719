"""The metrics of extreme classification: P@k, R@k, nDCG@k, PSP@k and PSnDCG@k, in per cent.

Example i has the true labels y_i and the predictions top_i, best first; hit_ir says whether the
r-th of them is true, w_l is the inverse propensity of label l, and n examples are evaluated::

    P@k      = 1/n Σ_i 1/k Σ_{r≤k} hit_ir
    R@k      = 1/n Σ_i 1/|y_i| Σ_{r≤k} hit_ir
    nDCG@k   = 1/n Σ_i DCG_i / I_i           DCG_i = Σ_{r≤k} hit_ir / log2(r + 1)
                                             I_i   = Σ_{r≤min(k, |y_i|)} 1 / log2(r + 1)
    PSP@k    = Σ_i Σ_{r≤k} w hit_ir / Σ_i (the same for the best possible ranking)
    PSnDCG@k = Σ_i DCG_i(w hit) / I_i / Σ_i (the same for the best possible ranking)

Jain, Prabhu, Varma, "Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking &
Other Missing Label Applications" (KDD 2016), section 4. The propensity-scored pair are ratios of
means, as the Extreme Classification Repository reports them, not means of ratios. An example
without a true label counts zero in every sum and is one of the n, as it does in the repository's
own tool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_finite, expect_positive


def inverse_propensity(train_labels: Csr, a: float = 0.55, b: float = 1.5) -> Float[Tensor, " l"]:
    """How much a rare label weighs: w_l = 1 + C (N_l + b)^-a, C = (ln N - 1)(b + 1)^a.

    N is the number of training examples, N_l how many of them carry label l, and 1/w_l the modelled
    probability that a true label was noted (Jain et al. 2016, section 5).

    Args:
        train_labels: the labels of the training examples, ``[N, l]``; values are ignored.
        a: fitted exponent. 0.55 is the paper's for data sets of unknown kind; 0.5 for Wikipedia,
            0.6 for Amazon.
        b: fitted offset. 1.5 likewise; 0.4 for Wikipedia, 2.6 for Amazon.

    Returns:
        float64 weights of at least 1.

    Raises:
        InputError: if there are fewer than 3 examples (C would be negative) or a, b are not
            positive.

    Example:
        With N_l = 1 the powers cancel, and w = ln N.

        >>> w = inverse_propensity(Csr.from_lists([[0], [1], [1], []], n_cols=2))
        >>> round(w[0].item(), 6) == round(math.log(4), 6)
        True
    """
    n = train_labels.n_rows
    expect(n >= 3, "train_labels", "at least 3 examples", n, "pass the labels of the training set")
    expect(a > 0 and b > 0, "a, b", "positive numbers", (a, b), "use 0.55 and 1.5")
    once = train_labels.with_values(None).coalesce()
    count = torch.bincount(once.indices, minlength=once.n_cols).double()
    return 1 + (math.log(n) - 1) * (b + 1) ** a * (count + b) ** -a


def evaluate(
    top: Int[Tensor, "n k"],
    truth: Csr,
    inverse: Float[Tensor, " l"],
    ks: Sequence[int] = (1, 3, 5),
) -> dict[str, float]:
    """Every metric at every k.

    Args:
        top: predicted labels, best first, distinct in a row; -1 stands for "no prediction".
        truth: the true labels ``[n, l]``; values are ignored, doubles count once.
        inverse: inverse propensities, from :func:`inverse_propensity` of the *training* labels.
        ks: the ranks to stop at; 1, 3, 5 are those of the repository's tables.

    Returns:
        per cent under the names ``P@1 … nDCG@1 … PSP@1 … PSnDCG@1 … R@1 …``.

    Raises:
        InputError: if shapes disagree, a k exceeds the predictions, or a row repeats a label.

    Example:
        >>> truth = Csr.from_lists([[0], [1, 2]], n_cols=4)
        >>> metrics = evaluate(torch.tensor([[0, 3], [3, 1]]), truth, torch.ones(4), ks=(1, 2))
        >>> metrics["P@1"], metrics["P@2"], metrics["R@2"], metrics["PSP@2"]
        (50.0, 50.0, 75.0, 66.66666666666667)
    """
    expect(len(ks) > 0, "ks", "at least one rank", ks, "pass for example (1, 3, 5)")
    for k in ks:
        expect_positive("ks", k)
    _expect_alike(top, truth, inverse, max(ks))
    truth = truth.with_values(None).coalesce()
    degree, weight = truth.degrees(), inverse.double()
    hit = hits(top, truth)
    gain = weight[top.clamp(min=0)] * hit
    best = best_gains(truth, weight, max(ks))
    return {
        **{f"P@{k}": precision_at(hit, k) for k in ks},
        **{f"nDCG@{k}": ndcg(hit, degree, k) for k in ks},
        **{f"PSP@{k}": psp(gain, best, k) for k in ks},
        **{f"PSnDCG@{k}": psndcg(gain, best, degree, k) for k in ks},
        **{f"R@{k}": recall(hit, degree, k) for k in ks},
    }


def hits(top: Int[Tensor, "n k"], truth: Csr) -> Bool[Tensor, "n k"]:
    """Whether each prediction is true.

    Args:
        top: labels, or -1 for "no prediction", which is never true.
        truth: ``[n, l]`` with sorted rows, as :meth:`Csr.coalesce` makes them.

    Example:
        >>> hits(torch.tensor([[2, -1], [2, 0]]), Csr.from_lists([[1, 2], [0]], n_cols=3))
        tensor([[ True, False],
                [False,  True]])
    """
    n, k = top.shape
    row = torch.arange(n, device=top.device).repeat_interleave(k)
    found, _ = truth.find(row, top.flatten())
    return found.view(n, k) & (top >= 0)


def best_gains(truth: Csr, weight: Float[Tensor, " l"], k: int) -> Float[Tensor, "n {k}"]:
    """What the best possible ranking would gain at each rank: its k largest weights, then zeros.

    Example:
        >>> weight = torch.tensor([1.0, 2.0, 3.0])
        >>> best_gains(Csr.from_lists([[0, 2, 1], [], [1]], n_cols=3), weight, 2)
        tensor([[3., 2.],
                [0., 0.],
                [2., 0.]])
    """
    row, gain = truth.row_ids(), weight[truth.indices.long()]
    order = torch.argsort(gain, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    rank = torch.arange(truth.nnz, device=row.device) - truth.indptr[row]
    best = gain.new_zeros(truth.n_rows, k)
    kept = rank < k
    best[row[kept], rank[kept]] = gain[order][kept]
    return best


def precision_at(hit: Bool[Tensor, "n k_max"], k: int) -> float:
    """P@k: the share of the first k predictions that are true.

    Example:
        >>> precision_at(torch.tensor([[True, False], [True, True]]), 2)
        75.0
    """
    return 100 * hit[:, :k].double().mean().item()


def recall(hit: Bool[Tensor, "n k_max"], degree: Int[Tensor, " n"], k: int) -> float:
    """R@k: the share of an example's `degree` true labels that stand among the first k predictions.

    Example:
        >>> recall(torch.tensor([[True, False], [True, True]]), torch.tensor([4, 2]), 2)
        62.5
    """
    return 100 * (hit[:, :k].sum(1) / degree.clamp(min=1).double()).mean().item()


def ndcg(hit: Bool[Tensor, "n k_max"], degree: Int[Tensor, " n"], k: int) -> float:
    """nDCG@k: hits discounted by rank, over what min(k, degree) hits at the head would give.

    Example:
        >>> round(ndcg(torch.tensor([[False, True]]), torch.tensor([1]), 2), 4)  # 1 / log2(3)
        63.093
    """
    return 100 * _normalized_dcg(hit.double(), degree, k).mean().item()


def psp(gain: Float[Tensor, "n k_max"], best: Float[Tensor, "n k_best"], k: int) -> float:
    """PSP@k: the weight that was hit over what could have been, both summed over examples.

    Args:
        gain: inverse propensity of each prediction where it is true, else 0.
        best: the same of the best possible ranking, from :func:`best_gains`.
        k: the rank to stop at.

    Returns:
        per cent; 0 where no example has a true label.

    Example:
        >>> psp(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[3.0, 2.0], [1.0, 0.0]]), 2)
        50.0
    """
    return _ratio(gain[:, :k].double().sum().item(), best[:, :k].double().sum().item())


def psndcg(
    gain: Float[Tensor, "n k_max"],
    best: Float[Tensor, "n k_best"],
    degree: Int[Tensor, " n"],
    k: int,
) -> float:
    """PSnDCG@k: the discounted gain of each example over its I, and this over the best possible.

    Args:
        gain: inverse propensity of each prediction where it is true, else 0.
        best: the same of the best possible ranking, from :func:`best_gains`.
        degree: how many true labels each example has.
        k: the rank to stop at.

    Returns:
        per cent; 0 where no example has a true label.

    Example:
        >>> psndcg(torch.tensor([[2.0]]), torch.tensor([[4.0]]), torch.tensor([1]), 1)
        50.0
    """
    got = _normalized_dcg(gain.double(), degree, k).sum().item()
    return _ratio(got, _normalized_dcg(best.double(), degree, k).sum().item())


def deciles(
    top: Int[Tensor, "n k_max"], truth: Csr, frequency: Int[Tensor, " l"], k: int = 5
) -> dict[str, list[float]]:
    """R@k and P@k of tenths of pairs, the rarest labels first.

    R@k of a tenth is the share of its pairs of example and *true* label that is found among the
    first k predictions; P@k the share of its pairs of example and *predicted* label that is true.
    Either kind of pairs is cut into ten equal parts by :func:`by_frequency`, so an example with
    many labels counts once a label.

    Args:
        top: predicted labels, best first; -1 for "no prediction".
        truth: the true labels ``[n, l]``; values are ignored, doubles count once.
        frequency: training examples of each label.
        k: predictions per example that are looked at.

    Returns:
        per cent under the names ``R@k``, ``P@1`` and ``P@k``; under ``frequency`` the mean training
        examples of the labels in the tenths of R@k.

    Raises:
        InputError: if there is nothing to cut, or k exceeds the predictions.

    Example:
        >>> truth = Csr.from_lists([[0], [1]], n_cols=2)
        >>> deciles(torch.tensor([[1], [1]]), truth, torch.tensor([3, 8]), k=1)
        {'R@1': [0.0, 100.0], 'P@1': [0.0, 100.0], 'frequency': [3.0, 8.0]}
    """
    good = top.shape[0] == truth.n_rows and 1 <= k <= top.shape[1] and truth.nnz > 0
    expect(good, "top", f"{k} predictions or more for each of {truth}", tuple(top.shape), "align")
    truth = truth.with_values(None).coalesce()
    top = top[:, :k].long()
    hit = hits(top, truth)
    row, place = hit.nonzero(as_tuple=True)
    found = torch.zeros(truth.nnz, device=top.device)
    found[truth.find(row, top[row, place])[1]] = 1
    seen = frequency[truth.indices.long()]
    parts = {f"R@{k}": by_frequency(found, seen)}
    for rank in sorted({1, k}):
        made = top[:, :rank] >= 0
        parts[f"P@{rank}"] = by_frequency(hit[:, :rank][made], frequency[top[:, :rank][made]])
    percent = {name: [100 * x for x in values] for name, values in parts.items()}
    return percent | {"frequency": by_frequency(seen, seen)}


def by_frequency(
    values: Shaped[Tensor, " e"], frequency: Int[Tensor, " e"], parts: int = 10
) -> list[float]:
    """Means of `values` in equal parts, by rising frequency; as many parts as there are values.

    Values of equal frequency stand in random order, the same one every time, since the order in
    which they come may mean something.

    Example:
        >>> by_frequency(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([9, 4, 7]), parts=2)
        [4.0, 1.0]
    """
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    order = order.to(values.device)
    order = order[frequency[order].argsort(stable=True)]
    cut = values[order].double().tensor_split(parts)
    return [float(part.mean()) for part in cut if len(part)]


def _normalized_dcg(
    gain: Float[Tensor, "n k_max"], degree: Int[Tensor, " n"], k: int
) -> Float[Tensor, " n"]:
    """DCG_i / I_i, zero for an example without a true label because it gains nothing."""
    ranks = torch.arange(1, k + 1, dtype=gain.dtype, device=gain.device)
    discount = 1 / torch.log2(ranks + 1)
    ideal = discount.cumsum(0)[degree.clamp(1, k) - 1]
    return gain[:, :k] @ discount / ideal


def _ratio(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _expect_alike(top: Tensor, truth: Csr, inverse: Tensor, k: int) -> None:
    """Raise unless predictions, truth and weights describe the same examples and labels.

    Raises:
        InputError: naming the one that does not fit.
    """
    good = top.dim() == 2 and top.dtype in (torch.int32, torch.int64)
    kind = f"{top.dtype} {tuple(top.shape)}"
    expect(good, "top", "label ids [n, k]", kind, "pass the ids that top_k returns")
    good = top.shape[0] == truth.n_rows >= 1
    expect(good, "truth", f"one row per prediction, {top.shape[0]} >= 1", truth, "align the rows")
    expect(top.shape[1] >= k, "ks", f"at most {top.shape[1]} predictions", k, "predict more labels")
    good = inverse.shape == (truth.n_cols,)
    want = f"one per label, [{truth.n_cols}]"
    expect(good, "inverse", want, tuple(inverse.shape), "recompute it")
    expect_finite("inverse", inverse)
    low, high = (int(x) for x in torch.aminmax(top))
    good = low >= -1 and high < truth.n_cols
    expect(good, "top", f"ids in [-1, {truth.n_cols})", low if low < -1 else high, "check labels")
    ordered = top.sort(dim=1).values
    repeats = (ordered.diff(dim=1) == 0) & (ordered[:, 1:] >= 0)
    expect(not bool(repeats.any()), "top", "distinct labels per row", "a repeat", "drop repeats")
