"""What models on graphs share: the network, rows and tables, fit, evaluate, save, open.

A model keeps what predicting needs: the weights, trained rows where nodes have no features, the
names of classes. The graph itself stays where it is: a model in memory keeps the one it was fitted
on, one that is opened reads its source when it is asked for nodes of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.core.columns import Columns
from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_ids, fail, naming
from shoal.core.state import count, expect_weights, floats, made, part
from shoal.data.graph import GraphData
from shoal.data.links import LinkData
from shoal.data.nodes import NodeData
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdam
from shoal.graph.features import (
    WIDTH,
    WordRows,
    feature_rows,
    feature_words,
    mostly_zero,
    row_width,
    word_rows,
    words_of,
    write_rows,
)
from shoal.graph.gat import Gat, GatLayer
from shoal.graph.layers import Layered, stacked
from shoal.graph.residual import ResidualNetwork
from shoal.graph.sage import GcnLayer, SageLayer
from shoal.models import base
from shoal.models.base import Fitting, Result
from shoal.models.card import write_graph_export
from shoal.models.hub import OnHub
from shoal.sample.touch import touch_probability
from shoal.tasks.graphs import LAYERS
from shoal.training.job import Job
from shoal.training.run import Run

EPOCHS, STEPS = 10, 300
"""Passes over the seeds where no limit is asked for, and steps where those are fewer."""
FANOUTS, BATCH_SIZE, HIDDEN = (15, 10), 512, 256
"""Of sampled neighborhoods, where they are left out."""
HEADS = 8  # of attention, as in the paper
_VALID_STEPS = 10  # between two validations, where epochs are shorter
_MEASURED = 2**14  # rows that mean and deviation of features are measured on
_log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class GraphModel(OnHub):
    """The base of :class:`shoal.NodeModel` and :class:`shoal.LinkModel`.

    Attributes:
        layer: ``"sage"``, ``"gcn"``, ``"gat"``, ``"gatv2"``, or what makes a layer from the widths
            of its input and output: a class of modules called as ``layer(block, rows)``
            (:class:`~shoal.graph.layers.ConvLayer` makes one of a PyG convolution). Layers stand in
            a residual network (:class:`~shoal.graph.residual.ResidualNetwork`).
        hidden: width of layers, and of embeddings; 256 by default.
        fanouts: neighbors drawn per node, one number per layer, the seeds' own first; None as a
            number takes all, None alone is (15, 10).
        heads: of ``"gat"`` and ``"gatv2"`` alone; 8 by default.
        dropout: share of activations that is dropped while training.
        batch_size: seeds per batch; all seeds, if they are fewer; 512 by default.
        lr: peak learning rate.
        step: makes a job's step rule, such as ``shoal.spectral_step``; None for the schedule alone.
        seed: of all random numbers.
        device: where to compute; ``"auto"`` is the strongest of cuda, mps and cpu that works.
        precision: of training; ``"auto"`` is bfloat16 where a CUDA device has it, else float32.
        device_rows: feature rows kept on the device, those that batches read most.
        host_rows: the next ones, kept in host memory while all are read from a file; None keeps all
            in memory.
        row_rule: makes the row optimizer of words (sparse features wider than 256), and of nodes
            without features; RowAdam at `lr` by default.
        loss: ``(outputs, batch) -> scalar``, in place of the task's own.
        batches: ``(n, batch_size, seed) -> batch sampler``; random batches by default.
        blocks: ``(graph, fanouts) -> block sampler``; sampled neighborhoods by default.
        optimizer: ``(parameters, lr=lr) -> optimizer``; Adam by default.
    """

    task: ClassVar[str]
    layer: str | Callable[[int, int], nn.Module] = "sage"
    hidden: int | None = None
    fanouts: Sequence[int | None] | None = None
    heads: int | None = None
    dropout: float
    batch_size: int | None = None
    lr: float
    step: Callable[[Job], Any] | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    device_rows: int = 0
    host_rows: int | None = None
    row_rule: Callable[[], Any] | None = None
    loss: Callable[..., Tensor] | None = None
    batches: Callable[..., Any] | None = None
    blocks: Callable[..., Any] | None = None
    optimizer: Callable[..., Any] | None = None
    # what fit or open fills in
    _model: nn.Module | None = field(default=None, init=False, repr=False)
    _rows: Tensor | None = field(default=None, init=False, repr=False)
    _about: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _data: Any = field(default=None, init=False, repr=False)
    _source: str | None = field(default=None, init=False, repr=False)
    _folder: Path | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check what no part of the job would check.

        Raises:
            InputError: naming the argument.
        """
        gat = self.heads is None or self.layer in ("gat", "gatv2")
        expect(gat, "heads", 'none, but with layer="gat" or "gatv2"', self.heads, "leave it out")
        known = callable(self.layer) or self.layer in LAYERS
        names = f"{', '.join(LAYERS)} or a class of layers"
        expect(known, "layer", names, self.layer, "choose one of them")
        some = self.fanouts is None or len(self.fanouts) > 0
        expect(some, "fanouts", "one number per layer", "none", "pass (15, 10)")
        expect(0 < self.lr < float("inf"), "lr", "a number above 0", self.lr, "try 0.01")

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {x.name: getattr(self, x.name) for x in fields(self) if x.init}

    # -- what the two tasks fill in ------------------------------------------------------------

    def _load(self, source: Any) -> Any:
        """The task's data of any source."""
        raise NotImplementedError

    def _made(self, width: int | None) -> nn.Module:
        """The module that is trained, for rows of some width or trained ones, its weights drawn."""
        raise NotImplementedError

    def _job(self, data: Any, rows: Any, table: Any, options: Mapping[str, Any]) -> Job:
        """The page's job around the module."""
        raise NotImplementedError

    def _seeds(self, data: Any) -> Int[Tensor, " m"]:
        """Ids that batches are made of."""
        raise NotImplementedError

    def _sizes(self, data: Any) -> dict[str, Any]:
        """Hidden width, fan-outs and batch size for a graph."""
        return {
            "hidden": HIDDEN if self.hidden is None else self.hidden,
            "fanouts": list(FANOUTS if self.fanouts is None else self.fanouts),
            "batch_size": BATCH_SIZE if self.batch_size is None else self.batch_size,
        }

    def _facts(self, data: Any) -> dict[str, Any]:
        """What predicting needs to know of the data, as JSON.

        ``features``: how wide they are, None where there are none; ``words``: how many rows are
        trained, 0 where none are; ``width`` of rows that are not; ``network``: its sizes.
        """
        features, n = data.features, data.graph.n_rows
        words = feature_words(n, features)
        for name, value in (
            ("device_rows", self.device_rows or None),
            ("host_rows", self.host_rows),
        ):
            want = "dense features, or sparse ones up to 256 wide: rows of words stay in memory"
            expect(not words or value is None, name, want, f"{data.name} without", "leave it out")
        sizes = self._sizes(data)
        return {
            "features": None if features is None else features.shape[1],
            "words": words,
            "width": None if features is None or words else row_width(features),
            "network": sizes,
        }

    def _metrics(self, data: Any) -> dict[str, float]:
        """Metrics on the test part of some data."""
        raise NotImplementedError

    def _compare(self, rows: Any, fitting: Fitting, run: Run) -> dict[str, Any]:
        """What else is said of the fitted model: how others do on the same data."""
        raise NotImplementedError

    # -- fit -----------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        epochs: int | None = None,
        steps: int | None = None,
        minutes: float | None = None,
        patience: int | None = None,
        valid_every: int | None = None,
        callbacks: Sequence[Any] = (),
        keep_resume: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Result:
        """Train on a graph, keep the best model by validation, evaluate it on the test part.

        A model that is fitted already begins anew.

        Args:
            data: a PyTorch Geometric ``Data``, a graph of shoal's, or a path or name that
                :func:`shoal.load` reads.
            out: folder of the run; None keeps nothing but the model in memory.
            resume: continue the run in `out`.
            epochs: passes over the seeds; without any limit 10, or as many as make 300 steps.
            steps: optimizer steps at most.
            minutes: of training at most.
            patience: validations without a better one, after which training stops.
            valid_every: epochs between two validations; as many as make ten steps by default.
            callbacks: called during training.
            keep_resume: keep the checkpoints of the finished run, to train on later.
            settings: of the command, to be written down beside the model's own.

        Raises:
            InputError: if the data or an argument does not fit; finished work stays.
        """
        limits = epochs, steps, minutes, patience
        fitting = Fitting(out, resume, *limits, callbacks, keep_resume, settings)
        begin = time.monotonic()
        source = str(data) if isinstance(data, str | Path) else None
        loaded = self._load(data)
        if self.host_rows is None and not self.device_rows and mostly_zero(loaded.features):
            loaded = replace(loaded, features=Csr.from_dense(loaded.features))
        self._source, self._rows, self._model = source, None, None
        self._about = {"source": source, "name": loaded.name, **self._facts(loaded)}
        about = base.header(self.task, self.arguments(), **self._about)
        with fitting.run(about) as run:
            self._folder = None if out is None else run.folder
            self._model = self._made(self._about["width"])
            rows = self._rows_of(loaded)
            self._data = self._slim(loaded, rows)
            self._measure(rows)
            job = self._job_of(rows, {"valid_every": valid_every})
            seconds = round(time.monotonic() - begin, 3)
            run.start({"data": loaded.name, **self._about, "prepare_seconds": seconds})
            epochs = max(EPOCHS, -(-STEPS // job.steps_per_epoch))
            progress = fitting.train(job, run, epochs, self.step)
            self._take(run.load_model())
            if progress.stopped == "interrupt":
                return fitting.result(run, progress, {})
            details = tiers_used(job.loader.table) | self._compare(rows, fitting, run)
            test = self.evaluate()
            result = fitting.finish(run, progress, about, self._state(), test)
        return replace(result, details=details)

    def job(self, data: Any = None) -> Job:
        """The training job around the fitted model, such as to measure its curvature.

        Args:
            data: as for :meth:`fit`; the graph that the model was fitted on by default.

        Raises:
            InputError: if the model is not fitted, or the data does not fit it.
        """
        self._fitted()
        loaded = self._loaded(data)
        return self._job_of(self._rows_for(loaded), {}, loaded)

    def _job_of(self, rows: Any, options: Mapping[str, Any], data: Any = None) -> Job:
        data = self._data if data is None else data
        seeds, sizes, graph = self._seeds(data), self._network_sizes(), data.graph
        asked, fanouts = sizes["batch_size"], sizes["fanouts"]
        size = min(asked, len(seeds))
        if size < asked:
            _log.info("batches of %d shrink to the %d seeds of %s", asked, size, data.name)

        def scores() -> Tensor:
            # a seed of the link job draws its link first
            hops = [1, *fanouts] if self.task == "links" else fanouts
            return touch_probability(graph, seeds, hops, size)

        device = base.resolve_device(self.device)
        every = options.get("valid_every") or max(1, _VALID_STEPS * size // len(seeds))
        given = {name: getattr(self, name) for name in ("loss", "batches", "blocks", "optimizer")}
        shared = {
            "batch_size": asked,
            "fanouts": fanouts,
            "lr": self.lr,
            "seed": self.seed,
            "device": None if device == "cpu" else device,
            "precision": base.resolve_precision(self.precision, device),
            "valid_every": every,
        }
        table = None if isinstance(rows, WordRows) else self._table(rows, scores, device)
        return self._job(data, rows, table, shared | given)

    # -- the network ---------------------------------------------------------------------------

    def _network_sizes(self) -> dict[str, Any]:
        """Sizes of the fitted network; the first layout has them as arguments."""
        return self._about.get("network") or GraphModel._sizes(self, None)

    def _network(
        self, in_dim: int | None, out_dim: int, classes: int = 0, times: int = 1
    ) -> Layered:
        """The network, its weights drawn from the seed, on the model's device.

        Args:
            in_dim: width of the rows that it reads; None where they are trained.
            out_dim: width of its result.
            classes: that it reads of other nodes.
            times: as many hops as its fan-outs say.

        Raises:
            InputError: if a size is out of range.
        """
        sizes = self._network_sizes()
        hidden, layers = sizes["hidden"], times * len(sizes["fanouts"])
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            if "network" in self._about:
                layer, drop = self._layer(hidden), self.dropout
                network = ResidualNetwork(layer, in_dim, hidden, out_dim, layers, drop, classes)
            else:
                network = self._first_network((in_dim or hidden, hidden, out_dim, layers))
        meta = torch.get_default_device().type == "meta"  # only asked how large it is
        return network if meta else network.to(base.resolve_device(self.device))

    def _layer(self, width: int) -> Callable[[int, int], nn.Module]:
        if callable(self.layer):
            return self.layer
        if self.layer in ("sage", "gcn"):
            return SageLayer if self.layer == "sage" else GcnLayer
        heads = self.heads or HEADS
        good = width % heads == 0
        expect(good, "hidden", f"a multiple of the {heads} heads", width, "round it")
        second = self.layer == "gatv2"

        def attention(in_dim: int, out_dim: int) -> GatLayer:
            return GatLayer(in_dim, out_dim // heads, heads, True, self.dropout, second)

        return attention

    def _first_network(self, sizes: tuple[int, int, int, int]) -> Layered:
        """The network of runs before there were residual ones: bare layers."""
        if self.layer == "gat":
            return Gat(*sizes, heads=self.heads or HEADS, dropout=self.dropout)
        layer = self.layer if callable(self.layer) else SageLayer
        return stacked(layer, *sizes, dropout=self.dropout)

    def _measure(self, rows: Any) -> None:
        """Let the network standardize features, as measured on some nodes from all over."""
        scale = self._body().scale
        if scale is not None:
            ids = torch.arange(len(rows))[:: max(len(rows) // _MEASURED, 1)]
            some = rows[ids] if isinstance(rows, Tensor) else rows.gather(ids)
            scale.measure(some.as_subclass(Tensor).to(scale.mean))

    def _body(self) -> Any:
        """The network itself, whatever it stands in."""
        fitted = self._fitted()
        return getattr(fitted, "model", fitted)

    def _fitted(self) -> nn.Module:
        if self._model is None:
            fail(type(self).__name__, "a fitted model", "one that is not", "call fit first")
        return self._model

    # -- data and rows -------------------------------------------------------------------------

    def _loaded(self, data: Any = None) -> Any:
        """Data as given, or that of the fit; it is read anew where the model was opened.

        Raises:
            InputError: if the model was fitted on data in memory and opened since.
        """
        if data is not None:
            return self._as_fitted(self._load(data))
        if self._data is None:
            remedy = "pass data=: the model was fitted on data in memory"
            name = "data" if self._folder is None else f"{self._folder}: data"
            expect(self._source is not None, name, "the graph to read", None, remedy)
            self._data = self._as_fitted(self._load(self._source))
        return self._data

    def _as_fitted(self, data: Any) -> Any:
        """The data, dense features as sparse ones where the model reads words."""
        dense = isinstance(data.features, Tensor) and bool(self._about.get("words"))
        return replace(data, features=Csr.from_dense(data.features)) if dense else data

    def _rows_of(
        self, data: GraphData | NodeData | LinkData
    ) -> Float[Tensor, "n d"] | DiskRows | WordRows:
        """Rows of all nodes: of trained words, in memory, or where `host_rows` are given in a file.

        The file is the source itself where it holds the very numbers, else ``rows.npy`` in the run.

        Raises:
            InputError: if there is no run for it, or the file is damaged or of another graph.
        """
        if self._about.get("words"):
            n, width = self._about["words"], self._network_sizes()["hidden"]
            return self._word_rows(data, word_rows(n, width, self.seed))
        features = data.features
        assert features is not None  # rows are trained otherwise
        if self.host_rows is None:
            return feature_rows(features, self.seed)
        own = self._own_file(features)
        if own is not None:
            return own
        remedy = "pass out=, or features as float32 x in an .npz or .safetensors"
        expect(self._folder is not None, "host_rows", "a run for the file of rows", None, remedy)
        assert self._folder is not None
        path = self._folder / "rows.npy"
        if not path.exists():
            write_rows(path, features, self.seed)
        rows, n, width = DiskRows(path), features.shape[0], self._about["width"]
        expect(len(rows) == n, str(path), f"the graph's {n} rows", len(rows), "remove it")
        wide = list(rows.shape[1:])
        expect(wide == [width], str(path), f"rows {width} wide", wide, "remove it")
        return rows

    def _own_file(self, features: Csr | Tensor) -> DiskRows | None:
        if self._source is None or not isinstance(features, Tensor):
            return None
        try:
            own = DiskRows(self._source, "x")
        except InputError:  # a folder, or compressed
            return None
        return own if own.dtype == torch.float32 else None

    def _word_rows(self, data: Any, rows: Tensor) -> WordRows:
        """Rows of the words of a graph's nodes, which the network sums from now on."""
        words = words_of(data.features, data.graph.n_rows)
        assert words is not None
        rule = RowAdam(lr=self.lr) if self.row_rule is None else self.row_rule()
        self._body().read_words(words)
        return WordRows(words, unified(rows, rule))

    def _rows_for(self, data: GraphData | NodeData | LinkData) -> Any:
        """Rows of a graph as the fitted model reads them: of its features, or trained.

        Raises:
            InputError: if the graph has other features, or other nodes where rows were trained.
        """
        width, n = self._about.get("features"), data.graph.n_rows
        if width is None:
            assert self._rows is not None
            remedy = "use the model's own data: rows of nodes without features are trained"
            expect(
                len(self._rows) == n, data.name, f"the model's {len(self._rows)} nodes", n, remedy
            )
        elif data.features is None:
            fail(data.name, "a graph with features, as the model's", "none", "use its own data")
        else:
            # projected rows are equally wide whatever they are projected from
            got, remedy = data.features.shape[1], "use data of its kind"
            good = got == width or (data is self._data and got == 0)  # they lie in a file
            expect(good, "features", f"{width} columns, as the model's", got, remedy)
        if self._rows is not None and "network" in self._about:
            return self._word_rows(data, self._rows)
        if data.features is None:  # of the first layout
            assert self._rows is not None
            rule = RowAdam(lr=0.01) if self.row_rule is None else self.row_rule()
            return unified(self._rows, rule)
        own = data is self._data
        return self._rows_of(data) if own else feature_rows(data.features, self.seed)

    def _slim(self, data: Any, rows: Any) -> Any:
        """The data without features that are in a file already."""
        if not isinstance(rows, DiskRows):
            return data
        return replace(data, features=torch.empty(len(rows), 0))

    def _table(self, rows: Any, scores: Callable[[], Tensor], device: str) -> Any:
        """What batches read: all rows alike, or in tiers; scores say how often each is read.

        Raises:
            InputError: if a count is negative, or tiers are asked for and rows are trained.
        """
        warm, hot = self.host_rows, self.device_rows
        if isinstance(rows, Tensor) and hot == 0 and warm is None:
            return unified(rows) if type(rows) is Tensor else rows
        return TieredTable(rows, scores(), device_rows=hot, host_rows=warm or 0, device=device)

    # -- evaluate, save, open --------------------------------------------------------------------

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Metrics on the test part of a graph, in per cent.

        Args:
            data: as for :meth:`fit`; the graph that the model was fitted on by default.

        Raises:
            InputError: if the model is not fitted, or the graph has other features.
        """
        self._fitted()
        return self._metrics(self._loaded(data))

    def save(self, folder: str | Path) -> None:
        """Write the fitted model to a folder, which :func:`shoal.open` opens.

        Raises:
            InputError: if the model is not fitted, or the folder cannot be written to.
        """
        state = self._state()
        base.save(folder, base.header(self.task, self.arguments(), **self._about), state)

    def export(self, out: str | Path) -> None:
        """Write a folder for others: the model, without where its graph lies, and a card.

        Args:
            out: the folder; an earlier export there is replaced.

        Raises:
            InputError: if something else is there, or it cannot be written to.
        """
        write_graph_export(self, Path(out))

    @classmethod
    def restore(
        cls, folder: Path, about: Mapping[str, Any], objects: Mapping[str, Any]
    ) -> GraphModel:
        """The model in a folder; called by :func:`shoal.open`.

        Args:
            folder: of the model or its run.
            about: what ``model.json`` says.
            objects: arguments that are given anew.

        Raises:
            InputError: if the folder is damaged, or a layer of the user's is missing.
        """
        given = base.expect_arguments(str(folder), about, objects, needed=("layer",))
        model = made(cls, given, str(folder / base.HEADER))
        facts = {name: x for name, x in about.items() if name not in base.header("", {})}
        model.fill(folder, facts, base.read_state(folder))
        return model

    def fill(self, folder: Path, facts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take what an earlier fit left in a folder.

        Args:
            folder: of the run.
            facts: of the data, as :meth:`fit` writes them, with the `source`.
            state: the tensors.

        Raises:
            InputError: if they are not those of a model of these arguments.
        """
        self._folder, self._about, self._source = folder, dict(facts), facts.get("source")
        with naming(folder):
            self._expect_facts()
            self._expect_weights(part(state, "model"))
            self._model = self._made(facts.get("width"))
            self._take(state)

    def _expect_facts(self) -> None:
        """Raise unless what predicting needs to know of the data is what :meth:`fit` writes.

        Raises:
            InputError: naming the fact.
        """
        about, source = self._about, self._source
        for name in ("width", "features", "words"):
            if about.get(name) is not None:
                count(about, name)
        wide, features = about.get("width"), about.get("features")
        good = wide is None or features is None or wide in (features, min(features, WIDTH))
        expect(good, "width", f"that of {features} features", wide, "restore model.json or retrain")
        if "network" in about:
            sizes = part(about, "network")
            for name in ("hidden", "batch_size"):
                count(sizes, name, low=1)
            count({"classes": 0, **sizes}, "classes")
            fanouts = sizes.get("fanouts")
            good = isinstance(fanouts, list) and all(type(x) in (int, type(None)) for x in fanouts)
            expect(good and bool(fanouts), "fanouts", "a number per layer", fanouts, "train again")
        remedy = "restore model.json or train again"
        good = isinstance(source, str | None) and isinstance(about.get("name"), str | None)
        expect(good, "source", "a name or a path", source, remedy)
        if self.task == "nodes":
            names, several = about.get("classes"), about.get("several")
            good = isinstance(names, list) and all(isinstance(x, str) for x in names) and names
            expect(bool(good), "classes", "names of classes", names, remedy)
            expect(isinstance(several, bool), "several", "true or false", several, remedy)

    def _expect_weights(self, weights: Mapping[str, Any]) -> None:
        """Raise unless the weights are those of the network, before memory is taken for it.

        Layers of a user's own, which no file names, may need memory to say what they are.

        Raises:
            InputError: naming the first weight that is not.
        """
        layers, remedy = len(self._network_sizes()["fanouts"]), "restore it or train again"
        expect(layers <= len(weights), "fanouts", f"at most {len(weights)}", layers, remedy)
        if callable(self.layer):
            return
        expect_weights(lambda: self._made(self._about.get("width")), weights)

    def _state(self) -> dict[str, Any]:
        rows = {} if self._rows is None else {"rows": self._rows}
        return {"model": self._fitted().state_dict(), **rows}

    def _take(self, state: Mapping[str, Any]) -> None:
        """Take weights and trained rows.

        Raises:
            InputError: if they are those of a model of another size.
        """
        try:
            self._fitted().load_state_dict(state["model"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            where = str(self._folder or type(self).__name__)
            fail(where, "a model of these arguments", reason, "restore it or train again")
        self._rows = None
        words, wide = self._about.get("words"), self._network_sizes()["hidden"]
        if words or self._about.get("features") is None:
            self._rows = floats(state, "rows", words or None, wide).as_subclass(Tensor)


def one_or_many(nodes: Any, n: int) -> tuple[Int[Tensor, " b"], bool]:
    """Ids as a tensor, and whether one node was asked for rather than several; None is all.

    Raises:
        InputError: if they are no ids of the graph's n nodes.

    Example:
        >>> one_or_many(7, 10), one_or_many([7, 1], 10)
        ((tensor([7]), True), (tensor([7, 1]), False))
    """
    if nodes is None:
        return torch.arange(n), False
    try:
        ids = torch.as_tensor(nodes)
    except (TypeError, ValueError, RuntimeError) as error:
        fail("nodes", "a node's number, or several", error, "pass whole numbers")
    one = ids.dim() == 0
    ids = ids.reshape(1) if one else ids
    ids = ids.long() if ids.numel() == 0 else ids
    expect_ids("nodes", ids, n)
    return ids.long().cpu(), one


def tiers_used(table: object) -> dict[str, Any]:
    """Of a table in tiers: rows, and the share of reads that each served."""
    if not isinstance(table, TieredTable):
        return {}
    lines = [{"tier": name, **use.percent()} for name, use in table.use().items()]
    return {"tiers": Columns(lines)}
