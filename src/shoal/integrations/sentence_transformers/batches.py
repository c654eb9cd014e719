"""Hard batches for sentence-transformers' trainer, through its ``batch_sampler`` argument.

:class:`NgameBatches` is a callable that the trainer asks for batch samplers: for the data set that
it was made of it gives one that clusters the anchors (NGAME, section 4.2: Dahiya et al., WSDM
2023), one row an anchor an epoch; for any other, such as the one for evaluation, it gives what the
trainer would have used. The model, which the trainer does not hand to samplers, comes by the
callback that it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.integrations.batches import NgameBatchSampler
from shoal.integrations.sentence_transformers.pairs import ids_of, texts_of
from shoal.integrations.transformers import callback_of
from shoal.sample.seeds import ClusterBatchSampler, EmbeddingBank

Embed = Callable[[Any, list[str]], Tensor]
"""(model, texts) -> one row a text."""


def encode(
    model: Any,
    texts: list[str],
    batch_size: int = 256,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n d"]:
    """Embed texts with a SentenceTransformer and leave its mode as it was.

    Args:
        model: a SentenceTransformer.
        texts: what to embed.
        batch_size: texts a forward pass.
        dtype: compute and keep rows in it (``torch.float16``, ``torch.bfloat16``); as the model
            does by default.
    """
    mode, kind = model.training, model.device.type
    try:
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            rows = model.encode(
                texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
            )
    finally:
        model.train(mode)
    return rows if dtype is None else rows.to(dtype)


class NgameBatches:
    """What ``batch_sampler`` of the training arguments takes, for one training set.

    Pickled, as the trainer does with its arguments, it leaves data, clusters and model behind.

    Args:
        dataset: the training set with ids, from
            :func:`~shoal.integrations.sentence_transformers.number_pairs`; the very object that the
            trainer gets.
        cluster_size: anchors a cluster, or a curriculum of (epoch, size) pairs; sizes must divide
            the batch size. 64 was the best of ``shoal train`` on WordNet.
        embed: how to embed the anchors where clusters are due: a function of (model, texts), such
            as ``functools.partial(encode, dtype=torch.float16)``; or a bank that the loss fills,
            which costs no forward pass.
        warm_epochs: epochs of random batches before the first clustering.
        refresh_every: epochs between two clusterings.

    Raises:
        InputError: if the data set has no ids or not those of a training set.
    """

    def __init__(
        self,
        dataset: Any,
        cluster_size: int | Sequence[tuple[int, int]] = 64,
        embed: Embed | EmbeddingBank = encode,
        *,
        warm_epochs: int = 1,
        refresh_every: int = 1,
    ) -> None:
        documents = ids_of(dataset)[:, 0]
        n = int(documents.max()) + 1
        self.rows = Csr.from_coo(documents, torch.arange(len(dataset)), (n, len(dataset)))
        every = bool((self.rows.degrees() > 0).all())
        remedy = "number the training set first"
        expect(every, "dataset", "document ids from 0 without a gap", "a gap", remedy)
        if isinstance(embed, EmbeddingBank):
            expect(len(embed.rows) == n, "embed", f"a bank of {n} rows", len(embed.rows), "make it")
        self.dataset, self.cluster_size, self.embed = dataset, cluster_size, embed
        self.warm_epochs, self.refresh_every = warm_epochs, refresh_every
        self.model: Any = None
        self.sampler: NgameBatchSampler | None = None

    def __call__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Any:
        """Give the trainer a batch sampler: ours for our data set, its default for any other.

        Raises:
            InputError: if the batch size fits neither the data set nor the clusters.
        """
        if dataset is not self.dataset:
            from sentence_transformers.base.sampler import DefaultBatchSampler  # pyright: ignore
            from torch.utils.data import RandomSampler

            order: Any = RandomSampler(dataset, generator=generator)
            return DefaultBatchSampler(
                order, batch_size, drop_last, valid_label_columns, generator, seed
            )
        n, size = self.rows.n_rows, self.cluster_size
        self.sampler = NgameBatchSampler(
            ClusterBatchSampler(n, batch_size, size, seed, drop_last),
            self.embed
            if isinstance(self.embed, EmbeddingBank)
            else partial(self._embed, self.embed),
            self.rows,
            warm_epochs=self.warm_epochs,
            refresh_every=self.refresh_every,
        )
        return self.sampler

    def callback(self) -> Any:
        """Make the ``TrainerCallback`` that brings the model, and keeps clusters in checkpoints.

        See :func:`shoal.integrations.transformers.refresh_callback`.
        """
        return callback_of(self._meet)

    def _meet(self, model: Any) -> NgameBatchSampler:
        """Hold the model; give the sampler of the trainer's loader."""
        self.model = model
        if self.sampler is None:
            fail("train_dataset", "the data set of NgameBatches", "another", "pass the same object")
        return self.sampler

    def _embed(self, embed: Embed) -> Tensor:
        if self.model is None:
            fail("callbacks", "that of NgameBatches", "none", "add batches.callback()")
        first = self.rows.indices[self.rows.indptr[:-1]]
        return embed(self.model, texts_of(self.dataset, first.tolist()))

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: the trainer pickles its arguments into every checkpoint."""
        kept = ("cluster_size", "warm_epochs", "refresh_every")
        return {name: getattr(self, name) for name in kept}
