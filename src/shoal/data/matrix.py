"""Matrices in files: sparse pairs as text, and scipy's npz.

Sparse pairs are a header ``rows columns`` and a line ``column:value …`` per row, columns from 0. An
npz is what ``scipy.sparse.save_npz`` writes for a csr matrix: an archive of plain arrays, no
pickle. Label matrices hold finite relevances above 0, feature matrices finite weights of any sign;
rows come back sorted, doubles summed, values None where all are 1. An npy is a dense matrix.
"""

from __future__ import annotations

import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_file, fail
from shoal.core.mapped import map_rows
from shoal.data.lines import as_tensor, lines, saving, shorten, writer
from shoal.data.unread import opened

# rows whose text is made at a time when a matrix is written: a million would be memory
_ROWS_AT_A_TIME = 4096
# rows and columns at most: ids fit into int32, and row · columns + column into int64
COLUMNS = 2**31
MAPPED_BYTES = 64 << 20


def read_matrix(path: str | Path, features: bool = False) -> Csr:
    r"""Read a matrix: ``.npz``, ``.npy`` (dense) or sparse pairs by its suffix.

    In sparse pairs a blank line is an empty row.

    Args:
        path: the file.
        features: whether its columns are features, whose weights may have any sign, rather than
            labels.

    Returns:
        the matrix, its values float32.

    Raises:
        InputError: naming the file, and in a text the line, if anything is not as described.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "m.txt").write_text("2 4\n3:1 0:0.5\n\n")
        ...     read_matrix(Path(folder, "m.txt")).to_dense()
        tensor([[0.5000, 0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 0.0000, 0.0000]])
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path, features)
    if path.suffix == ".npy":
        dense = map_rows(path)
        numbers = dense.dim() == 2 and not dense.is_complex()
        got = f"{tuple(dense.shape)} {dense.dtype}"
        expect(numbers, str(path), "a matrix of numbers", got, "save it as float32, a row a line")
        return positive(str(path), Csr.from_dense(dense.float()), features)
    numbered = lines(path)
    n_rows, n_cols = read_header(path, numbered, "rows columns")
    rows = Rows(path, 2, features)
    for number, line in numbered:
        rows.append(*pairs(f"{path}:{number}", line.split()))
    return rows.csr(n_cols, n_rows)


def write_matrix(csr: Csr, path: str | Path) -> None:
    """Write `csr` as its reader expects by the suffix; nine digits bring every float32 back.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".npz":
        _write_npz(csr, path)
        return
    with writer(path) as file:
        file.write(f"{csr.n_rows} {csr.n_cols}\n")
        file.writelines(" ".join(row) + "\n" for row in pair_rows(csr))


# -- sparse pairs ------------------------------------------------------------------------------


def read_header(path: Path, numbered: Iterator[tuple[int, str]], names: str) -> list[int]:
    """The counts in the first line of a file, as many as `names` has words.

    Raises:
        InputError: if there are others, or one is too large for a matrix.
    """
    _, line = next(numbered, (1, ""))
    words = line.split()
    small = all(part.isdecimal() and len(part) <= 10 and int(part) < COLUMNS for part in words)
    n = len(names.split())
    want = f"{n} counts below 2^31, '{names}'"
    right = small and len(words) == n
    remedy = "put the header back, or write texts with labels as a table (.csv, .jsonl)"
    expect(right, f"{path}:1", want, shorten(line), remedy)
    return [int(part) for part in words]


def pairs(name: str, words: list[str]) -> tuple[list[int], list[float]]:
    """Columns and values of words ``column:value``.

    Raises:
        InputError: if a word is none.

    Example:
        >>> pairs("m.txt:2", ["3:1", "0:0.5"])
        ([3, 0], [1.0, 0.5])
    """
    try:
        cut = [word.split(":") for word in words]
        return [int(column) for column, _ in cut], [float(value) for _, value in cut]
    except ValueError:
        want = "pairs 'column:value' with spaces between them"
        fail(name, want, shorten(" ".join(words)), "correct the line")


def pair_rows(csr: Csr, between: str = ":") -> Iterator[list[str]]:
    """The words of each row: ``column:value``.

    Yields:
        one list per row.

    Example:
        >>> list(pair_rows(Csr.from_lists([[2, 0], []], n_cols=3)))
        [['2:1', '0:1'], []]
    """
    for start in range(0, csr.n_rows, _ROWS_AT_A_TIME):
        ends = csr.indptr[start : start + _ROWS_AT_A_TIME + 1]
        low, high = int(ends[0]), int(ends[-1])
        columns = csr.indices[low:high].tolist()
        values = [1.0] * len(columns) if csr.values is None else csr.values[low:high].tolist()
        words = [f"{i}{between}{v:.9g}" for i, v in zip(columns, values, strict=True)]
        cuts = (ends - low).tolist()
        yield from (words[a:b] for a, b in pairwise(cuts))


