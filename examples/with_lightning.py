"""Lightning's trainer with shoal's batches: clusters follow the model, epoch by epoch.

A row of the data is a document's number; the collate function samples the shortlist of a batch and
tokenizes both sides. Planted data and a bag of words, so that it runs anywhere, in seconds.

    pip install shoal lightning
    python examples/with_lightning.py
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from shoal import ClusterBatchSampler, Csr, ShortlistSampler, decoupled_softmax, top_k
from shoal.core.metrics import hits, precision_at
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.lightning import refresh_callback
from shoal.text.vocabulary import learn

sys.path.insert(0, str(Path(__file__).parents[1]))  # planted data lies with the tests
from tests.planted import planted_labels

Bags = tuple[Tensor, Tensor]


class Encoder(lightning.LightningModule):
    """The mean of a text's token vectors, for documents and labels alike."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(n_tokens, 64, mode="mean")

    def forward(self, bags: Bags) -> Tensor:
        """Unit vectors of bags (tokens, offsets)."""
        tokens, offsets = bags
        return normalize(self.tokens(tokens, offsets[:-1]), dim=1)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Decoupled softmax over the batch's shortlist."""
        documents, labels, block = batch
        return decoupled_softmax(self(documents) @ self(labels).T, block)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the token vectors."""
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main() -> None:
    """Train, and print P@1 before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = planted_labels(n=2000, n_labels=256, noise=0.5)
    texts, names = data.train.texts.all(), data.labels.all()
    vocabulary = learn(texts + names)
    documents, labels = vocabulary.bags(texts), vocabulary.bags(names)
    torch.manual_seed(0)
    model = Encoder(len(vocabulary))

    def embed(bags: Csr) -> Tensor:
        with torch.no_grad():
            return model(bags.take(torch.arange(bags.n_rows)))

    shortlist, generator = ShortlistSampler(data.train.labels), torch.Generator().manual_seed(0)

    def collate(seeds: list[int]) -> tuple[Bags, Bags, Any]:
        (block,) = shortlist(torch.tensor(seeds), generator)
        return documents.take(block.dst), labels.take(block.src), block

    clusters = ClusterBatchSampler(len(texts), batch_size=128, cluster_size=8, seed=0)
    sampler = NgameBatchSampler(clusters, lambda: embed(documents))
    loader = DataLoader(range(len(texts)), batch_sampler=sampler, collate_fn=collate)  # pyright: ignore
    trainer = lightning.Trainer(
        max_epochs=asked.epochs,
        accelerator="cpu",
        callbacks=[refresh_callback(sampler)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    test = vocabulary.bags(data.test.texts.all())

    def p_at_1() -> float:
        return precision_at(hits(top_k(embed(test), embed(labels), 1)[1], data.test.labels), 1)

    before = p_at_1()
    trainer.fit(model, loader)
    print(f"P@1    {before:6.2f} -> {p_at_1():6.2f}")


if __name__ == "__main__":
    main()
