"""A label data set ready for training: what is held out, the vocabulary, the token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.core.csr import Csr
from shoal.data.splits import validation_split
from shoal.data.texts import Examples, LabelData
from shoal.rank.predictor import Lexicon
from shoal.tasks.encoders import Tokenize, bags_of


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for training.

    Attributes:
        train: the points learned from.
        valid: the points held out from training, or None.
        lexicon: vocabulary and labels.
        tokens: token ids of the training points, then of the labels, one row a text.
    """

    train: Examples
    valid: Examples | None
    lexicon: Lexicon
    tokens: Csr

    @property
    def bags(self) -> Csr:
        """Token ids of the training points."""
        return _span(self.tokens, 0, len(self.train))

    def side(self, name: Literal["point", "label"]) -> Side:
        """Seeds and what they score: points and labels, or the labels that have points and these.

        The second is the first with the label matrix transposed; its tokens are a copy.
        """
        if name == "point":
            return Side(self.train.labels, self.tokens)
        points = self.train.labels.transpose()
        trained = (points.degrees() > 0).nonzero().squeeze(1)
        label_bags = self.lexicon.label_bags.rows(trained)
        return Side(points.rows(trained), label_bags.stack(self.bags))


@dataclass(frozen=True, eq=False)
class Side:
    """What batches are made of.

    Attributes:
        truth: seeds x what they score.
        tokens: token ids of the seeds, then of what they score, one row a text.
    """

    truth: Csr
    tokens: Csr

    @property
    def bags(self) -> Csr:
        """Token ids of the seeds."""
        return _span(self.tokens, 0, self.truth.n_rows)

    @property
    def scored(self) -> Csr:
        """Token ids of what they score."""
        return _span(self.tokens, self.truth.n_rows, self.tokens.n_rows)


def prepare(data: LabelData, valid: float, seed: int, tokenize: Tokenize = bags_of) -> Prepared:
    """Hold out a validation share, make a vocabulary for what is left, and the token ids.

    Args:
        data: texts and labels.
        valid: share of the training points that is held out; 0 for none.
        seed: of that split.
        tokenize: how texts become token ids; by default a vocabulary is learned from them.
    """
    train, held = data.train, None
    if valid > 0:
        train, held = validation_split(data, valid, seed)
        held = held if len(held) else None  # all of them may be known from their reverse
    vocabulary, tokens = tokenize(train.texts, data.labels)
    label_tokens = _span(tokens, len(train), tokens.n_rows)
    return Prepared(train, held, Lexicon(vocabulary, data.labels, label_tokens), tokens)


def _span(csr: Csr, start: int, stop: int) -> Csr:
    """Rows `start` to `stop` in the same memory, so that what is mapped stays so."""
    first, last = int(csr.indptr[start]), int(csr.indptr[stop])
    return Csr(csr.indptr[start : stop + 1] - first, csr.indices[first:last], csr.n_cols)
