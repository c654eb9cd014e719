"""Any Hugging Face encoder as a model of blocks: tokens in, unit vectors out.

A text is a row of a :class:`~shoal.core.csr.Csr` of token ids, special tokens included; a
:class:`~shoal.sample.expand.Hop` over it gives a block, and the token ids of the block's rows are
``block.src[block.indices]`` between ``block.indptr``. With hidden states h of a text's t tokens,

    vector = pooled / |pooled|,   pooled = (1/t) Σ_i h_i  (mean)  or  h_1  (cls),

mean pooling as in Sentence-BERT (Reimers and Gurevych, EMNLP 2019, section 3), special tokens
counted. Texts are sorted by length and padded only to the longest of a piece, so a batch of long
documents and short labels costs about its real tokens.

Attention is torch's choice; its fused kernels have no second derivative, so curvature needs
``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.progress import progress

Pooling = Literal["mean", "cls"]

# texts embedded at a time: what they hold besides their vectors is one piece's activations
_EMBEDDED = 4096
# Padded tokens a piece. On a CPU smaller pieces waste less on padding and stay in the cache; 512
# to 1024 measured best; on an H200 32,768 were up to 1.8 × as fast as 8,192 (docs/LOG.md).
_PIECE = 1024
_PIECE_ON_DEVICE = 32768


class TransformerEncoder(nn.Module):
    """Unit vectors of token rows by a transformer.

    Args:
        backbone: a Hugging Face encoder: called with ``input_ids`` and ``attention_mask``, returns
            ``last_hidden_state``.
        pooling: the mean over a text's tokens, or its first token's state.

    Attributes:
        backbone: as given; its parameters are all that is trained.
        pooling: as given.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.pooling = pooling

    @property
    def n_tokens(self) -> int:
        """Token ids that the backbone has rows for."""
        return self.backbone.config.vocab_size

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.backbone.config.hidden_size

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s w"]) -> Float[Tensor, "b d"]:
        """Embed the `dst` of the first block from their token ids; rows have width 0."""
        return self.vectors(tokens_of(blocks[0], self.n_tokens))

    def vectors(self, tokens: Csr) -> Float[Tensor, "n d"]:
        """Unit vectors of rows of token ids, in pieces of like lengths; the graph is kept."""
        lengths, order = tokens.degrees().sort(stable=True)
        budget = _PIECE if tokens.device.type == "cpu" else _PIECE_ON_DEVICE
        sizes = _piece_sizes(lengths.tolist(), budget)
        parts = [self._padded(tokens.rows(ids)) for ids in order.split(sizes)]
        return torch.cat(parts)[order.argsort()]

    def embed(self, bags: Csr) -> Float[Tensor, "n d"]:
        """Unit vectors without a gradient and without dropout; the mode stays as it was.

        Computed where the backbone is; rows of token ids travel there a chunk at a time.
        """
        device, training = self.backbone.device, self.training
        out = torch.empty(bags.n_rows, self.dim, device=device)
        if bags.n_rows == 0:
            return out
        self.eval()
        try:
            with torch.no_grad():
                chunks = bags.degrees().argsort(stable=True).split(_EMBEDDED)
                for ids in progress(chunks, "encode"):
                    out[ids.to(device)] = self.vectors(bags.rows(ids).to(device))
        finally:
            self.train(training)
        return out

    def _padded(self, tokens: Csr) -> Tensor:
        padding = self.backbone.config.pad_token_id or 0
        ids, mask = padded(tokens, padding)
        states = self.backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = states[:, 0]
        if self.pooling == "mean":
            pooled = (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(pooled.float(), dim=1)


class TwoEncoders(nn.Module):
    """An encoder for documents and another for labels.

    Args:
        documents: embeds `dst` below `offset`.
        labels: embeds the others.
        offset: how many documents there are.

    Attributes:
        documents: as given.
        labels: as given.
        offset: as given.
    """

    def __init__(
        self, documents: TransformerEncoder, labels: TransformerEncoder, offset: int
    ) -> None:
        super().__init__()
        self.documents, self.labels, self.offset = documents, labels, offset

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s w"]) -> Float[Tensor, "b d"]:
        """Embed each `dst` of the first block by the encoder of its side."""
        tokens = tokens_of(blocks[0], self.documents.n_tokens)
        is_label = blocks[0].dst >= self.offset
        sides = [(self.documents, ~is_label), (self.labels, is_label)]
        parts = [(encoder, side.nonzero().flatten()) for encoder, side in sides if bool(side.any())]
        vectors = torch.cat([encoder.vectors(tokens.rows(ids)) for encoder, ids in parts])
        return vectors[torch.cat([ids for _, ids in parts]).argsort()]


def tokens_of(block: Block, n_tokens: int) -> Csr:
    """The token ids of a block's `dst`, in order.

    Example:
        >>> ids, at = torch.tensor([5, 9]), torch.tensor([1, 0, 1])
        >>> tokens_of(Block(ids[:1], ids, torch.tensor([0, 3]), at, at), 10).indices.tolist()
        [9, 5, 9]
    """
    return Csr(block.indptr, block.src[block.indices], n_tokens)


def padded(tokens: Csr, padding: int) -> tuple[Int[Tensor, "n t"], Bool[Tensor, "n t"]]:
    """Rows of token ids as a matrix, and which of its cells are tokens.

    A row without any token counts its first cell, `padding`, as one, so that attention has
    something to look at.

    Example:
        >>> ids, mask = padded(Csr.from_lists([[7], [8, 9]], n_cols=10), padding=0)
        >>> ids.tolist(), mask.tolist()
        ([[7, 0], [8, 9]], [[True, False], [True, True]])
    """
    lengths = tokens.degrees()
    cells = torch.arange(max(int(lengths.max()), 1), device=tokens.device)
    mask = cells < lengths.unsqueeze(1)
    ids = torch.full(mask.shape, padding, device=tokens.device)
    ids[mask] = tokens.indices.long()
    mask[:, 0] = True
    return ids, mask


def _piece_sizes(lengths: list[int], budget: int) -> list[int]:
    """Cut rising lengths into pieces of at most `budget` padded tokens, or of one text."""
    sizes, size = [], 0
    for length in lengths:
        if size and (size + 1) * length > budget:
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size]
