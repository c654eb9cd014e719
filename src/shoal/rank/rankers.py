"""Rankers: ways to find the labels of a text, each with scores of its own kind.

A ranker is fitted on the training examples (:meth:`Ranker.fitted`) and then ranks labels of queries
in one or more ways (:meth:`Ranker.rank`). The rankings of several are the features by which an
ensemble (:mod:`shoal.rank.ensemble`) weighs a label:

    EncoderRanker      cosine of the embeddings of text and label
    ClassifierRanker   inner product of the text's embedding and the label's classifier
    NeighborRanker     votes of the training examples whose embeddings are nearest
    PlainRanker        as EncoderRanker, without field embeddings: it knows less of what was seen in
                       training and more of what was not (:mod:`shoal.text.fields`)
    WordRanker         four ways of tf-idf: text and label, text and label title, title and label,
                       and votes of the training examples whose words are nearest
    NameRanker         five ways of label names in a text, or text names in a label
                       (:mod:`shoal.rank.names`)
    LinearRanker       a weight for each feature and label, where examples are features

A ranker of your own is a frozen dataclass with these methods, registered by
:func:`~shoal.rank.ranker.ranker_kind`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.search import top_k
from shoal.core.sketch import SKETCHED, Sketch, products
from shoal.core.sparse import matmul
from shoal.core.state import count, floats, number, part
from shoal.data.texts import Texts
from shoal.rank.lexical import LexicalIndex, tf_idf
from shoal.rank.linear import ridge_regression
from shoal.rank.names import NameIndex
from shoal.rank.predictor import Predictor
from shoal.rank.ranker import Known, Query, ranker_kind
from shoal.rank.ranking import Ranking, votes
from shoal.text.encoder import TextEncoder
from shoal.text.vocabulary import Vocabulary, inverse_document_frequency

# neighbors that vote: measured in docs/LOG.md
NEAR = 50
# so many times as many are looked at closely, of those that a sketch finds
_LIKELY = 4
# Tokens of more than this share of the texts say nothing about any of them, and most of the time of
# a lexical search goes to them (docs/LOG.md).
_COMMON = 0.1
# A linear ranker of more features or labels is left out, and one of more weights, 256 MB; scores of
# all labels exist for so many examples at a time.
_FEATURES, _LABELS, _WEIGHTS, _PART = 8192, 2**16, 2**26, 1024
# labels whose classifiers decide how long that of a new label is
_LIKE = 10


class Scores:
    """What rankers have in common that say nothing beside their scores."""

    lexical, pooled = False, False

    def reasons(self, query: Query, ids: Int[Tensor, "n k"]) -> dict[str, list[list[Any]]]:
        """Nothing."""
        return {}


class Stateless(Scores):
    """What rankers without an index of their own have in common."""

    def fitted(self, model: Predictor, known: Known) -> Any:
        """This ranker: there is nothing to fit."""
        return self

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> Any:
        """This ranker: it reads the labels of the model."""
        return self

    def with_examples(self, model: Predictor, known: Known) -> Any:
        """This ranker: it reads no examples."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@ranker_kind("encoder")
@dataclass(frozen=True)
class EncoderRanker(Stateless):
    """Cosine of the embeddings of text and label."""

    pooled = True
    kind = "encoder"
    features = ("encoder",)

    def keys(self, model: Predictor) -> Float[Tensor, "l d"]:
        """Rows whose inner products with a text's vector rank the labels."""
        return model.label_embeddings

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k labels whose embeddings are nearest."""
        return [query.labels_nearest(query.embedded, query.model.label_embeddings, k)]

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> EncoderRanker:
        """The ranker, which has no state."""
        return EncoderRanker()


@ranker_kind("plain")
@dataclass(frozen=True, eq=False)
class PlainRanker(Stateless):
    """Cosine of text and label by the encoder without field embeddings.

    Attributes:
        encoder: that encoder, once fitted.
        labels: unit vectors of the labels by it.
    """

    encoder: TextEncoder | None = None
    labels: Float[Tensor, "l d"] | None = None

    pooled = True
    kind = "plain"
    features = ("encoder without fields",)

    def fitted(self, model: Predictor, known: Known) -> PlainRanker | None:
        """None where the encoder has no field embeddings."""
        plain = model.encoder.without_fields(model.label_tokens)
        if plain is None:
            return None
        encoder, tokens = plain
        return PlainRanker(encoder, encoder.embed_labels(tokens))

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k labels whose embeddings without fields are nearest."""
        assert self.encoder is not None and self.labels is not None
        embedded = self.encoder.embed(self.encoder.documents(query.texts))
        return [query.labels_nearest(embedded, self.labels, k)]

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> PlainRanker:
        """The same for all labels of `new`."""
        fitted = self.fitted(new, Known(new, texts))
        assert fitted is not None  # the encoder has fields still
        return fitted

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> PlainRanker:
        """The ranker, made anew from the model's encoder.

        Raises:
            InputError: if that has no field embeddings.
        """
        made = PlainRanker().fitted(model, Known(model, model.labels))
        want = "an encoder with field embeddings"
        expect(made is not None, "rankers", want, "one without", "train the model again")
        assert made is not None
        return made


