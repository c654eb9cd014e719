"""A trained labeler: text in, labels with scores out.

Texts become rows of token ids by a vocabulary and unit vectors by an encoder; a label's score is
the cosine of the two vectors. The folder that :meth:`Lexicon.save` writes holds all that training
does not change; what it changes, rows of a bag or weights of a transformer, comes from a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from shoal.core import checkpoint
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_file, expect_folder, expect_positive, fail
from shoal.core.progress import progress
from shoal.core.search import Search, top_k
from shoal.core.sparse import matmul
from shoal.data.formats.xc import read_texts, write_texts
from shoal.data.texts import Texts
from shoal.text.pretrained import TransformerVocabulary, open_vocabulary
from shoal.text.roles import RoleVocabulary
from shoal.text.vocabulary import Vocabulary

# bags embedded at a time: the sums of a chunk stay in the cache until they are normalized
_CHUNK = 8192


def embed(bags: Csr, rows: Float[Tensor, "v d"]) -> Float[Tensor, "n d"]:
    """Unit vectors of bags, the normalized sums of their rows, without a gradient.

    Computed where `rows` are; bags travel there a chunk at a time.

    Example:
        >>> bags = Csr.from_lists([[0, 1], []], n_cols=2)
        >>> embed(bags, torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist()
        [[0.6000..., 0.8000...], [0.0, 0.0]]
    """
    out = torch.empty(bags.n_rows, rows.shape[1], dtype=rows.dtype, device=rows.device)
    with torch.no_grad():
        chunks = torch.arange(bags.n_rows).split(_CHUNK)
        for ids, part in zip(progress(chunks, "encode"), out.split(_CHUNK), strict=True):
            functional.normalize(matmul(bags.rows(ids).to(rows.device), rows), dim=1, out=part)
    return out


@runtime_checkable
class Encoder(Protocol):
    """What turns token ids into unit vectors, without a gradient."""

    @property
    def n_tokens(self) -> int:
        """Token ids that it knows."""
        ...

    def embed(self, bags: Csr) -> Float[Tensor, "n d"]:
        """Unit vectors of rows of token ids, on the encoder's device."""
        ...


@dataclass(frozen=True, eq=False)
class BagRows:
    """The rows of a trained bag as an :class:`Encoder`.

    Attributes:
        rows: ``[v, d]``, one a token or piece.
    """

    rows: Float[Tensor, "v d"]

    def __post_init__(self) -> None:
        """Check that there are rows.

        Raises:
            InputError: if it is not a matrix.
        """
        good = self.rows.dim() == 2
        expect(good, "rows", "[v, d], one a token", tuple(self.rows.shape), "use a run's own")

    @property
    def n_tokens(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def embed(self, bags: Csr) -> Float[Tensor, "n d"]:
        """:func:`embed` with these rows; zero where a text has none."""
        return embed(bags, self.rows)


@dataclass(frozen=True, eq=False)
class Lexicon:
    """What a labeler needs besides its encoder: the vocabulary, and the labels in two forms.

    Attributes:
        vocabulary: turns texts into rows of token ids: bags, or the sequences of a transformer.
        labels: the label texts.
        label_bags: their token ids, one row a label.
    """

    vocabulary: Vocabulary | RoleVocabulary | TransformerVocabulary
    labels: Texts
    label_bags: Csr

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if there is not one bag a label, over the vocabulary's rows.
        """
        shape, got = (len(self.labels), len(self.vocabulary)), self.label_bags.shape
        expect(got == shape, "label_bags", f"a Csr of {shape}", got, "take all parts from one run")

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as documents: titles, or what the roles of their words make them."""
        vocabulary = self.vocabulary
        return vocabulary.read(texts) if isinstance(vocabulary, RoleVocabulary) else Texts.of(texts)

    def save(self, folder: str | Path) -> None:
        """Write the labels, the vocabulary and, as ``matrices.safetensors``, what is of numbers.

        A bag's vocabulary is ``tokenizer.json``, a transformer's the folder ``encoder`` with
        configuration and tokenizer as transformers writes them. The matrices are those of the
        labels' token ids, of a bag's pieces and, with roles, of what was seen in them.

        Raises:
            InputError: if the folder cannot be written to.
        """
        folder, vocabulary = Path(folder), self.vocabulary
        matrices: dict[str, Any] = {"label_bags": self.label_bags.state_dict()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(vocabulary, TransformerVocabulary):
                vocabulary.save(folder / "encoder")
            else:
                words = vocabulary
                if isinstance(vocabulary, RoleVocabulary):
                    words, matrices["roles"] = vocabulary.words, vocabulary.state_dict()
                assert isinstance(words, Vocabulary)
                matrices["pieces"] = words.pieces.state_dict()
                (folder / "tokenizer.json").write_text(words.save(), encoding="utf-8")
        except OSError as error:
            fail(str(folder), "a folder to write to", error, "free space on the disk")
        checkpoint.save(folder / "matrices.safetensors", matrices)
        write_texts(self.labels, folder / "labels.json.gz")

    @staticmethod
    def open(folder: str | Path) -> Lexicon:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if a part is missing or damaged.
        """
        folder = expect_folder(folder, "a lexicon, as runs on labels have one")
        labels = read_texts(folder / "labels.json.gz")
        path = folder / "matrices.safetensors"
        state = checkpoint.load(path)
        try:
            of_transformer = (folder / "encoder").is_dir()
            vocabulary = (
                open_vocabulary(str(folder / "encoder"))
                if of_transformer
                else _of_bag(folder, state)
            )
            return Lexicon(vocabulary, labels, Csr.of_state(state["label_bags"]))
        except (KeyError, TypeError, AttributeError) as error:
            fail(str(path), "the matrices of a lexicon", repr(error), "train the model again")


def _of_bag(folder: Path, state: dict[str, Any]) -> Vocabulary | RoleVocabulary:
    path = expect_file(folder / "tokenizer.json", "a tokenizer")
    try:
        tokenizer = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(str(path), "the JSON of a tokenizer", error, "train the model again")
    words = Vocabulary.load(tokenizer, Csr.of_state(state["pieces"]))
    return RoleVocabulary(words, **state["roles"]) if "roles" in state else words


@dataclass(frozen=True)
class Prediction:
    """One predicted label.

    Attributes:
        label: its position among the labels.
        uid: the data's name for it.
        title: its short text.
        score: the probability that it is true, of a fused labeler; else the cosine, -1 … 1, or
            the classifier's inner product.
    """

    label: int
    uid: str
    title: str
    score: float


@dataclass(frozen=True, eq=False)
class Labeler:
    """A lexicon and a trained encoder.

    Attributes:
        lexicon: vocabulary and labels.
        encoder: embeds texts.
        label_encoder: embeds labels; None where they share the encoder of texts.
        classifiers: what ranks labels in place of their embeddings, on the encoder's device; None
            without a head (:mod:`shoal.rank.head`).
        search: finds the nearest labels, by default exactly.
    """

    lexicon: Lexicon
    encoder: Encoder
    label_encoder: Encoder | None = None
    classifiers: Float[Tensor, "l d"] | None = field(default=None, kw_only=True)
    search: Search = field(default=top_k, kw_only=True)

    def __post_init__(self) -> None:
        """Check that the encoders know the vocabulary's token ids.

        Raises:
            InputError: if they are those of another vocabulary.
        """
        size = len(self.lexicon.vocabulary)
        for encoder in (self.encoder, self.label_encoder or self.encoder):
            got = encoder.n_tokens
            expect(got == size, "encoder", f"one of {size} tokens", got, "use the run's own")

    @cached_property
    def label_embeddings(self) -> Float[Tensor, "l d"]:
        """Unit vectors of all labels."""
        return (self.label_encoder or self.encoder).embed(self.lexicon.label_bags)

    @cached_property
    def plain(self) -> Labeler | None:
        """The labeler that is left without the rows of roles; None where there are none."""
        vocabulary, encoder = self.lexicon.vocabulary, self.encoder
        if not isinstance(vocabulary, RoleVocabulary) or not isinstance(encoder, BagRows):
            return None
        words, bags = vocabulary.words, vocabulary.without_roles(self.lexicon.label_bags)
        rows = BagRows(encoder.rows[: len(words)])
        return Labeler(Lexicon(words, self.lexicon.labels, bags), rows, search=self.search)

    def encode(self, texts: Texts) -> Float[Tensor, "n d"]:
        """Unit vectors of texts; a bag of which no piece is known is zero."""
        return self.encoder.embed(self.lexicon.vocabulary.documents(texts))

    def rank(
        self, texts: Texts, k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The k best labels of each text: scores, and ids (-1 where there are too few).

        Args:
            texts: any number.
            k: at most the number of labels.
            drop: (text, label) pairs that may not be predicted.

        Raises:
            InputError: if k is out of range.
        """
        expect_positive("k", k)
        embedded = self.encode(texts)
        drop = None if drop is None else drop.to(embedded.device)
        keys = self.label_embeddings if self.classifiers is None else self.classifiers
        return self.search(embedded, keys, k, drop)

    def predict(self, texts: Sequence[str], k: int = 5) -> list[list[Prediction]]:
        """The k best labels of each text, by name.

        Raises:
            InputError: if k is out of range.
        """
        return named(self.lexicon.labels, *self.rank(self.lexicon.read(texts), k))


def named(
    labels: Texts, scores: Float[Tensor, "n k"], ids: Int[Tensor, "n k"]
) -> list[list[Prediction]]:
    """Ranked ids as predictions with names; -1 stands for none."""
    return [
        [
            Prediction(i, labels.uids[i], labels.titles[i], score)
            for i, score in zip(row_ids, row_scores, strict=True)
            if i >= 0
        ]
        for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
    ]
