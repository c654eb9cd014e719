"""One plain table of `text, labels`: CSV, TSV, JSON, Parquet or a frame in memory; or two of them.

Label texts are the label strings themselves. Unlike a published split, a table is the user's to
mend, so a row without text or without labels is refused with its line: it could teach nothing, and
in the test part it would count as wrong for ever. A folder of two tables, ``train.csv`` and
``test.csv`` say, is a data set with a split of its own.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core.errors import expect, fail
from shoal.data import reduce
from shoal.data.cells import READ, TABLES, Columns, kind_of
from shoal.data.formats.registry import name_of, text_format
from shoal.data.label_cells import SEPARATOR, joined_by, split_cells
from shoal.data.lines import shorten, suffix_of
from shoal.data.texts import Examples, LabelData, Texts, as_list, matrix_of, names_of
from shoal.data.unread import say_unread

_log = logging.getLogger("shoal")
Row = tuple[int, dict[str, Any]]


# names that such columns have elsewhere, for messages
_TEXT = {"text", "texts", "sentence", "content", "description", "body", "question", "query"}
_LABEL = {"label", "labels", "tag", "tags", "category", "categories", "class", "topic", "target"}
_USUAL = {
    "text_column": _TEXT | {"title", "name", "review"},
    "labels_column": _LABEL | {"classes", "topics", "subjects"},
    "title_column": {"title", "name"},
    "split_column": {"split", "part", "set"},
}


@dataclass(frozen=True)
class Table:
    """The rows of a table, wherever they come from.

    Attributes:
        name: of the data set.
        where: names the whole of it in messages.
        header: where its columns are named; None where each row names its own.
        place: names a row in messages, by its number.
        rows: the number of each, and its cells by column.
        columns: which of them are meant.
    """

    name: str
    where: str
    header: str | None
    place: Callable[[int], str]
    rows: Iterable[Row]
    columns: Columns


def read(path: str | Path, encoding: str = "utf-8", columns: Columns | None = None) -> LabelData:
    r"""Read a table in the format that its suffix names, or a folder of two: train and test.

    ``.csv`` (quoted), ``.tsv`` (unquoted), ``.jsonl``, ``.ndjson``, ``.json``, or ``.parquet`` with
    the extra. Labels of a cell stand between separators or in a list, as other programs print it; a
    list of strings does too in JSON and Parquet. A column ``split``, where there is one, holds
    ``train`` or ``test`` in every row. A column ``uid`` names the rows; otherwise their line
    numbers do, and rows of one text are one example with the labels of all of them. Labels are
    sorted by name, blank lines are no rows.

    Args:
        path: the file, or the folder; CSV and TSV begin with a line of column names.
        encoding: of the file.
        columns: other names of columns, another separator.

    Returns:
        the data set, named after the path.

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
    path, columns = Path(path), columns or Columns()
    if not path.is_dir():
        return data_of(table_of_file(path, encoding, columns))
    given = columns.split is None
    expect(given, "split_column", "none for two files", columns.split, "leave it out")
    files = [_part(path, part) for part in ("train", "test")]
    sides = [_read_rows(table_of_file(file, encoding, columns), split=False) for file in files]
    labels = sorted({label for side in sides for row in side.labels for label in row})
    train, test = (Examples.of(x.texts, matrix_of(x.labels, labels)) for x in sides)
    return LabelData(name_of(path), train, test, Texts.of(labels, labels))


def _part(folder: Path, part: str) -> Path:
    found = [x for x in sorted(folder.glob(f"{part}.*")) if suffix_of(x) in READ]
    got = [x.name for x in found] or "none"
    expect(len(found) == 1, str(folder), f"one table called {part}", got, "keep or add one")
    return found[0]


def table_of_file(path: Path, encoding: str, columns: Columns) -> Table:
    """The rows of a file, in the format that its suffix names.

    Raises:
        InputError: if it has another suffix.
    """
    kind = kind_of(path)
    header = None if kind.lists else f"{path}:1"
    records = kind.read(path, encoding)
    return Table(name_of(path), str(path), header, lambda i: f"{path}:{i}", records, columns)


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
    records = (dict(zip(keys, row, strict=True)) for row in zip(*cells, strict=True))
    where = "data in memory"
    return Table(where, where, "columns", lambda i: f"row {i}", enumerate(records), columns)


def _class_names(frame: Any, key: str) -> list[str] | None:
    """The names behind a column of ClassLabel, or of lists of it."""
    typed = hasattr(frame, "column_names") and hasattr(frame, "features")  # a Dataset
    feature = frame.features.get(key) if typed else None
    return getattr(getattr(feature, "feature", feature), "names", None)


def _named(cell: Any, classes: list[str]) -> Any:
    if isinstance(cell, int):
        return classes[cell] if cell >= 0 else None  # -1 is a class that is not known
    return [classes[i] for i in cell] if isinstance(cell, list) else cell