@ranker_kind("classifiers")
@dataclass(frozen=True, eq=False)
class ClassifierRanker(Scores):
    """Inner product of the text's embedding and the label's classifier.

    Attributes:
        weights: a classifier per label, once fitted.
    """

    weights: Float[Tensor, "l d"] | None = None

    pooled = True
    kind = "classifiers"
    features = ("classifiers",)

    def keys(self, model: Predictor) -> Float[Tensor, "l d"]:
        """Rows whose inner products with a text's vector rank the labels."""
        assert self.weights is not None
        return self.weights

    def fitted(self, model: Predictor, known: Known) -> ClassifierRanker | None:
        """None where no classifiers were trained."""
        return None if known.classifiers is None else ClassifierRanker(known.classifiers)

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k labels whose classifiers score highest."""
        assert self.weights is not None
        weights = self.weights.to(query.embedded.device)
        return [query.labels_nearest(query.embedded, weights, k)]

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> ClassifierRanker:
        """A new label's classifier is its embedding, as long as those of the labels nearest to it.

        So their scores compare; the mean length of the ten nearest old labels counts.
        """
        assert self.weights is not None
        before, added = old.label_embeddings, new.label_embeddings[len(self.weights) :]
        _, near = top_k(added, before, min(_LIKE, len(before)))
        lengths = torch.linalg.vector_norm(self.weights, dim=1)[near].mean(1, keepdim=True)
        return ClassifierRanker(torch.cat([self.weights, (added * lengths).to(self.weights)]))

    def with_examples(self, model: Predictor, known: Known) -> ClassifierRanker:
        """This ranker: classifiers are not trained again."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """The classifiers."""
        return {"weights": self.weights}

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> ClassifierRanker:
        """The ranker with these classifiers."""
        return ClassifierRanker(floats(state, "weights", len(model.labels), model.encoder.dim))


@ranker_kind("neighbors")
@dataclass(frozen=True, eq=False)
class NeighborRanker:
    """Votes of the known examples whose embeddings are nearest: a kNN datastore.

    Attributes:
        near: neighbors that vote.
        power: how much more the nearer ones count (:func:`~shoal.rank.ranking.votes`).
        rows: unit vectors of the known examples, once fitted.
    """

    near: int = NEAR
    power: float = 4.0
    rows: Float[Tensor, "n d"] | None = None

    lexical, pooled = False, False
    kind = "neighbors"
    features = ("neighbors",)

    def fitted(self, model: Predictor, known: Known) -> NeighborRanker:
        """The known examples as they are embedded."""
        return replace(self, rows=known.embedded)

    def nearest(self, query: Query) -> Ranking:
        """The nearest known examples of each text."""
        assert self.rows is not None
        vectors, near = query.embedded, min(self.near, len(self.rows))
        if query.exact or len(self.rows) < SKETCHED:
            return Ranking(*query.model.search(vectors, self.rows, near))
        likely = self.sketch.search(vectors, min(_LIKELY * near, len(self.rows)))
        return Ranking.among(products(vectors, self.rows, likely), likely, near)

    @cached_property
    def sketch(self) -> Sketch:
        """What finds rows that are likely near."""
        assert self.rows is not None
        return Sketch.of(self.rows)

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k labels that most neighbors carry."""
        return [votes(self.nearest(query), query.model.truth, k, self.power)]

    def reasons(self, query: Query, ids: Int[Tensor, "n k"]) -> dict[str, list[list[Any]]]:
        """``examples``: up to three of the nearest known ones that carry a label, and cosines."""
        model, near = query.model, self.nearest(query)
        if not model.quotes:
            return {}

        def carriers(i: int, label: int) -> list[dict[str, Any]]:
            found = near.ids[i][near.ids[i] >= 0].cpu()
            has, _ = model.truth.find(found, torch.full_like(found, label))
            return [
                {
                    "text": model.quotes[int(found[at])],
                    "cosine": round(float(near.scores[i, at]), 4),
                }
                for at in has.nonzero().flatten()[:3].tolist()
            ]

        rows = enumerate(ids.tolist())
        return {"examples": [[carriers(i, label) for label in row] for i, row in rows]}

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> NeighborRanker:
        """This ranker: no known example carries a new label yet."""
        return self

    def with_examples(self, model: Predictor, known: Known) -> NeighborRanker:
        """The same with more examples."""
        assert self.rows is not None
        return replace(self, rows=torch.cat([self.rows, known.embedded.to(self.rows)]))

    def state_dict(self) -> dict[str, Any]:
        """Embeddings in half precision: half of the bytes moves a cosine by less than 0.001."""
        assert self.rows is not None
        return {"near": self.near, "power": self.power, "rows": self.rows.half()}

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> NeighborRanker:
        """The ranker with these examples; rows that a search would widen each time, widened."""
        near, power = count(state, "near", low=1), number(state, "power", low=0)
        shape = (model.truth.n_rows, model.encoder.dim)
        return NeighborRanker(near, power, floats(state, "rows", *shape))


