"""Names: which labels a text calls by name, and which labels' texts call the text by its name.

An encoder knows what a text is about; it blurs what the text says. Texts that describe a thing
often name its labels word for word, and early: a gloss opens with its genus ("a large African
*mammal* that ..."). So a label is a candidate where one of its names stands in the text, or one of
the text's names in the label's, and the likelier the longer the name is and the earlier it stands::

    earliness(text, label) = max over occurrences of   length / (1 + position)
    length(text, label)    = max over occurrences of   length + 1 / (1 + position)

both in tokens. These are the oldest features of subject indexing (Medelyan, "Human-competitive
automatic topic indexing", 2009: length, first occurrence). Names are a title's parts between
commas, semicolons, slashes and brackets, and the whole of it; plural and singular are one (the
S stemmer of Harman, "How effective is suffixing?", 1991, which knows English only).

Both directions are one join: a table of whole names meets a table of all short runs of tokens, by
their hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.state import count, integers, part
from shoal.data.texts import Texts
from shoal.rank.ranking import Ranking
from shoal.text.vocabulary import Vocabulary

# tokens of a name; and of a text, where names behind them would score little
_LONGEST, _FIRST = 4, 32
# owners kept a phrase, the earliest: what bounds the work on a name that everything has
_OWNERS = 100
_BETWEEN = re.compile(r"[,;/()\[\]]")
_BASE = 1_000_003


def names(titles: Sequence[str]) -> tuple[list[str], Int[Tensor, " m"]]:
    """The names in each title: the whole, and its parts where there are several.

    Returns:
        m names, and the position of the title that each belongs to, rising.

    Example:
        >>> found, owner = names(["planet, major planet", "Mercury (planet)", ""])
        >>> found
        ['planet, major planet', 'planet', 'major planet', 'Mercury (planet)', 'Mercury', 'planet']
        >>> owner.tolist()
        [0, 0, 0, 1, 1, 1]
    """
    found, owner = [], []
    for i, title in enumerate(titles):
        parts = [part.strip() for part in _BETWEEN.split(title) if part.strip()]
        whole = [title] if title.strip() else []
        each = whole + parts if len(parts) > 1 else whole
        found += each
        owner += [i] * len(each)
    return found, torch.tensor(owner, dtype=torch.int64)


def singular(words: Sequence[str]) -> Int[Tensor, " v"]:
    """For each word the position of its singular, if that is among the words too, else its own.

    Example:
        >>> singular(["city", "cities", "glass", "dog", "dogs", "news"]).tolist()
        [0, 0, 2, 3, 3, 5]
    """
    place = {word: i for i, word in enumerate(words)}
    return torch.tensor([place.get(_singular(word), i) for i, word in enumerate(words)])


def _singular(word: str) -> str:
    if word.endswith("ies") and word[-4:-3] not in ("e", "a"):
        return word[:-3] + "y"
    if word.endswith("es") and word[-3:-2] not in ("a", "e", "o"):
        return word[:-1]
    if word.endswith("s") and word[-2:-1] not in ("u", "s"):
        return word[:-1]
    return word


@dataclass(frozen=True, eq=False)
class Phrases:
    """Runs of tokens, each with the text that it stands in, sorted by hash.

    Attributes:
        hashes: of the tokens of each run, rising.
        owners: the text.
        positions: tokens of the text before the run.
        lengths: tokens in the run.
        n: how many texts there are.
    """

    hashes: Int[Tensor, " e"]
    owners: Int[Tensor, " e"]
    positions: Integer[Tensor, " e"]
    lengths: Integer[Tensor, " e"]
    n: int

    @staticmethod
    def whole(tokens: Csr, owners: Int[Tensor, " m"], n: int) -> Phrases:
        """Each row as one phrase: names, which stand at the beginning of themselves.

        Args:
            tokens: ``[m, v]`` in order; a row of more than four, or of none, has no phrase.
            owners: of each row.
            n: how many owners there are.
        """
        degrees = tokens.degrees()
        parts = []
        for length in range(1, _LONGEST + 1):
            rows = (degrees == length).nonzero().squeeze(1)
            hashes, row, position = _runs(tokens.rows(rows), length)
            parts.append((hashes, owners[rows][row], position, torch.full_like(row, length)))
        return Phrases._sorted(parts, n)

    @staticmethod
    def within(tokens: Csr) -> Phrases:
        """All runs of up to four tokens in each row, ``[n, v]`` in order, near its beginning."""
        parts = []
        for length in range(1, _LONGEST + 1):
            hashes, row, position = _runs(tokens, length)
            kept = position < _FIRST
            hashes, row, position = hashes[kept], row[kept], position[kept]
            parts.append((hashes, row, position, torch.full_like(row, length)))
        return Phrases._sorted(parts, tokens.n_rows)

    @staticmethod
    def _sorted(parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], n: int) -> Phrases:
        hashes, owners, positions, lengths = (torch.cat(x) for x in zip(*parts, strict=True))
        order = torch.argsort(positions, stable=True)
        order = order[torch.argsort(hashes[order], stable=True)]
        positions, lengths = positions.to(torch.uint8)[order], lengths.to(torch.uint8)[order]
        return Phrases(hashes[order], owners.int()[order], positions, lengths, n)

    def common(self) -> Phrases:
        """The same with the 100 earliest owners of each phrase, as an index is best kept."""
        begin = torch.searchsorted(self.hashes, self.hashes)
        kept = torch.arange(len(begin)) - begin < _OWNERS
        positions, lengths = self.positions[kept], self.lengths[kept]
        return Phrases(self.hashes[kept], self.owners[kept], positions, lengths, self.n)

    def meet(self, index: Phrases) -> Meeting:
        """Find the phrases that both tables hold; one of them should be of whole names."""
        low = torch.searchsorted(index.hashes, self.hashes)
        count = torch.searchsorted(index.hashes, self.hashes, right=True) - low
        mine = torch.arange(len(low)).repeat_interleave(count)
        at = torch.arange(len(mine)) - (count.cumsum(0) - count - low)[mine]
        rows, columns = self.owners[mine].long(), index.owners[at].long()
        position = self.positions[mine] + index.positions[at]
        return Meeting(rows, columns, self.lengths[mine], position, (self.n, index.n))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number for a checkpoint."""
        return dict(vars(self))

    @staticmethod
    def of_state(state: Mapping[str, Any], n: int) -> Phrases:
        """What :meth:`state_dict` gave of :meth:`common` phrases.

        Args:
            state: the parts.
            n: how many owners there must be.

        Raises:
            InputError: if the parts are others.
        """
        hashes = integers(state, "hashes", None, low=-(2**63))
        rising = bool((hashes[1:] >= hashes[:-1]).all())
        rare = not bool((hashes[_OWNERS:] == hashes[: max(len(hashes) - _OWNERS, 0)]).any())
        want = f"rising numbers, each up to {_OWNERS} times"
        expect(rising and rare, "hashes", want, "others", "train again")
        owners = integers(state, "owners", len(hashes), below=n, keep=[torch.int32])
        positions, lengths = (
            integers(state, name, len(hashes), low=low, below=below, keep=[torch.uint8])
            for name, low, below in (("positions", 0, 256), ("lengths", 1, _LONGEST + 1))
        )
        count(state, "n", n, n + 1)
        return Phrases(hashes, owners, positions, lengths, n)