@dataclass(frozen=True)
class _Rows:
    """What rows say: texts, names of labels, and splits, if they have some."""

    texts: Texts
    labels: list[list[str]]
    splits: list[str | None]


def data_of(table: Table) -> LabelData:
    """The data set of a table.

    Raises:
        InputError: as :func:`read`.
    """
    found = _read_rows(table)
    names = sorted({label for row in found.labels for label in row})
    examples, labels = (
        Examples.of(found.texts, matrix_of(found.labels, names)),
        Texts.of(names, names),
    )
    if found.splits[0] is None:
        return LabelData.unsplit(table.name, examples, labels)
    is_test = torch.tensor([split == "test" for split in found.splits])
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


def _read_rows(table: Table, split: bool = True) -> _Rows:
    """All rows of a table; without `split` it has one split alone."""
    _expect_columns_apart(table.columns)
    texts, cells, splits, numbers = Texts([], [], []), [], [], []
    named = False
    for row in table.rows:
        number, record = row
        if not numbers:
            _say_columns(table, record)
        named = named or record.get("uid") is not None
        _add_text(texts, table, row)
        cells.append(_label_cell(table, row))
        splits.append(side := _split(table, row) if split else None)
        alike = (side is None) == (splits[0] is None)
        remedy = "write 'train' or 'test' in each"
        expect(alike, table.place(number), "a split in every row or in none", shorten(side), remedy)
        numbers.append(number)
    expect(len(texts) > 0, table.where, "at least one row", "none", "write some below the columns")
    labels = _split_labels(table, cells, numbers)
    rows = _Rows(texts, labels, splits)
    return rows if table.columns.apart else _merged(table, rows, named)


def _say_columns(table: Table, record: dict[str, Any]) -> None:
    """Name the columns that are not read; a title is told of with its option."""
    asked = table.columns
    read = {asked.text or "text", asked.labels or "labels", asked.title, asked.split or "split"}
    left = [str(name) for name in record if name not in read | {"uid", "title", ""}]
    if asked.text is None and "text" not in record:  # uid, title and content are a text
        left = [name for name in left if name != "content"]
    say_unread(table.where, [f"column {name}" for name in left])


def _expect_columns_apart(columns: Columns) -> None:
    """Raise if one column is meant to be two things."""
    given = {
        "text_column": columns.text or "text",
        "labels_column": columns.labels or "labels",
        "title_column": columns.title,
        "split_column": columns.split or "split",
    }
    for option, column in given.items():
        others = [x for x, other in given.items() if other == column and x < option]
        want = f"another column than {' and '.join(others)}"
        remedy = f"pass its own --{option.replace('_', '-')}"
        expect(column is None or not others, option, want, repr(column), remedy)


def _add_text(texts: Texts, table: Table, row: Row, blank: bool = False) -> None:
    number, record = row
    asked = table.columns
    column = asked.text or "text"
    if asked.text is None and "text" not in record and _is_document(record):
        column, parts = "title", [record["title"], record.get("content")]
    elif asked.title is not None:
        parts = [_cell(table, row, asked.title, "title_column")]
        parts += [_cell(table, row, column, "text_column")]
    else:
        parts = [_cell(table, row, column, "text_column"), ""]
        if len(texts) == 0 and column != "title" and "title" in record:
            said = "%s: the column title is not read; name it: --title-column title"
            _log.warning(said, table.where)
    text = parts[0] if asked.title is None else parts[1]
    if parts[1] != "":  # of two columns one may be missing: None, or NaN in a frame
        parts = ["" if part is None or part != part else part for part in parts]
    strings = all(isinstance(part, str) for part in parts)
    if not (strings and (blank or any(part.strip() for part in parts))):
        remedy = "fill it in or delete the row"
        if isinstance(text, dict | list):
            remedy = "write one object a row, with a string in this column"
        elif isinstance(text, int | float) and text == text:
            remedy = "write it as a string"
        fail(table.place(number), f"a text in {column!r}", shorten(text), remedy)
    texts.uids.append(str(number) if record.get("uid") is None else str(record["uid"]))
    texts.titles.append(parts[0])
    texts.contents.append(parts[1])


def _is_document(record: dict[str, Any]) -> bool:
    """Whether a record is one of the XC repository's texts: uid, title and perhaps content."""
    return "title" in record and ("uid" in record or "content" in record)


