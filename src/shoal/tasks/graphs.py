"""What the jobs on graphs share: the model, the loader, seeds among some nodes, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.core.objectives import Objective
from shoal.data import arrays, is_graph, ogb
from shoal.data.graphs import load_links, load_nodes
from shoal.data.lines import lines, shorten
from shoal.data.links import LinkData
from shoal.data.nodes import NodeData
from shoal.graph.gat import Gat
from shoal.graph.layers import Layered
from shoal.graph.sage import Sage
from shoal.sample.seeds import RandomBatchSampler
from shoal.tasks.common import autocast_pays, settings_of
from shoal.training.gradients import Gradients
from shoal.training.job import Job
from shoal.training.loader import BatchSampler, BlockSampler, Loader, Table
from shoal.training.run import Run


def on_graph(run: Run) -> bool:
    """Whether a run was trained on a graph."""
    return is_graph(str(run.settings.get("source")))


def model_of(settings: Train, in_dim: int, out_dim: int, dropout: float) -> Layered:
    """The model that was asked for, its weights drawn from the seed.

    Args:
        settings: of the run.
        in_dim: width of the nodes' rows.
        out_dim: width of the result.
        dropout: where the settings have none.

    Raises:
        InputError: if a size is out of range.
    """
    sizes = in_dim, settings.hidden, out_dim, len(settings.fanouts)
    dropout = dropout if settings.dropout is None else settings.dropout
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        if settings.model == "gat":
            model = Gat(*sizes, heads=settings.heads, dropout=dropout)
        else:
            model = Sage(*sizes, dropout=dropout)
    return model.to(settings.device)


def settings_on(run: Run, device: str) -> Train:
    """The settings of a run, with the device that computes now.

    Raises:
        InputError: if one of them is none.
    """
    return replace(settings_of(run), device=device)


def start_of(run: Run) -> dict[str, Any]:
    """What a run noted of its graph when it began.

    Raises:
        InputError: if the note is gone.
    """
    start = next((event for event in run.log() if event["event"] == "start"), None)
    where = str(run.log_file)
    if start is None or "features" not in start:
        fail(where, "how the run began", "no such line", "restore it or train again")
    return start


def restore(run: Run, model: nn.Module, state: dict[str, Any]) -> None:
    """Give `model` the weights of a run.

    Raises:
        InputError: if they are those of a model of another size.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        fail(str(run.folder), "a model of this graph's size", reason, "use the run's own data")


def job_of(
    objective: Objective,
    loader: Loader,
    settings: Train,
    lr: float,
    evaluate: Callable[[], dict[str, float]],
) -> Job:
    """A job that trains a model by Adam as the settings say.

    Args:
        objective: with the model.
        loader: of :func:`loader_of`.
        settings: of the run.
        lr: the learning rate where the settings have none.
        evaluate: the validation metrics.
    """
    return Job(
        objective,
        loader,
        torch.optim.Adam(objective.model.parameters(), lr=settings.lr or lr),
        Gradients(
            settings.accumulate,
            settings.clip,
            "bfloat16" if autocast_pays(settings.autocast, settings.device) else "float32",
        ),
        seed=settings.seed,
        evaluate=evaluate,
        evaluate_every=settings.valid_every,
    )


def loader_of(
    seeds: Int[Tensor, " m"],
    batch_size: int,
    blocks: BlockSampler,
    table: Table,
    settings: Train,
    target: Tensor | None = None,
) -> Loader:
    """A loader of random batches of some nodes.

    Args:
        seeds: the nodes that batches are made of.
        batch_size: so many of them.
        blocks: what they touch.
        table: rows of all nodes.
        settings: of the run.
        target: one row a node, if the loss asks for one.

    Raises:
        InputError: if the batch size does not fit the seeds.
    """
    return Loader(
        Picked(seeds, RandomBatchSampler(len(seeds), batch_size, settings.seed)),
        blocks,
        table,
        target,
        seed=settings.seed,
        prefetch=settings.prefetch,
        device=None if settings.device == "cpu" else settings.device,
    )


class Picked:
    """A batch sampler over some nodes: positions become ids."""

    def __init__(self, ids: Int[Tensor, " n"], positions: BatchSampler) -> None:
        self.ids, self.positions = ids, positions
        self.set_epoch = getattr(positions, "set_epoch", lambda epoch: None)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.ids[batch] for batch in self.positions)


def describe(source: str) -> dict[str, Any]:
    """Count what a graph holds; the result can be written as JSON.

    Raises:
        InputError: if it is missing or damaged.
    """
    data = load_nodes(source) if has_classes(source) else load_links(source)
    graph = data.graph if isinstance(data, NodeData) else data.known
    degrees, features = graph.degrees(), data.features
    about: dict[str, Any] = {
        "name": data.name,
        "nodes": graph.n_rows,
        "edges": graph.nnz,
        "edges_per_node": round(float(degrees.double().mean()), 3),
        "nodes_without_edges": int((degrees == 0).sum()),
        "features": 0 if features is None else features.shape[1],
    }
    if isinstance(features, Csr):
        about["features_per_node"] = round(features.nnz / features.n_rows, 3)
    return about | (_links(data) if isinstance(data, LinkData) else _nodes(data))


def has_classes(source: str) -> bool:
    """Whether the nodes of a graph have classes.

    Raises:
        InputError: if an ``.npz`` or ``.safetensors`` is missing or damaged.
    """
    path = Path(source)
    if path.suffix in arrays.SUFFIXES:
        return "y" in arrays.read(path)
    return not ogb.holds_links(path)


def _nodes(data: NodeData) -> dict[str, Any]:
    splits = {name: len(getattr(data, name)) for name in ("train", "valid", "test")}
    if data.multi_label:
        sizes = data.target.sum(0).tolist()
    else:
        sizes = data.target[data.target >= 0].bincount(minlength=len(data.class_names)).tolist()
    return {**splits, "classes": dict(zip(data.class_names, sizes, strict=True))}


def _links(data: LinkData) -> dict[str, Any]:
    held = {name: getattr(data, name).shape[1] for name in ("valid", "test")}
    return {"train": data.train.nnz, **held}


def read_ids(path: Path) -> Int[Tensor, " b"]:
    """The nodes of a file, a number a line.

    Raises:
        InputError: naming the line that holds no number.
    """
    ids = []
    for number, line in lines(path):
        word = line.strip()
        good = word.isascii() and word.isdecimal() and len(word) < 19
        want = "the number of a node, from 0"
        expect(good, f"{path}:{number}", want, shorten(word), "correct the line")
        ids.append(int(word))
    return torch.tensor(ids, dtype=torch.int64)
