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

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail
from shoal.core.files import expect_no_pickle, folder_aside
from shoal.core.progress import progress
from shoal.core.state import made
from shoal.data.texts import Texts
from shoal.text.encoder import Exported, encoder_kind
from shoal.text.pretrained import (
    TransformerVocabulary,
    add_lora,
    checkpoint_gradients,
    open_backbone,
    open_vocabulary,
)
from shoal.text.sentence import save_modules, write_json

Pooling = Literal["mean", "cls"]

# texts embedded at a time: what they hold besides their vectors is one piece's activations
_EMBEDDED = 4096
# Padded tokens a piece. On a CPU smaller pieces waste less on padding and stay in the cache; 512
# to 1024 measured best; on an H200 32,768 were up to 1.8 × as fast as 8,192 (docs/LOG.md).
_PIECE = 1024
_PIECE_ON_DEVICE = 32768


class TokenTransformer(nn.Module):
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


class TwoTransformers(nn.Module):
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

    def __init__(self, documents: TokenTransformer, labels: TokenTransformer, offset: int) -> None:
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


@dataclass(frozen=True)
class TransformerEncoder:
    """How to begin a :class:`Transformer`.

    Attributes:
        name: a Hugging Face encoder, by its folder or its name on the hub.
        max_length: tokens of a text that it reads, special ones included.
        pooling: a text's vector is the mean over its tokens, or the first one's state.
        separate_labels: train a second encoder, which begins alike, for labels.
        lora: train low-rank adapters of this rank and leave the weights; None trains all weights.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        lr: peak learning rate; this, AdamW's eps and no weight decay, and the warm-up are those of
            NGAME's published configuration.
        warmup: steps until that rate.
        batch_size: examples per batch where none is asked for: four clusters of 64, for a
            processor; NGAME's 1,600 need a device.
    """

    name: str
    max_length: int = 128
    pooling: Pooling = "mean"
    separate_labels: bool = False
    lora: int | None = None
    gradient_checkpointing: bool = False
    lr: float = 2e-4
    warmup: int = 100
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: if one is out of range.
        """
        expect_positive("max_length", self.max_length)
        if self.lora is not None:
            expect_positive("lora", self.lora)
        good = 0 < self.lr < float("inf")
        expect(good, "lr", "a number above 0", self.lr, "leave it out for the default")

    def begin(
        self, documents: Texts, labels: Texts, *, seed: int, device: str, folder: Path | None
    ) -> tuple[Transformer, Csr]:
        """Read the model's tokenizer and weights; token ids are kept mapped in `folder`.

        Raises:
            InputError: if there is no such model, or it is none that shoal can use.
        """
        vocabulary = open_vocabulary(self.name, self.max_length)
        encoder = begun(self, vocabulary, [open_backbone(self.name)], len(documents), seed, device)
        return encoder, _token_ids(vocabulary, documents, labels, folder)


def _token_ids(
    vocabulary: TransformerVocabulary, documents: Texts, labels: Texts, folder: Path | None
) -> Csr:
    texts = documents.all() + labels.all()
    return vocabulary.bags(texts) if folder is None else vocabulary.mapped(texts, folder)


def begun(
    spec: TransformerEncoder,
    vocabulary: TransformerVocabulary,
    backbones: Sequence[nn.Module],
    n_documents: int,
    seed: int,
    device: str,
) -> Transformer:
    """An encoder around one backbone, or two, as a specification wants it, ready to be trained.

    Args:
        spec: pooling, adapters and the like.
        vocabulary: of the backbones.
        backbones: of documents and labels, or one for both.
        n_documents: texts below this number are documents, where labels have their own encoder.
        seed: of the adapters.
        device: where the module lives.

    Raises:
        InputError: if adapters are asked for and peft is not installed.
    """
    for backbone in backbones:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if spec.lora is not None:
                add_lora(backbone, spec.lora)
        if spec.gradient_checkpointing:
            checkpoint_gradients(backbone)
    own, *others = (TokenTransformer(x, spec.pooling) for x in backbones)
    of_labels, module = own, own
    if spec.separate_labels:
        of_labels = others[0] if others else copy.deepcopy(own)
        module = TwoTransformers(own, of_labels, n_documents)
    module.to(device).train()
    parameters = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr, eps=1e-6, weight_decay=0.0)
    return Transformer(vocabulary, own, of_labels, spec, module, optimizer)


@encoder_kind("transformer")
@dataclass(frozen=True, eq=False)
class Transformer:
    """A tokenizer and a transformer, or two: one for documents and one for labels.

    Attributes:
        vocabulary: tokenizer and configuration.
        own: embeds documents.
        of_labels: embeds labels; the same object where they share it.
        spec: how it was begun.
        module: what is trained.
        optimizer: moves its parameters, while it is trained.
    """

    vocabulary: TransformerVocabulary
    own: TokenTransformer
    of_labels: TokenTransformer
    spec: TransformerEncoder
    module: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    kind = "transformer"
    table = None
    words = None

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.own.dim

    @property
    def n_tokens(self) -> int:
        """Token ids that the tokenizer makes."""
        return self.own.n_tokens

    @property
    def batch_size(self) -> int:
        """As its specification has it."""
        return self.spec.batch_size

    @property
    def warmup(self) -> int:
        """As its specification has it."""
        return self.spec.warmup

    def begin(
        self, documents: Texts, labels: Texts, *, seed: int, device: str, folder: Path | None
    ) -> tuple[Transformer, Csr]:
        """A copy with these weights, adapters added to them, to be trained further."""
        sides = [self.own] if self.own is self.of_labels else [self.own, self.of_labels]
        backbones = [copy.deepcopy(without_adapters(side.backbone)) for side in sides]
        encoder = begun(self.spec, self.vocabulary, backbones, len(documents), seed, device)
        return encoder, _token_ids(self.vocabulary, documents, labels, folder)

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as titles."""
        return Texts.of(texts)

    def known(self, texts: Sequence[str]) -> Csr:
        """Known tokens of each text, without special ones."""
        return self.vocabulary.tokens(texts)

    def documents(self, texts: Texts) -> Csr:
        """Token ids of title and content together."""
        return self.vocabulary.bags(texts.all())

    labels = documents

    def embed(self, tokens: Csr) -> Float[Tensor, "n d"]:
        """Unit vectors of documents."""
        return self.own.embed(tokens)

    def embed_labels(self, tokens: Csr) -> Float[Tensor, "l d"]:
        """Unit vectors of labels."""
        return self.of_labels.embed(tokens)

    def without_fields(self, label_tokens: Csr) -> None:
        """None: a transformer has no field embeddings."""

    def load_trained(self, state: Mapping[str, Any]) -> Transformer:
        """Take up the weights of a checkpoint, and add adapters to the weights that they adapt.

        Raises:
            InputError: if they are those of another model.
        """
        try:
            self.module.load_state_dict(state["model"])
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            fail("checkpoint", "weights of this encoder", reason, "use the run's own")
        sides = [
            TokenTransformer(without_adapters(side.backbone), self.spec.pooling).eval()
            for side in (self.own, self.of_labels)
        ]
        own = sides[0]
        of_labels = own if self.own is self.of_labels else sides[1]
        return Transformer(self.vocabulary, own, of_labels, self.spec, own)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``encoder/``, and ``label_encoder/`` where labels have their own.

        Both are folders of transformers and of sentence-transformers.
        """
        save_transformer(folder / "encoder", self.vocabulary, self.own)
        if self.own is not self.of_labels:
            save_transformer(folder / "label_encoder", self.vocabulary, self.of_labels)
        return {"kind": "transformer", **asdict(self.spec), "name": "encoder", "lora": None}

    @staticmethod
    def open(folder: Path, about: Mapping[str, Any], device: str) -> Transformer:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if a part is missing or damaged.
        """
        expect_no_pickle(folder)
        given = {name: x for name, x in about.items() if name != "kind"}
        spec = made(TransformerEncoder, given, str(folder))
        paths = [folder / name for name in ("encoder", "label_encoder")]
        sides = [
            TokenTransformer(open_backbone(str(path)), spec.pooling).to(device).eval()
            for path in paths
            if path.is_dir()
        ]
        expect(bool(sides), str(paths[0]), "a transformer", "none", "train the model again")
        vocabulary = open_vocabulary(str(paths[0]), spec.max_length)
        return Transformer(vocabulary, sides[0], sides[-1], spec, sides[0])

    def export(self, folder: Path, documents: Texts, labels: Texts) -> list[Exported]:
        """Name the folders that :meth:`save` wrote: they are what others load."""
        names = ["encoder"] if self.own is self.of_labels else ["encoder", "label_encoder"]
        return [Exported(name, "any text") for name in names]


