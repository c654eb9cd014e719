"""An ensemble: the rankings of several rankers, combined by what each is worth.

The candidates of a query are the union of its rankings. A candidate's features are, for each
ranking, its score, its share of the query's best score and the reciprocal of its rank, all zero
where the ranking does not have it, and once ln(1 + frequency of the label in training). A network
of one hidden layer turns them into a logit z, fitted by the decoupled softmax over candidates
(:mod:`shoal.core.losses`) on examples that nothing else was trained on. Its probability that label
l is true is calibrated on a fifth of those examples that the network did not see, by the logistic
of Platt ("Probabilistic outputs for support vector machines", 1999):

    P(l is true) = σ(a · ln softmax(z)_l + b)

Why the frequency: in-batch negatives come as often as their labels do, so an encoder trained on
them approaches ln p(l | x) − ln p(l) (Yi et al., "Sampling-bias-corrected neural modeling", RecSys
2019, section 3), and ln p(l) must come back. NGAME combines by a decision tree on the scores of its
two stages and the propensity (:mod:`shoal.rank.tree`); what measured better is in docs/LOG.md.

A combiner of your own is a frozen dataclass with ``fit``, registered by :func:`combiner_kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from shoal.core.state import floats
from shoal.rank.ranking import Ranking, member

_PER_RANKING = 3


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
    ids = _union(torch.cat([ranking.ids for ranking in rankings], dim=1))
    parts = [part for ranking in rankings for part in _features(ranking, ids)]
    rarity = frequency.float().log1p()[ids.clamp(min=0)] * (ids >= 0)
    return Candidates(ids, torch.stack([*parts, rarity], dim=2))


def _union(ids: Int[Tensor, "n k"]) -> Int[Tensor, "n c"]:
    """Distinct ids of each row, rising, -1 behind them."""
    last = torch.iinfo(ids.dtype).max
    ids = ids.masked_fill(ids < 0, last).sort(dim=1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    ids = ids.masked_fill(again, last).sort(dim=1).values
    widest = int((ids < last).sum(1).max()) if len(ids) else 0
    ids = ids[:, : max(widest, 1)]
    return ids.masked_fill(ids == last, -1)


def _features(ranking: Ranking, ids: Int[Tensor, "n c"]) -> list[Float[Tensor, "n c"]]:
    """Score, share of the best score, and reciprocal rank of each candidate in one ranking."""
    last = torch.iinfo(ids.dtype).max
    listed, order = ranking.ids.masked_fill(ranking.ids < 0, last).sort(dim=1)
    at = torch.searchsorted(listed, ids).clamp(max=listed.shape[1] - 1)
    found = (listed.gather(1, at) == ids) & (ids >= 0)
    rank = order.gather(1, at)
    score = ranking.scores.gather(1, rank).masked_fill(~found, 0)
    best = ranking.scores[:, :1].clamp(min=1e-6)
    return [score, (score / best).clamp(min=0), found / (rank + 1.0)]


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


@combiner_kind("network")
class TrainedNetwork(nn.Module):
    """The network that weighs features, and the calibration of its probabilities.

    Args:
        rankings: how many are joined.
        hidden: width of the hidden layer.
        seed: of its first weights.

    Attributes:
        rankings: as given.
    """

    probabilities = True
    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, rankings: int, hidden: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.rankings = rankings
        width = _PER_RANKING * rankings + 1
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("slope", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Float[Tensor, "*n f"]) -> Float[Tensor, "*n"]:
        """Logits z of candidates; comparable within a query."""
        return self.layers((features - self.mean) / self.scale).squeeze(-1)

    def log_shares(self, candidates: Candidates) -> Float[Tensor, "n c"]:
        """Return ``ln softmax(z)`` over the candidates of each query, -inf where there is none."""
        with torch.no_grad():
            z = torch.cat([self(part) for part in candidates.features.split(1024)])
        # a query without candidates has no share to give: -inf minus -inf
        return z.masked_fill(candidates.ids < 0, -torch.inf).log_softmax(1).nan_to_num(-torch.inf)

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> TrainedNetwork:
        """The network whose ``state_dict()`` this is.

        Raises:
            InputError: if it is another network's.
        """
        width, hidden = len(floats(state, "mean", None)), len(floats(state, "layers.0.bias", None))
        good = width > 1 and width % _PER_RANKING == 1
        expect(good, "mean", f"{_PER_RANKING} a ranking and one", width, "train the model again")
        network = TrainedNetwork(width // _PER_RANKING, hidden)
        own = network.state_dict()
        same = state.keys() == own.keys()
        expect(same, "combiner", ", ".join(own), ", ".join(state), "train the model again")
        network.load_state_dict({name: floats(state, name, *x.shape) for name, x in own.items()})
        return network

    def rank(self, candidates: Candidates, k: int, drop: Csr | None = None) -> Ranking:
        """The k most probable candidates of each query, with their probabilities in [0, 1].

        Args:
            candidates: of n queries.
            k: how many.
            drop: ``[n, l]``, pairs that may not be returned.
        """
        best, ids = chosen(self.log_shares(candidates), candidates, k, drop)
        scores = (self.slope * best + self.offset).sigmoid().masked_fill(ids < 0, -torch.inf)
        return Ranking(scores, ids)


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
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(true), generator=generator)
        unseen, seen = order.tensor_split([len(true) // 5])
        expect(bool(true[seen].any()), "candidates", "some true ones", "none", "hold out more")
        rankings = (candidates.features.shape[2] - 1) // _PER_RANKING
        network = TrainedNetwork(rankings, self.hidden, seed)
        weights = true.float()
        if self.rare:
            inverse = (inverse_propensity(known) ** self.rare).float()
            weights *= inverse[candidates.ids.clamp(min=0)]
        features = candidates.features[real]
        network.mean.copy_(features.mean(0))
        network.scale.copy_(features.std(0, correction=0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(network.layers.parameters(), lr=self.lr, weight_decay=1e-3)
        steps = self.epochs * -(-len(seen) // self.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in progress(range(self.epochs), "combine rankers"):
            for at in torch.randperm(len(seen), generator=generator).split(self.batch_size):
                ids = seen[at]
                logits = network(candidates.features[ids])
                loss = _softmax_loss(logits, true[ids], real[ids], weights[ids])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        shares = network.log_shares(candidates.rows(unseen))
        _calibrate(network, shares[real[unseen]], true[unseen][real[unseen]])
        return network


def chosen(
    scores: Float[Tensor, "n c"], candidates: Candidates, k: int, drop: Csr | None = None
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k best candidates of each query by `scores`: those, and ids; -inf and -1 for none.

    Args:
        scores: -inf where there is no candidate.
        candidates: of n queries.
        k: how many.
        drop: ``[n, l]``, pairs that may not be returned.
    """
    if drop is not None:
        scores = scores.masked_fill(member(candidates.ids, drop), -torch.inf)
    width = min(k, scores.shape[1])
    best, at = scores.topk(width, dim=1)
    ids = candidates.ids.gather(1, at).masked_fill(best == -torch.inf, -1)
    more = (0, k - width)
    return pad(best, more, value=-torch.inf), pad(ids, more, value=-1)


def _calibrate(
    network: TrainedNetwork, shares: Float[Tensor, " m"], true: Bool[Tensor, " m"]
) -> None:
    """Fit the logistic from shares to truth by Newton's method; it is convex in two numbers."""
    if not (bool(true.any()) and bool((~true).any())):
        return  # one class alone has no finite optimum: the share itself stays the estimate
    x = torch.stack([shares, torch.ones_like(shares)], dim=1).double()
    y, w = true.double(), torch.tensor([1.0, 0.0], dtype=torch.float64)
    ridge = 1e-6 * torch.eye(2, dtype=torch.float64)
    for _ in range(50):
        p = (x @ w).sigmoid()
        curvature = (x * (p * (1 - p)).unsqueeze(1)).T @ x
        step = torch.linalg.solve(curvature + ridge, x.T @ (p - y))
        # damped: a full step from far away may overshoot
        w -= step / max(1.0, float(step.abs().max()))
    network.slope.copy_(w[0])
    network.offset.copy_(w[1])


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