@ranker_kind("words")
@dataclass(frozen=True, eq=False)
class WordRanker:
    """Shared words by tf-idf: of text and label, label title, and known examples.

    Attributes:
        idf: weight of each token; zero for those of more than a tenth of the texts.
        labels: index of the label texts.
        titles: index of the label titles.
        examples: index of the known examples.
    """

    idf: Float[Tensor, " v"] | None = None
    labels: LexicalIndex | None = None
    titles: LexicalIndex | None = None
    examples: LexicalIndex | None = None

    lexical, pooled = True, True
    kind = "words"
    features = (
        "words of text and label",
        "words of text and label title",
        "words of title and label",
        "neighbors by words",
    )

    def fitted(self, model: Predictor, known: Known) -> WordRanker:
        """Index labels and known examples."""
        words = model.words
        labels, examples = words.bags(model.labels.all()), words.bags(known.texts.all())
        idf = inverse_document_frequency(examples.stack(labels))
        # zero for common tokens
        idf = idf * (idf > 1 - math.log(_COMMON))
        parts = (labels, words.bags(model.labels.titles), examples)
        return WordRanker(idf, *(LexicalIndex.of(tf_idf(part, idf)) for part in parts))

    def vectors(self, words: Vocabulary, texts: Sequence[str]) -> Csr:
        """tf-idf vectors of texts."""
        assert self.idf is not None
        return tf_idf(words.bags(texts), self.idf)

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """Rank by shared words, in four ways."""
        assert self.labels is not None and self.titles is not None and self.examples is not None
        words = query.model.words
        assert self.idf is not None
        whole = tf_idf(words.documents(query.texts), self.idf)
        title = tf_idf(words.bags_of(words.parts(query.texts)[0]), self.idf)
        pool = query.pool
        if pool is None:
            near = self.examples.search(whole, NEAR)
            return [
                self.labels.search(whole, k),
                self.titles.search(whole, k),
                self.labels.search(title, k),
                votes(near, query.model.truth, k, power=2.0),
            ]
        by_text, by_title = self.labels.products([whole, title], pool)
        (title_by_text,) = self.titles.products([whole], pool)
        likely = self.examples.likely(whole, _LIKELY * NEAR)
        (alike,) = self.examples.products([whole], likely)
        near = Ranking.among(alike, likely, NEAR)
        cast = votes(near, query.model.truth, k, power=2.0)
        scores = by_text, title_by_text, by_title
        return [*(Ranking.among(x, pool, k) for x in scores), cast.within(pool)]

    def reasons(self, query: Query, ids: Int[Tensor, "n k"]) -> dict[str, list[list[Any]]]:
        """``words``: up to five tokens that text and label share, by their product of tf-idf."""
        words, labels = query.model.words, query.model.labels
        mine = self.vectors(words, query.texts.all()).to_dense()
        found = []
        for i, row in enumerate(ids.tolist()):
            of_labels = labels.subset(torch.tensor([max(label, 0) for label in row])).all()
            shared = self.vectors(words, of_labels).to_dense() * mine[i]
            best = [each.topk(min(5, int((each > 0).sum()))).indices.tolist() for each in shared]
            found.append([words.named(tokens) for tokens in best])
        return {"words": found}

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> WordRanker:
        """The same with new labels indexed; the weights of words stay."""
        assert self.labels is not None and self.titles is not None
        labels = self._longer(self.labels, new.words, texts.all())
        titles = self._longer(self.titles, new.words, texts.titles)
        return replace(self, labels=labels, titles=titles)

    def with_examples(self, model: Predictor, known: Known) -> WordRanker:
        """The same with more examples indexed; the weights of words stay."""
        assert self.examples is not None
        examples = self._longer(self.examples, model.words, known.texts.all())
        return replace(self, examples=examples)

    def _longer(self, index: LexicalIndex, words: Vocabulary, texts: list[str]) -> LexicalIndex:
        return LexicalIndex.of(index.by_token.transpose().stack(self.vectors(words, texts)))

    def state_dict(self) -> dict[str, Any]:
        """Weights and indexes."""
        assert self.labels is not None and self.titles is not None and self.examples is not None
        parts = {"labels": self.labels, "titles": self.titles, "examples": self.examples}
        indexes = {name: index.by_token.state_dict() for name, index in parts.items()}
        return {"idf": self.idf, **indexes}

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> WordRanker:
        """The ranker with these indexes."""
        tokens, labels = len(model.words), len(model.labels)
        keys = {"labels": labels, "titles": labels, "examples": model.truth.n_rows}
        indexes = {k: LexicalIndex.of_state(part(state, k), tokens, n) for k, n in keys.items()}
        return WordRanker(floats(state, "idf", tokens), **indexes)


