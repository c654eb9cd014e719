"""Hugging Face's Trainer with shoal's batches: a tiny random BERT learns documents and labels.

A row of the data is a document's number; the collate function samples the shortlist of a batch and
tokenizes both sides. Planted data and random weights, so that it runs anywhere, in seconds.

    pip install 'torch-shoal[text]' accelerate
    python examples/with_transformers.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import (  # pyright: ignore[reportMissingImports]
    BertConfig,
    BertModel,
    Trainer,
    TrainingArguments,
)

from shoal import ClusterBatchSampler, ShortlistSampler, decoupled_softmax, top_k
from shoal.core.block import Block
from shoal.core.metrics import hits, precision_at
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.transformers import refresh_callback

sys.path.insert(0, str(Path(__file__).parents[1]))  # planted data lies with the tests
from tests.planted import planted_labels

WIDTH = 32


class Encoder(nn.Module):
    """One BERT layer, its outputs averaged over the words of a text."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=n_words + 1,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * WIDTH,
            hidden_dropout_prob=0.0,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def embed(self, words: Tensor) -> Tensor:
        """Unit vectors of texts ``[n, m]``; word 0 is padding."""
        mask = (words > 0).long()
        out = self.bert(input_ids=words, attention_mask=mask).last_hidden_state
        return normalize((out * mask.unsqueeze(2)).sum(1), dim=1)

    def forward(self, documents: Tensor, labels: Tensor, block: Block) -> dict[str, Tensor]:
        """Decoupled softmax over the batch's shortlist."""
        scores = self.embed(documents) @ self.embed(labels).T
        return {"loss": decoupled_softmax(scores, block.to(scores.device))}


class NgameTrainer(Trainer):
    """The Trainer, with our batch sampler in its training loader."""

    sampler: NgameBatchSampler

    def get_train_dataloader(self) -> DataLoader:
        """Batches as the sampler groups them."""
        loader = DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)


def main() -> None:
    """Train, and print P@1 before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/with-transformers"))
    asked = parser.parse_args()
    data = planted_labels(n=1000, n_labels=128, noise=0.5)
    texts, names = data.train.texts.all(), data.labels.all()
    known = {
        word: i for i, word in enumerate(sorted({w for t in texts + names for w in t.split()}))
    }

    def words(texts: list[str]) -> Tensor:
        rows = [[1 + known[word] for word in text.split() if word in known] for text in texts]
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)

    torch.manual_seed(0)
    model, documents, labels = Encoder(len(known)), words(texts), words(names)
    shortlist, generator = ShortlistSampler(data.train.labels), torch.Generator().manual_seed(0)

    def collate(seeds: list[int]) -> dict[str, Any]:
        (block,) = shortlist(torch.tensor(seeds), generator)
        return {"documents": documents[block.dst], "labels": labels[block.src], "block": block}

    def embed(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model.embed(part) for part in rows.to(device(model)).split(256)])

    clusters = ClusterBatchSampler(len(texts), batch_size=64, cluster_size=8, seed=0)
    sampler = NgameBatchSampler(clusters, lambda: embed(documents))
    arguments = TrainingArguments(
        str(asked.out),
        num_train_epochs=asked.epochs,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = NgameTrainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=range(len(texts)),  # pyright: ignore[reportArgumentType]
        callbacks=[refresh_callback(sampler)],
    )
    trainer.sampler = sampler
    test = words(data.test.texts.all())

    def p_at_1() -> float:
        top = top_k(embed(test), embed(labels), 1)[1].cpu()
        return precision_at(hits(top, data.test.labels), 1)

    before = p_at_1()
    trainer.train()
    print(f"P@1    {before:6.2f} -> {p_at_1():6.2f}")


def device(model: nn.Module) -> torch.device:
    """Where a model lives."""
    return next(model.parameters()).device


if __name__ == "__main__":
    main()
