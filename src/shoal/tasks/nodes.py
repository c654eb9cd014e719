"""The node job: GraphSAGE on sampled neighborhoods, judged by layer-wise inference on all nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal._checks import fail
from shoal.data import nodes as readers
from shoal.data.nodes import NodeData
from shoal.fetch.loader import Loader
from shoal.fetch.unified import unified
from shoal.job import Job
from shoal.models.layered import full_graph
from shoal.models.sage import Sage
from shoal.objectives import Objective, node_cross_entropy
from shoal.run import Run
from shoal.sample.expand import NeighborSampler
from shoal.sample.seeds import RandomBatchSampler
from shoal.settings import Train
from shoal.tasks.common import autocast_pays, budget_of, finish, open_run
from shoal.train import fit

# The rate by validation on the WordNet graph (docs/LOG.md): rows of length one want it large.
BATCH_SIZE, LEARNING_RATE, EPOCHS = 512, 0.03, 10
# wider features are projected at random to this width, which keeps their cosines within 1/√d
WIDTH = 256


def load(source: str) -> NodeData:
    """Load a graph: ``wordnet-graph``, or an ``.npz`` of plain arrays.

    Raises:
        InputError: if the file is missing or damaged.
    """
    if source == "wordnet-graph":
        from shoal.data import wordnet

        return wordnet.graph()
    return readers.read(source)


def describe(data: NodeData) -> dict[str, Any]:
    """Count what `data` holds; the result can be written as JSON."""
    degrees = data.graph.degrees()
    sizes = data.target.bincount(minlength=len(data.class_names)).tolist()
    return {
        "name": data.name,
        "nodes": data.graph.n_rows,
        "edges": data.graph.nnz,
        "edges_per_node": round(float(degrees.double().mean()), 3),
        "nodes_without_edges": int((degrees == 0).sum()),
        "features": data.features.n_cols,
        "features_per_node": round(data.features.nnz / data.features.n_rows, 3),
        **{name: len(getattr(data, name)) for name in ("train", "valid", "test")},
        "classes": dict(zip(data.class_names, sizes, strict=True)),
    }


def feature_rows(data: NodeData, seed: int) -> Float[Tensor, "n d"]:
    """Dense feature rows of all nodes, at most :data:`WIDTH` wide, each row of length about one."""
    sparse = data.features
    width = min(sparse.n_cols, WIDTH)
    if width == sparse.n_cols:
        return sparse.to_dense().float()
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(sparse.n_cols, width, generator=generator) / width**0.5
    return torch.nn.functional.embedding_bag(
        sparse.indices.long(),
        directions,
        sparse.indptr,
        mode="sum",
        per_sample_weights=None if sparse.values is None else sparse.values.float(),
        include_last_offset=True,
    )


def train(settings: Train) -> dict[str, Any]:
    """Run ``shoal train`` on a graph: train, keep the best model, judge it on the test nodes.

    Returns:
        what the command prints: accuracy in per cent, steps and seconds.

    Raises:
        InputError: for any bad setting or input; finished work stays.
    """
    run = open_run(settings)
    begin = time.monotonic()
    data = load(settings.source)
    rows = feature_rows(data, settings.seed)
    run.write("start", {"data": data.name, "prepare_seconds": round(time.monotonic() - begin, 3)})
    job = make_job(data, rows, settings)
    progress = fit(job, budget_of(settings, EPOCHS), run, resume=settings.resume)
    return finish(run, settings, progress, lambda: _judge(run, data, rows))


def make_job(data: NodeData, rows: Float[Tensor, "n d"], settings: Train) -> Job:
    """Put the parts of the node job together.

    Raises:
        InputError: if batch size, fan-outs or another setting does not fit the data.
    """
    model = _model(data, rows.shape[1], settings.hidden, len(settings.fanouts), settings)
    size = settings.batch_size or BATCH_SIZE
    seeds = _Picked(data.train, RandomBatchSampler(len(data.train), size, settings.seed))
    loader = Loader(
        seeds,
        NeighborSampler(data.graph, settings.fanouts),
        unified(rows),
        data.target,
        seed=settings.seed,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )
    return Job(
        Objective(model, node_cross_entropy),
        loader,
        torch.optim.Adam(model.parameters(), lr=settings.lr or LEARNING_RATE),
        clip=settings.clip,
        accumulate=settings.accumulate,
        autocast=autocast_pays(settings.autocast, settings.device),
        seed=settings.seed,
        evaluate=partial(_validate, model, data, rows),
        evaluate_every=settings.valid_every,
    )


class _Picked:
    """A batch sampler over some ids: positions become ids."""

    def __init__(self, ids: Int[Tensor, " n"], positions: RandomBatchSampler) -> None:
        self.ids, self.positions = ids, positions
        self.set_epoch = positions.set_epoch

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.ids[batch] for batch in self.positions)


def _model(data: NodeData, width: int, hidden: int, layers: int, settings: Train) -> Sage:
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = Sage(width, hidden, len(data.class_names), layers, settings.dropout)
    return model.to(settings.device)


def _validate(model: Sage, data: NodeData, rows: Tensor) -> dict[str, float]:
    return {"valid_accuracy": _accuracy(model, data, rows, data.valid)}


def judge(run: Run, source: str) -> dict[str, float]:
    """Accuracy of a run's best model on the test nodes of a graph, in per cent.

    Raises:
        InputError: if the run is not one of the node job, or the graph has other features.
    """
    data = load(source)
    return _judge(run, data, feature_rows(data, run.settings["seed"]))


def _judge(run: Run, data: NodeData, rows: Tensor) -> dict[str, float]:
    asked, state = run.settings, run.load_model()["model"]
    model = Sage(rows.shape[1], asked["hidden"], len(data.class_names), len(asked["fanouts"]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        fail(str(run.folder), "a model of this graph's size", reason, "use the run's own data")
    return {"accuracy": _accuracy(model, data, rows, data.test)}


def _accuracy(model: Sage, data: NodeData, rows: Tensor, ids: Tensor) -> float:
    logits = full_graph(model, data.graph, rows)[ids]
    return 100 * float((logits.argmax(1) == data.target[ids]).float().mean())
