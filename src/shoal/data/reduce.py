"""What a format cannot hold, taken out of a data set in named steps.

A format is a tuple of steps. Each step is a function from a data set to one that can be written,
and a note of what that cost, empty where it cost nothing. So the law of every format is

    read(write(data)) == reduce(data, steps),

and where there are no notes, that is the data set itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch

from shoal.core.csr import Csr
from shoal.core.errors import expect
from shoal.data.texts import Examples, LabelData, Texts, numbered_labels, row_names

Step = Callable[[LabelData], tuple[LabelData, str]]

_BREAKS = re.compile(r"[\r\n\t]")
_ENDS = re.compile(r"^[\s\ufeff]+|\s+$")


def reduce(data: LabelData, steps: tuple[Step, ...]) -> tuple[LabelData, list[str]]:
    """Take the steps one after the other.

    Returns:
        the data set that is left, and the notes of all steps that took something.

    Example:
        >>> texts = Texts(["a"], ["red"], ["mug"])
        >>> examples = Examples.of(texts, Csr.from_lists([[0]], 1))
        >>> left, lost = reduce(LabelData("tiny", examples, examples, texts), (number_examples,))
        >>> left.train.texts.uids, lost
        (['0'], ['the uids of 2 examples'])
    """
    lost = []
    for step in steps:
        data, note = step(data)
        lost += [note] * bool(note)
    return data, lost


# -- texts -------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    r"""Put a space for each line break and tab, and strip the ends.

    Example:
        >>> one_line("red\nmug ")
        'red mug'
    """
    return _ENDS.sub("", _BREAKS.sub(" ", text))


def _joined(texts: Texts) -> Texts:
    return replace(texts, titles=texts.all(), contents=[""] * len(texts))


def _lined(texts: Texts) -> Texts:
    return replace(texts, titles=[one_line(x) for x in texts.all()], contents=[""] * len(texts))


def _numbered(texts: Texts) -> Texts:
    return replace(texts, uids=row_names(len(texts)))


def _bare(texts: Texts) -> Texts:
    return texts if texts.features is None else Texts.of_features(texts.features)


def _of_examples(change: Callable[[Texts], Texts], what: str) -> Step:
    """The step that changes the texts of examples; its note counts those that differ then."""

    def step(data: LabelData) -> tuple[LabelData, str]:
        left = _each(data, lambda split: replace(split, texts=change(split.texts)))
        n = _changed(data.train.texts, left.train.texts)
        n += _changed(data.test.texts, left.test.texts)
        return left, f"{what} of {n} examples" if n else ""

    return step


def _each(data: LabelData, change: Callable[[Examples], Examples]) -> LabelData:
    return replace(data, train=change(data.train), test=change(data.test))


def _of_labels(change: Callable[[Texts], Texts], what: str) -> Step:
    """The same for the texts of labels."""

    def step(data: LabelData) -> tuple[LabelData, str]:
        labels = change(data.labels)
        n = _changed(data.labels, labels)
        return replace(data, labels=labels), f"{what} of {n} labels" if n else ""

    return step


def _changed(old: Texts, new: Texts) -> int:
    if old.features is not None and new.features is None:
        return len(old)
    parts = (old.uids, new.uids, old.titles, new.titles, old.contents, new.contents)
    return sum(a != b or c != d or e != f for a, b, c, d, e, f in zip(*parts, strict=True))


_BORDER = "title and content apart"
_LINES = f"the layout ({_BORDER}, line breaks, tabs, outer spaces)"
join_examples = _of_examples(_joined, _BORDER)
line_examples = _of_examples(_lined, _LINES)
line_labels = _of_labels(_lined, _LINES)
number_examples = _of_examples(_numbered, "the uids")
number_labels = _of_labels(_numbered, "the uids")
unweigh_examples = _of_examples(Texts.spelled, "the feature weights")
unweigh_labels = _of_labels(Texts.spelled, "the feature weights")
bare_examples = _of_examples(_bare, "the uids or texts beside features")
bare_labels = _of_labels(_bare, "the uids or texts beside features")
count_labels = _of_labels(lambda texts: numbered_labels(len(texts)), "the texts")


def uri_labels(data: LabelData) -> tuple[LabelData, str]:
    """The step for labels named by URIs: all are numbered unless each is one word of its own."""
    uids = data.labels.uids
    words = all(uid.split() == [uid] and uid[0] != "<" and uid[-1] != ">" for uid in uids)
    return (data, "") if words and len(set(uids)) == len(uids) else number_labels(data)


def unique_examples(data: LabelData) -> tuple[LabelData, str]:
    """The step for uids that must be unique: else examples are named by split and number."""
    uids = data.train.texts.uids + data.test.texts.uids
    if _all_differ(uids):
        return data, ""
    train, test = (
        replace(p, texts=replace(p.texts, uids=row_names(len(p), f"{split}-")))
        for split, p in (("train", data.train), ("test", data.test))
    )
    return replace(data, train=train, test=test), f"the uids of {len(uids)} examples"


def unique_labels(data: LabelData) -> tuple[LabelData, str]:
    """The step for uids that must be unique: else labels are numbered."""
    return (data, "") if _all_differ(data.labels.uids) else number_labels(data)


def _all_differ(uids: list[str]) -> bool:
    return len(set(uids)) == len(uids) and not any(_BREAKS.search(uid) for uid in uids)


# -- pairs -------------------------------------------------------------------------------------


def drop_relevance(data: LabelData) -> tuple[LabelData, str]:
    """The step that makes every relevance one."""
    n = sum(p.labels.nnz for p in (data.train, data.test) if p.labels.values is not None)
    left = _each(data, lambda split: replace(split, labels=split.labels.with_values(None)))
    return left, f"the relevances of {n} pairs" if n else ""


def drop_filters(data: LabelData) -> tuple[LabelData, str]:
    """The step that forgets which labels predictions must ignore."""
    n = data.train.drop.nnz + data.test.drop.nnz
    left = _each(data, lambda split: Examples.of(split.texts, split.labels))
    return left, f"{n} filter pairs" if n else ""


def only_full(data: LabelData) -> tuple[LabelData, str]:
    """The step that leaves out examples without text or without labels."""
    left = _each(data, _full)
    n = len(data.train) + len(data.test) - len(left.train) - len(left.test)
    return left, f"{n} examples without text or without labels" if n else ""


def _full(examples: Examples) -> Examples:
    has_text = torch.tensor([bool(x.strip()) for x in examples.texts.all()], dtype=torch.bool)
    return examples.subset((has_text & (examples.labels.degrees() > 0)).nonzero().squeeze(1))


def name_labels(clean: Callable[[str], str]) -> Step:
    """The step for formats whose labels are names: unique, sorted, none that no example has.

    A label is called by its text after `clean`; where two share a text, or one has none, the
    number of the label follows in parentheses. Filter pairs must be dropped before.

    Args:
        clean: makes of any text one that the format takes as a name.
    """

    def step(data: LabelData) -> tuple[LabelData, str]:
        names = _names(data.labels, clean)
        used = torch.cat([data.train.labels.indices, data.test.labels.indices]).unique().tolist()
        order = sorted(used, key=names.__getitem__)
        column = torch.zeros(len(names), dtype=torch.int64)
        column[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
        kept = [names[i] for i in order]

        def recolumned(split: Examples) -> Examples:
            old = split.labels
            labels = Csr(old.indptr, column[old.indices.long()], len(order), old.values)
            return Examples.of(split.texts, labels.coalesce())

        # not _each: the splits and the labels must change together
        train, test, labels = recolumned(data.train), recolumned(data.test), Texts.of(kept, kept)
        left = replace(data, train=train, test=test, labels=labels)
        return left, _naming_note(data.labels, labels, order)

    return step


def _names(labels: Texts, clean: Callable[[str], str]) -> list[str]:
    texts = [clean(text) for text in labels.all()]
    times = Counter(texts)
    names = [
        text if text and times[text] == 1 else clean(f"{text} ({i})")
        for i, text in enumerate(texts)
    ]
    twice = len(names) - len(set(names))
    expect(twice == 0, "labels", "texts that can name them", f"{twice} alike", "rename these")
    return names


def _naming_note(old: Texts, new: Texts, order: list[int]) -> str:
    unused = len(old) - len(new)
    parts = ["the order of the labels"] * (order != sorted(order))
    parts += [f"{unused} labels that no example has"] * bool(unused)
    renamed = sum(old.text(i) != title for i, title in zip(order, new.titles, strict=True))
    parts += [f"the texts of {renamed} labels, but as names"] * bool(renamed)
    same = all(old.uids[i] == uid for i, uid in zip(order, new.uids, strict=True))
    parts += ["the uids of labels"] * (not same)
    divided = any(old.contents[i] for i in order)
    parts += [f"{_BORDER} of labels"] * (divided and not renamed)
    return ", ".join(parts)
