"""sentence-transformers' own trainer with shoal's batches, masked loss and metrics.

Four lines differ from a script that trains with MultipleNegativesRankingLoss: they are marked. The
data is planted and the model a bag of random token vectors, so that it runs anywhere, in seconds.

    pip install 'torch-shoal[sentence-transformers]'
    python examples/with_sentence_transformers.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset  # pyright: ignore[reportMissingImports]
from sentence_transformers import (  # pyright: ignore[reportMissingImports]
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import (  # pyright: ignore
    StaticEmbedding,
)
from tokenizers import Tokenizer, models, pre_tokenizers

from shoal.core.metrics import inverse_propensity
from shoal.data.texts import Examples
from shoal.integrations.sentence_transformers import (
    MaskedSoftmaxLoss,
    NgameBatches,
    number_pairs,
    xc_evaluator,
)

sys.path.insert(0, str(Path(__file__).parents[1]))  # planted data lies with the tests
from tests.planted import planted_labels


def main() -> None:
    """Train, and print the metrics before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/with-sentence-transformers"))
    asked = parser.parse_args()
    data = planted_labels(n=2000, n_labels=256, noise=0.5)
    names = data.labels.all()
    model = bag_of_words(data.train.texts.all() + names)

    (train,), known = number_pairs(pairs(data.train, names))  # 1: ids, and all known positives
    batches = NgameBatches(train, cluster_size=8)  # 2: batches of hard negatives
    loss = MaskedSoftmaxLoss(model, known)  # 3: MultipleNegativesRankingLoss without false ones
    arguments = SentenceTransformerTrainingArguments(
        str(asked.out),
        num_train_epochs=asked.epochs,
        per_device_train_batch_size=128,
        learning_rate=0.05,
        batch_sampler=batches,  # 2
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    evaluator = xc_evaluator(
        data.test.texts.all(), names, data.test.labels, inverse_propensity(data.train.labels)
    )
    before = evaluator(model)
    SentenceTransformerTrainer(
        model,
        arguments,
        train,
        loss=loss,
        callbacks=[batches.callback()],  # 4: brings the model
    ).train()
    after = evaluator(model)
    for name in ("P@1", "PSP@1", "R@5"):
        print(f"{name:<6} {before[name]:6.2f} -> {after[name]:6.2f}")


def pairs(points: Examples, names: list[str]) -> Any:
    """One row (anchor, positive) for each label of each document."""
    texts, labels = points.texts.all(), points.labels
    return Dataset.from_dict(
        {
            "anchor": [texts[i] for i in labels.row_ids().tolist()],
            "positive": [names[i] for i in labels.indices.tolist()],
        }
    )


def bag_of_words(texts: list[str]) -> Any:
    """A model without attention: the mean of a text's token vectors."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)])


if __name__ == "__main__":
    main()
