"""The bag encoder: a text's vector is the normalized sum of the rows of its words and pieces.

The rows are those of a trainable table, so a batch reads and moves only the rows of its own texts,
and a text costs a few additions. What the order of words says is lost; which field a word stands in
is not (:mod:`shoal.text.fields`). Examples that have features in place of a text are bags whose
entries have weights (:mod:`shoal.text.features`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from shoal.core import checkpoint
from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail, naming
from shoal.core.progress import progress
from shoal.core.sparse import matmul, unit
from shoal.core.state import floats, made, part
from shoal.data.texts import Texts
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam, RowOptimizer
from shoal.text.encoder import Exported, encoder_kind
from shoal.text.features import FeatureColumns
from shoal.text.fields import FIELDS, FieldVocabulary
from shoal.text.sentence import LONG, mixed_vectors, save_bag, token_vectors
from shoal.text.vocabulary import Vocabulary, learn

AnyVocabulary = Vocabulary | FieldVocabulary | FeatureColumns
# bags embedded at a time: the sums of a chunk stay in the cache until they are normalized
_CHUNK = 8192
# texts on which the distance of an export's vectors from shoal's is measured
_SAMPLE = 1000


class BagSum(nn.Module):
    """Unit vectors of bags: the normalized sum of the rows of a text's pieces.

    It has no parameters of its own: the rows are those of a table and arrive with the batch. The
    sum and the mean have the same direction; a text without pieces stays the zero vector.

    Args:
        weights: of the entries of the matrix whose rows are the bags; None where each is one.

    Example:
        >>> ids = torch.tensor([0, 1])
        >>> bags = Block(ids[:1], ids, torch.tensor([0, 2]), ids, ids)
        >>> BagSum()([bags], torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist()
        [[0.6000..., 0.8000...]]
    """

    weights: Tensor | None

    def __init__(self, weights: Float[Tensor, " e"] | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)  # part of the data

    def forward(self, blocks: Sequence[Block], rows: Float[Tensor, "s d"]) -> Float[Tensor, "b d"]:
        """Embed the `dst` of the first block from the rows of its `src`."""
        hop = blocks[0]
        if self.weights is not None:
            return unit(matmul(hop.csr.with_values(self.weights[hop.edges]), rows))
        back = hop.back if rows.requires_grad or torch.is_grad_enabled() else None
        return unit(matmul(hop.csr, rows, back))


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


@dataclass(frozen=True)
class BagEncoder:
    """How to begin a :class:`Bag`; the defaults are by WordNet's validation split (docs/LOG.md).

    Attributes:
        dim: width of the vectors.
        fields: keep separate rows for a word in the title, the opening and the rest of a document
            or a label, beside the word's own row.
        lr: peak learning rate of the rows.
        warmup: steps until that rate.
        batch_size: examples per batch where none is asked for.
        optimizer: makes the row optimizer from ``lr=``, such as :class:`shoal.RowAdagrad`.
    """

    dim: int = 256
    fields: bool = True
    lr: float = 0.1
    warmup: int = 50
    batch_size: int = 1024
    optimizer: Callable[..., RowOptimizer] = RowAdam

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: if one is out of range.
        """
        expect_positive("dim", self.dim)
        good = 0 < self.lr < float("inf")
        expect(good, "lr", "a number above 0", self.lr, "leave it out for the default")

    def begin(
        self, documents: Texts, labels: Texts, *, seed: int, device: str, folder: Path | None
    ) -> tuple[Bag, Csr]:
        """Learn words and pieces from the texts; rows begin as random directions times idf.

        Of features in place of texts the columns are learned.

        Raises:
            InputError: if the texts hold no word, or no feature.
        """
        vocabulary = self._learned(documents, labels)
        tokens = vocabulary.documents(documents).stack(vocabulary.labels(labels))
        rows = vocabulary.first_rows(tokens, self.dim, seed)
        return Bag(vocabulary, rows, self).trainable(tokens, device), tokens

    def _learned(self, documents: Texts, labels: Texts) -> AnyVocabulary:
        if documents.features is not None:
            return FeatureColumns.of(documents.features, len(labels))
        words = learn(documents.all() + labels.all())
        return FieldVocabulary.of(words, documents, labels) if self.fields else words


@encoder_kind("bag")
@dataclass(frozen=True, eq=False)
class Bag:
    """A vocabulary, and a row per token, piece and field, or per feature and label.

    Attributes:
        vocabulary: turns texts or features into bags of rows.
        rows: ``[v, d]``; those of :attr:`table` while it is trained.
        spec: how it was begun.
        table: the rows with their optimizer, while they are trained; None otherwise.
    """

    vocabulary: AnyVocabulary
    rows: Float[Tensor, "v d"]
    spec: BagEncoder = BagEncoder()
    table: UnifiedTensor | None = None
    module: nn.Module = field(default_factory=BagSum)
    kind = "bag"
    optimizer = None

    def __post_init__(self) -> None:
        """Check that the rows are those of the vocabulary.

        Raises:
            InputError: if not.
        """
        got, want = tuple(self.rows.shape), f"[{len(self.vocabulary)}, d], one row per token"
        good = self.rows.dim() == 2 and len(self.rows) == len(self.vocabulary)
        expect(good, "rows", want, got, "take all parts from one run")
        if self.table is not None:
            object.__setattr__(self, "rows", self.table.as_subclass(Tensor))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.rows.shape[1]

    @property
    def n_tokens(self) -> int:
        """How many rows there are."""
        return len(self.rows)

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
    ) -> tuple[Bag, Csr]:
        """A copy with this vocabulary and these rows, to be trained further."""
        tokens = self.documents(documents).stack(self.labels(labels))
        rows = self.rows.detach().cpu().clone()
        return replace(self, rows=rows).trainable(tokens, device), tokens

    def trainable(self, tokens: Csr, device: str) -> Bag:
        """These rows as a table that is trained, by batches of the rows of `tokens`."""
        table = unified(self.rows, self.spec.optimizer(lr=self.spec.lr))
        weights = None if tokens.values is None else tokens.values.to(device)
        return replace(self, table=table, module=BagSum(weights))

    @property
    def words(self) -> Vocabulary | None:
        """Words and pieces, which lexical rankers match; None of features."""
        return self.vocabulary.words

    @property
    def columns(self) -> int | None:
        """Features that an example has; None where it is a text."""
        return getattr(self.vocabulary, "width", None)

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as titles or contents, whichever their words are likelier in."""
        return self.vocabulary.read(texts)

    def known(self, texts: Sequence[str]) -> Csr:
        """Known tokens of each text."""
        return self.vocabulary.tokens(texts)

    def documents(self, texts: Texts) -> Csr:
        """Bags of documents."""
        return self.vocabulary.documents(texts)

    def labels(self, texts: Texts) -> Csr:
        """Bags of labels."""
        return self.vocabulary.labels(texts)

    def embed(self, tokens: Csr) -> Float[Tensor, "n d"]:
        """:func:`embed` with these rows; zero where a text has none."""
        return embed(tokens, self.rows)

    embed_labels = embed

    def without_fields(self, label_tokens: Csr) -> tuple[Bag, Csr] | None:
        """The encoder without field embeddings, and label tokens for it; None without fields."""
        words = self.vocabulary.words
        if words is None or words is self.vocabulary:
            return None
        assert isinstance(self.vocabulary, FieldVocabulary)
        plain = Bag(words, self.rows[: len(words)], replace(self.spec, fields=False))
        return plain, self.vocabulary.without_fields(label_tokens)

    def load_trained(self, state: Mapping[str, Any]) -> Bag:
        """Take up the rows of a checkpoint.

        Raises:
            InputError: if it holds none, or those of another vocabulary.
        """
        rows = state.get("rows")
        if not isinstance(rows, Tensor):
            fail("checkpoint", "the rows of a bag", "none", "use the run's own")
        return replace(self, rows=rows.to(self.rows.device), table=None)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write ``bag.safetensors``: vocabulary and rows."""
        state = {"vocabulary": self.vocabulary.state_dict(), "rows": self.rows}
        checkpoint.save(folder / "bag.safetensors", state)
        about = {name: value for name, value in asdict(self.spec).items() if name != "optimizer"}
        return {"kind": "bag", **about}

    @staticmethod
    def open(folder: Path, about: Mapping[str, Any], device: str) -> Bag:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if the file is missing, damaged or not a bag's.
        """
        given = {name: value for name, value in about.items() if name != "kind"}
        spec = made(BagEncoder, given, str(folder))
        path = folder / "bag.safetensors"
        state = checkpoint.load(path)
        with naming(path):
            vocabulary = vocabulary_of(part(state, "vocabulary"))
            rows = floats(state, "rows", len(vocabulary), None)
        return Bag(vocabulary, rows.to(device), spec)

    def export(self, folder: Path, documents: Texts, labels: Texts) -> list[Exported]:
        """Write encoders for sentence-transformers.

        One for any text where there are no field embeddings; else one for titles, one for a title
        and content in one string, which that format cannot tell apart, and one for label titles.
        None of features, which that format does not read.
        """
        vocabulary, rows = self.vocabulary, self.rows.cpu()
        if isinstance(vocabulary, FeatureColumns):
            return []
        if vocabulary.words is vocabulary:
            save_bag(folder / "encoder", vocabulary.words, token_vectors(vocabulary, rows, 0))
            return [Exported("encoder", "any text")]
        assert isinstance(vocabulary, FieldVocabulary)
        seen, label = _some(documents), _some(labels)
        title = len(FIELDS) // 2
        ways = [
            ("encoder", FIELDS[0], "documents", token_vectors(vocabulary, rows, 0)),
            ("long_encoder", LONG, "documents", mixed_vectors(vocabulary, rows, documents)),
            ("label_encoder", FIELDS[title], "labels", token_vectors(vocabulary, rows, title)),
        ]
        bags = {"documents": vocabulary.documents(seen), "labels": vocabulary.labels(label)}
        plain = {"documents": seen.all(), "labels": label.all()}
        found = []
        for name, reads, sample, vectors in ways:
            save_bag(folder / name, vocabulary.words, vectors)
            own = embed(bags[sample], rows)
            cosines = (own * embed(vocabulary.tokens(plain[sample]), vectors)).sum(1)
            cosines = cosines[own.abs().sum(1) > 0]
            near = (float(cosines.mean()), float(cosines.min())) if len(cosines) else (1.0, 1.0)
            found.append(Exported(name, reads, sample, *(round(x, 5) for x in near)))
        return found


def vocabulary_of(state: Mapping[str, Any]) -> AnyVocabulary:
    """The vocabulary whose ``state_dict()`` this is: with field embeddings, without, or none."""
    if "columns" in state:
        return FeatureColumns.of_state(part(state, "columns"))
    words = Vocabulary.of_state(state)
    return FieldVocabulary.of_state(part(state, "fields"), words) if "fields" in state else words


def _some(texts: Texts) -> Texts:
    """A seeded sample: data often stands in an order that means something."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    return texts.subset(order[:_SAMPLE])
