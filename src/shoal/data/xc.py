"""The Extreme Classification Repository's files, as they are published, read and written.

A folder holds ``{trn,tst,lbl}.json.gz`` (texts, one JSON object a line), ``{trn,tst}_X_Y.txt`` (the
label matrix in sparse pair format) and perhaps filter files (pairs to be ignored in predictions).
Where a matrix file is missing, ``target_ind`` and ``target_rel`` of the texts serve. A published
split is read as it stands: points without labels and empty texts are kept, since results are
compared row by row; :func:`shoal.data.texts.describe` counts them. Formats: docs/formats.md;
repository: Bhatia et al., "The Extreme Classification Repository", 2016.
"""

from __future__ import annotations

import gzip
import io
import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from shoal._checks import expect, expect_folder, fail
from shoal.csr import Csr
from shoal.data.lines import as_tensor, lines, shorten
from shoal.data.texts import LabelData, Points, Texts, no_pairs

_FILTERS = {
    "trn": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    "tst": ("filter_labels_test.txt", "tst_filter_labels.txt"),
}


def read(folder: str | Path, encoding: str = "utf-8") -> LabelData:
    """Read a data set of the XC repository.

    A label written twice for one point counts once (relevances, where there are any other than 1,
    are added). Relevances are finite and above 0.

    Args:
        folder: holds trn.json.gz, tst.json.gz, lbl.json.gz; the rest as the module says.
        encoding: of the texts; "latin-1" for old files, which accepts any bytes.

    Returns:
        the data set, named after the folder.

    Raises:
        InputError: naming file and line, if a file is missing or damaged, an id is out of range, a
            number is not one, or files disagree in how many points or labels there are.
    """
    folder = expect_folder(folder, "trn.json.gz, tst.json.gz and lbl.json.gz")
    labels = read_texts(folder / "lbl.json.gz", encoding)
    train = _read_points(folder, "trn", len(labels), encoding)
    test = _read_points(folder, "tst", len(labels), encoding)
    return LabelData(folder.resolve().name, train, test, labels)


