"""An ensemble: the rankings of several rankers, combined by what each is worth.

The candidates of a query are the union of its rankings. A candidate's features are, for each
ranking, its score, its share of the query's best score and the reciprocal of its rank, all zero
where the ranking does not have it, and once ln(1 + frequency of the label in training). A network
of one hidden layer turns them into a logit z, fitted by the decoupled softmax over candidates
(:mod:`shoal.core.losses`) on examples that nothing else was trained on. Probabilities that a label
is true, and thresholds, are learned from logits of examples that the network was not fitted on
(:mod:`shoal.rank.calibration`): a fifth of them at a time, and as many fifths as make 500.

Why the frequency: in-batch negatives come as often as their labels do, so an encoder trained on
them approaches ln p(l | x) − ln p(l) (Yi et al., "Sampling-bias-corrected neural modeling", RecSys
2019, section 3), and ln p(l) must come back. NGAME combines by a decision tree on the scores of its
two stages and the propensity (:mod:`shoal.rank.tree`); what measured better is in docs/LOG.md.

A combiner of your own is a frozen dataclass with ``fit``, registered by :func:`combiner_kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.kinds import Kind, register_kind
from shoal.core.metrics import inverse_propensity
from shoal.core.progress import progress
from shoal.core.state import floats, number, part
from shoal.rank.calibration import Calibration, Thresholds
from shoal.rank.ranking import Ranking, member

_PER_RANKING = 3
# Calibrated on a fifth of the examples that the network did not see, and on as many further fifths,
# each by a network of its own, as make this many examples.
_PARTS, _ENOUGH = 5, 500
# steps of a network at least, where twenty epochs of few examples are fewer
_STEPS = 40


@dataclass(frozen=True, eq=False)
class Candidates:
    """Labels that a query may have.

    Attributes:
        ids: rising along each row, -1 behind the last one.
        features: zero where there is no candidate.
    """

    ids: Int[Tensor, "n c"]
    features: Float[Tensor, "n c f"]

    def rows(self, ids: Int[Tensor, " b"]) -> Candidates:
        """Those of some queries."""
        return Candidates(self.ids[ids], self.features[ids])


def join(rankings: Sequence[Ranking], frequency: Shaped[Tensor, " l"]) -> Candidates:
    """Unite rankings of the same queries.

    Args:
        rankings: at least one.
        frequency: training examples of each label.

    Raises:
        InputError: if rankings differ in their queries.

    Example:
        >>> one = Ranking(torch.tensor([[0.5, 0.25]]), torch.tensor([[2, 0]]))
        >>> two = Ranking(torch.tensor([[4.0]]), torch.tensor([[1]]))
        >>> found = join([one, two], torch.zeros(3))
        >>> found.ids.tolist()
        [[0, 1, 2]]
        >>> found.features[0, 0].tolist()
        [0.25, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    """
    sizes = [len(ranking.ids) for ranking in rankings]
    expect(len(set(sizes)) == 1, "rankings", "as many queries each", sizes, "rank the same queries")
    ids = torch.cat([ranking.ids for ranking in rankings], dim=1)
    union, slot = _union(ids)
    n, width, size = len(ids), union.shape[1], _PER_RANKING * len(rankings) + 1
    # where the features of each entry begin; those of no label go behind the last candidate
    begin = (torch.arange(n, device=ids.device).unsqueeze(1) * (width + 1) + slot) * size
    widths = torch.tensor([ranking.ids.shape[1] for ranking in rankings])
    begin += torch.arange(len(rankings)).repeat_interleave(widths).to(ids.device) * _PER_RANKING
    features = torch.zeros(n * (width + 1) * size, device=ids.device)
    for j, kind in enumerate(zip(*map(_features, rankings), strict=True)):
        features.scatter_(0, (begin + j).flatten(), torch.cat(kind, dim=1).flatten())
    features = features.view(n, width + 1, size)[:, :width]
    features[..., -1] = frequency.float().log1p()[union.clamp(min=0)] * (union >= 0)
    return Candidates(union, features)


def _union(ids: Int[Tensor, "n k"]) -> tuple[Int[Tensor, "n c"], Int[Tensor, "n k"]]:
    """Distinct ids of each row, rising, -1 behind them; and where each id stands among them."""
    last = torch.iinfo(torch.int32).max
    listed, order = ids.int().masked_fill(ids < 0, last).sort(dim=1)
    new = listed < last
    new[:, 1:] &= listed[:, 1:] != listed[:, :-1]
    place = new.cumsum(1) - 1
    width = max(int(new.sum(1).max()), 1) if len(ids) else 1
    place = place.masked_fill(listed == last, width)
    union = torch.full((len(ids), width + 1), -1, dtype=torch.int64, device=ids.device)
    union.scatter_(1, place, listed.long())
    return union[:, :width], torch.empty_like(place).scatter_(1, order, place)


def _features(ranking: Ranking) -> tuple[Float[Tensor, "n k"], ...]:
    """Score, share of the best score, and reciprocal rank of each entry."""
    scores = ranking.scores
    best = scores[:, :1].clamp(min=1e-6)
    rank = torch.arange(1, scores.shape[1] + 1, device=scores.device, dtype=scores.dtype)
    return scores, (scores / best).clamp(min=0), (1 / rank).expand_as(scores)


@runtime_checkable
class TrainedCombiner(Protocol):
    """Chooses among candidates.

    Attributes:
        kind: the name under which its class is registered.
        probabilities: whether its scores are probabilities.
    """

    kind: str
    probabilities: bool

    def rank(self, candidates: Candidates, k: int, drop: Csr | None = None) -> Ranking:
        """The k best candidates of each query; `drop` are pairs that may not be returned."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint; the class's ``of_state`` reads them."""
        ...


@runtime_checkable
class Combiner(Protocol):
    """How to learn what rankings are worth."""

    def fit(
        self, candidates: Candidates, truth: Csr, drop: Csr, known: Csr, seed: int
    ) -> TrainedCombiner:
        """Learn from held-out examples.

        Args:
            candidates: of n examples that no ranker was trained on.
            truth: their labels, ``[n, l]``.
            drop: pairs that are neither true nor false, and count for nothing.
            known: labels of the training examples.
            seed: of everything random in it.
        """
        ...


KINDS: dict[str, Any] = {}
"""Classes of trained combiners by the name that a saved model records."""


def combiner_kind(name: str) -> Callable[[Kind], Kind]:
    """Register the class of trained combiners that saved models call `name`."""
    return register_kind(KINDS, name)


class Weights(nn.Module):
    """The network that weighs features.

    Args:
        rankings: how many are joined.
        hidden: width of the hidden layer.
        seed: of its first weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, rankings: int, hidden: int = 32, seed: int = 0) -> None:
        super().__init__()
        width = _PER_RANKING * rankings + 1
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Float[Tensor, "*n f"]) -> Float[Tensor, "*n"]:
        """Logits z of candidates; comparable within a query."""
        return self.layers((features - self.mean) / self.scale).squeeze(-1)

    def logits(self, candidates: Candidates) -> Float[Tensor, "n c"]:
        """Logits z of the candidates of each query, -inf where there is none."""
        with torch.no_grad():
            z = torch.cat([self(part) for part in candidates.features.split(1024)])
        return z.masked_fill(candidates.ids < 0, -torch.inf)


@combiner_kind("network")
@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network that weighs features, and what its logits mean.

    Attributes:
        weights: the network.
        calibration: of its probabilities.
        thresholds: probabilities from which on labels are given; None in models of before.
    """

    weights: Weights
    calibration: Calibration = field(default_factory=Calibration)
    thresholds: Thresholds | None = None

    kind = "network"
    probabilities = True

    @property
    def rankings(self) -> int:
        """How many are joined."""
        return len(self.weights.mean) // _PER_RANKING

    def rank(self, candidates: Candidates, k: int, drop: Csr | None = None) -> Ranking:
        """The k most probable candidates of each query, with their probabilities in [0, 1].

        Args:
            candidates: of n queries.
            k: how many.
            drop: ``[n, l]``, pairs that may not be returned.
        """
        z = self.weights.logits(candidates)
        return chosen(z, candidates, k, drop, self.calibration.probabilities(z))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        thresholds = None if self.thresholds is None else self.thresholds.state_dict()
        means = {"calibration": dict(vars(self.calibration)), "thresholds": thresholds}
        return {**self.weights.state_dict(), **means}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> TrainedNetwork:
        """The combiner whose :meth:`state_dict` this is.

        Raises:
            InputError: if it is another's.
        """
        width, hidden = len(floats(state, "mean", None)), len(floats(state, "layers.0.bias", None))
        good = width > 1 and width % _PER_RANKING == 1
        expect(good, "mean", f"{_PER_RANKING} a ranking and one", width, "train the model again")
        weights = Weights(width // _PER_RANKING, hidden)
        own = weights.state_dict()
        weights.load_state_dict({name: floats(state, name, *x.shape) for name, x in own.items()})
        thresholds = None
        if "calibration" in state:
            found = part(state, "calibration")
            calibration = Calibration(*(number(found, x) for x in ("slope", "shared", "offset")))
            if state.get("thresholds") is not None:
                thresholds = Thresholds.of_state(part(state, "thresholds"))
        else:  # of before: a logistic of the candidate's share of its query
            slope, offset = (float(floats(state, name)) for name in ("slope", "offset"))
            calibration = Calibration(slope, slope, offset)
        return TrainedNetwork(weights, calibration, thresholds)


@dataclass(frozen=True)
class NetworkCombiner:
    """Combine rankings by a network, fitted by AdamW at a rate that falls linearly to zero.

    Attributes:
        rare: weigh the losses of a label by its inverse propensity to this power: 0 is best for
            P@k; 1 for PSP@k, whose expectation does not depend on which labels were noted (Jain et
            al., KDD 2016), and rare labels come up more.
        hidden: width of the hidden layer.
        epochs: passes over the held-out examples.
        lr: the first rate.
        batch_size: examples per step.
    """

    rare: float = 0.0
    hidden: int = 32
    epochs: int = 20
    lr: float = 0.01
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check the power.

        Raises:
            InputError: if it is negative or not a number.
        """
        good = 0 <= self.rare < float("inf")
        expect(good, "rare", "a power of at least 0", self.rare, "try 1")

    def fit(
        self, candidates: Candidates, truth: Csr, drop: Csr, known: Csr, seed: int
    ) -> TrainedNetwork:
        """Learn what each ranking is worth: see :class:`Combiner`.

        Raises:
            InputError: if no true label is among the candidates.
        """
        real = (candidates.ids >= 0) & ~member(candidates.ids, drop)
        true = member(candidates.ids, truth) & real
        expect(bool(true.any()), "candidates", "some true ones", "none", "hold out more")
        weight = true.float()
        if self.rare:
            inverse = (inverse_propensity(known) ** self.rare).float()
            weight *= inverse[candidates.ids.clamp(min=0)]
        generator = torch.Generator().manual_seed(seed)
        features = candidates.features[real]
        deviation = features.std(0, correction=0)
        # a feature that never differs says nothing, and must not speak up when it once does
        scale = deviation.where(deviation > 1e-6, 1.0)
        normal = {"mean": features.mean(0), "scale": scale}

        def fitted(ids: Int[Tensor, " m"]) -> Weights:
            rankings = (candidates.features.shape[2] - 1) // _PER_RANKING
            network = Weights(rankings, self.hidden, seed)
            network.load_state_dict(normal, strict=False)
            self._train(network, candidates.rows(ids), true[ids], real[ids], weight[ids], generator)
            return network

        order = torch.randperm(len(true), generator=generator)
        parts = order.tensor_split(_PARTS)
        rounds = min(_PARTS, -(-_ENOUGH * _PARTS // len(order)))
        judged, z = torch.cat(parts[:rounds]), []
        for i in range(rounds):
            weights = fitted(torch.cat([*parts[:i], *parts[i + 1 :]]))
            z.append(weights.logits(candidates.rows(parts[i])))
        if rounds > 1:
            weights = fitted(order)
        logits, true, real = torch.cat(z), true[judged], real[judged]
        calibration = Calibration.fit(logits, true, real)
        stated, pairs = calibration.probabilities(logits), candidates.ids[judged]
        count = truth.rows(judged).with_values(None).coalesce().indices
        count = torch.bincount(count, minlength=truth.n_cols)
        thresholds = Thresholds.choose(stated[real], pairs[real], true[real], count)
        return TrainedNetwork(weights, calibration, thresholds)

    def _train(
        self,
        network: Weights,
        candidates: Candidates,
        true: Bool[Tensor, "n c"],
        real: Bool[Tensor, "n c"],
        weight: Float[Tensor, "n c"],
        generator: torch.Generator,
    ) -> None:
        """Fit a network to some examples; `weight` is that of each true candidate's loss."""
        optimizer = torch.optim.AdamW(network.layers.parameters(), lr=self.lr, weight_decay=1e-3)
        each = -(-len(true) // self.batch_size)
        epochs = max(self.epochs, _STEPS // max(each, 1))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(epochs * each, 1))
        for _ in progress(range(epochs), "combine rankers"):
            for ids in torch.randperm(len(true), generator=generator).split(self.batch_size):
                logits = network(candidates.features[ids])
                loss = _softmax_loss(logits, true[ids], real[ids], weight[ids])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def chosen(
    scores: Float[Tensor, "n c"],
    candidates: Candidates,
    k: int,
    drop: Csr | None = None,
    stated: Float[Tensor, "n c"] | None = None,
) -> Ranking:
    """The k best candidates of each query by `scores`.

    Args:
        scores: -inf where there is no candidate.
        candidates: of n queries.
        k: how many.
        drop: ``[n, l]``, pairs that may not be returned.
        stated: scores of the answers, which rise with `scores` in each row; by default these.
    """
    if drop is not None:
        scores = scores.masked_fill(member(candidates.ids, drop), -torch.inf)
    width = min(k, scores.shape[1])
    best, at = scores.topk(width, dim=1)
    none = best == -torch.inf
    best = (scores if stated is None else stated).gather(1, at).masked_fill(none, -torch.inf)
    ids = candidates.ids.gather(1, at).masked_fill(none, -1)
    more = (0, k - width)
    return Ranking(pad(best, more, value=-torch.inf), pad(ids, more, value=-1))


def _softmax_loss(
    logits: Float[Tensor, "b c"],
    true: Bool[Tensor, "b c"],
    real: Bool[Tensor, "b c"],
    weights: Float[Tensor, "b c"],
) -> Float[Tensor, ""]:
    """Weighted mean over true candidates of their decoupled softmax loss against false ones."""
    negatives = logits.masked_fill(true | ~real, -torch.inf).logsumexp(1, keepdim=True)
    losses = softplus(negatives - logits).masked_fill(~true, 0)
    # a batch whose candidates are all false has nothing to say
    return (weights * losses).sum() / weights.sum().clamp(min=1e-12)
