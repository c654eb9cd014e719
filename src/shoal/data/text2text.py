"""PECOS's text2text files: label numbers, a tab and the text of a point in one line.

``2,6<TAB>red mug``, or with relevances ``2::2.0,6::0.5<TAB>red mug``; label numbers count from 0
and are lines of a file of label texts. A folder holds the training and test points and the label
texts; one file alone is split at random, and its labels, those that
occur, are called l0, l1, ….
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.csr import Csr
from shoal.core.errors import fail
from shoal.data import reduce
from shoal.data.filters import read_filter, write_filter
from shoal.data.lines import lines, shorten, writer
from shoal.data.matrix import COLUMNS, Rows, pair_rows
from shoal.data.npz import write_lines
from shoal.data.texts import Examples, LabelData, Texts, no_pairs, split_at_random
from shoal.data.xc import TEXTS, find

FILES = {"trn": ("training-data.txt", "train.txt"), "tst": ("test-data.txt", "test.txt")}
LABELS = "output-labels.txt"
STEPS = (
    reduce.unweigh_points,
    reduce.unweigh_labels,
    reduce.line_points,
    reduce.line_labels,
    reduce.number_points,
    reduce.number_labels,
)


def read(path: str | Path, encoding: str = "utf-8") -> LabelData:
    r"""Read one file, or a folder of three.

    Args:
        path: the file or the folder.
        encoding: of the files.

    Returns:
        the data set, named after the path.

    Raises:
        InputError: naming file and line, if a file is missing, a line has no tab, or a label is out
            of range.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.txt").write_text("0,2\tred mug\n1::0.5\ttea\n")
        ...     data = read(Path(folder, "train.txt"))
        >>> data.train.texts.titles, data.train.labels.values, data.labels.titles
        (['tea'], tensor([0.5000]), ['l0', 'l1', 'l2'])
    """
    path = Path(path)
    if path.is_file():
        texts, rows = _read_rows(path, encoding)
        labels, names = _only_used(rows.csr(COLUMNS))
        return split_at_random(path.stem, _points(texts, labels), reduce.of_titles(names))
    label_file = find(path, TEXTS["lbl"]) or path / LABELS
    labels = reduce.of_titles([line for _, line in lines(label_file, encoding)])
    parts: list[Examples] = []
    for split, names in FILES.items():
        texts, rows = _read_rows(find(path, names) or path / names[0], encoding)
        points = _points(texts, rows.csr(len(labels)))
        drop = read_filter(path, split, points.labels.shape)
        parts.append(Examples(points.texts, points.labels, drop))
    return LabelData(path.resolve().name, parts[0], parts[1], labels)


def write(data: LabelData, folder: str | Path) -> list[str]:
    """Write ``training-data.txt``, ``test-data.txt``, ``output-labels.txt`` and filter files.

    Args:
        data: the data set.
        folder: is made if need be; files of the same names are replaced.

    Returns:
        what the format could not hold.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    data, lost = reduce.reduce(data, STEPS)
    write_lines(data.labels, folder / LABELS)
    for split, points in (("trn", data.train), ("tst", data.test)):
        weighed = points.labels.values is not None
        rows = zip(pair_rows(points.labels, "::"), points.texts.titles, strict=True)
        with writer(folder / FILES[split][0]) as file:
            for words, text in rows:
                ids = words if weighed else [word.partition("::")[0] for word in words]
                file.write(f"{','.join(ids)}\t{text}\n")
        write_filter(points.drop, folder, split)
    return lost


def _read_rows(path: Path, encoding: str) -> tuple[Texts, Rows]:
    titles, rows = [], Rows(path, 1)
    for number, line in lines(path, encoding):
        cell, tab, text = line.partition("\t")
        try:
            if not tab:
                raise ValueError
            cut = [word.partition("::") for word in cell.split(",")] if cell.strip() else []
            rows.append([int(i) for i, _, _ in cut], [float(v or 1) for _, _, v in cut])
        except ValueError:
            want = "'label,label<TAB>text' or 'label::relevance,…<TAB>text'"
            fail(f"{path}:{number}", want, shorten(line), "correct the line")
        titles.append(text)
    return reduce.of_titles(titles), rows


def _points(texts: Texts, labels: Csr) -> Examples:
    return Examples(texts, labels, no_pairs(*labels.shape))


def _only_used(labels: Csr) -> tuple[Csr, list[str]]:
    """The matrix of the columns that occur, and their names: a number may be of any size."""
    used, column = labels.indices.unique(return_inverse=True)
    names = [f"l{i}" for i in used.tolist()]
    return Csr(labels.indptr, column, len(names), labels.values), names