def save_transformer(
    folder: Path, vocabulary: TransformerVocabulary, encoder: TokenTransformer
) -> None:
    """Write a transformer as a Transformer, a Pooling and a Normalize, all of it or nothing.

    Raises:
        InputError: if another process is writing there.
        OSError: if the folder cannot be written to; safetensors has an error of its own for it.
    """
    modules = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    of_tokens = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    pooling = {name: kind == encoder.pooling for kind, name in of_tokens.items()}
    about = {"word_embedding_dimension": encoder.dim} | pooling
    with folder_aside(folder) as new:
        save_modules(new, modules)
        write_json(new / "sentence_bert_config.json", {"max_seq_length": vocabulary.max_length})
        write_json(new / "1_Pooling" / "config.json", about)
        without_adapters(encoder.backbone).save_pretrained(new)
        vocabulary.save(new)


def without_adapters(backbone: nn.Module) -> Any:
    """A backbone whose adapters are added to the weights that they adapt; itself if it has none."""
    adapted = [name for name, part in backbone.named_modules() if hasattr(part, "base_layer")]
    if not adapted:
        return backbone
    backbone = copy.deepcopy(backbone)
    for name in adapted:
        layer: Any = backbone.get_submodule(name)
        layer.merge()
        backbone.set_submodule(name, layer.base_layer)
    return backbone


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
