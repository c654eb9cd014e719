"""The last stage of the label job: all that training left behind, fused on held-out points.

``fused.safetensors`` in the run's folder holds it. The held-out points tell what each ranking is
worth before they are known to any of them; then they join the memory like all other points.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.cli.settings import Train
from shoal.core import checkpoint
from shoal.core.errors import expect, fail
from shoal.data.texts import Examples, LabelData
from shoal.rank.fused import FusedLabeler, Memory, Words, fuse
from shoal.rank.fusion import Fusion
from shoal.rank.hnsw import HnswSearch
from shoal.rank.predictor import Labeler
from shoal.rank.tree import TreeFusion
from shoal.tasks.encoders import labeler_of
from shoal.tasks.heads import classifiers_of
from shoal.text.roles import RoleVocabulary
from shoal.text.vocabulary import Vocabulary, learn
from shoal.training.run import Run

# Fewer held-out points than this teach the network noise: the encoder then ranks alone.
_FEWEST = 200

Predictor = Labeler | FusedLabeler


def load(folder: str | Path, device: str = "cpu", search: str = "exact") -> Predictor:
    """Open a trained labeler: ``shoal.open("runs/wordnet").predict(["a text"], k=5)``.

    Args:
        folder: of a finished run, or an export of one.
        device: where embeddings are computed.
        search: exact, or hnsw for millions of labels (:mod:`shoal.rank.hnsw`).

    Raises:
        InputError: if the folder does not hold a whole run of the label job.
    """
    return predictor_of(Run.open(folder), device, search)


def predictor_of(run: Run, device: str = "cpu", search: str = "exact") -> Predictor:
    """The best labeler of a run: fused if it was, otherwise its head or encoder alone.

    Args:
        run: on labels.
        device: where embeddings are computed.
        search: exact, or hnsw with the graphs that the run's folder keeps.

    Raises:
        InputError: if the folder does not hold a whole run of the label job, or the search is
            another one.
    """
    expect(search in ("exact", "hnsw"), "search", "exact or hnsw", search, "choose one")
    labeler, path = labeler_of(run, device), run.folder / "fused.safetensors"
    if search == "hnsw":
        labeler = replace(labeler, search=HnswSearch(_indexes(run), _told))
    if not path.exists():
        by_head = run.settings.get("rank") == "head"
        return replace(labeler, classifiers=classifiers_of(run, device)) if by_head else labeler
    state = checkpoint.load(path)
    try:
        memory = Memory.of_state(state["memory"])
        fusion = _fusion_of(state)
    except (KeyError, TypeError, RuntimeError) as error:
        fail(str(path), "a fusion of this version", error, "resume the run to make it again")
    got, want = memory.labels.n_cols, len(labeler.lexicon.labels)
    expect(got == want, str(path), f"{want} labels", got, "resume the run to make it again")
    return FusedLabeler(labeler, memory, fusion)


def _fusion_of(state: dict[str, Any]) -> Fusion | TreeFusion:
    if state["rankings"] is None:
        return TreeFusion.of_state(state["fusion"])
    fusion = Fusion(state["rankings"])
    fusion.load_state_dict(state["fusion"])
    return fusion


def head_ranks(settings: Train, held_out: Examples | None) -> bool:
    """Whether a frozen head is asked for, and takes part in ranking: alone, or fused."""
    ranks = settings.rank == "head" or (settings.rank == "fused" and can_fuse(held_out))
    return settings.head == "frozen" and ranks


def can_fuse(held_out: Examples | None) -> bool:
    """Whether enough points are held out to weigh evidence."""
    return held_out is not None and len(held_out) >= _FEWEST


def forget_indexes(run: Run) -> None:
    """Remove the graphs of a model that is about to change; new ones are built when searched."""
    shutil.rmtree(_indexes(run), ignore_errors=True)


def _indexes(run: Run) -> Path:
    return run.folder / "indexes"


def _told(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), file=sys.stderr, flush=True)


def fused_state(fused: FusedLabeler) -> dict[str, Any]:
    """What ``fused.safetensors`` holds: all that the encoder does not."""
    fusion = fused.fusion
    state = {"memory": fused.memory.state_dict(), "fusion": fusion.state_dict()}
    return state | {"rankings": None if isinstance(fusion, TreeFusion) else fusion.rankings}


def fuse_run(
    run: Run, data: LabelData, train: Examples, held_out: Examples | None, settings: Train
) -> None:
    """Fuse what the run's best model, its training points and their words know.

    Writes ``fused.safetensors``, or nothing where too few points are held out, and says which in
    the record.

    Args:
        run: whose model is trained.
        data: with all training points.
        train: those that the model was trained on.
        held_out: the others.
        settings: whether words take part, which fusion, its seed and what rare labels weigh.
    """
    begin = time.monotonic()
    if held_out is None or not can_fuse(held_out):
        run.write("fuse", {"held_out": len(held_out or ()), "needed": _FEWEST})
        return
    labeler, head = labeler_of(run), classifiers_of(run)
    words, seed, kind = settings.words, settings.seed, settings.fusion
    known = _memory(labeler, data, train, words, head)
    fusion = fuse(labeler, known, held_out, seed, kind, settings.rare)
    memory = _memory(labeler, data, data.train, words, head)
    state = fused_state(FusedLabeler(labeler, memory, fusion))
    checkpoint.save(run.folder / "fused.safetensors", state)
    run.write(
        "fuse", {"held_out": len(held_out), "fuse_seconds": round(time.monotonic() - begin, 3)}
    )


def _memory(
    labeler: Labeler, data: LabelData, points: Examples, words: bool, head: Tensor | None
) -> Memory:
    lexical = None
    if words:
        vocabulary = labeler.lexicon.vocabulary
        if isinstance(vocabulary, RoleVocabulary):
            vocabulary = vocabulary.words
        elif not isinstance(vocabulary, Vocabulary):
            vocabulary = learn(points.texts.all() + data.labels.all())
        lexical = Words.of(vocabulary, data.labels, points.texts)
    return Memory(labeler.encode(points.texts), points.labels, lexical, head)
