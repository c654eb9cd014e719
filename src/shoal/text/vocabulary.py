"""From texts to bags of rows: words and the pieces that they are made of.

Two matrices, both a :class:`~shoal.core.csr.Csr`:

    tokens  [n texts x V tokens]   what the tokenizer finds: a known word whole, an unknown one cut
                                   into the longest pieces that are known
    pieces  [V tokens x V rows]    what a token adds up: its own row and, for a rare word, those of
                                   its pieces, so that a rare word leans on what it is made of

Their product [n x V] is the bag of a text. Since a bag is a sum, the rows of a token can be summed
once and for all, ``pieces @ table``: the encoder is then a plain table of token vectors behind a
WordPiece tokenizer, which other libraries can load. Rows start as random directions times their
inverse document frequency, so that an untrained bag is a random projection of tf-idf, whose cosines
it keeps up to about 1/√d (Johnson and Lindenstrauss, 1984).

Japanese, Chinese, Thai, Lao, Burmese, Khmer and Tibetan are written without spaces. There each
character is a word, and so are the longer units that byte-pair encoding (Sennrich et al., ACL 2016)
finds in the texts; a text is cut into the longest of them, and a unit adds up the rows of its
characters beside its own.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, fail
from shoal.core.progress import progress
from shoal.core.state import integers, part
from shoal.data.lines import shorten
from shoal.data.texts import Texts, plain_texts

_UNKNOWN = "[UNK]"
_PREFIX = "##"
_LONGEST = 40
# texts handed to the tokenizer at a time: its answers are objects, and a million of them is memory
_CHUNK = 16384
# characters of scripts that are written without spaces: Thai, Lao, Tibetan and Burmese; Khmer; kana
# and ideographs
_UNSPACED = (
    "[\u0e00-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
# A unit of these scripts is at most so long, and occurs at least so often: where it is longer or
# rarer, it is a phrase of one or two texts. Assumptions, tried on made-up names of products.
_UNIT, _UNIT_COUNT = 6, 5
# So many words, of which such a share occurs once, are no texts of a language: 66 % do in 1,000
# titles of WordNet, which are lemmas, and 24 % in their definitions.
_MANY, _MOST_ONCE = 500, 0.9


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens, and the pieces that words among them are made of.

    Attributes:
        tokenizer: lower-cases, splits at what is no letter or digit, then WordPiece.
        pieces: ``[V, V]``: the rows that each token adds up.

    Example:
        >>> vocabulary = learn(["red cup", "red cups", "red hat"], n_pieces=30)
        >>> vocabulary.tokens(["red cup red", "?"]).degrees().tolist()
        [3, 0]
    """

    tokenizer: Tokenizer
    pieces: Csr

    def __len__(self) -> int:
        return self.pieces.n_rows

    @property
    def words(self) -> Vocabulary:
        """This vocabulary: the one below field embeddings, where there are any."""
        return self

    @cached_property
    def unknown(self) -> int | None:
        """The token of words of which nothing is known, or None where there is none."""
        return self.tokenizer.token_to_id(_UNKNOWN)

    def tokens(self, texts: Sequence[str]) -> Csr:
        """Tokens of each text in order, as often as they occur: ``[n, V]``."""
        flat: list[int] = []
        ends, texts = [0], plain_texts(texts)
        for start in progress(range(0, len(texts), _CHUNK), "tokenize"):
            some = texts[start : start + _CHUNK]
            for encoding in self.tokenizer.encode_batch_fast(some, add_special_tokens=False):
                flat.extend(i for i in encoding.ids if i != self.unknown)
                ends.append(len(flat))
        indices = torch.tensor(flat, dtype=torch.int32)
        return Csr(torch.tensor(ends), indices, len(self))

    def parts(self, texts: Texts) -> tuple[Csr, Csr]:
        """Tokens of titles and of contents; those of the texts that were last asked for are kept.

        One after the other they are the tokens of :meth:`~shoal.data.texts.Texts.all`, since a
        space, which stands between title and content, ends every token.
        """
        last: tuple[Any, tuple[Csr, Csr]] | None = self.__dict__.get("_last")
        if last is not None and last[0]() is texts:
            return last[1]
        both, n = self.tokens([*texts.titles, *texts.contents]), len(texts)
        found = both.span(0, n), both.span(n, 2 * n)
        # by a weak reference, so that nothing outlives its texts but the tokens of one batch
        self.__dict__["_last"] = ref(texts), found
        return found

    def bags(self, texts: Sequence[str]) -> Csr:
        """Rows of each text, as often as they occur: ``[n, V]``, the product tokens x pieces."""
        return self.bags_of(self.tokens(texts))

    def bags_of(self, tokens: Csr) -> Csr:
        """Rows of texts whose tokens these are."""
        indices, offsets = self.pieces.take(tokens.indices)
        return Csr(offsets[tokens.indptr], indices.int(), len(self))

    def documents(self, texts: Texts) -> Csr:
        """Bags of documents: of title and content together."""
        titles, contents = self.parts(texts)
        return self.bags_of(titles.beside(contents))

    def labels(self, texts: Texts) -> Csr:
        """Bags of labels, which are made like those of documents."""
        return self.documents(texts)

    def read(self, texts: Sequence[str]) -> Texts:
        """Plain texts as documents: titles without contents."""
        return Texts.of(texts)

    def first_rows(self, bags: Csr, dim: int, seed: int) -> Float[Tensor, "v d"]:
        """Rows to start from: :func:`random_rows`."""
        return random_rows(bags, dim, seed)

    def pieces_in(self, field: int) -> Csr:
        """Rows that each token adds up: :attr:`pieces`, whatever the field."""
        return self.pieces

    def without_fields(self, bags: Csr) -> Csr:
        """The same bags: there are no fields."""
        return bags

    def named(self, tokens: Sequence[int]) -> list[str]:
        """Tokens as a reader knows them, a piece within a word behind ``##``."""
        return [str(self.tokenizer.id_to_token(token)) for token in tokens]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint; the tokenizer as the bytes of its JSON."""
        text = self.tokenizer.to_str().encode()
        tokenizer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return {"tokenizer": tokenizer, "pieces": self.pieces.state_dict()}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Vocabulary:
        """Make the vocabulary that :meth:`state_dict` came from.

        Raises:
            InputError: if the bytes are no tokenizer's, or of another size than the pieces.
        """
        text = integers(state, "tokenizer", None, below=256, keep=[torch.uint8])
        tokenizer = _read_tokenizer(text.to(torch.uint8).numpy().tobytes())
        size = tokenizer.get_vocab_size()
        return Vocabulary(tokenizer, Csr.of_state(part(state, "pieces"), size, size))


def learn(
    texts: Iterable[str], n_pieces: int = 10_000, min_count: int = 2, common: int = 100
) -> Vocabulary:
    """Learn words and pieces from texts.

    Args:
        texts: the training texts; test texts never.
        n_pieces: size of the vocabulary of pieces, single letters included.
        min_count: a word that occurs less often has no row of its own, only its pieces'.
        common: a word that occurs so often is only itself: its own row sees enough to learn, and
            leaving its pieces out makes bags a third shorter and measures better (docs/LOG.md).

    Returns:
        A vocabulary whose tokens are the pieces and the words, each once.

    Raises:
        InputError: if the texts hold no word.
    """
    counts, runs = _by_script(_count_words(texts))
    known = len(counts) + len(runs) > 0
    expect(known, "texts", "some words", "none", "check that the texts are not empty")
    once, every = sum(count == 1 for count in counts.values()), counts.total()
    if every >= _MANY and once > _MOST_ONCE * every:
        told = "%d of %d words of the texts occur once, as ids do, or texts without spaces between "
        told += "words: little can be learned from them; try another column, or --encoder"
        logging.getLogger("shoal").warning(told, once, every)
    small = _pieces_tokenizer(counts, n_pieces)
    table = dict(sorted(small.get_vocab().items(), key=lambda item: item[1]))
    words = sorted(w for w, c in counts.items() if c >= min_count and len(w) <= _LONGEST)
    letters = sorted({letter for run in runs for letter in run})
    units = _units(runs, letters, n_pieces)
    for word in words + letters + units:
        table.setdefault(word, len(table))
    tokenizer = _tokenizer(table, units, unspaced=bool(runs))
    rare = [word for word in words if counts[word] < common]
    return Vocabulary(tokenizer, _decompose(rare, units, table, small))


def inverse_document_frequency(bags: Csr) -> Float[Tensor, " v"]:
    """Return ``1 + ln((n + 1) / (df + 1))`` of every column, df counting rows that hold it.

    Example:
        >>> inverse_document_frequency(Csr.from_lists([[0], [0]], n_cols=2)).tolist()
        [1.0, 2.098612...]
    """
    frequency = torch.bincount(bags.coalesce().indices, minlength=bags.n_cols)
    return 1 + torch.log((bags.n_rows + 1) / (frequency + 1.0))


def random_rows(bags: Csr, dim: int, seed: int) -> Float[Tensor, "v d"]:
    """Rows to start from: Gaussian directions of length about one, times idf over `bags`."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(bags.n_cols, dim, generator=generator) / dim**0.5
    return rows * inverse_document_frequency(bags).unsqueeze(1)


