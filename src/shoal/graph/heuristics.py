"""Scores of links that need no training, and their sum with an encoder's, held-out links weighing.

Of a source u and every node v, with A the links that may be read (both ways), d degrees and N(u)
the neighbors of u:

    common_neighbors     log(1 + |N(u) ∩ N(v)|)
    adamic_adar          log(1 + Σ_{w in both} 1 / ln d(w))        (Adamic and Adar 2003)
    resource_allocation  log(1 + Σ_{w in both} 1 / d(w))           (Zhou, Lü, Zhang 2009)
    walks                log(1 + 10³ P(a random walk of three steps from u ends in v))
    reached              whether such a walk exists
    degree               log(1 + d(v))
    features             cosine of the features
    encoder              cosine of the embeddings

An encoder of nodes sees no pair, so it cannot count what two nodes have in common (Zhang, Li, Xia,
Wang, Jin, "Labeling trick", NeurIPS 2021); their weighted sum can. Weights are those of least
softmax loss of held-out links against all other nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.graph_metrics import link_metrics, link_ranks
from shoal.core.sparse import matmul, unit

PLAIN = ("common_neighbors", "adamic_adar", "resource_allocation", "walks", "features")
"""Those that rank by themselves."""
_TOP, _DRAWN = 32, 256  # negatives per held-out link: the best by each score, and random ones
_HELD = 2**21  # numbers of each score held at a time
_FEW = 1e-12


@dataclass(frozen=True, eq=False)
class LinkScorer:
    """Scores of a graph's links.

    Attributes:
        graph: ``[n, n]``, links that may be read, in both directions.
        embedded: unit vectors of nodes.
        features: of nodes, sparse or dense; None where there are none.
        weights: of each score by :attr:`names`; None gives the encoder's alone.
    """

    graph: Csr
    embedded: Float[Tensor, "n k"]
    features: Csr | Float[Tensor, "n f"] | None = None
    weights: Float[Tensor, " m"] | None = None

    def __post_init__(self) -> None:
        """Check that there is a weight for each score.

        Raises:
            InputError: if not.
        """
        n = len(self.names)
        got = n if self.weights is None else len(self.weights)
        expect(got == n, "weights", f"{n}, one a score", got, "train the model again")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The scores there are."""
        last = () if self.features is None else ("features",)
        return (*PLAIN[:4], "reached", "degree", *last, "encoder")

    @cached_property
    def _plain(self) -> Csr:
        return self.graph.with_values(None)

    @cached_property
    def _unit_features(self) -> Csr | Tensor | None:
        if not isinstance(self.features, Csr):
            return None if self.features is None else unit(self.features.float())
        values = self.features.values
        values = torch.ones(self.features.nnz) if values is None else values.float()
        row = self.features.row_ids()
        length = torch.zeros(self.features.n_rows).index_add_(0, row, values.square()).sqrt()
        return self.features.with_values(values / length.clamp(min=_FEW)[row])

    @torch.no_grad()
    def scores(self, sources: Int[Tensor, " s"]) -> Float[Tensor, "m s n"]:
        """Every score of every node, for each source."""
        n, degrees = self.graph.n_rows, self.graph.degrees().float()
        at = torch.zeros(n, len(sources))
        at[sources, torch.arange(len(sources))] = 1.0
        near = matmul(self._plain, at)
        common = matmul(self._plain, near)
        of_log = 1 / degrees.clamp(min=2).log()
        adamic = matmul(self._plain, near * of_log.unsqueeze(1))
        shared = (1 / degrees.clamp(min=1)).unsqueeze(1)
        allocated = matmul(self._plain, near * shared)
        walk = matmul(self._plain, allocated * shared) / degrees[sources].clamp(min=1)
        found = [common.log1p(), adamic.log1p(), allocated.log1p(), (1e3 * walk).log1p()]
        found += [(walk > 0).float(), degrees.log1p().unsqueeze(1).expand(n, len(sources))]
        unit_features = self._unit_features
        if isinstance(unit_features, Csr):
            asked = unit_features.rows(sources).to_dense().float()
            found.append(matmul(unit_features, asked.T.contiguous()))
        elif unit_features is not None:
            found.append(unit_features @ unit_features[sources].T)
        found.append(self.embedded @ self.embedded[sources].T)
        return torch.stack([x.T for x in found])

    def __call__(self, sources: Int[Tensor, " s"]) -> Float[Tensor, "s n"]:
        """The sum of all scores, weighed; the encoder's alone where there are no weights."""
        if self.weights is None:
            return self.embedded[sources] @ self.embedded.T
        parts = sources.split(self._each)
        return torch.cat([torch.tensordot(self.weights, self.scores(x), dims=1) for x in parts])

    @property
    def _each(self) -> int:
        """Sources whose scores are held at a time."""
        return max(_HELD // max(self.graph.n_rows, 1), 1)

    def compared(self, pairs: Int[Tensor, "2 p"], known: Csr) -> dict[str, dict[str, float]]:
        """How each score ranks links by itself, by name, and all of them weighed, ``pool``.

        Args:
            pairs: links that are not in the graph.
            known: all links; none of them is a candidate.

        Returns:
            MRR, hits@k and AUC, in per cent.
        """
        names = [x for x in self.names if x in (*PLAIN, "encoder")]
        ranks: dict[str, list[Tensor]] = {name: [] for name in (*names, "pool")}
        counts = []
        for part in pairs.split(self._each, dim=1):
            scores = dict(zip(self.names, self.scores(part[0]), strict=True))
            assert self.weights is not None
            scores["pool"] = torch.tensordot(self.weights, torch.stack([*scores.values()]), dims=1)
            for name, found in ranks.items():
                rank, against = link_ranks(_always(scores[name]), part, known)
                found.append(rank)
            counts.append(against)
        against = torch.cat(counts)
        return {name: link_metrics(torch.cat(found), against) for name, found in ranks.items()}

    def weighed(self, pairs: Int[Tensor, "2 p"], known: Csr, seed: int = 0) -> LinkScorer:
        """The same scorer with the weights of least loss on held-out links.

        Args:
            pairs: links that are not in the graph.
            known: all links; none of them is a negative.
            seed: of the negatives that are drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        n, parts, logs = self.graph.n_rows, [], []
        for sources, targets in zip(*(x.split(self._each) for x in pairs), strict=True):
            scores, here = self.scores(sources), torch.arange(len(sources))
            taken = known.rows(sources)
            barred = torch.zeros(len(sources), n, dtype=torch.bool)
            barred[taken.row_ids(), taken.indices.long()] = True
            barred[here, sources] = barred[here, targets] = True
            best = scores.masked_fill(barred, -math.inf).topk(min(_TOP, n), dim=2).indices
            best = best.transpose(0, 1).flatten(1)
            drawn = torch.randint(n, (len(sources), _DRAWN), generator=generator)
            all_of = torch.cat([targets.unsqueeze(1), best, drawn], 1)
            # what the random ones stand for, and what is listed twice or is no negative
            weight = torch.zeros(all_of.shape)
            weight[:, -_DRAWN:] = math.log(max(n / _DRAWN, 1.0))
            order = all_of.argsort(dim=1, stable=True)
            ids = all_of.gather(1, order)
            again = torch.zeros(len(sources), 1, dtype=torch.bool)
            again = torch.cat([again, ids[:, 1:] == ids[:, :-1]], 1)
            twice = torch.zeros_like(again).scatter_(1, order, again)
            out = twice | barred.gather(1, all_of)
            out[:, 0] = False
            logs.append(weight.masked_fill(out, -math.inf))
            index = all_of.unsqueeze(0).expand(len(scores), -1, -1)
            parts.append(scores.gather(2, index))
        return replace(self, weights=_least_loss(torch.cat(parts, 1), torch.cat(logs)))


def _always(scores: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda sources: scores


def _least_loss(scores: Float[Tensor, "m p c"], logs: Float[Tensor, "p c"]) -> Float[Tensor, " m"]:
    """Weights of the least softmax loss of the first candidate; convex."""
    spread = scores.flatten(1).std(1).clamp(min=_FEW)
    scores = (scores / spread[:, None, None]).double()
    weights = torch.zeros(len(scores), dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        logits = torch.tensordot(weights, scores, dims=1) + logs
        value = (logits.logsumexp(1) - logits[:, 0]).mean() + 1e-4 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        steps.step(loss)
    return (weights.detach() / spread.double()).float()
