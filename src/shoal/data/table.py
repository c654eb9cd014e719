"""One plain table of `text, labels`: CSV, TSV, JSON lines or Parquet, for a user's own data.

Label texts are the label strings themselves. Unlike a published split, a table is the user's to
mend, so a row without text or without labels is refused with its line: it could teach nothing, and
in the test part it would count as wrong for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal.core.errors import expect, fail
from shoal.data import reduce
from shoal.data.cells import SEPARATOR, TABLES, Table
from shoal.data.lines import shorten
from shoal.data.names import names_of, numbered
from shoal.data.texts import Examples, LabelData, Texts, no_pairs, random_split

_POINT_STEPS = (
    reduce.unweigh_points,
    reduce.unweigh_labels,
    reduce.line_points,
    reduce.unique_points,
    reduce.drop_relevance,
    reduce.drop_filters,
    reduce.only_full,
)


def read(
    path: str | Path,
    *,
    text: str = "text",
    labels: str = "labels",
    separator: str = SEPARATOR,
    fraction: float = 0.2,
    seed: int = 0,
    encoding: str = "utf-8",
) -> LabelData:
    r"""Read a table in the format that its suffix names.

    ``.csv`` (quoted), ``.tsv`` (unquoted), ``.jsonl``, or ``.parquet`` with the extra. Labels of a
    cell stand between separators; a list of strings does too in JSON lines and Parquet. A column
    ``split``, where there is one, holds ``train`` or ``test`` in every row; otherwise rows are
    split at random. A column ``uid`` names the rows; otherwise their line numbers do. Labels are
    sorted by name, blank lines are no rows.

    Args:
        path: the file; CSV and TSV begin with a line of column names.
        text: the column of texts.
        labels: the column of labels.
        separator: between the labels of a cell; ``|`` since labels themselves hold commas,
            semicolons and spaces.
        fraction: the share of test rows, in (0, 1), where no column says it.
        seed: of the random split.
        encoding: of the file.

    Returns:
        the data set, named after the file.

    Raises:
        InputError: naming file and line, if a column is missing, a row has no text, no label or
            another number of cells, or either part would be empty.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> rows = "text,labels,split\nred mug,cup|red,train\ntea,drink,test\n"
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "mugs.csv").write_text(rows)
        ...     data = read(Path(folder, "mugs.csv"))
        >>> data.labels.titles, data.train.labels.indices.tolist(), data.test.texts.all()
        (['cup', 'drink', 'red'], [0, 2], ['tea'])
    """
    path = Path(path)
    rows = [
        _row(f"{path}:{number}", number, record, text, labels, separator)
        for number, record in _table(path).read(path, encoding)
    ]
    points, about = _points(rows)
    train, test = _split(path, rows, fraction, seed)
    return LabelData(path.stem, points.subset(train), points.subset(test), about)


def write(data: LabelData, path: str | Path) -> list[str]:
    """Write a table with the columns uid, text, labels and split.

    Args:
        data: the data set.
        path: the file; a suffix as :func:`read` has it.

    Returns:
        what the format could not hold.

    Raises:
        InputError: if the suffix is another one, a split has no point with text and labels, or the
            file cannot be written.
    """
    path = Path(path)
    table = _table(path)
    data, lost = reduce.reduce(data, steps(table.lists))
    for name, points in (("train", data.train), ("test", data.test)):
        some, want = len(points) > 0, "some with text and labels"
        expect(some, f"{name} points", want, "none", "choose a format that holds an empty split")
    table.write(_records(data), path)
    return lost


def steps(lists: bool) -> tuple[reduce.Step, ...]:
    """What a table cannot hold; without lists in its cells, no separator in a label either."""
    clean = reduce.one_line
    if not lists:
        clean = _without_separator
    return (*_POINT_STEPS, reduce.name_labels(clean))


def _without_separator(text: str) -> str:
    return reduce.one_line(text.replace(SEPARATOR, "/"))


def _table(path: Path) -> Table:
    table = TABLES.get(path.suffix)
    if table is None:
        fail(str(path), f"a suffix of {', '.join(TABLES)}", repr(path.suffix), "rename the file")
    return table


def _records(data: LabelData) -> Iterator[dict[str, Any]]:
    for split, points in (("train", data.train), ("test", data.test)):
        rows = names_of(points.labels, data.labels)
        for uid, text, row in zip(points.texts.uids, points.texts.titles, rows, strict=True):
            yield {"uid": uid, "text": text, "labels": row, "split": split}


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a table: its line, its uid, its text, its labels, and its part if it says one."""

    line: int
    uid: str
    text: str
    labels: tuple[str, ...]
    split: str | None


def _row(name: str, line: int, record: dict, text: str, labels: str, separator: str) -> _Row:
    for column in (text, labels):
        if column not in record:
            have = ", ".join(map(str, record))
            fail(name, f"a column {column!r}", f"columns {have}", "rename it or pass its name")
    words, cell, split = record[text], record[labels], record.get("split")
    if not (isinstance(words, str) and words.strip()):
        fail(name, f"a text in {text!r}", shorten(words), "fill it in or delete the row")
    found = _labels(cell, separator)
    if not found:
        want = f"labels in {labels!r} with {separator!r} between them"
        fail(name, want, shorten(cell), "fill it in or delete the row")
    if split not in (None, "train", "test"):
        fail(name, "'train' or 'test' in 'split'", shorten(split), "correct or rename it")
    uid = record.get("uid")
    return _Row(line, str(line if uid is None else uid), words, found, split)


def _labels(cell: object, separator: str) -> tuple[str, ...]:
    """The labels of a cell: none of it is a label unless all of it is text."""
    parts = cell.split(separator) if isinstance(cell, str) else cell
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        return ()
    # one string a label, however often it stands there: with slots, a quarter less memory
    return tuple(sys.intern(part.strip()) for part in parts if part.strip())


def _points(rows: list[_Row]) -> tuple[Examples, Texts]:
    """All rows as points, and the labels in the order of the columns."""
    names = sorted({label for row in rows for label in row.labels})
    ids = {name: i for i, name in enumerate(names)}
    labels = numbered([row.labels for row in rows], ids)
    texts = reduce.of_titles([row.text for row in rows], [row.uid for row in rows])
    return Examples(texts, labels, no_pairs(*labels.shape)), reduce.of_titles(names, names)


def _split(
    path: Path, rows: list[_Row], fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    silent = [row.line for row in rows if row.split is None]
    expect(
        len(rows) >= 2, str(path), "at least 2 rows, to train and to test", len(rows), "add some"
    )
    if len(silent) == len(rows):
        return random_split(len(rows), fraction, seed)
    want = "a 'split' in every row or in none"
    line = silent[0] if silent else 0
    expect(not silent, f"{path}:{line}", want, "none here", "write 'train' or 'test'")
    is_test = torch.tensor([row.split == "test" for row in rows])
    both = bool(is_test.any()) and not bool(is_test.all())
    want = "'train' and 'test' rows in 'split'"
    expect(both, str(path), want, f"{int(is_test.sum())} test rows of {len(rows)}", "name both")
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()
