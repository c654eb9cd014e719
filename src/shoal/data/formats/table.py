"""One plain table of `text, labels`: CSV, TSV, JSON lines, Parquet or a frame in memory.

Label texts are the label strings themselves. Unlike a published split, a table is the user's to
mend, so a row without text or without labels is refused with its line: it could teach nothing, and
in the test part it would count as wrong for ever.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core.errors import expect, fail
from shoal.data import reduce
from shoal.data.cells import SEPARATOR, TABLES, Columns
from shoal.data.formats.registry import name_of, suffix_of, text_format
from shoal.data.lines import shorten
from shoal.data.texts import Examples, LabelData, Texts, as_list, matrix_of, names_of

Row = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """The rows of a table, wherever they come from.

    Attributes:
        name: of the data set.
        where: names the whole of it in messages.
        header: where its columns are named; None where each row names its own.
        rows: where each row stands, its uid, and its cells by column.
        columns: which of them are meant.
    """

    name: str
    where: str
    header: str | None
    rows: Iterable[Row]
    columns: Columns


def read(path: str | Path, encoding: str = "utf-8", columns: Columns | None = None) -> LabelData:
    r"""Read a table in the format that its suffix names.

    ``.csv`` (quoted), ``.tsv`` (unquoted), ``.jsonl``, or ``.parquet`` with the extra. Labels of a
    cell stand between separators; a list of strings does too in JSON lines and Parquet. A column
    ``split``, where there is one, holds ``train`` or ``test`` in every row. A column ``uid`` names
    the rows; otherwise their line numbers do. Labels are sorted by name, blank lines are no rows.

    Args:
        path: the file; CSV and TSV begin with a line of column names.
        encoding: of the file.
        columns: other names of columns, another separator.

    Returns:
        the data set, named after the file.

    Raises:
        InputError: naming file and line, if a column is missing, a row has no text, no label or
            another number of cells, or there are no rows.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> rows = "text,labels,split\nred mug,cup|red,train\ntea,drink,test\n"
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "mugs.csv").write_text(rows)
        ...     data = read(Path(folder, "mugs.csv"))
        >>> data.labels.titles, data.train.labels.indices.tolist(), data.test.texts.all()
        (['cup', 'drink', 'red'], [0, 2], ['tea'])
    """
    return data_of(table_of_file(Path(path), encoding, columns or Columns()))


def table_of_file(path: Path, encoding: str, columns: Columns) -> Table:
    """The rows of a file, in the format that its suffix names.

    Raises:
        InputError: if it has another suffix.
    """
    form = TABLES.get(suffix_of(path))
    if form is None:
        fail(str(path), f"a suffix of {', '.join(TABLES)}", repr(path.suffix), "rename the file")
    records = form.read(path, encoding)
    rows = ((f"{path}:{number}", str(number), record) for number, record in records)
    return Table(name_of(path), str(path), None if form.lists else f"{path}:1", rows, columns)


def table_of_frame(frame: Any, columns: Columns) -> Table:
    """The rows of a pandas DataFrame, or of a Dataset of the package datasets; counted from 0.

    Classes that a Dataset holds as numbers become their names.
    """
    names = frame.column_names if hasattr(frame, "column_names") else frame.columns
    keys = [str(name) for name in names]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    expect(not twice, "columns", "each column once", f"two called {twice}", "rename one of them")
    cells = [as_list(frame[name], str(name), "a column") for name in names]
    for i, key in enumerate(keys):
        if classes := _class_names(frame, key):
            cells[i] = [_named(cell, classes) for cell in cells[i]]
    rows = (
        (f"row {i}", str(i), dict(zip(keys, row, strict=True)))
        for i, row in enumerate(zip(*cells, strict=True))
    )
    return Table("data in memory", "data in memory", "columns", rows, columns)


def _class_names(frame: Any, key: str) -> list[str] | None:
    """The names behind a column of ClassLabel, or of lists of it."""
    typed = hasattr(frame, "column_names") and hasattr(frame, "features")  # a Dataset
    feature = frame.features.get(key) if typed else None
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(cell: Any, classes: list[str]) -> Any:
    if isinstance(cell, int):
        return classes[cell] if cell >= 0 else None  # -1 is a class that is not known
    return [classes[i] for i in cell] if isinstance(cell, list) else cell


def data_of(table: Table) -> LabelData:
    """The data set of a table.

    Raises:
        InputError: as :func:`read`.
    """
    texts, rows, splits = Texts([], [], []), [], []
    titled = "title" in (table.columns.title, table.columns.text)
    for row in table.rows:
        if len(texts) == 0 and "title" in row[2] and not titled:
            said = "%s: the column title is not read; name it: --title-column title"
            logging.getLogger("shoal").warning(said, table.where)
        _add_text(texts, table, row)
        rows.append(_labels(table, row))
        splits.append(split := _split(table, row))
        alike = (split is None) == (splits[0] is None)
        remedy = "write 'train' or 'test' in each"
        expect(alike, row[0], "a split in every row or in none", shorten(split), remedy)
    expect(len(texts) > 0, table.where, "at least one row", "none", "write some below the columns")
    names = sorted({label for row in rows for label in row})
    examples, labels = Examples.of(texts, matrix_of(rows, names)), Texts.of(names, names)
    if splits[0] is None:
        return LabelData.unsplit(table.name, examples, labels)
    is_test = torch.tensor([split == "test" for split in splits])
    train, test = (examples.subset((is_test == x).nonzero().flatten()) for x in (False, True))
    return LabelData(table.name, train, test, labels)


def texts_of(table: Table) -> Texts:
    """The texts of a table alone, empty ones too, whatever its other columns hold.

    Raises:
        InputError: naming the row, if a text is none.
    """
    texts = Texts([], [], [])
    for row in table.rows:
        _add_text(texts, table, row, blank=True)
    return texts


def _add_text(texts: Texts, table: Table, row: Row, blank: bool = False) -> None:
    name, uid, record = row
    column, title_column = table.columns.text or "text", table.columns.title
    parts = [text := _cell(table, row, column, "text_column"), ""]
    if title_column is not None:  # either may be missing then: None, or NaN in a frame
        cells = _cell(table, row, title_column, "title_column"), text
        parts = ["" if cell is None or cell != cell else cell for cell in cells]
    strings = all(isinstance(part, str) for part in parts)
    if not (strings and (blank or any(part.strip() for part in parts))):
        fail(name, f"a text in {column!r}", shorten(text), "fill it in or delete the row")
    texts.uids.append(uid if record.get("uid") is None else str(record["uid"]))
    texts.titles.append(parts[0])
    texts.contents.append(parts[1])


def _labels(table: Table, row: Row) -> list[str]:
    """The labels of a row: none of a cell is a label unless all of it is text."""
    column, separator = table.columns.labels or "labels", table.columns.separator
    separator = SEPARATOR if separator is None else separator
    parts = cell = _cell(table, row, column, "labels_column")
    if isinstance(cell, str):
        parts = cell.split(separator) if separator else [cell]
    elif hasattr(cell, "tolist"):
        parts = cell.tolist()
    good = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    # one string per label, however often it occurs
    found = [sys.intern(part.strip()) for part in parts if part.strip()] if good else []
    if not found:
        want = f"labels in {column!r}, strings with {separator!r} between them or in a list"
        fail(row[0], want, shorten(cell), "fill them in or delete the row")
    return found


def _split(table: Table, row: Row) -> str | None:
    column = table.columns.split or "split"
    if table.columns.split is None and column not in row[2]:
        return None
    split = _cell(table, row, column, "split_column")
    if split not in (None, "train", "test"):
        fail(row[0], f"'train' or 'test' in {column!r}", shorten(split), "correct or rename it")
    return split


def _cell(table: Table, row: Row, column: str, option: str) -> Any:
    name, _, record = row
    if column not in record:
        have = ", ".join(map(str, record))
        remedy = f"rename it or pass {option} (--{option.replace('_', '-')})"
        fail(table.header or name, f"a column {column!r}", f"columns {have}", remedy)
    return record[column]


# -- writing -----------------------------------------------------------------------------------


def _steps(lists: bool) -> tuple[reduce.Step, ...]:
    """What a table cannot hold; without lists in its cells, no separator in a label either."""
    clean = reduce.one_line if lists else _without_separator
    return (
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.line_examples,
        reduce.unique_examples,
        reduce.drop_relevance,
        reduce.drop_filters,
        reduce.only_full,
        reduce.name_labels(clean),
    )


def _without_separator(text: str) -> str:
    return reduce.one_line(text.replace(SEPARATOR, "/"))


def _fill(data: LabelData, path: Path) -> None:
    """Write the columns uid, text, labels and split, which both splits must have rows of."""
    for name, examples in (("train", data.train), ("test", data.test)):
        some, want = len(examples) > 0, "some with text and labels"
        expect(some, f"{name} examples", want, "none", "choose a format that holds an empty split")
    TABLES[suffix_of(path)].write(_records(data), path)


def _records(data: LabelData) -> Iterator[dict[str, Any]]:
    for split, examples in (("train", data.train), ("test", data.test)):
        rows = names_of(examples.labels, data.labels.titles)
        texts = examples.texts
        for uid, text, row in zip(texts.uids, texts.titles, rows, strict=True):
            yield {"uid": uid, "text": text, "labels": row, "split": split}


for _suffix, _table in TABLES.items():
    text_format(
        _suffix[1:],
        read,
        steps=_steps(_table.lists),
        suffixes=(_suffix,),
        order=1,  # annif's .tsv is recognized by its first line
        columns=True,
    )(_fill)
