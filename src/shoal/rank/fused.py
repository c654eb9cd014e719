"""A labeler that looks at all evidence: embeddings, words, names, neighbors and classifiers, fused.

Up to thirteen rankings of a text's labels:

    text        cosine of the embeddings of text and label
    plain       the same without the rows of roles, where there are any: it knows less of what was
                seen and more of what was not (:mod:`shoal.text.fields`)
    head        inner product of the text's embedding and the label's classifier, if there is a head
    neighbors   votes of the training points whose embeddings are nearest
    words       tf-idf cosine of text and label
    title       tf-idf cosine of text and the label's title
    from title  tf-idf cosine of the text's title and the label
    like words  votes of the training points whose words are nearest
    names       five ways of labels named in the text, or texts named in the label
                (:mod:`shoal.rank.names`)

:class:`~shoal.rank.fusion.Fusion` weighs them by what they are worth on held-out points. Those
points enter only after that, as neighbors like all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive
from shoal.core.metrics import inverse_propensity
from shoal.core.progress import progress
from shoal.data.texts import Examples, Texts
from shoal.rank.fusion import Candidates, Fusion, fit_fusion, join
from shoal.rank.lexical import LexicalIndex, tf_idf
from shoal.rank.names import NameIndex
from shoal.rank.neighbors import votes
from shoal.rank.predictor import Labeler, Lexicon, Prediction, named
from shoal.rank.ranking import Ranking
from shoal.rank.tree import TreeFusion, fit_tree_fusion
from shoal.text.vocabulary import Vocabulary, inverse_document_frequency

# candidates a ranking brings, and neighbors that vote: measured in docs/LOG.md
_DEPTH, _NEAR = 100, 50
# share of the texts that hold a token from which on it tells nothing (docs/LOG.md)
_COMMON = 0.1
# held-out points that teach the network: a thousand numbers to learn, 80 kB of features each
_TAUGHT = 8192
# texts ranked at a time: features of their candidates take up to 80 kB a text
_TEXTS = 2048


def _rare(idf: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """Zero for tokens of more than a tenth of the texts: what most of a search's time goes to."""
    return idf * (idf > 1 - math.log(_COMMON))