@dataclass(frozen=True, eq=False)
class Meeting:
    """Names found: which of n texts met which of l labels, in a name of what length and where.

    Attributes:
        rows: the text.
        columns: the label.
        lengths: of the name, in tokens.
        positions: tokens before it.
        shape: (n, l).

    Example:
        Label 1, "red cup" (tokens 1 2), stands behind one token of the only text.

        >>> text = Phrases.within(Csr.from_lists([[0, 1, 2]], n_cols=3))
        >>> label = Csr.from_lists([[0, 0], [1, 2]], n_cols=3)
        >>> met = text.meet(Phrases.whole(label, torch.arange(2), 2))
        >>> met.earliness(2).ids.tolist(), met.earliness(2).scores.tolist()
        ([[1, -1]], [[1.0, -inf]])
        >>> met.length(1).scores.tolist()
        [[2.5]]
    """

    rows: Int[Tensor, " e"]
    columns: Int[Tensor, " e"]
    lengths: Integer[Tensor, " e"]
    positions: Integer[Tensor, " e"]
    shape: tuple[int, int]

    def earliness(self, k: int) -> Ranking:
        """The k labels of greatest length / (1 + position)."""
        return self._ranking(self.lengths / (1.0 + self.positions), k)

    def length(self, k: int) -> Ranking:
        """The k labels of greatest length, the earlier first among equals."""
        return self._ranking(self.lengths + 1 / (1.0 + self.positions), k)

    def _ranking(self, scores: Float[Tensor, " e"], k: int) -> Ranking:
        pairs, which = (self.rows * self.shape[1] + self.columns).unique(return_inverse=True)
        best = torch.zeros(len(pairs)).scatter_reduce_(0, which, scores, "amax")
        rows, columns = pairs // self.shape[1], pairs % self.shape[1]
        return Ranking.of(Csr.from_coo(rows, columns, self.shape, best), k)


