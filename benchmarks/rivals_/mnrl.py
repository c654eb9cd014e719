"""sentence-transformers' MultipleNegativesRankingLoss on the same encoder: a bag of shoal's tokens.

A StaticEmbedding over shoal's own words and pieces, from the same first rows, one row a token
wherever it stands: rows for roles are more than this format can say. Its trainer, its batches
without doubles, as many steps of as many pairs as shoal takes points. Learning rate and scale are
the best of a sweep of its own on validation.
"""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from shoal.tasks.encoders import bags_of
from shoal.tasks.prepared import Prepared, prepare

from rivals_.common import TOP, VALID, Asked, Clock, Outcome, Skipped
from shoal.core.metrics import evaluate
from shoal.core.search import top_k
from shoal.core.sparse import matmul
from shoal.data.texts import Examples
from shoal.text.vocabulary import Vocabulary, random_rows

ONE_ROW = partial(bags_of, roles=False)
OPTIONS = tuple(itertools.product((0.03, 0.1, 0.3), (10.0, 20.0)))


def mnrl(asked: Asked) -> Outcome:
    """Sweep, train, and rank by cosine over all labels."""
    for name in ("sentence_transformers", "datasets", "accelerate"):
        if find_spec(name) is None:
            raise Skipped("no sentence-transformers: pip install 'shoal[sentence-transformers]'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    clock = Clock()
    with clock.stage("tune"):
        held = prepare(asked.data, VALID, 0, ONE_ROW)
        found = {option: _try(held, asked, *option) for option in OPTIONS}
        lr, scale = max(found, key=lambda option: found[option])
    with clock.stage("train"):
        prepared = prepare(asked.data, 0.0, asked.seed, ONE_ROW)
        steps = asked.epochs * -(-len(prepared.train) // asked.batch_size)
        model = _train(prepared, asked, lr, scale, steps)
    with clock.stage("predict"):
        top = _rank(model, prepared, asked.data.test, TOP)
    facts = {"steps": steps, "lr": lr, "scale": scale}
    told = {f"lr {a}, scale {b}": round(p, 2) for (a, b), p in found.items()}
    return Outcome(top, clock, facts | {"validation_P@1": told})


def _try(prepared: Prepared, asked: Asked, lr: float, scale: float) -> float:
    model = _train(prepared, asked, lr, scale, asked.sweep_steps)
    valid = prepared.valid
    assert valid is not None  # a share of the points is held out
    top = _rank(model, prepared, valid, 1)
    return evaluate(top, valid.labels, torch.ones(valid.labels.n_cols), ks=(1,))["P@1"]


def _train(prepared: Prepared, asked: Asked, lr: float, scale: float, steps: int) -> Any:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from sentence_transformers import (  # pyright: ignore[reportMissingImports]
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import (  # pyright: ignore
        losses,
        modules,
    )

    vocabulary = prepared.lexicon.vocabulary
    assert isinstance(vocabulary, Vocabulary)
    rows = random_rows(prepared.tokens, 256, asked.seed)
    tokens = matmul(vocabulary.pieces, rows)  # what a token adds up, as shoal's bag starts
    bag = modules.StaticEmbedding(vocabulary.tokenizer, embedding_weights=tokens.numpy())
    model = SentenceTransformer(modules=[bag], device="cpu")
    texts, names = prepared.train.texts.all(), prepared.lexicon.labels.all()
    labels = prepared.train.labels
    columns = ((texts, labels.row_ids()), (names, labels.indices))
    anchor, positive = ([of[i] for i in ids.tolist()] for of, ids in columns)
    with redirect_stdout(sys.stderr):
        arguments = SentenceTransformerTrainingArguments(
            str(asked.folder / "trainer"),
            max_steps=steps,
            seed=asked.seed,
            per_device_train_batch_size=asked.batch_size,
            learning_rate=lr,
            warmup_steps=50,
            batch_sampler="no_duplicates",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        rows_of_pairs = Dataset.from_dict({"anchor": anchor, "positive": positive})
        loss = losses.MultipleNegativesRankingLoss(model, scale)
        SentenceTransformerTrainer(model, arguments, rows_of_pairs, loss=loss).train()
    return model


def _rank(model: Any, prepared: Prepared, points: Examples, k: int) -> torch.Tensor:
    """The k labels of highest cosine."""
    points_, names = (
        model.encode(texts, batch_size=1024, normalize_embeddings=True, convert_to_tensor=True)
        for texts in (points.texts.all(), prepared.lexicon.labels.all())
    )
    return top_k(points_, names, k, points.drop)[1]
