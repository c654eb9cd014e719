"""Models of nodes beside the network: trained, printed, and pooled with it where that helps.

``linear`` and ``perceptron`` read what :func:`shoal.graph.baselines.inputs_of` makes of features
and known classes, ``smoothed`` reads features averaged far and wide, where few classes are known;
``deep`` is the network with twice the hops on a graph that is read as a whole, and ``spread`` needs
no training. A network that does not beat the first two is not worth its time, so their results
stand beside its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.graph_metrics import node_metrics
from shoal.core.state import expect_weights, floats, part
from shoal.data.nodes import NodeData
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdam
from shoal.graph.baselines import (
    FLOATS,
    LinearModel,
    SmoothedModel,
    inputs_of,
    log_scores,
    pool,
    pool_weights,
    smoothed_rows,
    spread,
)
from shoal.graph.features import WordRows, word_rows
from shoal.graph.layers import Layered, full_graph
from shoal.graph.residual import ResidualNetwork
from shoal.models.base import Fitting
from shoal.tasks import nodes
from shoal.training.run import Run

_HIDDEN = 128  # of the perceptron
_LR = 0.01
_DECAY = 5e-4  # of the weights of the smoothed model, as in its paper (docs/LOG.md)
_FEW = 2**21  # numbers that training nodes have up to which it is trained, whatever it reads: it
# is for few known classes, and its features are dense
_READS = {"deep": "own", "smoothed": "smoothed"}  # rows of the view; else "inputs"


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the pool.

    Attributes:
        network: without hops, or the deep one.
        table: rows of its words; None where its rows are dense.
        reads: which rows of a :class:`View`.
    """

    network: Any
    table: Tensor | None
    reads: str

    def state(self) -> dict[str, Any]:
        """What :func:`restored` needs."""
        rows = {} if self.table is None else {"rows": self.table}
        return {"model": self.network.state_dict(), **rows}


@dataclass(frozen=True, eq=False)
class Pool:
    """Models and their weights.

    Attributes:
        members: that are trained, by name.
        weights: of the network, of each member, and last of classes that spread.
    """

    members: Mapping[str, Member]
    weights: Float[Tensor, " m"]

    def scores(
        self,
        network: Float[Tensor, "b c"],
        view: View,
        ids: Int[Tensor, " b"],
        several: bool,
    ) -> list[Float[Tensor, "b c"]]:
        """What each model says of nodes `ids`, the network first.

        Args:
            network: its logits.
            view: of the graph.
            ids: nodes.
            several: whether a node may have several classes.
        """
        found = [network]
        for member in self.members.values():
            rows: Any = getattr(view, member.reads)
            if member.table is not None:
                words = rows.words if isinstance(rows, WordRows) else rows
                member.network.read_words(words)
                rows = WordRows(words, member.table)
            found.append(full_graph(member.network, view.graph, rows, ids))
        found = [log_scores(x, several) for x in found]
        return found + ([] if view.known is None else [spread(view.graph, view.known)[ids]])

    def __call__(self, *asked: Any) -> Float[Tensor, "b c"]:
        """The pooled scores; arguments as for :meth:`scores`."""
        scores = self.scores(*asked)
        return pool(scores, self.weights[: len(scores)])

    def state(self) -> dict[str, Any]:
        """As a model's folder holds it."""
        members = {name: member.state() for name, member in self.members.items()}
        return {"weights": self.weights, "members": members}


@dataclass(frozen=True, eq=False)
class View:
    """A graph as the models of a pool see it.

    Attributes:
        graph: row v lists the nodes that v reads.
        features: of its nodes; None where they have none.
        own: rows that the network reads.
        known: classes that are known; None where none are read.
    """

    graph: Csr
    features: Any
    own: Any
    known: Csr | None

    @cached_property
    def inputs(self) -> Any:
        """Rows that the linear model and the perceptron read, dense or sparse; None for none."""
        return inputs_of(self.graph, self.features, self.known)

    @cached_property
    def smoothed(self) -> Any:
        """Rows that the smoothed model reads."""
        return smoothed_rows(self.graph, self.features)

    def few(self, nodes: int) -> bool:
        """Whether a smoothed model of so many training nodes is trained."""
        if self.features is None:
            return False
        n, width = self.features.shape
        return n * width <= FLOATS and nodes * width <= _FEW


