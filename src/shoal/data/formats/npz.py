"""Folders of scipy's npz matrices and plain texts, one document per line; `xc` reads them.

DEXML and ELIAS keep ``Y.{trn,tst}.npz`` and ``raw/{trn_X,tst_X,Y}.txt``, PECOS ``Y.{trn,tst}.npz``,
``X.{trn,tst}.txt`` and ``Y.txt``; features stand in ``X.{trn,tst}.npz``. A line is a whole text, so
uids and the border between title and content are lost.
"""

from __future__ import annotations

from pathlib import Path

from shoal.data import reduce
from shoal.data.filters import write_filter
from shoal.data.formats.registry import text_format
from shoal.data.formats.xc import FEATURES, MATRICES, read
from shoal.data.lines import write_lines
from shoal.data.matrix import write_matrix
from shoal.data.texts import LabelData

STEPS = (
    reduce.bare_examples,
    reduce.unweigh_labels,
    reduce.line_examples,
    reduce.line_labels,
    reduce.number_examples,
    reduce.number_labels,
)


@text_format("npz", read, steps=STEPS)
def write(data: LabelData, folder: Path) -> None:
    """Write a folder as DEXML and ELIAS have it."""
    _fill(data, folder, {"trn": "raw/trn_X.txt", "tst": "raw/tst_X.txt", "lbl": "raw/Y.txt"})


@text_format("pecos", read, steps=STEPS)
def write_pecos(data: LabelData, folder: Path) -> None:
    """Write a folder as PECOS has it."""
    _fill(data, folder, {"trn": "X.trn.txt", "tst": "X.tst.txt", "lbl": "Y.txt"})


def _fill(data: LabelData, folder: Path, names: dict[str, str]) -> None:
    write_lines(folder / names["lbl"], data.labels.titles)
    for split, examples in (("trn", data.train), ("tst", data.test)):
        if examples.texts.features is None:
            write_lines(folder / names[split], examples.texts.titles)
        else:
            write_matrix(examples.texts.features, folder / FEATURES[split][1])
        write_matrix(examples.labels, folder / MATRICES[split][1])
        write_filter(examples.drop, folder, split)
