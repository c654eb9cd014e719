"""Data sets: what is shipped, what is read, what is planted.

:func:`load` takes a name or a path; the readers behind it (`wordnet`, `xc`, `table`, `nodes`) are
imported when they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shoal._checks import fail

if TYPE_CHECKING:
    from shoal.data.texts import LabelData

_TABLES = (".csv", ".tsv", ".jsonl")


def is_graph(source: str) -> bool:
    """Whether `source` names a graph whose nodes have classes, rather than points with labels."""
    return source == "wordnet-graph" or source.endswith(".npz")


def load(source: str | Path) -> LabelData:
    """Load a data set whose labels have texts.

    Args:
        source: ``"wordnet"`` for the shipped one (a folder of that name is ``"./wordnet"``), a
            folder in the XC repository's format (:func:`shoal.data.xc.read`), or a ``.csv``,
            ``.tsv`` or ``.jsonl`` file (:func:`shoal.data.table.read`, default arguments).

    Raises:
        InputError: if it is none of these, or what is read is damaged.
    """
    if source == "wordnet":
        from shoal.data import wordnet

        return wordnet.labels()
    path = Path(source)
    if path.is_dir():
        from shoal.data import xc

        return xc.read(path)
    if path.is_file() and path.suffix in _TABLES:
        from shoal.data import table

        return table.read(path)
    possible = f'"wordnet", a folder with trn.json.gz, or a file ending in {", ".join(_TABLES)}'
    got = "another kind of file" if path.is_file() else "no such file or folder"
    fail(str(source), possible, got, "name one of these")
