"""Losses over in-batch negatives that are not positives, for sentence-transformers' trainer.

A batch of b rows (anchor, positive) with ids [document, label] is a block: its documents are the
points, its distinct labels the shortlist, and the known positives between the two are marked: an
induced hop over their matrix, as :class:`shoal.sample.expand.ShortlistSampler` makes it. So a label
that another row brings is a negative of a document only if it is none of its positives, and a label
that stands in several rows counts once. The scores are cosines; the mathematics is that of
:mod:`shoal.core.losses`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.core.losses import decoupled_softmax, hardest_triplets
from shoal.integrations.sentence_transformers.pairs import expect_pairs
from shoal.sample.expand import expand
from shoal.sample.seeds import EmbeddingBank


def shortlist(known: Csr, ids: Int[Tensor, "b 2"]) -> tuple[Block, Int[Tensor, " s"]]:
    """The block of a batch, and for each label of its shortlist the row that brings it first.

    Args:
        known: all known positives, documents x labels.
        ids: [document, label] of each row.

    Raises:
        InputError: if an id is out of range, or a row's own pair is not a known positive.

    Example:
        Rows 0 and 2 bring label 5; document 1 also has label 4, which row 1 brings.

        >>> known = Csr.from_lists([[5], [4, 5], [4]], n_cols=6)
        >>> block, first = shortlist(known, torch.tensor([[0, 5], [2, 4], [1, 5]]))
        >>> block.src.tolist(), first.tolist(), block.mask().int().tolist()
        ([5, 4], [0, 1], [[1, 0], [0, 1], [1, 1]])
    """
    documents, labels = ids.cpu().unbind(1)
    block = expand(known, documents, 0, torch.Generator(), induced=True, extra=labels)
    distinct, place = labels.unique(return_inverse=True)
    first = torch.full_like(distinct, len(labels))
    first = first.scatter_reduce(0, place, torch.arange(len(labels)), "amin").sort().values
    own = block.mask() & (block.src == labels.unsqueeze(1))
    remedy = "pass the matrix that number_pairs returned with this data set"
    expect(bool(own.any(1).all()), "known", "the pair of every row", "a pair it lacks", remedy)
    return block, first


class _ShortlistLoss(nn.Module, ABC):
    """Embed two columns, score documents against the shortlist, fill the bank if there is one."""

    def __init__(self, model: Any, known: Csr, bank: EmbeddingBank | None) -> None:
        super().__init__()
        width = getattr(model, "get_embedding_dimension", lambda: None)()
        if bank is not None and width is not None:
            got = bank.rows.shape[1]
            want, remedy = f"a bank of the model's width {width}", f"use EmbeddingBank(n, {width})"
            expect(got == width, "bank", want, got, remedy)
        self.model, self.known, self.bank = model, known, bank

    @abstractmethod
    def from_scores(self, scores: Float[Tensor, "b s"], block: Block) -> Float[Tensor, ""]:
        """The loss of a block's scores."""

    @abstractmethod
    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None
    ) -> Float[Tensor, ""]:
        """Embed the columns of a batch and give its loss."""
        columns = [self.model(column)["sentence_embedding"] for column in sentence_features]
        return self.from_embeddings(columns, labels, learning=torch.is_grad_enabled())

    def from_embeddings(
        self, columns: list[Tensor], labels: Tensor | None, learning: bool
    ) -> Float[Tensor, ""]:
        """The loss of a batch's embeddings.

        Args:
            columns: embeddings ``[b, d]`` of anchors and positives.
            labels: [document id, label id] of each row.
            learning: this is a training step, whose embeddings the bank keeps, at full width:
                MatryoshkaLoss passes the same batch by narrower ones too.

        Raises:
            InputError: if there are not two columns, or the ids are not those of the known pairs.
        """
        count = len(columns)
        expect(count == 2, "columns", "two, (anchor, positive)", count, "drop the others")
        ids = expect_pairs("label", labels)
        block, first = shortlist(self.known, ids)
        whole = self.bank is not None and columns[0].shape[1] == self.bank.rows.shape[1]
        if learning and self.bank is not None and whole:
            self.bank.write(block.dst, columns[0])
        anchors, positives = (normalize(column.float(), dim=1) for column in columns)
        scores = anchors @ positives[first.to(positives.device)].T
        return self.from_scores(scores, block.to(scores.device))


