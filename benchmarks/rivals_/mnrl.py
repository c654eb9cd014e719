"""sentence-transformers' MultipleNegativesRankingLoss on the same encoder: a bag of shoal's tokens.

A StaticEmbedding over shoal's own words and pieces, from the same first rows, one row a token
wherever it stands: field embeddings are more than this format can say. Its trainer, its batches
without doubles, as many steps of as many pairs as shoal takes points. Learning rate and scale are
the best of a sweep of its own on validation.
"""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
from labels_ import Begun, precision

from rivals_.common import TOP, VALID, Asked, Clock, Outcome, Skipped
from shoal.core.search import top_k
from shoal.core.sparse import matmul
from shoal.data.splits import validation_split
from shoal.data.texts import Examples
from shoal.tasks.labels import Parts
from shoal.text.bag import BagEncoder
from shoal.text.vocabulary import random_rows

# one row per token wherever it stands: rows for fields are more than this format can say
ONE_ROW = Parts(encoder=BagEncoder(fields=False))
OPTIONS = tuple(itertools.product((0.03, 0.1, 0.3), (10.0, 20.0)))


def mnrl(asked: Asked) -> Outcome:
    """Sweep, train, and rank by cosine over all labels."""
    for name in ("sentence_transformers", "datasets", "accelerate"):
        if find_spec(name) is None:
            raise Skipped("no sentence-transformers: pip install 'shoal[sentence-transformers]'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    clock = Clock()
    with clock.stage("tune"):
        learned, held_out = validation_split(asked.data, VALID, 0)
        begun = Begun.of(ONE_ROW, learned, asked.data.labels)
        found = {option: _try(begun, held_out, asked, *option) for option in OPTIONS}
        lr, scale = max(found, key=lambda option: found[option])
    with clock.stage("train"):
        begun = Begun.of(ONE_ROW, asked.data.train, asked.data.labels)
        steps = asked.epochs * -(-len(begun.train) // asked.batch_size)
        model = _train(begun, asked, lr, scale, steps)
    with clock.stage("predict"):
        top = _rank(model, begun, asked.data.test, TOP)
    facts = {"steps": steps, "lr": lr, "scale": scale}
    told = {f"lr {a}, scale {b}": round(p, 2) for (a, b), p in found.items()}
    return Outcome(top, clock, facts | {"validation_P@1": told})


def _try(begun: Begun, held_out: Examples, asked: Asked, lr: float, scale: float) -> float:
    model = _train(begun, asked, lr, scale, asked.sweep_steps)
    return precision(_rank(model, begun, held_out, 1), held_out)


def _train(begun: Begun, asked: Asked, lr: float, scale: float, steps: int) -> Any:
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

    vocabulary = begun.encoder.vocabulary
    rows = random_rows(begun.tokens, 256, asked.seed)
    tokens = matmul(vocabulary.pieces, rows)  # what a token adds up, as shoal's bag starts
    bag = modules.StaticEmbedding(vocabulary.tokenizer, embedding_weights=tokens.numpy())
    model = SentenceTransformer(modules=[bag], device="cpu")
    texts, names = begun.train.texts.all(), begun.labels.all()
    labels = begun.train.labels
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


def _rank(model: Any, begun: Begun, points: Examples, k: int) -> torch.Tensor:
    """The k labels of highest cosine."""
    points_, names = (
        model.encode(texts, batch_size=1024, normalize_embeddings=True, convert_to_tensor=True)
        for texts in (points.texts.all(), begun.labels.all())
    )
    return top_k(points_, names, k, points.drop)[1]
