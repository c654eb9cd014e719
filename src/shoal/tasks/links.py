"""The link job: embeddings of nodes whose cosines tell who is linked with whom.

Seeds are nodes that have a training link. A batch is a shortlist over the training links, with
in-batch or uniform negatives, and neighborhoods of all its nodes from which its own links are taken
(:mod:`shoal.sample.links`). Where nodes have no features, rows that learn stand in for them. Judged
are links that are neither learned nor read, each ranked against every node (
:mod:`shoal.core.graph_metrics`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.cli.settings import Train
from shoal.core import graph_metrics
from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids, expect_positive, fail
from shoal.core.objectives import Objective, link_binary_cross_entropy, link_softmax
from shoal.core.sparse import unit
from shoal.data.graphs import load_links
from shoal.data.links import LinkData
from shoal.fetch.disk import DiskRows
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam
from shoal.graph.layers import Layered, full_graph
from shoal.sample.expand import NeighborSampler, ShortlistSampler
from shoal.sample.links import LinkSampler, PairSampler
from shoal.sample.touch import touch_probability
from shoal.tasks.common import budget_of, callbacks_of, finish, open_run, step_rule_of
from shoal.tasks.graphs import job_of, loader_of, model_of, restore, settings_on, start_of
from shoal.tasks.rows import rows_for, rows_of, table_of, tiers_used
from shoal.training.job import Job
from shoal.training.loop import fit
from shoal.training.run import Run

# The rate, and no dropout, by validation links of coauthor-cs (docs/LOG.md).
BATCH_SIZE, LEARNING_RATE, EPOCHS, DROPOUT = 512, 0.01, 10, 0.0
# of rows that learn; Adam's usual rate for embeddings
ROW_RATE = 0.01
# links that are ranked, drawn at random where there are more: each is compared with every node
RANKED = {"valid": 2_000, "test": 10_000}


class Ends(nn.Module):
    """A model of layers whose results are unit vectors; the last block, of pairs, is the loss's.

    Rows are scaled to length one as in line 7 of GraphSAGE's algorithm 1.
    """

    def __init__(self, model: Layered) -> None:
        super().__init__()
        self.model = model

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b k"]:
        """Embed the nodes of the last block's `src`."""
        return unit(self.model(blocks[:-1], rows))

    def embed(self, graph: Csr, rows: Float[Tensor, "n d"] | DiskRows) -> Float[Tensor, "n k"]:
        """Embed all nodes of a graph from whole neighborhoods."""
        return unit(full_graph(self.model, graph, rows))


def train(settings: Train) -> dict[str, Any]:
    """Run ``shoal train --task links``: train, keep the best model, rank the test links.

    Returns:
        what the command prints: MRR, hits@k and AUC in per cent, steps and seconds.

    Raises:
        InputError: for any bad setting or input; finished work stays.
    """
    run = open_run(settings)
    callbacks = callbacks_of(settings, run)
    begin = time.monotonic()
    data = load_links(settings.source, settings.seed)
    rows = first_rows(run, data, settings)
    width = None if data.features is None else data.features.shape[1]
    facts = {"data": data.name, "features": width}
    if isinstance(rows, DiskRows):  # what is in the file need not stay in memory
        data = replace(data, features=torch.empty(len(rows), 0))
    run.start({**facts, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(data, rows, settings)
    budget = budget_of(settings, EPOCHS)
    rule = step_rule_of(settings, job)
    progress = fit(job, budget, run, resume=settings.resume, step=rule, callbacks=callbacks)
    best = partial(_learned, run) if width is None else lambda: rows
    found = finish(run, settings, progress, lambda: _judge(run, data, best(), settings), callbacks)
    return found | tiers_used(job.loader.table)


def make_job(data: LinkData, rows: Float[Tensor, "n d"] | DiskRows, settings: Train) -> Job:
    """Put the parts of the link job together.

    Args:
        data: the links.
        rows: of the nodes; unified with an optimizer, they learn.
        settings: of the run.

    Raises:
        InputError: if batch size, fan-outs or another setting does not fit the data.
    """
    ends = Ends(model_of(settings, rows.shape[1], settings.hidden, DROPOUT))
    linked = (data.train.degrees() > 0).nonzero().squeeze(1)
    size = settings.batch_size or min(BATCH_SIZE, len(linked))
    uniform = settings.negatives == "uniform"
    pairs = PairSampler(data.train) if uniform else ShortlistSampler(data.train, dst_in_src=True)
    blocks = LinkSampler(pairs, NeighborSampler(data.graph, settings.fanouts))
    # the first hop stands for the link that is drawn for each seed
    touch = partial(touch_probability, data.graph, linked, (1, *settings.fanouts), size)
    loader = loader_of(linked, size, blocks, table_of(rows, settings, touch), settings)
    objective = Objective(ends, link_binary_cross_entropy() if uniform else link_softmax())
    validate = partial(_validate, ends, data, rows)
    return job_of(objective, loader, settings, LEARNING_RATE, validate)


def first_rows(run: Run, data: LinkData, settings: Train) -> Tensor | DiskRows:
    """What training begins with: the nodes' features, or random rows that learn.

    Raises:
        InputError: if rows that learn are asked to lie elsewhere than in host memory.
    """
    if data.features is None:
        return _new_rows(data, settings)
    return rows_of(data.features, settings, run)


def _new_rows(data: LinkData, settings: Train) -> UnifiedTensor:
    """Random rows that learn.

    Raises:
        InputError: if they are asked to lie elsewhere than in host memory.
    """
    for name, value in (
        ("device_rows", settings.device_rows or None),
        ("host_rows", settings.host_rows),
    ):
        want = "a graph with features: rows that learn stay in host memory"
        expect(value is None, name, want, f"{data.name} without", "leave it out")
    generator = torch.Generator().manual_seed(settings.seed)
    rows = torch.randn(data.graph.n_rows, settings.hidden, generator=generator)
    return unified(rows / settings.hidden**0.5, RowAdam(lr=ROW_RATE))


def _validate(ends: Ends, data: LinkData, rows: Tensor | DiskRows) -> dict[str, float]:
    embedded = ends.embed(data.graph, rows)
    return {f"valid_{name}": x for name, x in _rank(embedded, data, "valid").items()}


def _rank(rows: Float[Tensor, "n d"], data: LinkData, part: str) -> dict[str, float]:
    """Metrics of the links of a part, or of a random sample, always the same, of them."""
    pairs, most = getattr(data, part), RANKED[part]
    if pairs.shape[1] > most:
        generator = torch.Generator().manual_seed(0)
        pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)[:most]]
    return graph_metrics.link_metrics(*graph_metrics.link_ranks(rows, pairs, data.known))


