"""Link prediction: fit, evaluate, predict, score, encode, save; :func:`shoal.open` opens it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, expect_positive, fail, naming
from shoal.core.state import floats
from shoal.data.graphs import load_links
from shoal.data.links import LinkData
from shoal.graph.heuristics import LinkScorer
from shoal.graph.layers import LinkEncoder
from shoal.models.base import Fitting
from shoal.models.graphs import GraphModel, one_or_many
from shoal.models.notebook import answers_of_nodes
from shoal.tasks import links
from shoal.training.job import Job
from shoal.training.run import Run

_SCORES = 2**24  # held at a time
COMPARED = 2_000
"""Links that scores are weighed on, and that each is shown on: a sample of more."""


@dataclass(frozen=True)
class LinkPrediction:
    """A node to be linked with.

    Attributes:
        node: its number.
        score: higher is likelier; it ranks, it is no probability. Without heuristics the cosine of
            the two embeddings, in [-1, 1].
    """

    node: int
    score: float

    @property
    def title(self) -> str:
        """How it is shown: its number."""
        return f"node {self.node}"


@dataclass(eq=False, kw_only=True)
class LinkModel(GraphModel):
    """Links that a graph should have, from embeddings of its nodes.

    Nodes without features get rows that are trained; such a model predicts for the nodes of its own
    graph alone.

    Attributes:
        negatives: ``(links) -> block sampler`` of the pairs that are scored; by default every other
            node of the batch is a negative. ``shoal.PairSampler`` draws uniform ones.
        heuristics: score a pair by a weighted sum of the encoder's cosine and of what its nodes
            have in common (:class:`shoal.LinkScorer`), weighed on the links for validation. Each
            score's own ranking stands in the fit's details.

    Example:
        Two groups of nodes, each linked among themselves, told apart by one feature:

        >>> from types import SimpleNamespace
        >>> n = torch.arange(40)
        >>> edges = torch.cat([torch.stack([n, (n + step) % 40]) for step in (2, 4, 6)], dim=1)
        >>> data = SimpleNamespace(edge_index=edges, x=torch.eye(2)[n % 2], num_nodes=40)
        >>> model = LinkModel(hidden=8, fanouts=(2,), device="cpu")
        >>> result = model.fit(data, epochs=20)
        >>> model.predict(7)[0].node % 2, model.score([(7, 9), (7, 10)]).diff().item() < 0
        (1, True)
    """

    task: ClassVar[str] = "links"
    dropout: float = 0.0
    lr: float = 0.01
    negatives: Callable[..., Any] | None = None
    heuristics: bool = True
    _weights: Tensor | None = field(default=None, init=False, repr=False)
    _embedded: Any = field(default=None, init=False, repr=False)

    def predict(
        self,
        sources: int | list[int] | Int[Tensor, " b"] | None = None,
        data: Any = None,
        k: int = 5,
        threshold: float | None = None,
        candidates: list[int] | Int[Tensor, " c"] | None = None,
    ) -> Any:
        """The k best new links of nodes, also of ones that training never saw, best first.

        All links of the graph are read, and none of them is predicted, nor a node with itself.

        Args:
            sources: ids, or one id; None for all nodes.
            data: another graph with the same features; the one that the model was fitted on by
                default.
            k: links per node; all that are new where there are fewer.
            threshold: only links of at least this score.
            candidates: the nodes that may be predicted, such as one side of a bipartite graph; None
                for all.

        Returns:
            a list of :class:`LinkPrediction` per node; for one id, its list alone.

        Raises:
            InputError: if the model is not fitted, the graph has other features or nodes, an id is
                out of range or k is below 1.
        """
        expect_positive("k", k)
        scorer, known = self._scorer(data)
        rows = scorer.embedded
        ids, one = one_or_many(sources, len(rows))
        barred = None if candidates is None else torch.ones(len(rows), dtype=torch.bool)
        if barred is not None:
            barred[one_or_many(candidates, len(rows))[0]] = False
        found: list[list[LinkPrediction]] = []
        for part in ids.split(max(_SCORES // max(len(rows), 1), 1)):
            scores = scorer(part)
            taken, here = known.rows(part), torch.arange(len(part))
            scores[taken.row_ids(), taken.indices.long()] = -torch.inf
            scores[here, part] = -torch.inf
            scores = scores if barred is None else scores.masked_fill(barred, -torch.inf)
            best = scores.topk(min(k, len(rows)), dim=1)
            least = -torch.inf if threshold is None else threshold
            for values, others in zip(*(x.tolist() for x in best), strict=True):
                pairs = zip(others, values, strict=True)
                found.append(
                    [LinkPrediction(v, s) for v, s in pairs if s > -torch.inf and s >= least]
                )
        return answers_of_nodes(found, ids, one, probabilities=False)

    def score(self, pairs: Any, data: Any = None) -> Float[Tensor, " p"]:
        """The score of each pair of nodes, as :meth:`predict` gives it.

        Args:
            pairs: ``[p, 2]``, as a list of pairs or a tensor.
            data: as for :meth:`predict`.

        Raises:
            InputError: as :meth:`predict`, or if they are no pairs.
        """
        scorer, _ = self._scorer(data)
        try:
            ids = torch.as_tensor(pairs)
        except (TypeError, ValueError, RuntimeError) as error:
            fail("pairs", "pairs of nodes, [p, 2]", error, "pass a list of pairs")
        good = ids.dim() == 2 and ids.shape[1] == 2
        remedy = "pass a list of pairs; an edge_index is its .T"
        expect(good, "pairs", "pairs of nodes, [p, 2]", tuple(ids.shape), remedy)
        expect_ids("pairs", ids.flatten(), len(scorer.embedded))
        row, col = ids.long().unbind(1)
        each = max(_SCORES // max(len(scorer.embedded), 1), 1)
        parts = zip(row.split(each), col.split(each), strict=True)
        found = [scorer(u)[torch.arange(len(u)), v] for u, v in parts]
        return torch.cat(found) if found else torch.empty(0)

    def encode(self, nodes: Any = None, data: Any = None) -> Float[Tensor, "b d"]:
        """Unit vectors of nodes, whose inner products are the encoder's scores of links.

        Args:
            nodes: ids, or one id; None for all nodes.
            data: as for :meth:`predict`.

        Raises:
            InputError: as :meth:`predict`.
        """
        rows = self._scorer(data)[0].embedded
        return rows[one_or_many(nodes, len(rows))[0]]

    def _scorer(self, data: Any) -> tuple[LinkScorer, Csr]:
        """Scores of a graph's links, reading all of them in both directions, and these links.

        Those of the model's own graph are computed once.
        """
        self._fitted()
        if data is None and self._embedded is not None:
            return self._embedded
        loaded = self._loaded(data)
        row, col = loaded.known.row_ids(), loaded.known.indices.long()
        ends = torch.cat([row, col]), torch.cat([col, row])
        both = Csr.from_coo(*ends, loaded.known.shape).coalesce()
        found = self._scorer_on(both, loaded), loaded.known
        if data is None:
            self._embedded = found
        return found

    def _scorer_on(self, graph: Csr, data: LinkData) -> LinkScorer:
        """Scores of links, of which those of `graph` are read."""
        encoder: Any = self._fitted()
        embedded = encoder.embed(graph, self._rows_for(data)).cpu()
        features = None if self.host_rows is not None else data.features  # which lie in a file
        with naming(self._folder or "model"):
            return LinkScorer(graph, embedded, features, self._weights)

    def _load(self, source: Any) -> LinkData:
        return load_links(source, self.seed)

    def _made(self, width: int | None) -> nn.Module:
        return LinkEncoder(self._network(width, self._network_sizes()["hidden"]))

    def _job(self, data: LinkData, rows: Any, table: Any, options: Mapping[str, Any]) -> Job:
        encoder: Any = self._fitted()
        options = {**options, "negatives": self.negatives}
        return links.build(data, encoder, rows, table=table, **options)

    def _compare(self, rows: Any, fitting: Fitting, run: Run) -> dict[str, Any]:
        self._weights = None
        if not self.heuristics:
            return {}
        data = self._data
        held, tests = (links.ranked(data, part, COMPARED) for part in ("valid", "test"))
        scorer = self._scorer_on(data.graph, data).weighed(held, data.known, self.seed)
        self._weights = scorer.weights
        found = scorer.compared(tests, data.known).items()
        shown = ("MRR", "hits@10", "AUC")
        lines = [{"score": k} | {f"test_{x}": round(y[x], 2) for x in shown} for k, y in found]
        return {"compared": Columns(lines)}

    def _seeds(self, data: LinkData) -> Tensor:
        return (data.train.degrees() > 0).nonzero().squeeze(1)

    def _metrics(self, data: LinkData) -> dict[str, float]:
        return links.metrics(self._scorer_on(data.graph, data), data, "test")

    def _state(self) -> dict[str, Any]:
        return super()._state() | ({} if self._weights is None else {"weights": self._weights})

    def _take(self, state: Mapping[str, Any]) -> None:
        saved = state.get("weights")
        self._embedded = None
        self._weights = None if saved is None else floats(state, "weights", None)
        super()._take(state)
