"""``shoal export``: a trained run as one folder for others, without what only training needs.

The folder is read like a run's (:func:`shoal.open`, evaluate, predict, query, serve) and holds
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
from torch import Tensor

from shoal.cli.settings import Add, Export
from shoal.core import checkpoint
from shoal.core.errors import InputError, expect, fail
from shoal.core.files import folder_aside
from shoal.data import load_labels
from shoal.data.formats.xc import read_texts
from shoal.data.texts import Texts
from shoal.rank.fused import FusedLabeler
from shoal.rank.new_labels import with_labels
from shoal.rank.predictor import BagRows, Labeler, embed
from shoal.tasks.card import LONG, Exported, card
from shoal.tasks.fusing import Predictor, fused_state, predictor_of
from shoal.text.pretrained import TransformerVocabulary
from shoal.text.roles import ROLES, RoleVocabulary
from shoal.text.sentence import mixed_vectors, save_bag, save_transformer, token_vectors
from shoal.text.transformer import TransformerEncoder
from shoal.training.run import EXPORT, EXPORT_FORMAT, Run

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
            for path in (run.folder / "settings.json", run.log_file):
                shutil.copy(path, new / path.name) if path.exists() else None
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
    """What :func:`shoal.open` reads, and the label vectors for others."""
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
    vocabulary, encoder = labeler.lexicon.vocabulary, labeler.encoder
    if isinstance(vocabulary, TransformerVocabulary):
        return _save_transformers(labeler, vocabulary, folder)
    assert isinstance(encoder, BagRows)
    rows = encoder.rows.cpu()
    if isinstance(vocabulary, RoleVocabulary):
        return _save_roles(labeler, vocabulary, rows, run, folder)
    save_bag(folder / "encoder", vocabulary, token_vectors(vocabulary, rows, 0))
    return [Exported("encoder", "any text")]


def _save_transformers(
    labeler: Labeler, vocabulary: TransformerVocabulary, folder: Path
) -> list[Exported]:
    found = []
    sides = {"encoder": labeler.encoder, "label_encoder": labeler.label_encoder}
    for name, encoder in sides.items():
        if isinstance(encoder, TransformerEncoder):
            save_transformer(folder / name, vocabulary, encoder)
            found.append(Exported(name, "any text"))
    return found


def _save_roles(
    labeler: Labeler, vocabulary: RoleVocabulary, rows: Tensor, run: Run, folder: Path
) -> list[Exported]:
    """Titles as they are, and what comes nearest to a title and a content in one string."""
    seen, texts, sample = _documents(labeler, run)
    labels, title = labeler.lexicon.labels, len(ROLES) // 2
    bags = {"labels": vocabulary.labels(_some(labels)), sample: vocabulary.documents(_some(texts))}
    plain = {"labels": _some(labels).all(), sample: _some(texts).all()}
    made = [
        ("encoder", ROLES[0], sample, token_vectors(vocabulary, rows, 0)),
        ("long_encoder", LONG, sample, mixed_vectors(vocabulary, rows, seen)),
        ("label_encoder", ROLES[title], "labels", token_vectors(vocabulary, rows, title)),
    ]
    found = []
    for name, reads, where, vectors in made:
        save_bag(folder / name, vocabulary.words, vectors)
        own = embed(bags[where], rows)
        cosines = (own * embed(vocabulary.tokens(plain[where]), vectors)).sum(1)
        cosines = cosines[own.abs().sum(1) > 0]
        facts = (float(cosines.mean()), float(cosines.min())) if len(cosines) else (1.0, 1.0)
        found.append(Exported(name, reads, where, *(round(x, 5) for x in facts)))
    return found


def _documents(labeler: Labeler, run: Run) -> tuple[Texts, Texts, str]:
    """Documents to count on, others to measure on, and their name; labels where data is gone."""
    source = str(run.settings.get("source"))
    try:
        data = load_labels(source)
    except InputError:
        return labeler.lexicon.labels, labeler.lexicon.labels, "label texts"
    return data.train.texts, data.test.texts, f"test points of {source}"


def _some(texts: Texts) -> Texts:
    """A seeded sample: data often stands in an order that means something."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    return texts.subset(order[:_SAMPLE])