def _tokenizer(table: dict[str, int], units: Sequence[str], unspaced: bool) -> Tokenizer:
    """The tokenizer of a vocabulary: all else that its JSON says is the same in all of them."""
    tokenizer = _splitter(_word_piece(table), unspaced)
    tokenizer.add_tokens([AddedToken(unit, special=False) for unit in units])
    return tokenizer


def _read_tokenizer(text: bytes) -> Tokenizer:
    """The tokenizer of a JSON that :func:`_tokenizer` made, built from its parts.

    The library reads any JSON of its own, patterns that never end and tables that abort the
    process among them; so it is only given words.

    Raises:
        InputError: if it is the JSON of anything else.
    """
    try:
        facts = json.loads(text)
        table, units = facts["model"]["vocab"], [x["content"] for x in facts["added_tokens"]]
        numbered = sorted(table.values()) == list(range(len(table)))
        known = all(unit and unit in table for unit in units)
        expect(numbered and known, "tokenizer", "numbered words", "others", "train again")
        unspaced = facts["pre_tokenizer"]["type"] == "Sequence"
        built = _tokenizer(table, units, unspaced)
        same = _agree(facts, json.loads(built.to_str()))
    except InputError:
        raise
    except Exception as error:  # the library raises plain Exception
        fail("tokenizer", "the JSON of a tokenizer", repr(error)[:80], "train the model again")
    expect(same, "tokenizer", "one as shoal makes it", "another", "train the model again")
    return built


