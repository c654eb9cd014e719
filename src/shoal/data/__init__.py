"""Data sets: what is shipped, what is read, and what is in memory.

:func:`load` takes a name, a path or data in memory and finds the reader; readers are imported when
they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.data.links import LinkData
    from shoal.data.nodes import NodeData
    from shoal.data.texts import LabelData


def is_graph(source: Any) -> bool:
    """Whether `source` is a graph, rather than texts with labels (:mod:`shoal.data.graphs`)."""
    from shoal.data import graphs

    try:
        return graphs.is_graph(source)
    except OSError:  # a name that no file system takes
        return False


def load(
    source: Any,
    *,
    text_column: str | None = None,
    labels_column: str | None = None,
    title_column: str | None = None,
    separator: str | None = None,
    split_column: str | None = None,
    encoding: str = "utf-8",
    test: float | int = 0.2,
) -> LabelData | NodeData | LinkData:
    """Load a data set, in whatever format it is found to be in.

    Where a source does not say which of its examples are for testing, a fifth of them is held out,
    by a hash of each text (:func:`shoal.data.splits.held_out`). Files in a folder that were not
    read are named in a warning.

    Args:
        source: ``"wordnet"`` or ``"wordnet-graph"`` for the shipped ones (a folder of that name is
            ``"./wordnet"``); a folder or a file in one of the formats of docs/reference/formats.md;
            texts and labels as a pair (:func:`shoal.data.texts.label_data`); a pandas DataFrame, or
            a Dataset of the package datasets.
        text_column: of a table: where the texts are; ``text`` by default.
        labels_column: of a table: where the labels are; ``labels`` by default.
        title_column: of a table: where titles are, if the texts have some.
        separator: of a table: between the labels in a cell; ``|`` by default, and lists as
            programs print them; empty where a cell is one label.
        split_column: of a table: where rows say ``train`` or ``test``; ``split`` by default, if
            there is one.
        encoding: of the source's texts; "latin-1" for old files, which accepts any bytes. A byte
            order mark overrules it.
        test: the share that is held out where the source has no split, in [0, 1); 0 for none.

    Raises:
        InputError: if it is none of these, or what is read is damaged.
    """
    from shoal.data.cells import Columns
    from shoal.data.read import read
    from shoal.data.splits import split_test
    from shoal.data.texts import LabelData

    columns = Columns(text_column, labels_column, title_column, split_column, separator)
    data = read(source, columns, encoding)
    return split_test(data, test) if isinstance(data, LabelData) else data


def load_labels(source: Any, **options: Any) -> LabelData:
    """:func:`load`, where texts with labels are needed.

    Raises:
        InputError: as :func:`load`, or if the source is a graph.
    """
    from shoal.core.errors import fail
    from shoal.data.texts import LabelData

    data = load(source, **options)
    if not isinstance(data, LabelData):
        fail(str(source), "texts with labels", "a graph", "train nodes or links on it")
    return data
