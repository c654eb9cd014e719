"""The readers that every command shares: one function per thing that is read.

:func:`read` reads data to learn from, evaluate on, describe or convert; texts alone come from
:func:`read_texts_to_predict`. Both take a name, a path or data in memory, and the same options.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from shoal.core.errors import expect, fail
from shoal.data import is_graph
from shoal.data.cells import READ, Columns
from shoal.data.formats import format_of
from shoal.data.formats.table import data_of, table_of_file, table_of_frame, texts_of
from shoal.data.lines import lines, suffix_of
from shoal.data.links import LinkData
from shoal.data.matrix import read_matrix
from shoal.data.nodes import NodeData
from shoal.data.texts import LabelData, Texts, as_texts, label_data
from shoal.data.unread import naming_unread

Source = Any  # a name, a path, (texts, labels), or a frame of columns


def read(
    source: Source, columns: Columns | None = None, encoding: str = "utf-8"
) -> LabelData | NodeData | LinkData:
    """Read a data set as it stands: where it has no split of its own, all is in `train`.

    Args:
        source: as :func:`shoal.data.load` takes it.
        columns: of a table; no option for other sources.
        encoding: of a source's texts.

    Raises:
        InputError: if there is nothing that can be read, or it is damaged.
    """
    columns = columns or Columns()
    if _is_frame(source):
        return data_of(table_of_frame(source, columns))
    if is_graph(source):
        from shoal.data import graphs

        _expect_no_columns(source, columns)
        return graphs.load(source)
    if source == "wordnet":
        from shoal.data import wordnet

        _expect_no_columns(source, columns)
        return wordnet.labels()
    if isinstance(source, str | Path):
        form = format_of(Path(source))
        with naming_unread(source):
            if form.columns:
                return form.read(Path(source), encoding, columns)
            _expect_no_columns(source, columns)
            return form.read(Path(source), encoding)
    if isinstance(source, tuple) and len(source) == 2:
        _expect_no_columns("(texts, labels)", columns)
        return label_data(*source)
    want = "a name, a path, (texts, labels), a DataFrame, a Dataset or a graph"
    fail("source", want, type(source).__name__, "pass one of these")


def read_texts_to_predict(
    source: Source, columns: Columns | None = None, encoding: str = "utf-8"
) -> Texts:
    r"""Read texts, in their order, whatever else stands beside them.

    Args:
        source: a ``.txt`` of one text per line; a table, of which the text column is read, or where
            there is none, uid, title and content; an ``.npz`` or ``.npy`` of features; any other
            file that :func:`read` takes; a folder or ``"wordnet"``, of which the test split is
            read, or the training split where that is empty; a list of texts, or a frame.
        columns: of a table; no option for other sources.
        encoding: of a source's texts.

    Raises:
        InputError: naming file and line, if there are no texts, or a line is none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text('text,labels\n"red, mug",cup\n')
        ...     _ = Path(folder, "a.txt").write_text("red mug\ntea\n")
        ...     [read_texts_to_predict(Path(folder, name)).all() for name in ("a.csv", "a.txt")]
        [['red, mug'], ['red mug', 'tea']]
    """
    columns = columns or Columns()
    if _is_frame(source):
        return texts_of(table_of_frame(source, columns))
    if not isinstance(source, str | Path):
        _expect_no_columns("texts", columns)
        return as_texts(source)[0]
    path, suffix = Path(source), suffix_of(Path(source))
    if suffix in READ and path.is_file() and format_of(path).columns:
        return texts_of(table_of_file(path, encoding, columns))
    if suffix in (".npz", ".npy"):
        _expect_no_columns(source, columns)
        return Texts.of_features(read_matrix(path, features=True))
    if suffix == ".txt" and path.is_file() and not _holds_examples(path):
        _expect_no_columns(source, columns)
        return Texts.of([line.strip() for _, line in lines(path, encoding)])
    data = read(source, columns, encoding)
    if not isinstance(data, LabelData):
        fail(str(source), "texts", "a graph", "predict for its nodes with a model of graphs")
    return (data.test if len(data.test) else data.train).texts


def _is_frame(source: Source) -> bool:
    """Whether `source` holds named columns, as those of pandas and of the package datasets do."""
    return hasattr(source, "column_names") or hasattr(source, "columns")


def _expect_no_columns(source: object, columns: Columns) -> None:
    chosen = {field.name: getattr(columns, field.name) for field in fields(columns)}
    given = [name for name, x in chosen.items() if x is not None and name != "apart"]
    remedy = f"leave out {', '.join(given)}"
    expect(not given, str(source), "a table, whose columns can be chosen", "another", remedy)


_EXAMPLES = re.compile(r"\d+ \d+ \d+$|[\d,:.e+-]*\t|__label__")


def _holds_examples(path: Path) -> bool:
    """Whether a ``.txt`` begins as bag of words or text2text do, rather than with a text."""
    _, line = next(lines(path, "latin-1"), (1, ""))
    return _EXAMPLES.match(line) is not None