def trained_pool(
    data: NodeData,
    view: View,
    logits: Callable[[Tensor], Tensor],
    deep: Callable[[], Layered] | None,
    fitting: Fitting,
    run: Run,
    seed: int,
) -> tuple[Pool, list[dict[str, Any]]]:
    """Train the members, and weigh them on the nodes for validation.

    Args:
        data: the graph.
        view: of it.
        logits: of the network, of some nodes.
        deep: makes the deep network; None where there is none.
        fitting: with the limits that were asked for.
        run: of the network; members train in folders below it.
        seed: of weights and batches.

    Returns:
        the pool, and a line per model to be shown.
    """
    members, seconds = {}, {}
    makes: dict[str, Any] = {} if view.inputs is None else {"linear": None, "perceptron": None}
    makes |= {"smoothed": None} if view.few(len(data.train)) else {}
    makes |= {} if deep is None else {"deep": deep}
    for name, make in makes.items():
        begin = time.process_time()
        members[name] = _trained(name, make, data, view, fitting, run, seed)
        seconds[name] = round(time.process_time() - begin, 1)
    found, several = Pool(members, torch.empty(0)), data.multi_label
    valid, test = (found.scores(logits(x), view, x, several) for x in (data.valid, data.test))
    weights = pool_weights(valid, data.target[data.valid])
    found = replace(found, weights=weights)
    names = ["network", *members, *([] if view.known is None else ["spread"]), "pool"]
    shown: list[dict[str, Any]] = [{"model": name} for name in names]
    for split, ids, scores in (("valid", data.valid, valid), ("test", data.test, test)):
        for line, each in zip(shown, [*scores, pool(scores, weights)], strict=True):
            metric, value = next(iter(node_metrics(each, data.target[ids]).items()))
            line[f"{split}_{metric}"] = round(value, 2)
    for line, weight in zip(shown, [*weights.tolist(), 1.0], strict=True):
        line |= {"weight": round(weight, 2), "cpu_seconds": seconds.get(line["model"], "")}
    return found, shown


def _trained(
    name: str,
    make: Callable[[], Layered] | None,
    data: NodeData,
    view: View,
    fitting: Fitting,
    run: Run,
    seed: int,
) -> Member:
    """One member, its best weights."""
    classes = len(data.class_names)
    reads = _READS.get(name, "inputs")
    rows: Any = getattr(view, reads)
    words = rows if isinstance(rows, Csr) else getattr(rows, "words", None)
    width = None if words is not None else rows.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: Any = make() if make is not None else _baseline(name, width, classes)
    if words is not None:
        wide = _table_width(name, network, classes)
        first = (
            word_rows(words.n_cols, wide, seed)
            if name != "linear"
            else torch.zeros(words.n_cols, wide)
        )
        rows = WordRows(words, unified(first, RowAdam(lr=_LR)))
        network.read_words(words)
    elif not (reads == "smoothed" and isinstance(view.own, WordRows)):  # of length one as they are
        network.scale.measure(rows.as_subclass(Tensor))  # pyright: ignore[reportAttributeAccessIssue]
    if make is not None:
        network.read_classes(view.known)
    whole = len(data.train) <= 2**13
    size = -(-len(data.train) // 2) if make is not None else len(data.train) if whole else 512
    job = nodes.build(
        data,
        network,
        rows,
        table=unified(rows) if isinstance(rows, Tensor) else None,
        batch_size=size,
        fanouts=[None] * len(network.layers),
        lr=_LR,
        optimizer=partial(torch.optim.Adam, weight_decay=_DECAY if name == "smoothed" else 0.0),
        seed=seed,
        valid_every=max(1, 10 * size // len(data.train)),
    )
    folder = run.folder / "pool" / name
    shutil.rmtree(folder, ignore_errors=True)
    own, alone = Run.create(folder, {}), replace(fitting, resume=False, callbacks=())
    alone.train(job, own, max(10, -(-300 // job.steps_per_epoch)), name=name)
    state = own.load_model()
    network.load_state_dict(state["model"])
    shutil.rmtree(folder.parent)
    return Member(network, state.get("rows"), reads)


def _baseline(name: str, width: int | None, classes: int) -> Layered:
    if name == "linear":
        return LinearModel(width, classes)
    if name == "smoothed":
        assert width is not None  # its rows are dense
        return SmoothedModel(width, classes)
    return ResidualNetwork(nn.Linear, width, _HIDDEN, classes, layers=0)


def _table_width(name: str, network: Any, classes: int) -> int:
    """How wide rows of words are: the first layer's output."""
    return classes if name == "linear" else network.outward[0].normalized_shape[0]


def restored(state: Mapping[str, Any], deep: Callable[[], Layered], classes: int) -> Pool:
    """The pool that :meth:`Pool.state` wrote.

    Args:
        state: of it.
        deep: makes the deep network.
        classes: of a node.

    Raises:
        InputError: if it is another's.
    """
    members, own = {}, part(state, "members")
    for name in own:
        saved = part(own, name)
        weights, table = part(saved, "model"), saved.get("rows")
        width = len(floats(weights, "scale.mean", None)) if "scale.mean" in weights else None
        expect(width != 0, "scale.mean", "a number a column", "none", "train the model again")
        make = deep if name == "deep" else partial(_baseline, name, width, classes)
        expect_weights(make, weights)
        network: Any = make()
        network.load_state_dict(weights)
        table = None if table is None else floats(saved, "rows", None, None)
        members[name] = Member(network, table, _READS.get(name, "inputs"))
    found = floats(state, "weights", None)
    enough = len(found) > len(members)
    expect(enough, "weights", f"more than {len(members)}", len(found), "train the model again")
    return Pool(members, found)
