"""``shoal export``: a trained run as one folder for others, without what only training needs.

The folder is read like a run's (:func:`shoal.load`, evaluate, predict, query, serve) and holds
besides: the encoders as sentence-transformers and transformers load them, the label embeddings, and
a model card. What that format cannot express is measured and said. All of it is safetensors, JSON
and text, and it appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from shoal import checkpoint
from shoal._checks import InputError, expect, fail
from shoal.data import load
from shoal.data.texts import Texts
from shoal.data.xc import read_texts
from shoal.files import folder_aside
from shoal.models.fused import FusedLabeler
from shoal.models.labeler import BagRows, Labeler
from shoal.models.new_labels import with_labels
from shoal.models.pretrained import TransformerVocabulary
from shoal.models.roles import ROLES, RoleVocabulary
from shoal.models.sentence import save_bag, save_transformer
from shoal.models.transformer import TransformerEncoder
from shoal.run import EXPORT, EXPORT_FORMAT, Run
from shoal.settings import Add, Export
from shoal.tasks.card import Exported, card
from shoal.tasks.fusing import Predictor, fused_state, predictor_of

# texts on which the difference to shoal's vectors is measured
_SAMPLE = 1000


def export(settings: Export) -> dict[str, Any]:
    """Run ``shoal export``.

    Returns:
        what the command prints: the folder, its encoders, and how near they are to shoal's own.

    Raises:
        InputError: if the run is not whole, the place is taken by something else than an export, or
            cannot be written to.
    """
    run = Run.open(settings.run)
    expect_exportable(settings.out)
    encoders = write_export(predictor_of(run, settings.device), run, settings.out)
    told = [encoder.told for encoder in encoders]
    return {"run": str(run.folder), "out": str(settings.out), "encoders": told}


def add(settings: Add) -> dict[str, Any]:
    """Run ``shoal add``: export a run with more labels than it was trained on.

    Returns:
        what the command prints: the folder, how many labels it has, how many of them are new, and
        how many of those hold no word that the model knows.

    Raises:
        InputError: as :func:`export`, or if there are no new labels or one is known already.
    """
    run = Run.open(settings.run)
    expect_exportable(settings.out)
    texts = read_texts(settings.labels)
    expect(len(texts) > 0, str(settings.labels), "new labels", "none", "write one a line")
    predictor = with_labels(predictor_of(run, settings.device), texts)
    write_export(predictor, run, settings.out, added=len(texts))
    unknown = int((predictor.lexicon.vocabulary.tokens(texts.all()).degrees() == 0).sum())
    labels = len(predictor.lexicon.labels)
    facts = {"run": str(run.folder), "out": str(settings.out), "labels": labels}
    return facts | {"added": len(texts), "without_known_words": unknown}


def expect_exportable(out: Path) -> None:
    """Raise unless an export may be written to `out`.

    Raises:
        InputError: if something else is there.
    """
    free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    free = free or (out / EXPORT).is_file()
    expect(free, str(out), "nothing there, or an earlier export", "another", "name another folder")


def write_export(predictor: Predictor, run: Run, out: Path, added: int = 0) -> list[Exported]:
    """Write a predictor, its encoders for others and a card, all of it or nothing.

    Args:
        predictor: what is exported.
        run: where it comes from: settings, record, and the name of the data.
        out: the folder; an earlier export there is replaced.
        added: labels that the run does not know; its metrics are then not those of the export.

    Raises:
        InputError: if it cannot be written to.
    """
    labeler = predictor.labeler if isinstance(predictor, FusedLabeler) else predictor
    try:
        with folder_aside(out) as new:
            for name in ("settings.json", "record.jsonl"):
                path = run.folder / name
                shutil.copy(path, new / name) if path.exists() else None
            copied = Run(new, run.settings)
            copied.write("add", {"labels": added}) if added else None
            _save_predictor(predictor, new)
            encoders = _save_encoders(labeler, run, new)
            about = {
                "format": EXPORT_FORMAT,
                "shoal": version("shoal"),
                "labels": len(labeler.lexicon.labels),
                "encoders": [vars(encoder) for encoder in encoders],
            }
            (new / EXPORT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            (new / "README.md").write_text(card(predictor, copied, encoders), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        fail(str(out), "a folder to write to", error, "free space or name another")
    return encoders


def _save_predictor(predictor: Predictor, folder: Path) -> None:
    """What :func:`shoal.load` reads, and the label vectors for others."""
    fused = isinstance(predictor, FusedLabeler)
    labeler = predictor.labeler if fused else predictor
    labeler.lexicon.save(folder / "lexicon")
    rows = labeler.encoder.rows if isinstance(labeler.encoder, BagRows) else None
    tables = {} if labeler.classifiers is None else {"head": labeler.classifiers}
    checkpoint.save(folder / "best.safetensors", {"model": {}, "rows": rows, "tables": tables})
    if fused:
        checkpoint.save(folder / "fused.safetensors", fused_state(predictor))
    head = predictor.memory.head if fused else labeler.classifiers
    vectors = {"embeddings": labeler.label_embeddings}
    vectors |= {} if head is None else {"classifiers": head}
    vectors = {name: rows.float().cpu().contiguous() for name, rows in vectors.items()}
    save_file(vectors, folder / "labels.safetensors")


# -- encoders for others -----------------------------------------------------------------------


def _save_encoders(labeler: Labeler, run: Run, folder: Path) -> list[Exported]:
    documents, sample = _documents(labeler, run)
    labels = labeler.lexicon.labels
    sides = [("encoder", documents, labeler.encoder, 0)]
    with_roles = isinstance(labeler.lexicon.vocabulary, RoleVocabulary)
    if with_roles or labeler.label_encoder is not None:
        sides.append(
            ("label_encoder", labels, labeler.label_encoder or labeler.encoder, len(ROLES) // 2)
        )
    found = []
    for name, texts, encoder, role in sides:
        path, vocabulary = folder / name, labeler.lexicon.vocabulary
        if isinstance(vocabulary, TransformerVocabulary):
            assert isinstance(encoder, TransformerEncoder)
            save_transformer(path, vocabulary, encoder)
        else:
            assert isinstance(encoder, BagRows)
            save_bag(path, vocabulary, encoder.rows, role)
        reads = ROLES[role] if with_roles else "any text"
        where = sample if role == 0 else "labels"
        found.append(Exported(name, reads, where, *_cosines(labeler, _some(texts), role)))
    return found


def _documents(labeler: Labeler, run: Run) -> tuple[Texts, str]:
    """Documents to measure on, and their name: the data's own, or labels where it is gone."""
    source = str(run.settings.get("source"))
    try:
        return load(source).test.texts, f"test points of {source}"
    except InputError:
        return labeler.lexicon.labels, "labels"


def _some(texts: Texts) -> Texts:
    """A seeded sample: data often stands in an order that means something."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    return texts.subset(order[:_SAMPLE])


def _cosines(labeler: Labeler, texts: Texts, role: int) -> tuple[float, float]:
    """Mean and least cosine between texts as they are and as titles alone; 1 where all are one."""
    vocabulary, encoder = labeler.lexicon.vocabulary, labeler.encoder
    if not isinstance(vocabulary, RoleVocabulary):
        return 1.0, 1.0
    bags = vocabulary.documents if role == 0 else vocabulary.labels
    own, other = (encoder.embed(bags(x)) for x in (texts, Texts.of(texts.all())))
    known = own.abs().sum(1) > 0
    cosines = (own * other).sum(1)[known]
    if cosines.numel() == 0:
        return 1.0, 1.0
    return round(float(cosines.mean()), 5), round(float(cosines.min()), 5)
