"""A trained predictor: texts in, labels with scores out.

An encoder makes unit vectors, rankers find labels, a combiner weighs them; without a combiner the
first ranker's scores are the answer. All parts are frozen, so that a predictor with more labels,
more known examples or another search is a copy that shares the rest.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_positive, fail, naming
from shoal.core.progress import progress
from shoal.core.search import Search, top_k
from shoal.core.sketch import SKETCHED, Sketch
from shoal.core.state import part
from shoal.data.formats.xc import read_texts, write_texts
from shoal.data.lines import writer
from shoal.data.texts import Texts
from shoal.rank import ensemble
from shoal.rank.calibration import Rule, Thresholds, kept
from shoal.rank.ensemble import Candidates, TrainedCombiner, join
from shoal.rank.ranker import RANKER_KINDS, Known, Query, Ranker
from shoal.rank.ranking import Ranking, united
from shoal.text.encoder import TextEncoder, open_encoder
from shoal.text.vocabulary import Vocabulary

# candidates that a ranking brings: measured in docs/LOG.md
_DEPTH = 100
# labels that a sketch brings into a pool, and that each ranking does: measured there, too
_LIKELY, _FOUND = 64, 32
# texts ranked at a time: features of their candidates take up to 80 kB per text
_TEXTS = 2048
# characters of a known example that an explanation quotes
_QUOTED = 80


@dataclass(frozen=True)
class Prediction:
    """One predicted label.

    Attributes:
        label: the data's name for it.
        title: its short text.
        score: the probability that it is true, in [0, 1], where the predictor gives probabilities;
            else a cosine, −1 to 1, or a classifier's inner product.
        position: where it stands among the labels.
        explanation: why, where that was asked for (:meth:`Predictor.explain`).
    """

    label: str
    title: str
    score: float
    position: int
    explanation: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Predictor:
    """An encoder, labels, and what ranks them.

    Attributes:
        encoder: turns texts into unit vectors.
        labels: the l label texts.
        label_tokens: their token ids.
        rankers: find labels.
        combiner: weighs what they find; None ranks by the first of them alone.
        truth: ``[n, l]``, labels of the known examples; no row where nothing is known.
        own_words: the vocabulary of rankers that match words; None where there are none of them.
        quotes: the beginnings of the known examples, for explanations; empty where not kept.
        search: finds nearest keys, by default exactly.
        pooled: whether rankers say of a pool of likely labels how good each is, as the combiner was
            taught; False in models of before, whose rankers each search all labels.
    """

    encoder: TextEncoder
    labels: Texts
    label_tokens: Csr
    rankers: tuple[Ranker, ...]
    combiner: TrainedCombiner | None = None
    truth: Csr = field(default_factory=lambda: Csr.from_lists([], 0))
    own_words: Vocabulary | None = None
    quotes: Sequence[str] = ()
    search: Search = top_k
    pooled: bool = True

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            InputError: if they are those of several models.
        """
        shape, got = (len(self.labels), self.encoder.n_tokens), self.label_tokens.shape
        expect(got == shape, "label_tokens", f"a Csr of {shape}", got, "take all from one model")
        wide, known = self.truth.n_cols, self.truth.n_rows > 0
        good = wide == len(self.labels) if known else wide >= 0
        expect(good, "truth", f"{len(self.labels)} columns", wide, "align it with the labels")

    @property
    def probabilities(self) -> bool:
        """Whether scores are probabilities, and no cosines or inner products."""
        return self.combiner is not None and self.combiner.probabilities

    @property
    def thresholds(self) -> Thresholds | None:
        """Probabilities from which on labels are given, where the combiner has learned some."""
        return getattr(self.combiner, "thresholds", None)

    @cached_property
    def label_embeddings(self) -> Float[Tensor, "l d"]:
        """Unit vectors of all labels."""
        return self.encoder.embed_labels(self.label_tokens)

    @property
    def words(self) -> Vocabulary:
        """The vocabulary of rankers that match words."""
        assert self.own_words is not None, "a ranker that matches words says lexical = True"
        return self.own_words

    @cached_property
    def frequency(self) -> Int[Tensor, " l"]:
        """Known examples of each label."""
        return torch.bincount(self.truth.indices, minlength=self.truth.n_cols)

    @property
    def columns(self) -> int | None:
        """Features that an example has, as an encoder of features says; None where it is a text."""
        return getattr(self.encoder, "columns", None)

    def expect_read(self, texts: Texts) -> None:
        """Raise unless the encoder reads what these are: texts, or features of the same width.

        Raises:
            InputError: if it does not.
        """
        columns = self.columns
        got = None if texts.features is None else texts.features.n_cols
        if columns == got:
            return
        want = "texts" if columns is None else f"features, {columns} an example"
        found = "texts" if got is None else f"features, {got} an example"
        remedy = "pass texts" if columns is None else "pass an array or a file of such features"
        fail("texts", f"{want}, as in training", found, remedy)

    def encode(self, texts: Texts) -> Float[Tensor, "n d"]:
        """Unit vectors of texts; zero where the encoder knows nothing of a text.

        Raises:
            InputError: if they are features and the encoder reads texts, or the reverse.
        """
        self.expect_read(texts)
        return self.encoder.embed(self.encoder.documents(texts))

    def rank(
        self, texts: Texts, k: int, drop: Csr | None = None
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The k best labels of each text: scores, and ids (-1 where there are too few).

        Args:
            texts: any number.
            k: at most the number of labels.
            drop: (text, label) pairs that may not be predicted.

        Raises:
            InputError: if k is out of range, or as :meth:`encode`.
        """
        expect_positive("k", k)
        self.expect_read(texts)
        most = len(self.labels)
        expect(k <= most, "k", f"at most the {most} labels", k, "lower k")
        if self.combiner is None:
            found, *_ = self.rankers[0].rank(Query(self, texts, drop), k)
            return found.scores, found.ids
        parts = []
        for ids in progress(torch.arange(len(texts)).split(_TEXTS), "rank"):
            without = None if drop is None else drop.rows(ids)
            found = self.candidates(texts.subset(ids), without)
            parts.append(self.combiner.rank(found, k, without))
        if not parts:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        scores = torch.cat([part.scores for part in parts])
        return scores, torch.cat([part.ids for part in parts])

    def candidates(self, texts: Texts, drop: Csr | None = None) -> Candidates:
        """What a combiner chooses from: the best labels by each ranking, with their features."""
        return join(self.rankings(self._query(texts, drop)), self.frequency)

    def rankings(self, query: Query) -> list[Ranking]:
        """All rankings of all rankers, one a name of :attr:`Ranker.features`.

        Where there are many labels, each text has a pool of some hundred that may be true: those
        that a sketch of the labels finds, and those that rankers find which look at no label one
        by one. The other rankers say how good each label of the pool is.
        """
        depth = min(_DEPTH, len(self.labels))
        if query.exact:
            return [ranking for ranker in self.rankers for ranking in ranker.rank(query, depth)]
        assert self.sketch is not None
        asked = [ranker for ranker in self.rankers if getattr(ranker, "pooled", False)]
        found = {r.kind: r.rank(query, _FOUND) for r in self.rankers if r not in asked}
        ids = [ranking.ids for each in found.values() for ranking in each]
        likely = self.sketch.search(query.embedded, min(_LIKELY, len(self.labels)))
        query = query.within(united(torch.cat([likely, *ids], dim=1)))
        found |= {ranker.kind: ranker.rank(query, depth) for ranker in asked}
        return [ranking for ranker in self.rankers for ranking in found[ranker.kind]]

    def _query(self, texts: Texts, drop: Csr | None = None) -> Query:
        return Query(self, texts, drop, exact=self.sketch is None)

    @cached_property
    def sketch(self) -> Sketch | None:
        """Finds labels for pools; None where rankers look at all labels."""
        if not self.pooled or self.search is not top_k or len(self.labels) < SKETCHED:
            return None
        own = [getattr(ranker, "keys", None) for ranker in self.rankers]
        keys = [of(self) for of in own if of is not None]
        if not keys:
            return None
        # the longer a ranker's keys, the more its products differ: each counts alike
        lengths = (torch.linalg.vector_norm(x, dim=1).mean().clamp(min=1e-12) for x in keys)
        scaled = [x / length for x, length in zip(keys, lengths, strict=True)]
        return Sketch.of(torch.stack(scaled).sum(0))

    def predict(
        self, texts: Texts, k: int, threshold: float | Rule | None = None, explain: bool = False
    ) -> list[list[Prediction]]:
        """The k best labels of each text, by name.

        Args:
            texts: any number.
            k: labels per text.
            threshold: leave out labels of a lower score, or by a rule
                (:func:`shoal.rank.calibration.kept`).
            explain: say why (:meth:`explain`).

        Raises:
            InputError: if k is out of range, or the model has not learned the rule.
        """
        scores, ids = self.decided(texts, k, threshold)
        rows = named(self.labels, scores, ids)
        if explain:
            rows = [
                [replace(p, explanation=why) for p, why in zip(row, reasons, strict=True)]
                for row, reasons in zip(rows, self.explain(texts, ids), strict=True)
            ]
        return rows

    def decided(
        self,
        texts: Texts,
        k: int,
        threshold: float | Rule | None = None,
        drop: Csr | None = None,
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """As :meth:`rank`, in host memory, -inf and -1 for labels that a threshold leaves out.

        Raises:
            InputError: if k is out of range, or the model has not learned the rule.
        """
        # how many labels a text is expected to have is the sum over all that are found
        deep = min(_DEPTH, len(self.labels)) if threshold == "count" else k
        scores, ids = (x.cpu() for x in self.rank(texts, max(k, deep), drop))
        if threshold is not None:
            out = ~kept(scores, ids, threshold, self.thresholds)
            scores, ids = scores.masked_fill(out, -torch.inf), ids.masked_fill(out, -1)
        return scores[:, :k], ids[:, :k]

    def explain(self, texts: Texts, ids: Int[Tensor, "n k"]) -> list[list[dict[str, Any]]]:
        """Why each of some labels was found.

        Args:
            texts: n of them.
            ids: labels of each, -1 for none.

        Returns:
            for each label ``rankers``: the score of each ranking that found it, by name; and what
            rankers say besides (:meth:`~shoal.rank.rankers.Ranker.reasons`): ``words`` that text
            and label share, ``examples`` nearby that carry it.
        """
        query = Query(self, texts) if self.combiner is None else self._query(texts)
        names = [name for ranker in self.rankers for name in ranker.features]
        found = self.rankings(query)
        said = {k: x for ranker in self.rankers for k, x in ranker.reasons(query, ids).items()}
        return [
            [
                {
                    "rankers": {
                        name: round(float(ranking.scores[i, at]), 4)
                        for name, ranking in zip(names, found, strict=True)
                        for at in (ranking.ids[i] == label).nonzero().flatten().tolist()
                    },
                    **{key: each[i][j] for key, each in said.items()},
                }
                for j, label in enumerate(row)
                if label >= 0
            ]
            for i, row in enumerate(ids.tolist())
        ]

    def with_labels(self, texts: Texts) -> Predictor:
        """A predictor that has more labels, by their texts alone; this one stays as it is.

        A new label is ranked by its embedding, words and names as all others are. Nothing is known
        about it yet: its frequency is 0 and no neighbor carries it. Old labels keep their positions
        and, by embeddings, their scores.

        Args:
            texts: of the new labels.

        Raises:
            InputError: if a label is there already.
        """
        known = set(self.labels.uids)
        for uid in texts.uids:
            expect(uid not in known, "label", "one that is not there yet", uid, "name it otherwise")
            known.add(uid)
        tokens = self.label_tokens.stack(self.encoder.labels(texts))
        truth, wider = self.truth, len(self.labels) + len(texts)
        truth = Csr(truth.indptr, truth.indices, wider, truth.values)
        new = replace(self, labels=self.labels.stack(texts), label_tokens=tokens, truth=truth)
        longer = tuple(ranker.with_labels(self, new, texts) for ranker in self.rankers)
        return replace(new, rankers=longer)

    def with_examples(self, texts: Texts, labels: Csr) -> Predictor:
        """A predictor that knows more examples, without training; this one stays as it is.

        They vote as neighbors and count for the frequency of their labels.

        Args:
            texts: of the examples.
            labels: which labels they have, ``[n, l]``.

        Raises:
            InputError: if no ranker keeps examples.
        """
        known = Known(self, texts)
        more = tuple(ranker.with_examples(self, known) for ranker in self.rankers)
        changed = any(new is not old for new, old in zip(more, self.rankers, strict=True))
        if self.truth.n_rows == 0 or not changed:
            remedy = "train it on more examples, or with rankers=[shoal.NeighborRanker()] alone"
            fail("examples", "a model that keeps examples", "one that does not", remedy)
        quotes = [*self.quotes, *quotes_of(texts)] if self.quotes else ()
        truth = self.truth.with_values(None).stack(labels.with_values(None))
        return replace(self, rankers=more, truth=truth, quotes=quotes)

    def save(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write encoder, labels and quotes into a folder.

        Returns:
            what :meth:`open` is called with besides: plain facts, and a tree of tensors.
        """
        about: dict[str, Any] = {"encoder": self.encoder.save(folder)}
        about["rankers"] = [ranker.kind for ranker in self.rankers]
        about["combiner"] = None if self.combiner is None else self.combiner.kind
        about["pooled"] = self.pooled
        write_texts(self.labels, folder / "labels.json.gz")
        with writer(folder / "examples.json.gz") as file:
            json.dump(list(self.quotes), file, ensure_ascii=False)
        own = self.own_words is None or self.encoder.words is self.own_words
        state: dict[str, Any] = {
            "label_tokens": self.label_tokens.state_dict(),
            "truth": self.truth.with_values(None).state_dict(),
            "words": None if own or self.own_words is None else self.own_words.state_dict(),
            "rankers": [ranker.state_dict() for ranker in self.rankers],
            "combiner": None if self.combiner is None else self.combiner.state_dict(),
        }
        return about, state

    @staticmethod
    def open(
        folder: Path,
        about: Mapping[str, Any],
        state: Mapping[str, Any],
        device: str = "cpu",
        search: Search = top_k,
    ) -> Predictor:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if a part is missing, damaged or of a kind that is not registered.
        """
        encoder = open_encoder(folder, part(about, "encoder"), device)
        labels = read_texts(folder / "labels.json.gz")
        with naming("label_tokens"):
            tokens = Csr.of_state(part(state, "label_tokens"), len(labels), encoder.n_tokens)
        with naming("truth"):
            truth = Csr.of_state(part(state, "truth"))
        own = state.get("words")
        words = encoder.words if own is None else Vocabulary.of_state(part(state, "words"))
        base = Predictor(encoder, labels, tokens, (), None, truth, words, (), search)
        kinds, parts = about.get("rankers"), state.get("rankers")
        whole = isinstance(kinds, list) and isinstance(parts, list) and len(kinds) == len(parts) > 0
        expect(whole, "rankers", "some, each with its state", kinds, "train the model again")
        pairs = zip(kinds or [], parts or [], strict=True)
        found = tuple(base._ranker(*pair, folder) for pair in pairs)
        combiner = None
        if about.get("combiner") is not None:
            kind = _kind(ensemble.KINDS, about["combiner"], folder)
            combiner = kind.of_state(part(state, "combiner"))
        quotes = _read_quotes(folder / "examples.json.gz")
        pooled = about.get("pooled") is True
        opened = replace(base, rankers=found, combiner=combiner, quotes=quotes, pooled=pooled)
        return opened.agreed()

    def agreed(self) -> Predictor:
        """This predictor, after a look at whether parts that were read one by one agree.

        Raises:
            InputError: if they are those of several models.
        """
        rankings = sum(len(ranker.features) for ranker in self.rankers)
        weighed, remedy = getattr(self.combiner, "rankings", rankings), "train the model again"
        expect(weighed == rankings, "combiner", f"one of {rankings} rankings", weighed, remedy)
        n, quoted = self.truth.n_rows, len(self.quotes)
        expect(quoted in (0, n), "examples.json.gz", f"{n} texts", quoted, "remove it")
        return self

    def _ranker(self, name: object, state: Any, folder: Path) -> Ranker:
        """The ranker of a kind whose state this is.

        Raises:
            InputError: if it is no such state, or matches words and the model has none.
        """
        kind = _kind(RANKER_KINDS, name, folder)
        lacks = kind.lexical and self.own_words is None
        expect(not lacks, "words", "those that a ranker matches", "none", "train the model again")
        with naming(f"rankers, {name}"):
            return kind.of_state(part({"state": state}, "state"), self)


def named(
    labels: Texts, scores: Float[Tensor, "n k"], ids: Int[Tensor, "n k"]
) -> list[list[Prediction]]:
    """Ranked ids as predictions with names; -1 stands for none."""
    return [
        [
            Prediction(labels.uids[i], labels.titles[i], score, i)
            for i, score in zip(row_ids, row_scores, strict=True)
            if i >= 0
        ]
        for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def quotes_of(texts: Texts) -> list[str]:
    """The beginnings of examples, as explanations quote them."""
    return [text[:_QUOTED] for text in texts.all()]


def _read_quotes(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, EOFError, RecursionError, zlib.error) as error:
        fail(str(path), "the beginnings of known examples", error, "remove it: it only explains")
    good = isinstance(found, list) and all(isinstance(text, str) for text in found)
    expect(good, str(path), "a list of strings", "another", "remove it: it only explains")
    return found


def _kind(kinds: Mapping[str, Any], kind: object, folder: Path) -> Any:
    known = isinstance(kind, str) and kind in kinds
    remedy = "import the module that registers it first"
    expect(known, str(folder), f"one of {', '.join(sorted(kinds))}", kind, remedy)
    return kinds[str(kind)]
