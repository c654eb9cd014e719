"""From logits to probabilities, and from probabilities to decisions.

A combiner scores the candidates of a query by logits z. Candidate l is true with probability

    P(l) = σ(a · z_l − c · ln Σ_j exp z_j + b)

the logistic of Platt ("Probabilistic outputs for support vector machines", 1999) in two numbers of
a candidate, its own logit and how strong all candidates of the query are together. With c = 0
labels do not compete at all, as where a text has many; with c = a it is the logistic of the
candidate's share, ln softmax(z)_l, as where it has one. Data say which: a, b and c are fitted on
candidates that the network was not trained on. Within a query P rises with z as long as a is above
zero.

Which labels a text is given, when it may be given several, is decided by thresholds that are best
by F1 on the same candidates (Lipton, Elkan, Naryanaswamy, "Optimal thresholding of classifiers to
maximize F1 measure", ECML 2014): one for all labels by micro or by macro F1, or one per label that
was seen often enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from shoal.core.decisions import macro_f1
from shoal.core.errors import expect
from shoal.core.state import floats, integers, number

Rule = Literal["f1", "macro-f1", "label-f1", "count"]
RULES: tuple[str, ...] = get_args(Rule)
"""How labels are chosen by held-out data: at the threshold of best micro or macro F1, at one per
label, or as many as are expected to be true."""

# true examples from which on a label has a threshold of its own: fewer say nothing (docs/LOG.md)
_OFTEN = 5
# thresholds that are tried for macro F1
_TRIED = 99
# how strongly a, b and c lean to those of a share, in units of one example's curvature
_RIDGE = 1e-3
# a is at least this, so that a logit always counts
_LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class Calibration:
    """What turns logits into probabilities.

    Attributes:
        slope: a, above zero.
        shared: c; equal to `slope` where labels compete for one place, 0 where they do not.
        offset: b.

    Example:
        As it begins, a probability is the share of the query's candidates.

        >>> z = torch.tensor([[0.0, 0.0]])
        >>> Calibration().probabilities(z).tolist()
        [[0.3333..., 0.3333...]]
    """

    slope: float = 1.0
    shared: float = 1.0
    offset: float = 0.0

    @staticmethod
    def fit(
        z: Float[Tensor, "n c"], true: Bool[Tensor, "n c"], real: Bool[Tensor, "n c"]
    ) -> Calibration:
        """Fit a, b and c by Newton's method; the loss is convex in them.

        Args:
            z: logits of candidates, -inf where there is none.
            true: which of them are true.
            real: which of them count.
        """
        y = true[real]
        if not (bool(y.any()) and bool((~y).any())):
            return Calibration()  # one class alone has no finite optimum: the share itself stays
        # a z - c ln Σ is (a - c) z + c ln softmax(z)
        one = torch.ones_like(z[real])
        x = torch.stack([z[real], z.log_softmax(1)[real], one], dim=1).double()
        free, shared, offset = _logistic(x, y, torch.tensor([0.0, 1.0, 0.0]).double()).tolist()
        if free + shared < _LEAST:  # so little that chance decides: shares, as z was trained
            weight = _logistic(x[:, 1:], y, torch.tensor([1.0, 0.0]).double()).tolist()
            return Calibration(max(weight[0], _LEAST), max(weight[0], _LEAST), weight[1])
        return Calibration(free + shared, shared, offset)

    def probabilities(self, z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Probabilities of candidates in [0, 1]; 0 where z is -inf."""
        logits = self.shared * z.log_softmax(1) + self.offset
        if self.slope != self.shared:
            logits = logits + (self.slope - self.shared) * z
        # a query without candidates has no share to give, and -inf minus -inf is no number
        return logits.sigmoid().masked_fill(z == -torch.inf, 0.0)


