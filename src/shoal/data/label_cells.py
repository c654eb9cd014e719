"""Several labels in one cell of text: between separators, or a list as other programs print it.

What pandas, ``datasets``, JSON and Postgres write for a list of labels is a list::

    a|b    ['a', 'b']    ["a", "b"]    ['a' 'b']    [1, 2]    {a,b}    <a><b>

Other separators, ``a;b`` or ``a, b``, may as well belong to one label; :func:`joined_by` tells
where they hardly do, so that a user can be asked.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence

SEPARATOR = "|"

_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_WORD = r"""[^,'"\[\]{}]+"""
# brackets of any kind, and before them what Python or numpy call their contents
_BRACKETS = re.compile(r"(?:\w+\()?([\[({])(.*?)[\])}](?:,\s*dtype=\w+)?\)?", re.DOTALL)
_STRINGS = re.compile(rf"(?:{_STRING}[\s,]*)+", re.DOTALL)
_NUMBERS = re.compile(r"-?\d+(?:[\s,]+-?\d+)*,?")
_WORDS = re.compile(f"{_WORD}(?:,{_WORD})+")
_EITHER = re.compile(f"(?:{_STRING}|{_WORD})(?:,(?:{_STRING}|{_WORD}))+", re.DOTALL)
_ITEM = re.compile(rf"{_STRING}|[^\s,'\"][^,'\"]*", re.DOTALL)
_FORMS = {"[": (_STRINGS, _WORDS), "{": (_STRINGS, _EITHER), "(": (_STRINGS,)}
_NOTHING = {"", "None", "nan", "NaN", "null"}
_TAGS = re.compile(r"(?:<[^<>]+>)+")
# what is found between labels where it does not belong to one; the first ones hardly ever do
_HARDLY = (";", "\n", "\t", "::")
_BETWEEN = (*_HARDLY, ",", " / ", " & ", " + ", "#", "/", "\\")


def split_cells(cells: Sequence[str], separator: str | None) -> dict[str, list[str]]:
    """The labels of each cell, outer spaces gone, empty ones left out.

    Args:
        cells: of one column; a list in one says how brackets are meant in the others.
        separator: between labels; empty where a cell is one label. Where it is None, lists are
            recognized, and ``|`` separates.

    Returns:
        the labels of each cell that occurs; those of one that cannot be read are none.

    Example:
        >>> split_cells(["['a', 'b']", "c | d", "e"], None)
        {"['a', 'b']": ['a', 'b'], 'c | d': ['c', 'd'], 'e': ['e']}
        >>> split_cells(["a;b", "['c']"], ";")
        {'a;b': ['a', 'b'], "['c']": ["['c']"]}
    """
    each = dict.fromkeys(cells)
    if separator is not None:
        return {cell: _full(cell.split(separator) if separator else [cell]) for cell in each}
    filled = [cell.strip() for cell in each if cell.strip()]
    several = sum(cell.count("<") > 1 for cell in filled)
    if several > 1 and all(_TAGS.fullmatch(cell) for cell in filled):
        return {cell: _full(cell.strip()[1:-1].split("><")) for cell in each}
    # where all cells stand in brackets and some are lists, [a] is a list as well
    whole = all(cell[-1] in "])}" for cell in filled) and any(map(_listed, filled))
    rows = {cell: _listed(cell.strip(), whole) for cell in each}
    return {
        cell: _full(cell.split(SEPARATOR) if row is None else row) for cell, row in rows.items()
    }


def is_list(cell: str) -> bool:
    """Whether one label that is all of a cell may be read as a list."""
    return _listed(cell.strip()) is not None or bool(_TAGS.fullmatch(cell.strip()))


def _listed(cell: str, alone: bool = False) -> list[str] | None:
    """The items of a list; none of what is no list of labels; None of what can be one label.

    With `alone` one word in brackets is a list.
    """
    match = _BRACKETS.fullmatch(cell)
    if match is None:
        return None
    kind, inner = match[1], match[2].strip()
    if inner in _NOTHING:
        return []
    if kind == "[" and _NUMBERS.fullmatch(inner):
        return inner.replace(",", " ").split()
    if any(form.fullmatch(inner) for form in _FORMS[kind]):
        return [_unquoted(item.strip()) for item in _ITEM.findall(inner)]
    if set("'\",") & set(inner):
        return [] if kind == "[" else None
    return [inner] if alone else None


def _full(labels: Iterable[str]) -> list[str]:
    return [label.strip() for label in labels if label.strip()]


def _unquoted(word: str) -> str:
    if word[:1] not in ("'", '"') or "\\" not in word:
        return word[1:-1] if word[:1] in ("'", '"') else word
    try:
        if word[0] == '"':
            return json.loads(word)
    except ValueError:  # Python's escapes, not JSON's
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know stays as it is
            return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word[1:-1]


def joined_by(labels: Sequence[str], cells: int) -> tuple[str, int] | None:
    """What seems to join several labels into one, and how many of `labels` have it.

    A semicolon, a line's end, a tab or ``::`` does. Anything else does where most of what stands
    between occurs in several labels, and a comma where nearly every cell has a label of its own,
    so that nothing could recur.

    Args:
        labels: all different.
        cells: that these labels were found in.

    Example:
        >>> joined_by(["ships, cats", "dogs, ships", "cats, dogs", "birds"], cells=40)
        (',', 3)
        >>> joined_by(["Clothing, Shoes & Jewelry", "Home, Garden & Pets", "Toys"], cells=40)
        >>> joined_by(["old ships; fishing", "dogs; wages of women", "painting"], cells=3)
        (';', 2)
    """
    apart = 10 * len(labels) > 9 * cells
    for between in _BETWEEN:
        joined = [label for label in labels if between in label.strip(between)]
        if len(joined) < 2 or 10 * len(joined) < len(labels):
            continue
        if between in _HARDLY or (apart and between == "," and 4 * len(joined) > len(labels)):
            return between, len(joined)
        times = Counter(part for label in labels for part in _parts(label, between))
        parts = [part for label in joined for part in _parts(label, between)]
        if 2 * sum(times[part] > 1 for part in parts) > len(parts):
            return between, len(joined)
    # labels hold spaces: here one must be another in another order, or most words labels themselves
    words = [label for label in labels if " " in label]
    orders = Counter(frozenset(label.split()) for label in words)
    parts = [part for label in words for part in label.split()]
    alone = sum(part in set(labels) for part in set(parts))
    if len(words) > 1 and (max(orders.values()) > 1 or 10 * alone >= 9 * len(set(parts))):
        return " ", len(words)
    return None


def _parts(label: str, between: str) -> set[str]:
    return set(_full(label.split(between)))
