"""Folders of scipy's npz matrices and plain texts, a document a line: written here, read by `xc`.

DEXML and ELIAS keep ``Y.{trn,tst}.npz`` and ``raw/{trn_X,tst_X,Y}.txt``, PECOS ``Y.{trn,tst}.npz``,
``X.{trn,tst}.txt`` and ``Y.txt``; features stand in ``X.{trn,tst}.npz``. A line is a whole text, so
uids and the border between title and content are lost.
"""

from __future__ import annotations

from pathlib import Path

from shoal.data import reduce
from shoal.data.filters import write_filter
from shoal.data.lines import writer
from shoal.data.matrix import write_matrix
from shoal.data.texts import LabelData, Texts
from shoal.data.xc import FEATURES, MATRICES

STEPS = (
    reduce.respell_points,
    reduce.unweigh_labels,
    reduce.line_points,
    reduce.line_labels,
    reduce.number_points,
    reduce.number_labels,
)
_RAW = {"trn": "raw/trn_X.txt", "tst": "raw/tst_X.txt", "lbl": "raw/Y.txt"}
_PECOS = {"trn": "X.trn.txt", "tst": "X.tst.txt", "lbl": "Y.txt"}


def write(data: LabelData, folder: str | Path) -> list[str]:
    """Write a folder as DEXML and ELIAS have it.

    Args:
        data: the data set.
        folder: is made if need be; files of the same names are replaced.

    Returns:
        what the format could not hold.

    Raises:
        InputError: if the folder cannot be written.
    """
    return _write(data, Path(folder), _RAW)


def write_pecos(data: LabelData, folder: str | Path) -> list[str]:
    """Write a folder as PECOS has it; all else as :func:`write`.

    Raises:
        InputError: if the folder cannot be written.
    """
    return _write(data, Path(folder), _PECOS)


def write_lines(texts: Texts, path: Path) -> None:
    """Write a text a line.

    Raises:
        InputError: if the file cannot be written.
    """
    with writer(path) as file:
        file.writelines(f"{title}\n" for title in texts.titles)


def _write(data: LabelData, folder: Path, names: dict[str, str]) -> list[str]:
    data, lost = reduce.reduce(data, STEPS)
    write_lines(data.labels, folder / names["lbl"])
    for split, points in (("trn", data.train), ("tst", data.test)):
        if points.texts.features is None:
            write_lines(points.texts, folder / names[split])
        else:
            write_matrix(points.texts.features, folder / FEATURES[split][1])
        write_matrix(points.labels, folder / MATRICES[split][1])
        write_filter(points.drop, folder, split)
    return lost