def _logistic(
    x: Float[Tensor, "m f"], true: Bool[Tensor, " m"], start: Float[Tensor, " f"]
) -> Float[Tensor, " f"]:
    """The logistic regression of `true` on `x` that leans a little to `start`."""
    scale = x.abs().mean(0).clamp(min=1e-12)  # so that all columns weigh alike
    x, start, y = x / scale, start * scale, true.double()

    def loss(weight: Tensor) -> float:
        logits, away = x @ weight, weight - start
        return float((softplus(logits) - y * logits).sum() + _RIDGE / 2 * away @ away)

    weight, ridge = torch.zeros_like(start), _RIDGE * torch.eye(len(start), dtype=torch.float64)
    for _ in range(50):
        p, before = (x @ weight).sigmoid(), loss(weight)
        curvature = (x * (p * (1 - p)).unsqueeze(1)).T @ x + ridge
        step = torch.linalg.solve(curvature, x.T @ (p - y) + _RIDGE * (weight - start))
        while loss(weight - step) > before and float(step.abs().max()) > 1e-9:
            step /= 2  # a full step from far away may overshoot
        weight -= step
        if float(step.abs().max()) < 1e-9:
            break
    return weight / scale


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Probabilities from which on a label is given, best by F1 on held-out examples.

    Attributes:
        micro: one for all labels, best by micro F1.
        macro: one for all labels, best by macro F1.
        labels: those seen often enough for one of their own, rising.
        own: theirs.
    """

    micro: float
    macro: float
    labels: Int[Tensor, " m"]
    own: Float[Tensor, " m"]

    @staticmethod
    def choose(
        probabilities: Float[Tensor, " e"],
        labels: Int[Tensor, " e"],
        true: Bool[Tensor, " e"],
        count: Int[Tensor, " l"],
    ) -> Thresholds:
        """Choose all of them.

        Args:
            probabilities: of e pairs of example and candidate.
            labels: the candidates.
            true: which pairs are true.
            count: how many examples truly have each label, found as a candidate or not.

        Example:
            Two labels are true, and they are the surest.

            >>> p, true = torch.tensor([0.9, 0.8, 0.3, 0.1]), torch.tensor([1, 1, 0, 0]).bool()
            >>> found = Thresholds.choose(p, torch.arange(4), true, true.long())
            >>> round(found.micro, 3)
            0.55
        """
        order = probabilities.argsort(descending=True, stable=True)
        p, labels, true = probabilities[order], labels[order], true[order]
        micro = _best_cut(p, true, int(count.sum()))
        tried = p[torch.linspace(0, len(p) - 1, _TRIED).long()] if len(p) else p
        scores = [macro_f1(labels[p >= t], true[p >= t], count) for t in tried.tolist()]
        macro = float(tried[int(torch.tensor(scores).argmax())]) if scores else micro
        often = (count >= _OFTEN).nonzero().squeeze(1)
        order = labels.argsort(stable=True)  # of each label, its probabilities falling still
        groups = torch.searchsorted(labels[order], torch.stack([often, often + 1]))
        own = [
            _best_cut(p[order[a:b]], true[order[a:b]], int(count[label]))
            for label, a, b in zip(often.tolist(), *groups.tolist(), strict=True)
        ]
        return Thresholds(micro, macro, often, torch.tensor(own))

    def least(self, rule: Rule, ids: Int[Tensor, "n k"]) -> float | Float[Tensor, "n k"]:
        """The probability that each label needs by a rule other than ``count``."""
        if rule != "label-f1":
            return self.macro if rule == "macro-f1" else self.micro
        least = torch.full(ids.shape, self.micro)
        if len(self.labels):
            at = torch.searchsorted(self.labels, ids.clamp(min=0)).clamp(max=len(self.labels) - 1)
            found = self.labels[at] == ids
            least[found] = self.own[at[found]]
        return least

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        return dict(vars(self))

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Thresholds:
        """What :meth:`state_dict` gave.

        Raises:
            InputError: if it is another's.
        """
        labels = integers(state, "labels", None)
        own = floats(state, "own", len(labels))
        return Thresholds(number(state, "micro"), number(state, "macro"), labels, own)


def kept(
    scores: Float[Tensor, "n k"],
    ids: Int[Tensor, "n k"],
    threshold: float | Rule,
    thresholds: Thresholds | None,
) -> Bool[Tensor, "n k"]:
    """Which answers a threshold leaves.

    Args:
        scores: falling in each row; for rules, probabilities.
        ids: labels, -1 for none.
        threshold: the least score, or a rule.
        thresholds: of the model, which rules need.

    Raises:
        InputError: if there is no such rule, or the model has not learned it.
    """
    if not isinstance(threshold, str):
        return (scores >= threshold) & (ids >= 0)
    want = f"a number or one of {', '.join(RULES)}"
    expect(threshold in RULES, "threshold", want, threshold, "try f1")
    if threshold == "count":
        expected = scores.clamp(min=0).sum(1, keepdim=True).round()
        return (torch.arange(scores.shape[1]) < expected) & (ids >= 0)
    remedy = "pass a number, or train the model again"
    known = thresholds is not None
    expect(known, "threshold", "a number: this model learned no thresholds", threshold, remedy)
    assert thresholds is not None
    return (scores >= thresholds.least(threshold, ids)) & (ids >= 0)


def _best_cut(p: Float[Tensor, " e"], true: Bool[Tensor, " e"], wanted: int) -> float:
    """The threshold of best F1 for falling probabilities; half of it towards the next one."""
    if not bool(true.any()):
        return 1.0
    given = torch.arange(1, len(p) + 1)
    f1 = 2 * true.cumsum(0) / (given + wanted)
    last = torch.ones(len(p), dtype=torch.bool)
    last[:-1] = p[1:] < p[:-1]  # equal probabilities stay together
    at = int(f1.masked_fill(~last, -1).argmax())
    below = float(p[at + 1]) if at + 1 < len(p) else 0.0
    return (float(p[at]) + below) / 2