def _agree(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal in all that both name: versions of the library add keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return one == other


def _splitter(model: models.Model, unspaced: bool = False) -> Tokenizer:
    """What splits texts into words; with `unspaced` each character of those scripts is one."""
    tokenizer = Tokenizer(model)
    accents_off = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(accents_off)  # pyright: ignore[reportAttributeAccessIssue]
    split: Any = pre_tokenizers.Split(Regex(r"[^\w]+|_+"), behavior="removed")
    if unspaced:
        letters = pre_tokenizers.Split(Regex(_UNSPACED), behavior="isolated")
        split = pre_tokenizers.Sequence([split, letters])
    tokenizer.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _count_words(texts: Iterable[str]) -> Counter[str]:
    splitter = _splitter(models.WordPiece({_UNKNOWN: 0}, unk_token=_UNKNOWN))
    counts: Counter[str] = Counter()
    for i, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            fail(f"texts[{i}]", "a string", shorten(text), "replace it or leave it out")
        normal = splitter.normalizer.normalize_str(text)  # pyright: ignore[reportOptionalMemberAccess]
        words = splitter.pre_tokenizer.pre_tokenize_str(normal)  # pyright: ignore[reportOptionalMemberAccess]
        counts.update(word for word, _ in words)
    return counts


def _by_script(counts: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Words, and runs of characters of scripts without spaces, which stand out of words."""
    words, runs, run = Counter[str](), Counter[str](), re.compile(f"({_UNSPACED}+)")
    for word, count in counts.items():
        for i, cut in enumerate(run.split(word)):
            if cut:
                (runs if i % 2 else words)[cut] += count
    return words, runs


def _units(runs: Counter[str], letters: list[str], n: int) -> list[str]:
    """Units of several characters that runs are made of, by byte-pair encoding."""
    # naming the letters first makes the trainer deterministic (see _pieces_tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=n,
        min_frequency=_UNIT_COUNT,
        special_tokens=letters,
        max_token_length=_UNIT,
        show_progress=False,
    )
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator((run for run in sorted(runs) for _ in range(runs[run])), trainer)
    return sorted(unit for unit in trained.get_vocab() if len(unit) > 1)


def _pieces_tokenizer(counts: Counter[str], n_pieces: int) -> Tokenizer:
    # The trainer numbers inner letters in a random order and breaks ties by number. Naming them
    # first makes it deterministic; each distinct word counts once, so that pieces are those of rare
    # words rather than frequent words whole.
    letters = sorted({letter for word in counts for letter in word})
    first = [_UNKNOWN, *letters, *(_PREFIX + letter for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=n_pieces,
        special_tokens=first,
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    trained = _splitter(models.WordPiece(unk_token=_UNKNOWN))
    trained.train_from_iterator(sorted(counts), trainer)
    return _splitter(_word_piece(trained.get_vocab()))


def _word_piece(table: dict[str, int]) -> models.WordPiece:
    return models.WordPiece(
        table,
        unk_token=_UNKNOWN,
        continuing_subword_prefix=_PREFIX,
        max_input_chars_per_word=_LONGEST,
    )


def _decompose(words: list[str], units: list[str], table: dict[str, int], small: Tokenizer) -> Csr:
    """Rows of each token: itself, and what words of several pieces and units are made of."""
    rows = [[i] for i in range(len(table))]
    for word, encoding in zip(words, small.encode_batch_fast(words), strict=True):
        if len(encoding.ids) > 1:
            rows[table[word]].extend(i for i in encoding.ids if i != table[_UNKNOWN])
    for unit in units:
        rows[table[unit]].extend(table[letter] for letter in unit)
    return Csr.from_lists(rows, len(table))
