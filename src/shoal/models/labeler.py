"""A trained labeler: text in, labels with scores out.

Documents and labels share one bag encoder; a label's score is the cosine of the two embeddings.
The folder that :meth:`Lexicon.save` writes holds all that training does not change; rows come from
a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from shoal._checks import expect, expect_file, expect_folder, expect_positive, fail
from shoal.csr import Csr
from shoal.data.texts import Texts
from shoal.data.xc import read_texts, write_texts
from shoal.models.bag import matmul
from shoal.models.vocabulary import Vocabulary
from shoal.search import top_k

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
        for ids, part in zip(
            torch.arange(bags.n_rows).split(_CHUNK), out.split(_CHUNK), strict=True
        ):
            functional.normalize(matmul(bags.rows(ids).to(rows.device), rows), dim=1, out=part)
    return out


@dataclass(frozen=True, eq=False)
class Lexicon:
    """What a labeler needs besides its rows: the vocabulary, and the labels as texts and as bags.

    Attributes:
        vocabulary: turns texts into bags of rows.
        labels: the label texts.
        label_bags: their bags, one row a label.
    """

    vocabulary: Vocabulary
    labels: Texts
    label_bags: Csr

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if there is not one bag a label, over the vocabulary's rows.
        """
        shape, got = (len(self.labels), len(self.vocabulary)), self.label_bags.shape
        expect(got == shape, "label_bags", f"a Csr of {shape}", got, "take all parts from one run")

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``labels.json.gz`` and two matrices."""
        folder = Path(folder)
        self.vocabulary.pieces.save(folder / "pieces")
        self.label_bags.save(folder / "label_bags")
        (folder / "tokenizer.json").write_text(self.vocabulary.save(), encoding="utf-8")
        write_texts(self.labels, folder / "labels.json.gz")

    @staticmethod
    def open(folder: str | Path) -> Lexicon:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if a part is missing or damaged.
        """
        folder = expect_folder(folder, "a lexicon, as runs on labels have one")
        path = expect_file(folder / "tokenizer.json", "a tokenizer")
        try:
            tokenizer = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(str(path), "the JSON of a tokenizer", error, "train the model again")
        vocabulary = Vocabulary.load(tokenizer, Csr.open(folder / "pieces"))
        labels = read_texts(folder / "labels.json.gz")
        return Lexicon(vocabulary, labels, Csr.open(folder / "label_bags"))


@dataclass(frozen=True)
class Prediction:
    """One predicted label.

    Attributes:
        label: its position among the labels.
        uid: the data's name for it.
        title: its short text.
        score: the cosine with the text, -1 … 1.
    """

    label: int
    uid: str
    title: str
    score: float


@dataclass(frozen=True, eq=False)
class Labeler:
    """A lexicon and trained rows.

    Attributes:
        lexicon: vocabulary and labels.
        rows: ``[v, d]``, one a token or piece.
    """

    lexicon: Lexicon
    rows: Float[Tensor, "v d"]

    def __post_init__(self) -> None:
        """Check that there is a row a token.

        Raises:
            InputError: if the rows are those of another vocabulary.
        """
        size = len(self.lexicon.vocabulary)
        good = self.rows.dim() == 2 and len(self.rows) == size
        expect(good, "rows", f"[{size}, d], one a token", tuple(self.rows.shape), "use its own run")

    @cached_property
    def label_embeddings(self) -> Float[Tensor, "l d"]:
        """Unit vectors of all labels."""
        return embed(self.lexicon.label_bags, self.rows)

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of texts; zero where no piece of a text is known."""
        return embed(self.lexicon.vocabulary.bags(texts), self.rows)

    def rank(
        self, texts: Sequence[str], k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The k best labels of each text, exactly: scores, and ids (-1 where there are too few).

        Args:
            texts: any number.
            k: at most the number of labels.
            drop: (text, label) pairs that may not be predicted.

        Raises:
            InputError: if k is out of range.
        """
        expect_positive("k", k)
        drop = None if drop is None else drop.to(self.rows.device)
        return top_k(self.encode(texts), self.label_embeddings, k, drop)

    def predict(self, texts: Sequence[str], k: int = 5) -> list[list[Prediction]]:
        """The k best labels of each text, by name.

        Raises:
            InputError: if k is out of range.
        """
        scores, ids = self.rank(texts, k)
        names = self.lexicon.labels
        return [
            [
                Prediction(i, names.uids[i], names.titles[i], score)
                for i, score in zip(row_ids, row_scores, strict=True)
                if i >= 0
            ]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
