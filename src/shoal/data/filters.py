"""Filter files: pairs (row, label) that predictions are not evaluated on.

Published under two names, ``filter_labels_{train,test}.txt`` and ``{trn,tst}_filter_labels.txt``,
beside the other files or in ``raw/``; a missing or an empty file means that there are no pairs. A
line is ``row label``, both from 0, also as ``numpy.savetxt`` writes whole numbers (``7.0e+00``). An
``.npz`` of the same name is scipy's matrix of the pairs.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.data.lines import as_tensor, lines, shorten, writer
from shoal.data.matrix import read_matrix
from shoal.data.texts import no_pairs

_NAMES = {
    "trn": ("filter_labels_train", "trn_filter_labels"),
    "tst": ("filter_labels_test", "tst_filter_labels"),
}


def read_filter(folder: Path, split: str, shape: tuple[int, int]) -> Csr:
    """Read the filter pairs of a split from the first file that bears one of the names.

    Args:
        folder: of the data set.
        split: "trn" or "tst".
        shape: examples and labels of the split.

    Raises:
        InputError: naming file and line, if a pair is out of range or none.
    """
    named = [f"{name}{suffix}" for name in _NAMES[split] for suffix in (".txt", ".npz")]
    paths = (folder / part / name for part in ("", "raw") for name in named)
    path = next((path for path in paths if path.is_file()), None)
    if path is None or path.stat().st_size == 0:
        return no_pairs(*shape)
    return _read_npz(path, shape) if path.suffix == ".npz" else _read_text(path, shape)


def write_filter(drop: Csr, folder: Path, split: str) -> None:
    """Write the pairs; a file without any is empty.

    Raises:
        InputError: if the file cannot be written.
    """
    pairs = zip(drop.row_ids().tolist(), drop.indices.tolist(), strict=True)
    with writer(folder / f"{_NAMES[split][0]}.txt") as file:
        file.writelines(f"{row} {label}\n" for row, label in pairs)


def _read_npz(path: Path, shape: tuple[int, int]) -> Csr:
    drop = read_matrix(path)
    good = drop.shape == shape
    want = f"a matrix of {shape[0]} examples and {shape[1]} labels"
    expect(good, str(path), want, drop.shape, "check that the files belong together")
    return drop.with_values(None)


def _read_text(path: Path, shape: tuple[int, int]) -> Csr:
    flat = array("q")
    for number, line in lines(path):
        pair = _pair(line, shape)
        if pair is None:
            want = f"'row label' with row in [0, {shape[0]}) and label in [0, {shape[1]})"
            fail(f"{path}:{number}", want, shorten(line), "check that the files belong together")
        flat.extend(pair)
    row, col = as_tensor(flat).view(-1, 2).T
    return Csr.from_coo(row, col, shape).coalesce()


def _pair(line: str, shape: tuple[int, int]) -> list[int] | None:
    """The pair of a line, nothing for a blank one, None for anything else."""
    try:
        numbers = [float(part) for part in line.split()]
    except ValueError:
        return None
    if len(numbers) not in (0, 2):
        return None
    inside = (x.is_integer() and 0 <= x < n for x, n in zip(numbers, shape, strict=False))
    return [int(x) for x in numbers] if all(inside) else None
