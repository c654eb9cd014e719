"""Field embeddings: a word in a document's title is not quite the word in a label's content.

One row per word makes documents and labels look alike: their cosine says that they speak of the
same thing, never which of two is the more general, or which label is given more often. So each
token has, beside its own row, one for each field that it was seen in: title, opening (the first six
tokens of a content, which often say what the thing is) or rest, of a document or of a label. A text
adds both up::

    bag(text) = Σ rows of its words and pieces  +  Σ rows of (field, token)

Rows of fields start at zero. A token that was never seen in a field is itself there, so the rows of
rare words stay shared, and labels without training points are found by their text as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.state import count, integers
from shoal.data.texts import Texts, plain_texts
from shoal.text.vocabulary import Vocabulary, random_rows

FIELDS = (
    "document title", "document opening", "document rest",
    "label title", "label opening", "label rest",
)  # fmt: skip
# where the rest begins: the only length tried (docs/LOG.md)
_OPENING = 6
_OWN = ("seen", "counts", "documents_seen")


@dataclass(frozen=True, eq=False)
class FieldVocabulary:
    """A vocabulary whose tokens have rows for fields behind their own.

    Attributes:
        words: finds tokens and their pieces.
        seen: int64 ``[m]``, rising: the (field, token) pairs that have a row, as field · V + token.
        counts: how often each of them was seen.
        documents_seen: how many there were.

    Example:
        The label's "red" is the document's "red" and a row of its own; its "hat" was not seen.

        >>> from shoal.text.vocabulary import learn
        >>> words = learn(["red cup", "red cup"], n_pieces=30)
        >>> fields = FieldVocabulary.of(words, Texts.of(["red cup"]), Texts.of(["red"]), least=1)
        >>> len(fields) - len(words)
        3
        >>> label, document = fields.labels(Texts.of(["red"])), fields.documents(Texts.of(["red"]))
        >>> shared = set(label.indices.tolist()) & set(document.indices.tolist())
        >>> sorted(shared) == sorted(set(words.bags(["red"]).indices.tolist()))
        True
    """

    words: Vocabulary
    seen: Int[Tensor, " m"]
    counts: Int[Tensor, " m"]
    documents_seen: int

    def __post_init__(self) -> None:
        """Check that the pairs are some of this vocabulary's.

        Raises:
            InputError: if they are those of another, or not one count each.
        """
        most = len(FIELDS) * len(self.words)
        good = self.seen.numel() == 0 or bool((self.seen.diff() > 0).all())
        good = good and (
            self.seen.numel() == 0 or 0 <= int(self.seen[0]) <= int(self.seen[-1]) < most
        )
        expect(good, "seen", f"rising numbers below {most}", self.seen[-1:].tolist(), "train again")
        same = self.counts.shape == self.seen.shape
        expect(same, "counts", f"{len(self.seen)}, as seen", len(self.counts), "train again")

    @staticmethod
    def of(words: Vocabulary, documents: Texts, labels: Texts, least: int = 3) -> FieldVocabulary:
        """Give a row to each (field, token) that the training texts hold at least `least` times.

        Of 350,000 rows for every pair, pieces included, 174,000 are left at the same accuracy
        (WordNet, docs/LOG.md).
        """
        pairs = (_pairs(words, texts, first) for texts, first in ((documents, 0), (labels, 3)))
        most = len(FIELDS) * len(words)
        count = torch.stack([torch.bincount(part.indices, minlength=most) for part in pairs]).sum(0)
        seen = (count >= least).nonzero().squeeze(1)
        return FieldVocabulary(words, seen, count[seen], len(documents))

    def __len__(self) -> int:
        return len(self.words) + len(self.seen)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        own = {name: value for name, value in vars(self).items() if name in _OWN}
        return self.words.state_dict() | {"fields": own}

    @staticmethod
    def of_state(state: Mapping[str, Any], words: Vocabulary) -> FieldVocabulary:
        """What :meth:`state_dict` gave as ``fields``, over the words that it gave.

        Raises:
            InputError: if the parts are others.
        """
        seen = integers(state, "seen", None)
        counts = integers(state, "counts", len(seen))
        return FieldVocabulary(words, seen, counts, count(state, "documents_seen"))

    @cached_property
    def _row(self) -> Int[Tensor, " r"]:
        # of each (field, token), or -1
        row = torch.full((len(FIELDS) * len(self.words),), -1)
        row[self.seen] = torch.arange(len(self.words), len(self))
        return row

    def tokens(self, texts: Sequence[str]) -> Csr:
        """Known tokens of each text in order."""
        return self.words.tokens(texts)

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as documents: each a title or a content, whichever its words are likelier in.

        Σ ln p(token | content) against Σ ln p(token | title), as the documents of training had them
        (naive Bayes; Maron, "Automatic indexing", 1961). The end of a text is a token too, so that
        the short ones lean to titles, and each is counted once more in both. Where no document had
        a content, everything is a title.

        Example:
            >>> from shoal.text.vocabulary import learn
            >>> documents = Texts(["a", "b"], ["cup", "hat"], ["the one with tea", "the other one"])
            >>> words = learn(documents.all() * 2, n_pieces=60)
            >>> fields = FieldVocabulary.of(words, documents, Texts.of([]), least=1)
            >>> read = fields.read(["hat", "one with the hat"])
            >>> read.titles, read.contents
            (['hat', ''], ['', 'one with the hat'])
        """
        texts = plain_texts(texts)
        tokens = self.tokens(texts)
        leaning, end = self._leaning[:-1], self._leaning[-1]
        total = end.repeat(len(texts))
        total.index_add_(0, tokens.row_ids(), leaning[tokens.indices.long()])
        content = (total > 0).tolist()
        titles = [
            "" if is_content else text for text, is_content in zip(texts, content, strict=True)
        ]
        rest = [text if is_content else "" for text, is_content in zip(texts, content, strict=True)]
        return Texts([str(i) for i in range(len(texts))], titles, rest)

    @cached_property
    def _leaning(self) -> Float[Tensor, " v_plus_1"]:
        """How much likelier in a content, ln p − ln p, each token of a document is, and its end."""
        count = torch.zeros(len(FIELDS) * len(self.words), dtype=torch.float64)
        count[self.seen] = self.counts.double()
        title, opening, rest = count.view(len(FIELDS), -1)[:3]
        if not bool((opening + rest).any()):
            return torch.zeros(len(title) + 1, dtype=title.dtype)
        title, content = (
            pad(x, (0, 1), value=self.documents_seen) for x in (title, opening + rest)
        )
        return ((content + 1) / (content + 1).sum()).log() - ((title + 1) / (title + 1).sum()).log()

    def documents(self, texts: Texts) -> Csr:
        """Bags of documents."""
        return self._bags(texts, 0)

    def labels(self, texts: Texts) -> Csr:
        """Bags of labels."""
        return self._bags(texts, 3)

    def _bags(self, texts: Texts, first: int) -> Csr:
        pairs = _pairs(self.words, texts, first)
        fields = _renumbered(pairs, self._row[pairs.indices.long()], len(self))
        words = self.words.documents(texts)
        return Csr(words.indptr, words.indices, len(self)).beside(fields)

    def without_fields(self, bags: Csr) -> Csr:
        """Bags of documents or labels as :attr:`words` alone makes them."""
        size = len(self.words)
        return _renumbered(bags, bags.indices.masked_fill(bags.indices >= size, -1), size)

    def pieces_in(self, field: int) -> Csr:
        """Rows that each token adds up in a field, ``[V, rows]``: its pieces' and the field's.

        Args:
            field: position in :data:`FIELDS`.
        """
        size = len(self.words)
        row = self._row[field * size : (field + 1) * size]
        kept = row >= 0
        own = Csr(pad(kept.cumsum(0), (1, 0)), row[kept].int(), len(self))
        pieces = self.words.pieces
        return Csr(pieces.indptr, pieces.indices, len(self)).beside(own)

    def shares(self, documents: Texts) -> Float[Tensor, "r v"]:
        """How often each token plays each field of documents, in shares of its occurrences.

        Each token counts as seen once more, as all of them are together.

        Example:
            >>> from shoal.text.vocabulary import learn
            >>> words = learn(["red", "red"], n_pieces=4)
            >>> fields = FieldVocabulary.of(words, Texts.of([]), Texts.of([]))
            >>> red = words.tokenizer.token_to_id("red")
            >>> fields.shares(Texts(["a"], ["red"], ["red red"]))[:, red]
            tensor([0.3333, 0.6667, 0.0000])
        """
        size, half = len(self.words), len(FIELDS) // 2
        pairs = _pairs(self.words, documents, 0).indices
        seen = torch.bincount(pairs, minlength=half * size)[: half * size].view(half, size).float()
        once = seen.sum(1, keepdim=True) / seen.sum().clamp(min=1)
        return (seen + once) / (seen.sum(0) + 1)

    def first_rows(self, bags: Csr, dim: int, seed: int) -> Float[Tensor, "v d"]:
        """Rows to start from: :func:`~shoal.text.vocabulary.random_rows`, and zeros for fields."""
        rows = random_rows(bags, dim, seed)
        rows[len(self.words) :] = 0
        return rows


def _renumbered(csr: Csr, columns: Int[Tensor, " e"], n_cols: int) -> Csr:
    """The same entries in other columns; those of column -1 are left out."""
    kept = columns >= 0
    indptr = pad(kept.cumsum(0), (1, 0))[csr.indptr]
    return Csr(indptr, columns[kept].int(), n_cols)


def _pairs(words: Vocabulary, texts: Texts, first: int) -> Csr:
    """(field, token) pairs of texts whose titles have field `first` and contents the next two."""
    titles, contents = words.parts(texts)
    place = torch.arange(contents.nnz) - contents.indptr[contents.row_ids()]

    def of_field(tokens: Csr, field: int | Int[Tensor, " e"]) -> Csr:
        pairs = tokens.indices.long() + field * len(words)
        return Csr(tokens.indptr, pairs, len(FIELDS) * len(words))

    return of_field(titles, first).beside(
        of_field(contents, first + 1 + (place >= _OPENING).long())
    )
