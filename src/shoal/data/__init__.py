"""Data sets: what is shipped, what is read, what is planted.

:func:`load` takes a name or a path and finds the format; the readers behind it are imported when
they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.data.texts import LabelData


def is_graph(source: str) -> bool:
    """Whether `source` names a graph, rather than points with labels.

    Graphs are ``wordnet-graph``, ``.npz`` and ``.safetensors`` files, and the folders of OGB and
    Planetoid, told by ``raw`` beside ``split`` and by ``ind.NAME.graph``.
    """
    if source == "wordnet-graph" or source.endswith((".npz", ".safetensors")):
        return True
    folder = Path(source)
    ogb = (folder / "raw").is_dir() and (folder / "split").is_dir()
    return ogb or any(folder.glob("ind.*.graph"))


def load(source: str | Path, encoding: str = "utf-8") -> LabelData:
    """Load a data set whose labels have texts, in whatever format it is found to be in.

    Args:
        source: ``"wordnet"`` for the shipped one (a folder of that name is ``"./wordnet"``), a
            folder or a file in one of the formats of docs/formats.md, told by the folder's files or
            the file's suffix. Tables are read by :func:`shoal.data.table.read` with its defaults.
        encoding: of the source's texts; "latin-1" for old files, which accepts any bytes.

    Raises:
        InputError: if it is none of these, or what is read is damaged.
    """
    if source == "wordnet":
        from shoal.data import wordnet

        return wordnet.labels()
    from shoal.data import formats

    return formats.load(Path(source), encoding)
