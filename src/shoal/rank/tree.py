"""NGAME's combiner: a decision tree over the scores of encoder, classifiers and the propensity.

With k the cosine of text and label (their "knn") and c that of text and classifier ("clf"), both 0
where the label is not among the ranking's best, a label ranks by

    (P(k, c, w) + k) + c,

P the share of true labels in the leaf that (k, c, w) falls into, w the label's inverse propensity:
the published code of Dahiya et al., NGAME (WSDM 2023), at its weight of one. A tree asks for the
order of a feature only, so ln(1 + frequency), which falls as w rises, serves as well as w.

The tree is CART's (Breiman, Friedman, Olshen, Stone, 1984): each node is cut where the weighted
Gini impurity 2 p (1 − p) of both sides is least, down to a depth of 7, as in the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.core.state import floats, integers
from shoal.rank.ensemble import Candidates, chosen, combiner_kind
from shoal.rank.ranking import Ranking, member

# columns of the features that shoal.rank.ensemble.join makes: score of the encoder, score of the
# classifiers, and last the frequency
_KNN, _CLF, _RARITY = 0, 3, -1
_DEPTH = 7


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary tree in a row: the children of node i are nodes 2 i + 1 and 2 i + 2.

    Attributes:
        feature: which one node i asks for, -1 for a leaf.
        threshold: values up to it go left.
        share: of true samples that came to the node.
    """

    feature: Int[Tensor, " t"]
    threshold: Float[Tensor, " t"]
    share: Float[Tensor, " t"]

    def shares(self, features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """The share of the leaf that each sample falls into, in [0, 1]."""
        at = torch.zeros(len(features), dtype=torch.int64)
        while bool((inner := self.feature[at] >= 0).any()):
            value = features.gather(1, self.feature[at].clamp(min=0).unsqueeze(1)).squeeze(1)
            child = 2 * at + 1 + (value > self.threshold[at]).long()
            at = child.where(inner, at)
        return self.share[at]


def fit_tree(features: Float[Tensor, "n f"], true: Bool[Tensor, " n"], depth: int = _DEPTH) -> Tree:
    """Grow a tree that tells true samples from others.

    Args:
        features: of the samples, at least one.
        true: which are.
        depth: questions on the way to a leaf, at most; 7 as NGAME has it.

    Raises:
        InputError: if there is no sample or the depth is not positive.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> tree = fit_tree(x, torch.tensor([False, False, True, True]), depth=1)
        >>> tree.threshold[0].item(), tree.shares(x).tolist()
        (1.5, [0.0, 0.0, 1.0, 1.0])
    """
    expect_positive("depth", depth)
    expect(len(features) > 0, "features", "at least one sample", "none", "hold out more points")
    size = 2 ** (depth + 1) - 1
    feature = torch.full((size,), -1)
    threshold, share = torch.zeros(size), torch.zeros(size)
    waiting = [(0, torch.arange(len(features)))]
    while waiting:
        at, ids = waiting.pop()
        share[at] = true[ids].float().mean()
        cut = _best_cut(features[ids], true[ids]) if 2 * at + 2 < size else None
        if cut is not None:
            feature[at], threshold[at] = cut
            right = features[ids, cut[0]] > threshold[at]
            waiting += [(2 * at + 1, ids[~right]), (2 * at + 2, ids[right])]
    return Tree(feature, threshold, share)


def _best_cut(x: Float[Tensor, "n f"], true: Bool[Tensor, " n"]) -> tuple[int, float] | None:
    """The feature and threshold of least impurity; None where no cut lessens it."""
    total, count = float(true.sum()), len(x)
    if count < 2 or total in (0.0, float(count)):
        return None
    values, order = x.sort(dim=0)
    left = true.double()[order].cumsum(0)[:-1]
    n = torch.arange(1, count, dtype=torch.float64).unsqueeze(1)
    # n · (p² + (1 − p)²), summed over the sides, rises as the impurity falls
    purity = (left**2 + (n - left) ** 2) / n
    purity += ((total - left) ** 2 + (count - n - total + left) ** 2) / (count - n)
    purity.masked_fill_(values[1:] <= values[:-1], -torch.inf)
    best = int(purity.argmax())
    row, column = divmod(best, x.shape[1])
    whole = (total**2 + (count - total) ** 2) / count
    if float(purity[row, column]) <= whole * (1 + 1e-12):
        return None
    low, high = values[row, column], values[row + 1, column]
    middle = (low + high) / 2
    return column, float(middle if middle < high else low)  # neighbors may have nothing between


@combiner_kind("tree")
@dataclass(frozen=True, eq=False)
class TrainedTree:
    """A tree over the first two rankings, encoder and classifiers; others are not read.

    Its scores are sums of two cosines and a share, no probabilities.

    Attributes:
        tree: over score of the encoder, score of the classifiers, frequency.
    """

    tree: Tree

    kind = "tree"
    probabilities = False
    thresholds = None

    def rank(self, candidates: Candidates, k: int, drop: Csr | None = None) -> Ranking:
        """The k best candidates of each query; `drop` are pairs that may not be returned."""
        asked = _asked(candidates)
        shares = self.tree.shares(asked.flatten(0, 1)).view(candidates.ids.shape)
        scores = shares + asked[..., 0] + asked[..., 1]
        listed = (candidates.features[..., [_KNN, _CLF]] != 0).any(2) & (candidates.ids >= 0)
        return chosen(scores.masked_fill(~listed, -torch.inf), candidates, k, drop)

    def state_dict(self) -> dict[str, Any]:
        """Tensors for a checkpoint."""
        return dict(vars(self.tree))

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> TrainedTree:
        """The combiner whose :meth:`state_dict` this is."""
        feature = integers(state, "feature", None, low=-1, below=3)
        child = 2 * (feature >= 0).nonzero() + 2
        whole = not bool((child >= len(feature)).any())
        expect(whole, "feature", "a tree", "one without its leaves", "train the model again")
        size = len(feature)
        return TrainedTree(
            Tree(feature, floats(state, "threshold", size), floats(state, "share", size))
        )


@dataclass(frozen=True)
class TreeCombiner:
    """Combine encoder and classifiers as NGAME does; pass those two rankers first.

    Attributes:
        depth: questions on the way to a leaf, at most; 7 as NGAME has it.
    """

    depth: int = _DEPTH

    def fit(
        self, candidates: Candidates, truth: Csr, drop: Csr, known: Csr, seed: int
    ) -> TrainedTree:
        """Fit the tree on held-out examples: see :class:`~shoal.rank.ensemble.Combiner`."""
        real = (candidates.ids >= 0) & ~member(candidates.ids, drop)
        true = member(candidates.ids, truth)
        return TrainedTree(fit_tree(_asked(candidates)[real], true[real], self.depth))


def _asked(candidates: Candidates) -> Float[Tensor, "n c 3"]:
    return candidates.features[..., [_KNN, _CLF, _RARITY]]
