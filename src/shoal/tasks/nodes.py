"""The node job: classes learned on sampled neighborhoods, judged by layer-wise inference."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.cli.settings import Train
from shoal.core import graph_metrics
from shoal.core.errors import expect_ids, expect_positive
from shoal.core.objectives import Objective, node_binary_cross_entropy, node_cross_entropy
from shoal.data.graphs import load_features, load_nodes
from shoal.data.nodes import NodeData
from shoal.fetch.disk import DiskRows
from shoal.graph.layers import Layered, full_graph
from shoal.sample.expand import NeighborSampler
from shoal.sample.touch import touch_probability
from shoal.tasks.common import budget_of, callbacks_of, finish, open_run, step_rule_of
from shoal.tasks.graphs import (
    job_of,
    loader_of,
    model_of,
    restore,
    settings_on,
    start_of,
)
from shoal.tasks.rows import rows_for, rows_of, table_of, tiers_used
from shoal.training.job import Job
from shoal.training.loop import fit
from shoal.training.run import Run

# The rate by validation on the WordNet graph (docs/LOG.md): rows of length one want it large.
BATCH_SIZE, LEARNING_RATE, EPOCHS, DROPOUT = 512, 0.03, 10, 0.5


def train(settings: Train) -> dict[str, Any]:
    """Run ``shoal train`` on a graph: train, keep the best model, judge it on the test nodes.

    Returns:
        what the command prints: accuracy or micro-averaged F1 in per cent, steps and seconds.

    Raises:
        InputError: for any bad setting or input; finished work stays.
    """
    run = open_run(settings)
    callbacks = callbacks_of(settings, run)
    begin = time.monotonic()
    data = load_nodes(settings.source)
    rows = rows_of(data.features, settings, run)
    facts = {"data": data.name, "features": data.features.shape[1]}
    if isinstance(rows, DiskRows):  # what is in the file need not stay in memory
        data = replace(data, features=torch.empty(len(rows), 0))
    facts |= {"classes": list(data.class_names), "several": data.multi_label}
    run.start({**facts, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(data, rows, settings)
    budget = budget_of(settings, EPOCHS)
    rule = step_rule_of(settings, job)
    progress = fit(job, budget, run, resume=settings.resume, step=rule, callbacks=callbacks)
    found = finish(run, settings, progress, lambda: _judge(run, data, rows, settings), callbacks)
    return found | tiers_used(job.loader.table)


def make_job(data: NodeData, rows: Float[Tensor, "n d"] | DiskRows, settings: Train) -> Job:
    """Put the parts of the node job together.

    Raises:
        InputError: if batch size, fan-outs or another setting does not fit the data.
    """
    model = model_of(settings, rows.shape[1], len(data.class_names), DROPOUT)
    size = settings.batch_size or min(BATCH_SIZE, len(data.train))
    hops = NeighborSampler(data.graph, settings.fanouts)
    touch = partial(touch_probability, data.graph, data.train, settings.fanouts, size)
    table = table_of(rows, settings, touch)
    loader = loader_of(data.train, size, hops, table, settings, data.target)
    criterion = node_binary_cross_entropy if data.multi_label else node_cross_entropy
    validate = partial(_validate, model, data, rows)
    return job_of(Objective(model, criterion), loader, settings, LEARNING_RATE, validate)


def _validate(model: Layered, data: NodeData, rows: Tensor | DiskRows) -> dict[str, float]:
    return {f"valid_{k}": x for k, x in _metrics(model, data, rows, data.valid).items()}


def judge(run: Run, source: str, device: str = "cpu") -> dict[str, float]:
    """Accuracy or F1 of a run's best model on the test nodes of a graph, in per cent.

    Raises:
        InputError: if the run is not one of the node job, or the graph has other features.
    """
    data, settings = load_nodes(source), settings_on(run, device)
    return _judge(run, data, rows_for(run, source, data.features, settings), settings)


def _judge(run: Run, data: NodeData, rows: Tensor | DiskRows, settings: Train) -> dict[str, float]:
    model = _model(run, settings, rows.shape[1], len(data.class_names))
    return _metrics(model, data, rows, data.test)


def _model(run: Run, settings: Train, width: int, classes: int) -> Layered:
    """The best model of a run."""
    model = model_of(settings, width, classes, DROPOUT)
    restore(run, model, run.load_model()["model"])
    return model


def _metrics(
    model: Layered, data: NodeData, rows: Tensor | DiskRows, ids: Tensor
) -> dict[str, float]:
    logits = full_graph(model, data.graph, rows, ids)
    if data.multi_label:
        return {"micro_F1": graph_metrics.micro_f1(logits, data.target[ids])}
    return {"accuracy": graph_metrics.accuracy(logits, data.target[ids])}


def predictions(
    run: Run,
    source: str,
    ids: Int[Tensor, " b"],
    k: int,
    threshold: float | None = None,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """The k best classes of some nodes, also of ones that training never saw.

    Args:
        run: of the node job.
        source: a graph with the features of the run's; classes are not needed.
        ids: nodes of it.
        k: classes a node; all where there are fewer.
        threshold: only classes of at least this probability.
        device: where the model computes.

    Yields:
        a node, and its classes with their probabilities: of one each they sum to one.

    Raises:
        InputError: if the graph has other features, or k is below 1.
    """
    expect_positive("k", k)
    start = start_of(run)
    names, several = start["classes"], start["several"]
    graph, features = load_features(source)
    expect_ids("nodes", ids, graph.n_rows)
    settings = settings_on(run, device)
    rows = rows_for(run, source, features, settings)
    logits = full_graph(_model(run, settings, rows.shape[1], len(names)), graph, rows, ids)
    shares = logits.sigmoid() if several else logits.softmax(1)
    best = shares.topk(min(k, len(names)), dim=1)
    for node, scores, classes in zip(ids.tolist(), *(x.tolist() for x in best), strict=True):
        found = zip(scores, classes, strict=True)
        kept = [(s, c) for s, c in found if threshold is None or s >= threshold]
        told = [{"class": c, "name": names[c], "score": round(s, 4)} for s, c in kept]
        yield {"node": node, "classes": told}
