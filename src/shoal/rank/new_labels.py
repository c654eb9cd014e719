"""New labels for a trained labeler, from their texts alone, without training.

A label is embedded from its text, so one that training never saw is ranked by its embedding like
all others; words and names find it by the same text. Nobody has voted for it yet: its frequency is
0, and neighbors do not know it. Where there are classifiers, its own is its embedding, as long as
those of the labels nearest to it are in the mean, so that their scores compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.core.search import top_k
from shoal.data.texts import Texts
from shoal.rank.fused import FusedLabeler, Memory, Words
from shoal.rank.lexical import LexicalIndex, tf_idf
from shoal.rank.names import NameIndex
from shoal.rank.predictor import Labeler, Lexicon

# labels whose classifiers say how long a new one is
_NEAR = 10


def with_labels(
    predictor: Labeler | FusedLabeler, texts: Texts | Sequence[str]
) -> Labeler | FusedLabeler:
    """A labeler that knows more labels; the one given stays as it is.

    Old labels keep their positions and, by embeddings, their scores.

    Args:
        predictor: trained, such as :func:`shoal.open` gives.
        texts: of the new labels; plain ones are titles and uids at once.

    Raises:
        InputError: if a uid is taken.
    """
    if not isinstance(texts, Texts):
        texts = Texts(list(texts), list(texts), [""] * len(texts))
    _expect_new(predictor.lexicon.labels.uids, texts.uids)
    if isinstance(predictor, Labeler):
        return _labeler_with(predictor, texts)
    old, labeler = predictor.labeler, _labeler_with(predictor.labeler, texts)
    memory, every = predictor.memory, labeler.lexicon.labels
    words = None if memory.words is None else _words_with(memory.words, texts, every)
    head = None if memory.head is None else _classifiers(memory.head, old, labeler)
    labels = memory.labels
    wider = Csr(labels.indptr, labels.indices, len(every), labels.values)
    return replace(predictor, labeler=labeler, memory=Memory(memory.points, wider, words, head))


def _expect_new(old: list[str], new: list[str]) -> None:
    known = set(old)
    for uid in new:
        expect(uid not in known, "uid", "one that no label has yet", uid, "name it otherwise")
        known.add(uid)


def _labeler_with(labeler: Labeler, texts: Texts) -> Labeler:
    lexicon = labeler.lexicon
    bags = lexicon.label_bags.stack(lexicon.vocabulary.labels(texts))
    more = Lexicon(lexicon.vocabulary, lexicon.labels.stack(texts), bags)
    longer = replace(labeler, lexicon=more, classifiers=None)
    if labeler.classifiers is None:
        return longer
    return replace(longer, classifiers=_classifiers(labeler.classifiers, labeler, longer))


def _classifiers(
    head: Float[Tensor, "l d"], labeler: Labeler, longer: Labeler
) -> Float[Tensor, "m d"]:
    """Classifiers of all labels, from those of the old ones."""
    old, new = labeler.label_embeddings, longer.label_embeddings[len(head) :]
    _, near = top_k(new, old, min(_NEAR, len(old)))
    lengths = torch.linalg.vector_norm(head, dim=1)[near].mean(1, keepdim=True)
    return torch.cat([head, (new * lengths).to(head)])


def _words_with(words: Words, texts: Texts, every: Texts) -> Words:
    """The lexical side with new labels; the weights of words stay."""

    def longer(index: LexicalIndex, part: list[str]) -> LexicalIndex:
        rows = tf_idf(words.vocabulary.bags(part), words.idf)
        return LexicalIndex.of(index.by_token.transpose().stack(rows))

    return replace(
        words,
        labels=longer(words.labels, texts.all()),
        titles=longer(words.titles, texts.titles),
        names=NameIndex.of(words.vocabulary, every),
    )