def _label_cell(table: Table, row: Row) -> str | list[str]:
    """The labels of a row as they stand: a string, which may hold several, or a list of strings."""
    column = table.columns.labels or "labels"
    cell = _cell(table, row, column, "labels_column")
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    cell = str(cell) if type(cell) is int else cell  # a class's number is its name, as in CSV
    parts = [cell] if isinstance(cell, str) else cell
    if isinstance(parts, set | frozenset):
        parts = sorted(parts, key=str)
    if isinstance(parts, list | tuple):
        numbers = [part for part in parts if type(part) is int]
        once = len(set(numbers)) == len(numbers)  # [0, 1, 0] has a place for each label there is
        remedy = "write the names of the labels that are true"
        expect(once, table.place(row[0]), "each label once", shorten(cell), remedy)
        parts = [str(part) if type(part) is int else part for part in parts]
    good = isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts)
    if not (good and any(part.strip() for part in parts)):
        _fail_labels(table, row[0], cell)
    # one string per cell, however often it occurs
    return sys.intern(cell) if isinstance(cell, str) else [sys.intern(x.strip()) for x in parts]


def _fail_labels(table: Table, number: int, cell: Any) -> None:
    column, separator = table.columns.labels or "labels", table.columns.separator
    separator = SEPARATOR if separator is None else separator
    want = f"labels in {column!r}, strings with {separator!r} between them or in a list"
    remedy = "fill them in or delete the row"
    if isinstance(cell, str) and "..." in cell:
        remedy = "write the list whole, as array.tolist() is printed"
    elif isinstance(cell, str) and cell.strip(" []{}()"):
        remedy = 'quote each, or pass --separator "" where a cell is one label'
    elif cell is not None and cell == cell and cell not in ("", []):
        remedy = "write them as strings, or delete the row"
    fail(table.place(number), want, shorten(cell), remedy)


def _split_labels(
    table: Table, cells: list[str | list[str]], numbers: list[int]
) -> list[list[str]]:
    """The labels of every row."""
    strings = [cell for cell in cells if isinstance(cell, str)]
    of_cell = split_cells(strings, table.columns.separator)
    of_cell = {cell: [sys.intern(x) for x in row] for cell, row in of_cell.items()}
    rows = [of_cell[x] if isinstance(x, str) else [y for y in x if y] for x in cells]
    for row, cell, number in zip(rows, cells, numbers, strict=True):
        if not row:
            _fail_labels(table, number, cell)
    if strings and table.columns.separator is None:
        alone = all(len(row) == 1 for row in rows)
        joined = joined_by(sorted({label for row in rows for label in row}), len(rows))
        if joined is not None and (alone or joined[0] == ";"):
            said = "%s: %d labels hold %r, as if they were several; pass --separator %s where it "
            said += 'separates labels, or --separator "" where it does not'
            _log.warning(said, table.where, joined[1], joined[0], repr(joined[0]).replace("'", '"'))
    return rows


def _merged(table: Table, found: _Rows, named: bool) -> _Rows:
    """Rows of one text as one example with the labels of all, unless rows are `named` by uids.

    Where each pair of text and label has a row, the other labels of a text would be taught as
    wrong.
    """
    texts = found.texts
    rows: dict[Any, list[int]] = defaultdict(list)
    for i, key in enumerate(zip(found.splits, texts.titles, texts.contents, strict=True)):
        rows[key].append(i)
    several = [x for x in rows.values() if len({frozenset(found.labels[i]) for i in x}) > 1]
    if not several:
        return found
    count = sum(map(len, several))
    if named:
        said = "%s: %d rows have %d texts with different labels: each counts the others' as wrong; "
        said += "write all labels of a text into one row, or leave out the column uid"
        _log.warning(said, table.where, count, len(several))
        return found
    said = "%s: %d rows repeat texts with other labels: read as %d examples with all labels of each"
    _log.warning(said, table.where, count, len(several))
    labels = list(found.labels)
    for x in several:
        labels[x[0]] = list(dict.fromkeys(label for i in x for label in labels[i]))
    gone = {i for x in several for i in x[1:]}
    kept = [i for i in range(len(labels)) if i not in gone]
    return _Rows(
        texts.subset(torch.tensor(kept)), [labels[i] for i in kept], [found.splits[i] for i in kept]
    )


def _split(table: Table, row: Row) -> str | None:
    column = table.columns.split or "split"
    if table.columns.split is None and column not in row[1]:
        return None
    split = _cell(table, row, column, "split_column")
    if split not in (None, "train", "test"):
        want = f"'train' or 'test' in {column!r}"
        fail(table.place(row[0]), want, shorten(split), "correct or rename it")
    return split


def _cell(table: Table, row: Row, column: str, option: str) -> Any:
    number, record = row
    if column not in record:
        have = ", ".join(map(str, record))
        usual = [str(name) for name in record if str(name).strip().lower() in _USUAL[option]]
        flag = " ".join([f"--{option.replace('_', '-')}", *usual[:1]])
        remedy = f"rename it or pass {option} ({flag})"
        where = table.header or table.place(number)
        fail(where, f"a column {column!r}", f"columns {have}", remedy)
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
        suffixes=(_suffix, *(x for x in READ if _suffix == ".jsonl" and x not in TABLES)),
        files=(f"train{_suffix}", f"train{_suffix}.gz"),
        order=1,  # annif's .tsv is recognized by its first line
        columns=True,
    )(_fill)
