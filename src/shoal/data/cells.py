"""Records of a table: CSV (quoted), TSV (unquoted), JSON and Parquet, read and written.

A record is a dictionary by column. Readers yield it with the line that it begins on (in Parquet and
in a JSON list its number, from 1); writers take records whose labels are lists, which CSV and TSV
join with ``|``. The columns of a CSV stand between commas, or, where its first line has none,
between semicolons or tabs.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from shoal.core.distribution import require
from shoal.core.errors import InputError, expect, expect_file, fail
from shoal.data.label_cells import SEPARATOR, is_list
from shoal.data.lines import json_object, lines, saving, suffix_of, writer
from shoal.data.unread import opened

_log = logging.getLogger("shoal")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are meant; None for the usual names.

    Attributes:
        text: the column of texts; ``text``.
        labels: the column of labels; ``labels``.
        title: a second column of texts, shorter ones; no column.
        split: the column that says ``train`` or ``test``; ``split``, where there is one.
        separator: between the labels in a cell of text; ``|``, since labels themselves hold commas,
            semicolons and spaces, and lists as other programs print them are recognized
            (:mod:`shoal.data.label_cells`). Where it is empty, a cell is one label.
        apart: keep rows that repeat a text apart, as runs of the first layout did.
    """

    text: str | None = None
    labels: str | None = None
    title: str | None = None
    split: str | None = None
    separator: str | None = None
    apart: bool | None = None


_LONGEST = 2**31 - 1
# records handed to or taken from Parquet at a time
_RECORDS = 16384

Records = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Kind:
    """How one suffix is read and written.

    Attributes:
        read: from a path and an encoding to numbered records.
        write: records into a path.
        lists: whether a cell can hold a list; where it cannot, the first line names the columns.
    """

    read: Callable[[Path, str], Records]
    write: Callable[[Iterator[dict[str, Any]], Path], None]
    lists: bool


# -- CSV and TSV -------------------------------------------------------------------------------


def _read_csv(path: Path, encoding: str) -> Records:
    numbered = lines(path, encoding)
    first = [text for _, text in islice(numbered, 1)]
    between = max(",;\t", key="".join(first).count)  # of as many, the first
    text = chain(first, (line for _, line in numbered))
    cells = csv.reader((line + "\n" for line in text), strict=True, delimiter=between)

    def rows() -> Iterator[tuple[int, list[str]]]:
        line = 1
        # the module's own limit of 128 KiB a cell is the whole process's: lifted while this reads
        limit = csv.field_size_limit(_LONGEST)
        try:
            while (row := next(cells, None)) is not None:
                yield line, row
                line = cells.line_num + 1
        except csv.Error as error:
            remedy = "correct the quotes or use JSON lines"
            remedy = "save it with line feeds" if "new-line" in str(error) else remedy
            fail(f"{path}:{line}", "well-formed CSV", str(error).partition(" - ")[0], remedy)
        finally:
            csv.field_size_limit(limit)

    return _by_column(path, rows(), "quote or fill them")


def _read_tsv(path: Path, encoding: str) -> Records:
    _, first = next(lines(path, encoding), (1, ""))
    if all(map(_quoted, first.split("\t"))):  # then all cells are
        yield from _read_csv(path, encoding)
        return
    as_csv = f"name the file {path.stem.removesuffix('.tsv')}.csv, where quotes are read"
    rows = ((number, line.split("\t") if line else []) for number, line in lines(path, encoding))
    quoted = 0
    for number, record in _by_column(path, rows, f"fill them, or {as_csv}"):
        quoted += any(map(_quoted, (*record, *record.values())))
        yield number, record
    if quoted:
        told = "%s: quotes stand around cells of %d rows, and are read as text; if they are not, %s"
        _log.warning(told, path, quoted, as_csv)


def _quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == '"' == cell[-1]


def _by_column(path: Path, rows: Iterator[tuple[int, list[str]]], remedy: str) -> Records:
    """Records of rows whose first one names the columns; `remedy` is for rows of other lengths.

    Yields:
        the line of each and its cells by column.
    """
    _, header = next(rows, (1, []))
    header = [name.strip() for name in header]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    want = "each column once"
    expect(not twice, f"{path}:1", want, f"two called {', '.join(twice)}", "rename one of them")
    for number, row in rows:
        if row and len(row) != len(header):
            want = f"{len(header)} cells, as the first line has"
            fail(f"{path}:{number}", want, len(row), remedy)
        if row:
            yield number, dict(zip(header, row, strict=True))