@dataclass(frozen=True, eq=False)
class Words:
    """The lexical side: tf-idf vectors of labels, titles and training points, and labels' names.

    Attributes:
        vocabulary: words and pieces.
        idf: weight of each.
        labels: index of the label texts.
        titles: index of the label titles.
        points: index of the training texts.
        names: of the labels.
    """

    vocabulary: Vocabulary
    idf: Float[Tensor, " v"]
    labels: LexicalIndex
    titles: LexicalIndex
    points: LexicalIndex
    names: NameIndex

    @staticmethod
    def of(vocabulary: Vocabulary, labels: Texts, points: Texts) -> Words:
        """Index labels and training points."""
        label_bags, point_bags = (vocabulary.bags(x.all()) for x in (labels, points))
        idf = _rare(inverse_document_frequency(point_bags.stack(label_bags)))
        vectors = (tf_idf(x, idf) for x in (label_bags, vocabulary.bags(labels.titles), point_bags))
        by_label, by_title, by_point = (LexicalIndex.of(x) for x in vectors)
        names = NameIndex.of(vocabulary, labels)
        return Words(vocabulary, idf, by_label, by_title, by_point, names)

    def rankings(self, texts: Texts, labels_of_points: Csr, k: int) -> list[Ranking]:
        """Rank the k best labels of each text by its words, in nine ways."""
        whole, title = self.vectors(texts.all()), self.vectors(texts.titles)
        near = self.points.search(whole, _NEAR)
        return [
            self.labels.search(whole, k),
            self.titles.search(whole, k),
            self.labels.search(title, k),
            votes(near, labels_of_points, k, power=2.0),
            *self.names.rankings(texts, k),
        ]

    def vectors(self, texts: Sequence[str]) -> Csr:
        """tf-idf vectors of texts."""
        return tf_idf(self.vocabulary.bags(texts), self.idf)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint."""
        indexes = {"labels": self.labels, "titles": self.titles, "points": self.points}
        tokenizer = self.vocabulary.save().encode()
        return {
            "tokenizer": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8),
            "pieces": self.vocabulary.pieces.state_dict(),
            "idf": self.idf,
            "names": self.names.state_dict(),
            **{name: index.by_token.state_dict() for name, index in indexes.items()},
        }

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Words:
        """What :meth:`state_dict` gave."""
        tokenizer = bytes(state["tokenizer"].numpy()).decode()
        labels, titles, points = (
            LexicalIndex(Csr.of_state(state[x])) for x in ("labels", "titles", "points")
        )
        vocabulary = Vocabulary.load(tokenizer, Csr.of_state(state["pieces"]))
        names = NameIndex.of_state(state["names"], vocabulary)
        return Words(vocabulary, state["idf"], labels, titles, points, names)


@dataclass(frozen=True, eq=False)
class Memory:
    """What the training points tell about labels besides what a model has learned from them.

    Attributes:
        points: embeddings of the training points.
        labels: of the training points.
        words: the lexical side, or None to do without it.
        head: classifiers, one a label, or None.
    """

    points: Float[Tensor, "n d"]
    labels: Csr
    words: Words | None = None
    head: Float[Tensor, "l d"] | None = None

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if points and labels, or labels and classifiers, differ in number.
        """
        n, n_labels = self.labels.shape
        got = len(self.points)
        expect(got == n, "points", f"{n}, as rows of labels", got, "take all parts from one run")
        got = n_labels if self.head is None else len(self.head)
        expect(got == n_labels, "head", f"{n_labels} classifiers", got, "use the run's own")

    @property
    def frequency(self) -> Int[Tensor, " l"]:
        """Training points of each label."""
        return torch.bincount(self.labels.indices, minlength=self.labels.n_cols)

    def rankings(self, labeler: Labeler, texts: Texts, drop: Csr | None = None) -> list[Ranking]:
        """Rank the labels of each text in every way there is.

        Args:
            labeler: embeds texts and labels.
            texts: n of them.
            drop: ``[n, l]``, pairs that need not be found.
        """
        depth = min(_DEPTH, self.labels.n_cols)
        embedded, search = labeler.encode(texts), labeler.search
        keys = [labeler.label_embeddings] + ([] if self.head is None else [self.head])
        found = [Ranking(*search(embedded, key, depth, drop)) for key in keys]
        near = Ranking(*search(embedded, self.points, min(_NEAR, len(self.points))))
        found.append(votes(near, self.labels, depth))
        if labeler.plain is not None:
            plain = labeler.plain
            found.append(Ranking(*search(plain.encode(texts), plain.label_embeddings, depth, drop)))
        if self.words is not None:
            found += self.words.rankings(texts, self.labels, depth)
        return found

    def candidates(self, labeler: Labeler, texts: Texts, drop: Csr | None = None) -> Candidates:
        """What a fusion reads: see :meth:`rankings`."""
        return join(self.rankings(labeler, texts, drop), self.frequency)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint; embeddings in half precision.

        Half of the bytes moves a cosine by less than 0.001.
        """
        return {
            "points": self.points.half(),
            "labels": self.labels.with_values(None).state_dict(),
            "words": None if self.words is None else self.words.state_dict(),
            "head": self.head,
        }

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Memory:
        """What :meth:`state_dict` gave."""
        words = None if state["words"] is None else Words.of_state(state["words"])
        return Memory(state["points"], Csr.of_state(state["labels"]), words, state["head"])


@dataclass(frozen=True, eq=False)
class FusedLabeler:
    """An encoder's labeler, a memory, and what their rankings are worth.

    Attributes:
        labeler: embeds texts and labels.
        memory: of the training points.
        fusion: weighs the rankings.
    """

    labeler: Labeler
    memory: Memory
    fusion: Fusion | TreeFusion

    @property
    def lexicon(self) -> Lexicon:
        """Vocabulary and labels of the encoder."""
        return self.labeler.lexicon

    def rank(
        self, texts: Texts, k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The k most probable labels of each text: probabilities, and ids (-1 for none).

        Args:
            texts: any number.
            k: at most the number of labels.
            drop: (text, label) pairs that may not be predicted.

        Raises:
            InputError: if k is out of range.
        """
        expect_positive("k", k)
        most = len(self.lexicon.labels)
        expect(k <= most, "k", f"at most the {most} labels", k, "lower k")
        parts = []
        for ids in progress(torch.arange(len(texts)).split(_TEXTS), "rank"):
            without = None if drop is None else drop.rows(ids)
            found = self.memory.candidates(self.labeler, texts.subset(ids), without)
            parts.append(self.fusion.rank(found, k, without))
        scores = torch.cat([part.scores for part in parts])
        return scores, torch.cat([part.ids for part in parts])

    def predict(self, texts: Sequence[str], k: int = 5) -> list[list[Prediction]]:
        """The k most probable labels of each text, by name.

        Raises:
            InputError: if k is out of range.
        """
        return named(self.lexicon.labels, *self.rank(self.lexicon.read(texts), k))


def fuse(
    labeler: Labeler,
    memory: Memory,
    held_out: Examples,
    seed: int = 0,
    kind: Literal["network", "tree"] = "network",
    rare: float = 0.0,
) -> Fusion | TreeFusion:
    """Learn what each ranking of a memory is worth, on points that it does not know.

    Args:
        labeler: trained without the held-out points.
        memory: made without them.
        held_out: of more than 8,192 points, so many at random teach it.
        seed: of the network's first weights and of the order of points.
        kind: a network over all rankings, or NGAME's tree over text and head.
        rare: the network's losses are weighed by inverse propensity to this power: 0 is for P@k, 1
            for PSP@k, at which rare labels come up more.

    Raises:
        InputError: if none of their labels is found by any ranking.
    """
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))
    held_out = held_out.subset(order[:_TAUGHT])
    found = memory.candidates(labeler, held_out.texts, held_out.drop)
    if kind == "tree":
        return fit_tree_fusion(found, held_out.labels, held_out.drop)
    weight = inverse_propensity(memory.labels) ** rare if rare else None
    return fit_fusion(found, held_out.labels, held_out.drop, weight=weight, seed=seed)