class MaskedSoftmaxLoss(_ShortlistLoss):
    """MultipleNegativesRankingLoss without false negatives, over all positives in the batch.

    :func:`shoal.core.losses.decoupled_softmax` of cosines. Where no document has two known
    positives in a batch, and no label stands twice, it equals ``MultipleNegativesRankingLoss(model,
    scale)``.

    Args:
        model: the SentenceTransformer that is trained.
        known: all known positives, from
            :func:`~shoal.integrations.sentence_transformers.number_pairs`.
        scale: factor of the cosines, 1 / temperature; 20 as in MultipleNegativesRankingLoss.
        bank: keeps the anchors' embeddings for the next clustering.

    Raises:
        InputError: if the scale is not positive.
    """

    def __init__(
        self, model: Any, known: Csr, scale: float = 20.0, bank: EmbeddingBank | None = None
    ) -> None:
        super().__init__(model, known, bank)
        expect(scale > 0, "scale", "a number above 0", scale, "try 20")
        self.scale = scale

    def from_scores(self, scores: Float[Tensor, "b s"], block: Block) -> Float[Tensor, ""]:
        """Decoupled softmax at temperature 1 / scale."""
        return decoupled_softmax(scores, block, temperature=1 / self.scale)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"scale": self.scale}


class HardestTripletsLoss(_ShortlistLoss):
    """NGAME's triplets: each positive against the hardest in-batch negatives.

    :func:`shoal.core.losses.hardest_triplets` of cosines.

    Args:
        model: the SentenceTransformer that is trained.
        known: all known positives, from
            :func:`~shoal.integrations.sentence_transformers.number_pairs`.
        margin: 0.3 as in NGAME's published configuration.
        k: negatives a document; 10 as there.
        bank: keeps the anchors' embeddings for the next clustering.

    Raises:
        InputError: if k is less than one.
    """

    def __init__(
        self,
        model: Any,
        known: Csr,
        margin: float = 0.3,
        k: int = 10,
        bank: EmbeddingBank | None = None,
    ) -> None:
        super().__init__(model, known, bank)
        expect_positive("k", k)
        self.margin, self.k = margin, k

    def from_scores(self, scores: Float[Tensor, "b s"], block: Block) -> Float[Tensor, ""]:
        """Weighted hinges of the k hardest negatives."""
        return hardest_triplets(scores, block, self.margin, self.k)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"margin": self.margin, "k": self.k}


def cached(loss: _ShortlistLoss, mini_batch_size: int = 32) -> nn.Module:
    """The same loss and gradient in the memory of `mini_batch_size` rows at a time.

    Gradient caching (Gao et al., "Scaling deep contrastive learning batch size under memory limited
    setup", RepL4NLP 2021) by sentence-transformers' own machinery: embed without gradients, take
    the loss to the embeddings, embed again a mini-batch at a time with the same random state.

    Args:
        loss: one of the losses above.
        mini_batch_size: rows a forward pass; 32 as in CachedMultipleNegativesRankingLoss.

    Raises:
        InputError: if `mini_batch_size` is less than one, or the model is a bag of token vectors,
            whose inputs cannot be cut into rows.
    """
    from sentence_transformers.base.losses.gradcache import (  # pyright: ignore
        CachedLossMixin,
        has_static_embedding_input,
    )

    expect_positive("mini_batch_size", mini_batch_size)
    bag = has_static_embedding_input(loss.model)
    expect(not bag, "loss", "a transformer model", "a StaticEmbedding", "use the loss as it is")

    class Cached(CachedLossMixin, nn.Module):
        """Gradient caching around a loss of embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.inner = loss.model, loss
            self.mini_batch_size = mini_batch_size

        def forward(self, sentence_features: Any, labels: Tensor | None) -> Tensor:
            return self.forward_cached(sentence_features, labels)

        def calculate_loss(
            self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward=False
        ) -> Tensor:
            columns = [torch.cat(column) for column in reps]
            value = self.inner.from_embeddings(columns, labels, learning=with_backward)
            if with_backward:
                value.backward()
            return value.detach()

        def get_config_dict(self) -> dict[str, Any]:
            return {**loss.get_config_dict(), "mini_batch_size": mini_batch_size}

    return Cached()