def write(data: LabelData, folder: str | Path) -> None:
    """Write what :func:`read` reads back as the same data; the same bytes for the same data.

    Texts are written with ASCII escapes, because readers in the wild take them for latin-1.

    Args:
        data: the data set.
        folder: is made if need be; files of the same names are replaced.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(data.labels, folder / "lbl.json.gz")
        for split, points in (("trn", data.train), ("tst", data.test)):
            write_texts(points.texts, folder / f"{split}.json.gz", points.labels)
            write_matrix(points.labels, folder / f"{split}_X_Y.txt")
            _write_filter(points.drop, folder / _FILTERS[split][0])
    except OSError as error:
        fail(str(folder), "a folder that can be written", error, "name another or free space")


# -- sparse pair format ------------------------------------------------------------------------


def read_matrix(path: str | Path) -> Csr:
    r"""Read a matrix in sparse pair format: header ``rows columns``, then ``column:value`` pairs.

    A blank line is an empty row. Rows come sorted; values are None where all are 1.

    Returns:
        the matrix, its values float32.

    Raises:
        InputError: naming file and line, if anything is not as described.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "m.txt").write_text("2 4\n3:1 0:0.5\n\n")
        ...     read_matrix(Path(folder, "m.txt")).to_dense()
        tensor([[0.5000, 0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    path = Path(path)
    numbered = lines(path)
    n_rows, n_cols = _read_header(path, numbered)
    rows = _Rows(path, first_line=2)
    for number, line in numbered:
        try:
            pairs = [pair.split(":") for pair in line.split()]
            rows.append([int(i) for i, _ in pairs], [float(value) for _, value in pairs])
        except (ValueError, OverflowError):
            want = "pairs 'label:relevance' with spaces between them"
            fail(f"{path}:{number}", want, shorten(line), "correct the line")
    want = f"{n_rows} rows, as its first line says"
    expect(len(rows) == n_rows, str(path), want, len(rows), "correct the header or copy it again")
    return rows.csr(n_cols)


def write_matrix(csr: Csr, path: str | Path) -> None:
    """Write `csr` in sparse pair format; nine digits bring every float32 back."""
    values = ["1"] * csr.nnz if csr.values is None else [f"{v:.9g}" for v in csr.values.tolist()]
    pairs = [f"{i}:{v}" for i, v in zip(csr.indices.tolist(), values, strict=True)]
    ends = csr.indptr.tolist()
    with Path(path).open("w", encoding="utf-8") as file:
        file.write(f"{csr.n_rows} {csr.n_cols}\n")
        for start, end in pairwise(ends):
            file.write(" ".join(pairs[start:end]) + "\n")


def _read_header(path: Path, numbered: Iterator[tuple[int, str]]) -> tuple[int, int]:
    _, line = next(numbered, (1, ""))
    parts = line.split()
    good = len(parts) == 2 and all(part.isdecimal() for part in parts)
    want = "two counts, 'rows labels'"
    expect(good, f"{path}:1", want, shorten(line), "put the header back")
    return int(parts[0]), int(parts[1])


@dataclass
class _Rows:
    """Rows of a file's matrix as they are read: eight bytes a number, checked all at once."""

    path: Path
    first_line: int
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    ids: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def append(self, ids: list[int], values: list[float]) -> None:
        self.ids.extend(ids)
        self.values.extend(values)
        self.ends.append(len(self.ids))

    def csr(self, n_cols: int) -> Csr:
        ids, ends = as_tensor(self.ids), as_tensor(self.ends)
        values = as_tensor(self.values)
        want = f"label ids in [0, {n_cols})"
        self._refuse((ids < 0) | (ids >= n_cols), ids, want, "check that the files belong together")
        want = "finite relevances above 0"
        self._refuse(
            ~(values.isfinite() & (values > 0)), values, want, "correct or remove the pair"
        )
        relevance = None if bool((values == 1).all()) else values.float()
        return Csr(ends, ids, n_cols, relevance).coalesce()

    def _refuse(self, bad: Tensor, entries: Tensor, expected: str, remedy: str) -> None:
        """Name the line of the first bad entry, if there is one."""
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            ends = as_tensor(self.ends)
            row = int(torch.searchsorted(ends, first, right=True)) - 1
            fail(f"{self.path}:{self.first_line + row}", expected, entries[first].item(), remedy)


# -- texts -------------------------------------------------------------------------------------


def _read_points(folder: Path, split: str, n_labels: int, encoding: str) -> Points:
    source, matrix = folder / f"{split}.json.gz", folder / f"{split}_X_Y.txt"
    rows = None if matrix.exists() else _Rows(source, first_line=1)
    texts = read_texts(source, encoding, rows)
    labels = read_matrix(matrix) if rows is None else rows.csr(n_labels)
    want = f"{len(texts)} points ({source.name}) and {n_labels} labels (lbl.json.gz)"
    good = labels.shape == (len(texts), n_labels)
    expect(good, f"{matrix}:1", want, labels.shape, "take all files from one release")
    return Points(texts, labels, _read_filter(folder, split, labels.shape))


def read_texts(path: Path, encoding: str = "utf-8", targets: _Rows | None = None) -> Texts:
    """Read a text file, and its label ids into `targets` where that is given.

    Raises:
        InputError: naming file and line, if one is no JSON object with uid and title.
    """
    texts = Texts([], [], [])
    for number, line in lines(path, encoding):
        try:
            record = json.loads(line)
            uid, title, content = _fields(record)
            texts.uids.append(uid)
            texts.titles.append(title)
            texts.contents.append(content)
            if targets is not None:
                targets.append(*_targets(record))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            _refuse_record(f"{path}:{number}", line, error)
    return texts


def _fields(record: Any) -> tuple[str, str, str]:
    if not isinstance(record, dict):
        raise TypeError("no object")
    title, content = record["title"], record.get("content", "")
    if not (isinstance(title, str) and isinstance(content, str)):
        raise TypeError("a title or content that is no text")
    return str(record["uid"]), title, content


def _targets(record: dict[str, Any]) -> tuple[list[int], list[float]]:
    ids = record["target_ind"]
    values = record.get("target_rel", [1.0] * len(ids))
    if len(values) != len(ids):
        raise ValueError(f"{len(ids)} target_ind but {len(values)} target_rel")
    return ids, values


def _refuse_record(name: str, line: str, error: Exception) -> NoReturn:
    got = f"no key {error}" if isinstance(error, KeyError) else f"{error} in {shorten(line)}"
    fail(name, "a JSON object with uid, title, content and targets", got, "correct the line")


def write_texts(texts: Texts, path: Path, targets: Csr | None = None) -> None:
    """Write a text file, with label ids where `targets` are given."""
    with _gzip_writer(path) as file:
        for i in range(len(texts)):
            record: dict[str, Any] = {
                "uid": texts.uids[i],
                "title": texts.titles[i],
                "content": texts.contents[i],
            }
            if targets is not None:
                record |= _target_fields(targets, i)
            file.write(json.dumps(record) + "\n")


def _target_fields(targets: Csr, i: int) -> dict[str, Any]:
    row = slice(int(targets.indptr[i]), int(targets.indptr[i + 1]))
    ids = targets.indices[row].tolist()
    values = [1.0] * len(ids) if targets.values is None else targets.values[row].tolist()
    return {"target_ind": ids, "target_rel": values}


@contextmanager
def _gzip_writer(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a gzip file without name or time, so that the same text makes the same bytes.

    Yields:
        where to write the text.
    """
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,
    ):
        yield file


# -- filter pairs ------------------------------------------------------------------------------


def _read_filter(folder: Path, split: str, shape: tuple[int, int]) -> Csr:
    """Read (row, label) pairs; a missing or empty file means that there are none."""
    path = next((folder / x for x in _FILTERS[split] if (folder / x).exists()), None)
    if path is None:
        return no_pairs(*shape)
    flat = array("q")
    for number, line in lines(path):
        parts = line.split()
        good = len(parts) == 2 and all(
            part.isdecimal() and int(part) < size for part, size in zip(parts, shape, strict=True)
        )
        if not good:
            want = f"'row label' with row in [0, {shape[0]}) and label in [0, {shape[1]})"
            fail(f"{path}:{number}", want, shorten(line), "check that the files belong together")
        flat.extend(map(int, parts))
    row, col = as_tensor(flat).view(-1, 2).T
    return Csr.from_coo(row, col, shape).coalesce()


def _write_filter(drop: Csr, path: Path) -> None:
    pairs = zip(drop.row_ids().tolist(), drop.indices.tolist(), strict=True)
    path.write_text("".join(f"{row} {label}\n" for row, label in pairs))