def _runs(
    tokens: Csr, length: int
) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Hash, row and position of each run of `length` tokens that lies in one row."""
    ids, row = tokens.indices.long() + 1, tokens.row_ids()
    count = max(len(ids) - length + 1, 0)
    # a polynomial modulo 2^64; the length last, so that runs of different lengths differ
    hashes = torch.zeros(count, dtype=torch.int64)
    for i in range(length):
        hashes = hashes * _BASE + ids[i : i + count]
    hashes = hashes * _BASE + length
    inside = row[:count] == row[len(ids) - count :]
    row = row[:count][inside]
    position = torch.arange(count)[inside] - tokens.indptr[row]
    return hashes[inside], row, position


@dataclass(frozen=True, eq=False)
class NameIndex:
    """The labels' side of both directions.

    Attributes:
        vocabulary: finds tokens.
        singulars: of each token, its singular's number.
        names: of the labels, whole.
        titles: runs within the labels' titles.
        contents: runs within their contents.

    Example:
        >>> from shoal.text.vocabulary import learn
        >>> labels = Texts(["a", "b"], ["elephant", "mammal"], ["a large mammal", ""])
        >>> index = NameIndex.of(learn(labels.all() + ["mammals", "mammals"], n_pieces=60), labels)
        >>> texts = Texts(["x"], ["mammals"], ["some animal"])
        >>> in_title, _, _, calls_us, _ = index.rankings(texts, k=1)
        >>> in_title.ids.tolist(), calls_us.ids.tolist()  # it is a mammal; the elephant is one too
        ([[1]], [[0]])
    """

    vocabulary: Vocabulary
    singulars: Int[Tensor, " v"]
    names: Phrases
    titles: Phrases
    contents: Phrases

    @staticmethod
    def of(vocabulary: Vocabulary, labels: Texts) -> NameIndex:
        """Index the labels."""
        words = vocabulary.tokenizer.get_vocab()
        singulars = singular(sorted(words, key=lambda word: words[word]))
        names_, titles, contents = _sides(vocabulary, singulars, labels)
        return NameIndex(vocabulary, singulars, names_.common(), titles.common(), contents.common())

    def rankings(self, texts: Texts, k: int) -> list[Ranking]:
        """Rank the k best labels of each text in five ways.

        Returns:
            labels named in the title by earliness, in the content by earliness and by length, and
            labels whose content and whose title names the text, by earliness.
        """
        names_, titles, contents = _sides(self.vocabulary, self.singulars, texts)
        in_content = contents.meet(self.names)
        return [
            titles.meet(self.names).earliness(k),
            in_content.earliness(k),
            in_content.length(k),
            names_.meet(self.contents).earliness(k),
            names_.meet(self.titles).earliness(k),
        ]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint; the vocabulary is its owner's to save."""
        tables = {name: getattr(self, name).state_dict() for name in _TABLES}
        return {"singulars": self.singulars, **tables}

    @staticmethod
    def of_state(state: Mapping[str, Any], vocabulary: Vocabulary, labels: int) -> NameIndex:
        """What :meth:`state_dict` gave.

        Args:
            state: the parts.
            vocabulary: of their tokens.
            labels: how many there must be.

        Raises:
            InputError: if the parts are others.
        """
        tokens = len(vocabulary)
        singulars = integers(state, "singulars", tokens, below=tokens)
        tables = (Phrases.of_state(part(state, name), labels) for name in _TABLES)
        return NameIndex(vocabulary, singulars, *tables)


_TABLES = ("names", "titles", "contents")


def _sides(
    vocabulary: Vocabulary, singulars: Int[Tensor, " v"], texts: Texts
) -> tuple[Phrases, Phrases, Phrases]:
    """Whole names of texts, and the runs within their titles and contents."""

    def singular_(found: Csr) -> Csr:
        return Csr(found.indptr, singulars[found.indices.long()], found.n_cols)

    titles, contents = map(singular_, vocabulary.parts(texts))
    each, owners = names(texts.titles)
    # most titles are one name, whose tokens are there already
    differ = [name != texts.titles[i] for name, i in zip(each, owners.tolist(), strict=True)]
    new = torch.tensor(differ, dtype=torch.bool)
    more = singular_(
        vocabulary.tokens([name for name, differs in zip(each, differ, strict=True) if differs])
    )
    at = (titles.n_rows + new.cumsum(0) - 1).where(new, owners)
    whole = Phrases.whole(titles.stack(more).rows(at), owners, len(texts))
    return whole, Phrases.within(titles), Phrases.within(contents)
