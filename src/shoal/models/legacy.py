"""Runs and exports of the first layout, opened as models of today: one function per task.

They are told by ``settings.json`` without ``model.json``; the settings are those of the first
command, one dataclass for all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core import checkpoint
from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_file, fail, naming
from shoal.core.files import expect_no_pickle
from shoal.core.sparse import unit
from shoal.core.state import floats, made, part
from shoal.data.cells import Columns
from shoal.data.formats.xc import read_texts
from shoal.data.read import read
from shoal.data.splits import digests, random_split
from shoal.data.texts import LabelData
from shoal.models import base
from shoal.models.labels import LabelModel
from shoal.models.links import LinkModel
from shoal.models.nodes import NodeModel
from shoal.rank.ensemble import TrainedNetwork
from shoal.rank.predictor import Predictor
from shoal.rank.ranker import Known, Ranker
from shoal.rank.rankers import (
    ClassifierRanker,
    EncoderRanker,
    NameRanker,
    NeighborRanker,
    PlainRanker,
    WordRanker,
)
from shoal.rank.tree import TrainedTree
from shoal.sample.links import PairSampler
from shoal.step.job import spectral_step
from shoal.text.bag import Bag, BagEncoder, vocabulary_of
from shoal.text.encoder import TextEncoder
from shoal.text.pretrained import open_vocabulary
from shoal.text.transformer import Transformer, TransformerEncoder, begun
from shoal.text.vocabulary import Vocabulary
from shoal.training.run import Run

# weights of the first layer, as wide as the rows that it reads
_FIRST = ("layers.0.own.weight", "layers.0.value.weight")


def open_run(folder: Path, **objects: Any) -> Any:
    """The model of a run or an export of the first layout.

    Args:
        folder: of the run.
        objects: plain arguments that are given anew, such as ``device``.

    Raises:
        InputError: if the folder holds no run, or one that is damaged.
    """
    run = Run.open(folder)
    start = next((event for event in run.log() if event["event"] == "start"), {})
    with naming(folder):
        if "features" in start:  # the first line of a run on a graph says how wide they are
            return open_graph_run(run, start, **objects)
        return open_label_run(run, **objects)


def open_graph_run(run: Run, start: Mapping[str, Any], **objects: Any) -> NodeModel | LinkModel:
    """The model of a run on a graph.

    Args:
        run: of nodes or of links.
        start: the first line of its log.
        objects: plain arguments that are given anew.

    Raises:
        InputError: if settings, log or checkpoint are damaged.
    """
    asked, where = run.settings, str(run.folder / "settings.json")
    kind = LinkModel if asked.get("task") == "links" else NodeModel
    lacks = [name for name in ("model", "fanouts", "hidden", "seed") if name not in asked]
    expect(not lacks, where, "the settings of a run", f"no {lacks}", "restore it or train again")
    names = ("hidden", "dropout", "batch_size", "lr", "seed", "device_rows", "host_rows")
    given = {name: asked[name] for name in names if asked.get(name) is not None}
    given |= {"fanouts": asked["fanouts"], "layer": asked["model"]}
    given |= {"heads": asked.get("heads")} if asked.get("model") == "gat" else {}
    if asked.get("negatives") == "uniform":
        given["negatives"] = PairSampler
    if asked.get("step") == "spectral":
        given["step"] = spectral_step
    model = made(kind, given | objects, where)
    about = {name: start.get(name) for name in ("features", "classes", "several")}
    about |= {"source": asked.get("source"), "name": start.get("data")}
    state = base.read_state(run.folder)
    weights = state.get("model")
    weights = weights.items() if isinstance(weights, Mapping) else ()
    first = [x.shape[1] for name, x in weights if name.endswith(_FIRST) and x.dim() == 2]
    expect(len(first) == 1, where, "the weights of a network", list(state), "train again")
    model.fill(run.folder, {**about, "width": first[0]}, state)
    return model


# -- labels --------------------------------------------------------------------------------------


def open_label_run(run: Run, **objects: Any) -> LabelModel:
    """The LabelModel of a run or an export on labels.

    Raises:
        InputError: if the folder does not hold a whole one, or holds a pickle.
    """
    expect_no_pickle(run.folder)
    model = LabelModel(**objects)
    folder = run.folder / "lexicon"
    state = checkpoint.load(folder / "matrices.safetensors")
    try:
        encoder = _encoder(run, state, model.device)
        labels = read_texts(folder / "labels.json.gz")
        tokens = Csr.of_state(part(state, "label_bags"), len(labels), encoder.n_tokens)
        predictor = Predictor(
            encoder, labels, tokens, (EncoderRanker(),), search=model.search, pooled=False
        )
        fused, head = run.folder / "fused.safetensors", _classifiers(run)
        if fused.exists():
            predictor = _combined(predictor, checkpoint.load(fused))
        elif run.settings.get("rank") == "head":
            own = ClassifierRanker.of_state({"weights": head}, predictor)
            predictor = replace(predictor, rankers=(own,))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        fail(str(run.folder), "a whole run on labels", repr(error), "train the model again")
    tests = [event for event in run.log() if event.get("event") == "test"]
    metrics = {k: v for k, v in (tests or [{}])[-1].items() if "@" in k}
    about = {"source": run.settings.get("source"), "test": metrics}
    return model.with_predictor(predictor, about, _trained_on(str(about["source"])))


def _trained_on(source: str) -> Int[Tensor, " n"] | None:
    """Digests of the examples that a run of a table was trained on; None where that is unknown.

    A table without a split of its own was split at random, by the positions of its rows.
    """
    try:
        data = read(source, Columns(apart=True))
    except InputError:  # an export that went elsewhere
        return None
    if not isinstance(data, LabelData) or data.own_split:
        return None
    kept, _ = random_split(len(data.train), 0.2, seed=0)
    return digests(data.train.texts.subset(kept))


def _encoder(run: Run, state: Mapping[str, Any], device: str) -> TextEncoder:
    folder, asked = run.folder / "lexicon", run.settings
    if not (folder / "encoder").is_dir():
        text = expect_file(folder / "tokenizer.json", "a tokenizer").read_bytes()
        words: dict[str, Any] = {"tokenizer": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        words |= {"pieces": state.get("pieces")}
        words |= {"fields": state["roles"]} if "roles" in state else {}
        vocabulary = vocabulary_of(words)
        rows = floats(run.load_model(), "rows", len(vocabulary), None)
        return Bag(vocabulary, rows.to(device), BagEncoder(rows.shape[1], fields="roles" in state))
    vocabulary = open_vocabulary(str(folder / "encoder"))
    spec = TransformerEncoder(
        "encoder",
        vocabulary.max_length,
        asked.get("pooling", "mean"),
        separate_labels=asked.get("label_encoder") == "separate",
        lora=None if run.exported else asked.get("lora"),
    )
    if run.exported:
        return Transformer.open(run.folder, vars(spec), device)
    return begun(
        spec, vocabulary, [vocabulary.backbone()], 0, asked.get("seed", 0), device
    ).load_trained(run.load_model())


def _classifiers(run: Run) -> Tensor | None:
    """The best classifiers; None if there are none. Those that rank by cosine are unit vectors."""
    if run.settings.get("head", "none") == "none":
        return None
    folder = run.folder / "head"
    if folder.is_dir():
        rows = Run.open(folder).load_model()["rows"]
    else:  # trained together with the encoder, or exported
        rows = run.load_model().get("tables", {}).get("head")
    by_cosine = run.settings.get("head_loss") == "triplet"
    return unit(rows) if by_cosine and rows is not None else rows


def _combined(base: Predictor, state: Mapping[str, Any]) -> Predictor:
    """The ensemble that ``fused.safetensors`` holds."""
    memory, n = part(state, "memory"), len(base.labels)
    model = replace(base, truth=Csr.of_state(part(memory, "labels"), None, n))
    found: list[Ranker | None] = [EncoderRanker()]
    if memory.get("head") is not None:
        found += [ClassifierRanker.of_state({"weights": memory["head"]}, model)]
    now = vars(NeighborRanker()) | {"rows": memory.get("points")}
    found += [NeighborRanker.of_state(now, model)]
    found += [PlainRanker().fitted(model, Known(model, model.labels))]
    if memory.get("words") is not None:
        words = part(memory, "words")
        model = replace(model, own_words=Vocabulary.of_state(words))
        found += [WordRanker.of_state({**words, "examples": words.get("points")}, model)]
        found += [NameRanker.of_state(part(words, "names"), model)]
    rankers = tuple(ranker for ranker in found if ranker is not None)
    kind = TrainedTree if state.get("rankings") is None else TrainedNetwork
    combiner = kind.of_state(part(state, "fusion"))
    return replace(model, rankers=rankers, combiner=combiner).agreed()