@dataclass
class Rows:
    """Rows of a file's matrix as they are read: eight bytes a number, checked all at once."""

    path: Path
    first_line: int
    features: bool = False
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    ids: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def append(self, ids: list[int], values: list[float]) -> None:
        """Add a row.

        Raises:
            InputError: if a number is larger than any matrix holds.
        """
        try:
            self.ids.extend(ids)
            self.values.extend(values)
        except OverflowError:
            name = f"{self.path}:{self.first_line + len(self)}"
            fail(name, "ids below 2^31", shorten(ids), "correct the line")
        self.ends.append(len(self.ids))

    def csr(self, n_cols: int, n_rows: int | None = None) -> Csr:
        """The matrix of all rows.

        Raises:
            InputError: naming the line of the first entry that is out of range, or the file if it
                has not `n_rows` rows.
        """
        found = len(self)
        right = n_rows is None or found == n_rows
        want = f"{n_rows} rows, as its first line says"
        expect(right, str(self.path), want, found, "correct the header or copy it again")
        ids, ends = as_tensor(self.ids), as_tensor(self.ends)
        values = as_tensor(self.values).float()
        kind = "feature" if self.features else "label"
        want, remedy = f"{kind} ids in [0, {n_cols})", "check that the files belong together"
        self._refuse((ids < 0) | (ids >= n_cols), ids, want, remedy)
        bad, want = _bad_values(values, self.features)
        self._refuse(bad, as_tensor(self.values), want, "correct or remove the pair")
        return _tidy(Csr(ends, ids, n_cols, values))

    def _refuse(self, bad: Tensor, entries: Tensor, expected: str, remedy: str) -> None:
        """Name the line of the first bad entry, if there is one."""
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            ends = as_tensor(self.ends)
            row = int(torch.searchsorted(ends, first, right=True)) - 1
            fail(f"{self.path}:{self.first_line + row}", expected, entries[first].item(), remedy)


def _bad_values(values: Tensor, features: bool) -> tuple[Tensor, str]:
    if features:
        return ~values.isfinite(), "finite weights"
    return ~(values.isfinite() & (values > 0)), "finite relevances above 0"


def positive(name: str, csr: Csr, features: bool = False) -> Csr:
    """The matrix with sorted rows, doubles summed, and no values where all of them are one.

    Args:
        name: of what holds the values, for the message.
        csr: entries of any order.
        features: whether its columns are features, whose weights may have any sign.

    Raises:
        InputError: naming the first row with a value that is none: see the top of this module.
    """
    if csr.values is not None:
        bad, want = _bad_values(csr.values, features)
        if bool(bad.any()):
            got = f"{csr.values[bad][0].item()} in row {int(csr.row_ids()[bad][0])}"
            fail(name, want, got, "remove the entry")
    return _tidy(csr)


def _tidy(csr: Csr) -> Csr:
    ones = csr.values is not None and bool((csr.values == 1).all())
    return (csr.with_values(None) if ones else csr).coalesce()


# -- scipy's npz -------------------------------------------------------------------------------


def read_arrays(path: str | Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``; anything pickled in it is refused.

    Those of 64 MiB and more that are not compressed are mapped, and read when they are touched;
    their checksums are not.

    Raises:
        InputError: if the file is missing or damaged, or lacks a key.
    """
    path = expect_file(path, "arrays (.npz)")
    opened(path)
    try:
        # np.load leaves a file that it opened itself open where the archive is damaged.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            expect(not missing, str(path), f"arrays {', '.join(keys)}", f"no {missing}", "add them")
            large = _large(path)
            found = ((key, _mapped(path, key)) for key in keys if key in large)
            mapped = {key: array for key, array in found if array is not None}
            arrays = {key: mapped[key] if key in mapped else file[key] for key in keys}
            # what does not begin as an array does comes back as bytes
            bad = [key for key in keys if not isinstance(arrays[key], np.ndarray)]
            expect(not bad, str(path), "arrays", f"other bytes as {bad}", "download it again")
            return arrays
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, numpy's header parser: each has its own
        got = str(error).partition("\n")[0] or type(error).__name__
        fail(str(path), "a whole .npz of plain arrays", got, "copy or download it again")


def _large(path: Path) -> set[str]:
    """Names of the arrays that are worth mapping."""
    with zipfile.ZipFile(path) as archive:
        members = [x.filename for x in archive.infolist() if x.file_size >= MAPPED_BYTES]
    return {name.removesuffix(".npy") for name in members}


def _mapped(path: Path, key: str) -> np.ndarray | None:
    try:
        return map_rows(path, key).numpy()
    except InputError:  # compressed, columns first, or no numbers: whoever reads it will see
        return None


def _read_npz(path: Path, features: bool) -> Csr:
    from scipy import sparse

    path = expect_file(path, "a matrix (.npz)")
    opened(path)
    try:
        with path.open("rb") as raw:  # scipy loads no pickles: it sets allow_pickle to False
            matrix = sparse.load_npz(raw)
        form = matrix.format
        expect(form == "csr", "format", "a csr matrix", form, "save matrix.tocsr()")
        good = matrix.data.dtype.kind in "biuf" and max(matrix.shape) < COLUMNS
        got = f"{matrix.shape} {matrix.data.dtype}"
        expect(good, "data", "numbers, rows and columns below 2^31", got, "save it as float32")
        matrix.check_format()  # scipy's own kernels believe what the arrays say
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, refused below
            csr = Csr.from_scipy(matrix.astype(np.float32))
        return positive("data", csr, features)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # zipfile, zlib, numpy, scipy: each has its own
        got = str(error).partition("\n")[0] or type(error).__name__
        fail(str(path), "a whole csr matrix, as scipy saves it", got, "save or copy it again")


def _write_npz(csr: Csr, path: Path) -> None:
    from scipy import sparse

    with saving(path) as raw:
        sparse.save_npz(raw, csr.to_scipy())