def _flat(record: dict[str, Any]) -> list[str]:
    """The cells of a record; one label that looks like a list is told by a separator behind it."""
    cells = []
    for x in record.values():
        cell = SEPARATOR.join(x) if isinstance(x, list) else x
        cells.append(cell + SEPARATOR * (isinstance(x, list) and is_list(cell)))
    return cells


def _write_csv(records: Iterator[dict[str, Any]], path: Path) -> None:
    with writer(path) as file:
        out = csv.writer(file, lineterminator="\n")
        for i, record in enumerate(records):
            if i == 0:
                out.writerow(record)
            out.writerow(_flat(record))


def _write_tsv(records: Iterator[dict[str, Any]], path: Path) -> None:
    with writer(path) as file:
        for i, record in enumerate(records):
            if i == 0:
                file.write("\t".join(record) + "\n")
            file.write("\t".join(_flat(record)) + "\n")


# -- JSON --------------------------------------------------------------------------------------


def _read_json(path: Path, encoding: str) -> Records:
    """One list of records, or JSON lines.

    Yields:
        the number of each, from 1, or its line, and its cells by column.
    """
    _, first = next(((i, line) for i, line in lines(path, encoding) if line.strip()), (1, ""))
    if not first.lstrip().startswith("["):
        yield from _read_jsonl(path, encoding)
        return
    want = "a JSON list of objects"
    try:
        found = json.loads("\n".join(line for _, line in lines(path, encoding)))
    except (ValueError, RecursionError) as error:
        fail(str(path), want, error, "correct it, or write one object a line")
    for number, record in enumerate(found, 1):
        good = isinstance(record, dict)
        expect(good, f"{path}:{number}", want, repr(record)[:60], "write objects alone")
        yield number, record


def _read_jsonl(path: Path, encoding: str) -> Records:
    for number, line in lines(path, encoding):
        if line.strip():
            yield number, json_object(f"{path}:{number}", line)


def _write_jsonl(records: Iterator[dict[str, Any]], path: Path) -> None:
    with writer(path) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# -- Parquet -----------------------------------------------------------------------------------


def _pyarrow(name: str) -> Any:
    require("pyarrow.parquet", name, "parquet")  # an attribute of pyarrow only once imported
    return require("pyarrow", name, "parquet")


def _read_parquet(path: Path, _: str) -> Records:
    parquet = _pyarrow(str(path)).parquet
    path = expect_file(path, "a table")
    opened(path)
    number = 0
    try:
        with path.open("rb") as raw:
            file = parquet.ParquetFile(raw, page_checksum_verification=True)
            for batch in file.iter_batches(_RECORDS):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except InputError:
        raise
    except Exception as error:  # pyarrow has a class of its own for each thing that is wrong
        got = str(error).partition("\n")[0] or type(error).__name__
        fail(str(path), "a whole Parquet file", got, "write or download it again")


def _write_parquet(records: Iterator[dict[str, Any]], path: Path) -> None:
    pyarrow = _pyarrow(str(path))
    out = None
    with saving(path) as raw:
        while chunk := list(islice(records, _RECORDS)):
            table = pyarrow.Table.from_pylist(chunk)
            if out is None:
                out = pyarrow.parquet.ParquetWriter(raw, table.schema, write_page_checksum=True)
            out.write_table(table)
        if out is not None:
            out.close()


TABLES = {
    ".csv": Kind(_read_csv, _write_csv, lists=False),
    ".tsv": Kind(_read_tsv, _write_tsv, lists=False),
    ".jsonl": Kind(_read_jsonl, _write_jsonl, lists=True),
    ".parquet": Kind(_read_parquet, _write_parquet, lists=True),
}
# further suffixes of files that are read
READ = TABLES | {".ndjson": TABLES[".jsonl"], ".json": Kind(_read_json, _write_jsonl, lists=True)}


def kind_of(path: Path) -> Kind:
    """How a table is read, by its suffix.

    Raises:
        InputError: if it has none of those known.
    """
    kind = READ.get(suffix_of(path))
    if kind is None:
        fail(str(path), f"a suffix of {', '.join(READ)}", repr(path.suffix), "rename the file")
    return kind