@ranker_kind("names")
@dataclass(frozen=True, eq=False)
class NameRanker(Scores):
    """Label names that stand in a text, and text names that stand in a label.

    Attributes:
        index: of the labels, once fitted.
    """

    index: NameIndex | None = None

    lexical = True
    kind = "names"
    features = (
        "label named in title",
        "label named in content",
        "long label name in content",
        "text named in label content",
        "text named in label title",
    )

    def fitted(self, model: Predictor, known: Known) -> NameRanker:
        """Index the labels' names."""
        return NameRanker(NameIndex.of(model.words, model.labels))

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """Rank by names, in five ways."""
        assert self.index is not None
        return self.index.rankings(query.texts, k)

    def with_labels(self, old: Predictor, new: Predictor, texts: Texts) -> NameRanker:
        """Index all labels anew."""
        return NameRanker(NameIndex.of(new.words, new.labels))

    def with_examples(self, model: Predictor, known: Known) -> NameRanker:
        """This ranker: it reads no examples."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """The index."""
        assert self.index is not None
        return self.index.state_dict()

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> NameRanker:
        """The ranker with this index."""
        return NameRanker(NameIndex.of_state(state, model.words, len(model.labels)))


@ranker_kind("linear")
@dataclass(frozen=True, eq=False)
class LinearRanker(Stateless):
    """A weight for each feature and label, by :func:`~shoal.rank.linear.ridge_regression`.

    An encoder's vectors have a few hundred entries, and what one feature says of one label may not
    pass through them. With more than 8,192 features, 65,536 labels or 2²⁶ weights it is left out.

    Attributes:
        ridge: λ; the examples' bags have length one. From 0.3 to 3 P@1 moves by two points on
            bibtex's validation split and by one on mediamill's (docs/LOG.md).
        rows: weights, a row a feature, once fitted.
        bias: of each label.
    """

    ridge: float = 1.0
    rows: Float[Tensor, "f l"] | None = None
    bias: Float[Tensor, " l"] | None = None

    kind = "linear"
    features = ("features, linearly",)

    def fitted(self, model: Predictor, known: Known) -> LinearRanker | None:
        """None where examples are texts, or weights would be too many."""
        if known.texts.features is None:
            return None
        bags = model.encoder.documents(known.texts)
        width, labels = int(bags.indices.max()) + 1, len(model.labels)
        if width > _FEATURES or labels > _LABELS or width * labels > _WEIGHTS:
            return None
        x = Csr(bags.indptr, bags.indices, width, bags.values)
        rows, bias = ridge_regression(x, model.truth.with_values(None), self.ridge)
        return replace(self, rows=rows, bias=bias)

    def rank(self, query: Query, k: int) -> list[Ranking]:
        """The k labels that the features speak for most."""
        assert self.rows is not None and self.bias is not None
        n, k = len(query.texts), min(k, len(self.bias))
        scores, ids = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
        for at in torch.arange(n).split(_PART):
            with torch.no_grad():
                bags = query.model.encoder.documents(query.texts.subset(at))
                every = matmul(bags, self.rows) + self.bias
            if query.drop is not None:
                drop = query.drop.rows(at)
                every[drop.row_ids(), drop.indices.long()] = -torch.inf
            scores[at], ids[at] = every.topk(k, dim=1)
        return [Ranking(scores, ids)]

    def state_dict(self) -> dict[str, Any]:
        """The weights."""
        return {"ridge": self.ridge, "rows": self.rows, "bias": self.bias}

    @staticmethod
    def of_state(state: Mapping[str, Any], model: Predictor) -> LinearRanker:
        """The ranker with these weights."""
        labels = len(model.labels)
        rows, bias = floats(state, "rows", None, labels), floats(state, "bias", labels)
        return LinearRanker(number(state, "ridge", low=0), rows, bias)


RANKERS: tuple[Any, ...] = (
    EncoderRanker(),
    ClassifierRanker(),
    NeighborRanker(),
    PlainRanker(),
    WordRanker(),
    NameRanker(),
    LinearRanker(),
)
"""The rankers of the default ensemble; what each is worth is in docs/LOG.md."""
