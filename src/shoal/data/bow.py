"""The XC repository's old format: labels and weighted features of a point in one line, no text.

A header ``points features labels``, then ``label,label feature:weight …``, ids from 0; the line of
a point without labels begins with a space. Such points have features instead of texts, and labels
have numbers alone: texts spell them, ``f12`` and ``l3``, so that a bag of words reads what there is
to read; the weights stay in ``features``, for writers. One file is split at random; a folder holds
one file that ends in ``train.txt`` and one that ends in ``test.txt``.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.data import reduce
from shoal.data.filters import read_filter, write_filter
from shoal.data.lines import lines, shorten, writer
from shoal.data.matrix import Rows, pair_rows, pairs, read_header
from shoal.data.texts import Examples, LabelData, Texts, no_pairs, split_at_random

STEPS = (
    reduce.respell_points,
    reduce.unweigh_labels,
    reduce.plain_labels,
    reduce.drop_relevance,
)


def read(path: str | Path, encoding: str = "utf-8") -> LabelData:
    r"""Read one file, or a folder of two.

    Args:
        path: the file or the folder.
        encoding: of the files, which hold digits only in any case.

    Returns:
        the data set, named after the path.

    Raises:
        InputError: naming file and line, if a file is missing or damaged, a number is not one, or
            the two files differ in features or labels.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "data.txt").write_text("2 5 3\n0,2 1:0.5 4:1.2\n 3:0.7\n")
        ...     data = read(Path(folder, "data.txt"))
        >>> data.train.texts.all() + data.test.texts.all(), data.labels.titles
        (['f3', 'f1 f4'], ['l0', 'l1', 'l2'])
    """
    path = Path(path)
    if path.is_file():
        points = _read_points(path, encoding)
        return split_at_random(path.stem, points, _labels(points))
    train, test = (_read_points(find(path, end), encoding) for end in ("train.txt", "test.txt"))
    for what, n, other in (
        ("labels", train.labels.n_cols, test.labels.n_cols),
        ("features", _width(train), _width(test)),
    ):
        expect(n == other, str(path), f"as many {what} in both files, {n}", other, "correct one")
    train, test = (
        Examples(x.texts, x.labels, read_filter(path, split, x.labels.shape))
        for split, x in (("trn", train), ("tst", test))
    )
    return LabelData(path.resolve().name, train, test, _labels(train))


def write(data: LabelData, folder: str | Path) -> list[str]:
    """Write ``train.txt``, ``test.txt`` and filter files.

    Args:
        data: the data set; its points have features.
        folder: is made if need be; files of the same names are replaced.

    Returns:
        what the format could not hold.

    Raises:
        InputError: if points have no features, or the folder cannot be written.
    """
    folder = Path(folder)
    data, lost = reduce.reduce(data, STEPS)
    for split, end, points in (("trn", "train", data.train), ("tst", "test", data.test)):
        features = points.texts.features
        if features is None:
            fail(f"{end} points", "features", "texts", "choose a format of texts, as xc")
        _write_points(points.labels, features, folder / f"{end}.txt")
        write_filter(points.drop, folder, split)
    return lost


def find(folder: Path, end: str) -> Path:
    """The one file whose name ends in `end`, filter files apart.

    Raises:
        InputError: if there is none or more than one.
    """
    found = [path for path in sorted(folder.glob(f"*{end}")) if "filter" not in path.name]
    want = f"one file whose name ends in {end}"
    expect(len(found) == 1, str(folder), want, [p.name for p in found] or "none", "rename it")
    return found[0]


def _read_points(path: Path, encoding: str) -> Examples:
    numbered = lines(path, encoding)
    n, n_features, n_labels = read_header(path, numbered, "points features labels")
    labels, features = Rows(path, 2), Rows(path, 2, features=True)
    for number, line in numbered:
        name = f"{path}:{number}"
        first, _, rest = line.partition(" ")
        # some writers leave out the space before a line without labels
        first, rest = ("", line) if ":" in first else (first, rest)
        labels.append(*_read_labels(name, first))
        features.append(*pairs(name, rest.split()))
    truth = labels.csr(n_labels, n)
    texts = reduce.spelled(features.csr(n_features, n))
    return Examples(texts, truth, no_pairs(*truth.shape))


def _read_labels(name: str, text: str) -> tuple[list[int], list[float]]:
    try:
        ids = [int(word) for word in text.split(",")] if text else []
    except ValueError:
        fail(name, "label ids with commas between them", shorten(text), "correct the line")
    return ids, [1.0] * len(ids)


def _labels(points: Examples) -> Texts:
    return reduce.of_titles(reduce.row_names(points.labels.n_cols, "l"))


def _width(points: Examples) -> int:
    return points.texts.features.n_cols if points.texts.features is not None else 0


def _write_points(labels: Csr, features: Csr, path: Path) -> None:
    ends = labels.indptr.tolist()
    ids = [str(i) for i in labels.indices.tolist()]
    with writer(path) as file:
        file.write(f"{labels.n_rows} {features.n_cols} {labels.n_cols}\n")
        for i, words in enumerate(pair_rows(features)):
            file.write(" ".join([",".join(ids[ends[i] : ends[i + 1]]), *words]) + "\n")