def judge(run: Run, source: str, device: str = "cpu") -> dict[str, float]:
    """MRR, hits@k and AUC of a run's best model on the test links of a graph, in per cent.

    Raises:
        InputError: if the run is not one of the link job, or the graph has other features.
    """
    settings = settings_on(run, device)
    data = load_links(source, settings.seed)
    return _judge(run, data, _rows_for(run, source, data, settings), settings)


def _judge(run: Run, data: LinkData, rows: Tensor | DiskRows, settings: Train) -> dict[str, float]:
    return _rank(_embed(run, data.graph, rows, settings), data, "test")


def _rows_for(run: Run, source: str, data: LinkData, settings: Train) -> Tensor | DiskRows:
    """Rows of a graph as a run's best model reads them: of its features, or learned.

    Raises:
        InputError: if the graph has other features, or others' nodes where rows were learned.
    """
    if start_of(run)["features"] is None:
        rows = _learned(run)
        n, remedy = data.graph.n_rows, "use the run's own data: nodes without features are learned"
        expect(len(rows) == n, data.name, f"the run's {len(rows)} nodes", n, remedy)
        return rows
    if data.features is None:
        fail(data.name, "a graph with features, as the run's", "none", "use its own data")
    return rows_for(run, source, data.features, settings)


def _learned(run: Run) -> Float[Tensor, "n d"]:
    return run.load_model()["rows"]


def _embed(run: Run, graph: Csr, rows: Tensor | DiskRows, settings: Train) -> Float[Tensor, "n d"]:
    """Embeddings of all nodes by a run's best model, reading along `graph`."""
    ends = Ends(model_of(settings, rows.shape[1], settings.hidden, DROPOUT))
    restore(run, ends, run.load_model()["model"])
    return ends.embed(graph, rows)


def predictions(
    run: Run,
    source: str,
    ids: Int[Tensor, " b"],
    k: int,
    threshold: float | None = None,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """The k best new links of some nodes, also of ones that training never saw.

    All links of the graph are read, and none of them is predicted.

    Args:
        run: of the link job.
        source: a graph with the features of the run's.
        ids: nodes of it.
        k: links a node; all that are new where there are fewer.
        threshold: only links of at least this score.
        device: where the model computes.

    Yields:
        a node, and the nodes that it should be linked with: by cosines of embeddings.

    Raises:
        InputError: if the graph has other features, or k is below 1.
    """
    expect_positive("k", k)
    settings = settings_on(run, device)
    data = load_links(source, settings.seed)
    expect_ids("nodes", ids, data.graph.n_rows)
    row, col = data.known.row_ids(), data.known.indices.long()
    both = Csr.from_coo(torch.cat([row, col]), torch.cat([col, row]), data.known.shape).coalesce()
    rows = _embed(run, both, _rows_for(run, source, data, settings), settings)
    for part in ids.split(max(2**24 // len(rows), 1)):
        scores = rows[part] @ rows.T
        taken, here = data.known.rows(part), torch.arange(len(part))
        scores[taken.row_ids(), taken.indices.long()] = -torch.inf
        scores[here, part] = -torch.inf
        best = scores.topk(min(k, len(rows)), dim=1)
        for node, values, others in zip(part.tolist(), *(x.tolist() for x in best), strict=True):
            least = -torch.inf if threshold is None else threshold
            found = zip(values, others, strict=True)
            kept = [(s, v) for s, v in found if s > -torch.inf and s >= least]
            yield {"node": node, "links": [{"node": v, "score": round(s, 4)} for s, v in kept]}
