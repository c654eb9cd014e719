"""One plain table of `text, labels`: CSV, TSV or JSON lines, for a user's own data.

Label texts are the label strings themselves. Unlike a published split, a table is the user's to
mend, so a row without text or without labels is refused with its line: it could teach nothing, and
in the test part it would count as wrong for ever.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shoal._checks import expect, fail
from shoal.csr import Csr
from shoal.data.lines import lines, shorten
from shoal.data.texts import LabelData, Points, Texts, no_pairs, random_split


def read(
    path: str | Path,
    *,
    text: str = "text",
    labels: str = "labels",
    separator: str = "|",
    fraction: float = 0.2,
    seed: int = 0,
    encoding: str = "utf-8",
) -> LabelData:
    r"""Read a table; its suffix says how: ``.csv`` (quoted), ``.tsv`` (unquoted) or ``.jsonl``.

    Labels of a cell stand between separators; a list of strings does too in JSON lines. A column
    ``split``, where there is one, holds ``train`` or ``test`` in every row; otherwise rows are
    split at random. Labels are sorted by name, uids are line numbers, blank lines are no rows.

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
    form = _FORMATS.get(path.suffix)
    if form is None:
        fail(str(path), f"a suffix of {', '.join(_FORMATS)}", repr(path.suffix), "rename the file")
    rows = [
        _row(f"{path}:{number}", number, record, text, labels, separator)
        for number, record in form(path, encoding)
    ]
    points, names = _points(rows)
    train, test = _split(path, rows, fraction, seed)
    about = Texts(names, names, [""] * len(names))
    return LabelData(path.stem, points.subset(train), points.subset(test), about)


@dataclass(frozen=True)
class _Row:
    """One row of a table: its line, its text, its labels, and its part if it says one."""

    line: int
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
    return _Row(line, words, found, split)


def _labels(cell: object, separator: str) -> tuple[str, ...]:
    """The labels of a cell: none of it is a label unless all of it is text."""
    parts = cell.split(separator) if isinstance(cell, str) else cell
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        return ()
    return tuple(part.strip() for part in parts if part.strip())


def _points(rows: list[_Row]) -> tuple[Points, list[str]]:
    """All rows as points, and the label names in the order of the columns."""
    names = sorted({label for row in rows for label in row.labels})
    ids = {name: i for i, name in enumerate(names)}
    labels = Csr.from_lists([[ids[x] for x in row.labels] for row in rows], len(names)).coalesce()
    uids, words = [str(row.line) for row in rows], [row.text for row in rows]
    return Points(Texts(uids, words, [""] * len(rows)), labels, no_pairs(*labels.shape)), names


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


# -- formats: each yields (line, record) --------------------------------------------------------


def _read_csv(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    numbered = (line + "\n" for _, line in lines(path, encoding))
    return _read_cells(path, csv.reader(numbered, strict=True))


def _read_tsv(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    numbered = (line + "\n" for _, line in lines(path, encoding))
    return _read_cells(path, csv.reader(numbered, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_cells(path: Path, cells: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a csv reader.

    Yields:
        the line that a record begins on, and its cells by column.
    """
    line = 1
    try:
        header = next(cells, [])
        while True:
            line = cells.line_num + 1
            row = next(cells, None)
            if row is None:
                return
            if row and len(row) != len(header):
                want = f"{len(header)} cells, as the first line has"
                fail(f"{path}:{line}", want, len(row), "quote or fill them")
            if row:
                yield line, dict(zip(header, row, strict=True))
    except csv.Error as error:
        fail(f"{path}:{line}", "well-formed CSV", error, "correct the quotes or use JSON lines")


def _read_jsonl(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines(path, encoding):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            fail(f"{path}:{number}", "a JSON object", f"{error} in {shorten(line)}", "correct it")
        if not isinstance(record, dict):
            fail(f"{path}:{number}", "a JSON object", shorten(line), "write one a line")
        yield number, record


_FORMATS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl}
