"""The two encoders of the label job: a bag whose rows learn, and a transformer whose weights do.

The job asks two things of either: how texts become token ids (:func:`vocabulary_of`), and what is
trained and then embeds (:func:`learner_of`). The rest of it is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.cli.settings import Train
from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.core.files import expect_no_pickle
from shoal.data.texts import Texts
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam
from shoal.rank.predictor import BagRows, Encoder, Labeler, Lexicon
from shoal.tasks.common import settings_of
from shoal.text.bag import BagSum
from shoal.text.fields import FieldVocabulary
from shoal.text.pretrained import (
    TransformerVocabulary,
    add_lora,
    checkpoint_gradients,
    open_backbone,
    open_vocabulary,
)
from shoal.text.sentence import without_adapters
from shoal.text.transformer import TokenTransformer, TwoTransformers
from shoal.text.vocabulary import Vocabulary, learn
from shoal.training.run import Run


@dataclass(frozen=True)
class Defaults:
    """What is used where nothing was asked for.

    Attributes:
        batch_size: points a batch.
        lr: peak learning rate.
        warmup: steps until it is reached.
    """

    batch_size: int
    lr: float
    warmup: int


# Measured on WordNet's validation split (docs/LOG.md).
BAG = Defaults(batch_size=1024, lr=0.1, warmup=50)
# Rate and warm-up of NGAME's published configuration. Its batches of 1,600 need a device; 256 is
# four clusters of 64, and assumes a processor.
TRANSFORMER = Defaults(batch_size=256, lr=2e-4, warmup=100)


def defaults_of(settings: Train) -> Defaults:
    """The defaults of the encoder that was asked for."""
    return BAG if settings.encoder == "bag" else TRANSFORMER


# What a run that begins with another's weights must agree in: the rest may differ.
_OF_THE_WEIGHTS = ("encoder", "dim", "roles", "pooling", "max_length", "label_encoder")


def _begun(settings: Train) -> Run | None:
    """The run to begin with, if there is one.

    Raises:
        InputError: if there is no such run, or its encoder is of another kind than is asked for.
    """
    if settings.from_ is None:
        return None
    run = Run.open(settings.from_)
    was = settings_of(run)
    for name in _OF_THE_WEIGHTS:
        want, got = getattr(was, name), getattr(settings, name)
        expect(got == want, name, f"{want!r}, as {run.folder} was trained", repr(got), "use it")
    return run


# -- texts to token ids ------------------------------------------------------------------------

AnyVocabulary = Vocabulary | FieldVocabulary | TransformerVocabulary

Tokenize = Callable[[Texts, Texts], tuple[AnyVocabulary, Csr]]
"""(documents, labels) → a vocabulary, and the token ids of all documents, then of all labels."""


def bags_of(documents: Texts, labels: Texts, roles: bool = True) -> tuple[AnyVocabulary, Csr]:
    """Learn words and pieces from the texts, and make their bags."""
    words = learn(documents.all() + labels.all())
    vocabulary = FieldVocabulary.of(words, documents, labels) if roles else words
    return vocabulary, vocabulary.documents(documents).stack(vocabulary.labels(labels))


def tokenize_of(settings: Train, folder: Path | None = None) -> Tokenize:
    """How the encoder that was asked for reads texts.

    Args:
        settings: name the encoder.
        folder: where a transformer's token ids are kept, mapped into memory; None keeps none.

    Returns:
        a function of documents and labels; a transformer's raises InputError for no such model.

    Raises:
        InputError: if the run to begin with does not fit.
    """
    run = _begun(settings)
    begun = None if run is None else Lexicon.open(run.folder / "lexicon").vocabulary
    if isinstance(begun, Vocabulary | FieldVocabulary):
        return lambda documents, labels: (
            begun,
            begun.documents(documents).stack(begun.labels(labels)),
        )
    if settings.encoder == "bag":
        return partial(bags_of, roles=settings.roles)

    def tokenize(documents: Texts, labels: Texts) -> tuple[TransformerVocabulary, Csr]:
        vocabulary = begun or open_vocabulary(settings.encoder, settings.max_length)
        texts = documents.all() + labels.all()
        return vocabulary, vocabulary.bags(texts) if folder is None else vocabulary.mapped(
            texts, folder
        )

    return tokenize


# -- what is trained ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Learner:
    """What an encoder brings to the job.

    Attributes:
        model: called with blocks and rows.
        encoders: the same for inference: of documents, and of labels where they have their own.
        dim: width of the vectors.
        table: rows that learn, or None.
        optimizer: of the model's parameters, or None.
    """

    model: nn.Module
    encoders: tuple[Encoder, ...]
    dim: int
    table: UnifiedTensor | None = None
    optimizer: torch.optim.Optimizer | None = None


def learner_of(
    vocabulary: AnyVocabulary, tokens: Csr, n_documents: int, settings: Train
) -> Learner:
    """Make what is trained, as it is before training.

    Args:
        vocabulary: what the token ids stand for.
        tokens: of all documents, then of all labels.
        n_documents: how many documents there are.
        settings: name the encoder.

    Raises:
        InputError: if there is no such model, or it is none that shoal can use.
    """
    lr = settings.lr or defaults_of(settings).lr
    run = _begun(settings)
    begun = None if run is None else labeler_of(run, settings.device)
    if not isinstance(vocabulary, TransformerVocabulary):
        if begun is not None and isinstance(begun.encoder, BagRows):
            first = begun.encoder.rows
        else:
            first = vocabulary.first_rows(tokens, settings.dim, settings.seed)
        table = unified(first, RowAdam(lr=lr))
        rows = BagRows(table.as_subclass(Tensor))
        return Learner(BagSum(), (rows,), settings.dim, table)
    if begun is None:
        backbones = [open_backbone(settings.encoder)]
    else:
        found: list[Any] = [x for x in (begun.encoder, begun.label_encoder) if x is not None]
        backbones = [without_adapters(encoder.backbone) for encoder in found]
    model, encoders = _transformer(backbones, n_documents, vars(settings))
    model.to(settings.device).train()
    learned = [value for value in model.parameters() if value.requires_grad]
    # NGAME's published configuration: AdamW, eps 1e-6, no weight decay
    optimizer = torch.optim.AdamW(learned, lr=lr, eps=1e-6, weight_decay=0.0)
    return Learner(model, encoders, encoders[0].dim, None, optimizer)


def _transformer(
    backbones: Sequence[nn.Module], n_documents: int, asked: dict[str, Any]
) -> tuple[nn.Module, tuple[TokenTransformer, ...]]:
    """A model around one backbone, or two, as the settings `asked` want it, and its encoders."""
    for backbone in backbones:
        with torch.random.fork_rng():
            torch.manual_seed(asked["seed"])
            if asked["lora"] is not None:
                add_lora(backbone, asked["lora"])
        if asked["gradient_checkpointing"]:
            checkpoint_gradients(backbone)
    documents, *others = (TokenTransformer(x, asked["pooling"]) for x in backbones)
    if asked["label_encoder"] == "shared":
        return documents, (documents,)
    labels = others[0] if others else copy.deepcopy(documents)
    return TwoTransformers(documents, labels, n_documents), (documents, labels)


def labeler_of(run: Run, device: str = "cpu") -> Labeler:
    """The best model of a run on labels, or that of an export, on `device`.

    Raises:
        InputError: if the folder does not hold a whole run of the label job, or holds a pickle.
    """
    expect_no_pickle(run.folder)
    lexicon, asked = Lexicon.open(run.folder / "lexicon"), settings_of(run)
    if not isinstance(lexicon.vocabulary, TransformerVocabulary):
        rows = run.load_model().get("rows")
        if not isinstance(rows, Tensor):
            fail(str(run.folder), "a run on labels", "another", "name another one")
        return Labeler(lexicon, BagRows(rows.to(device)))
    if run.exported:
        paths = [run.folder / name for name in ("encoder", "label_encoder")]
        backbones = [open_backbone(str(path)) for path in paths if path.is_dir()]
        expect(bool(backbones), str(paths[0]), "a transformer", "none", "export it anew")
        encoders = tuple(TokenTransformer(x, asked.pooling).to(device).eval() for x in backbones)
        return Labeler(lexicon, *encoders)
    state = run.load_model()
    model, encoders = _transformer([lexicon.vocabulary.backbone()], 0, vars(asked))
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        fail(str(run.folder), "weights of the run's own encoder", reason, "train the model again")
    model.to(device).eval()
    return Labeler(lexicon, *encoders)
