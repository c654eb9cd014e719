"""The XC repository's old format: labels and weighted features of an example per line, no text.

A header ``points features labels``, then ``label,label feature:weight …``, ids from 0; the line of
an example without labels begins with a space. Such examples have features instead of texts, and
labels have numbers alone, ``l3``. A folder holds one file that ends in ``train.txt`` and one that
ends in ``test.txt``; one file alone is not split.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, expect_numbered, fail
from shoal.data import reduce
from shoal.data.filters import read_filter, write_filter
from shoal.data.formats.registry import name_of, text_format
from shoal.data.lines import lines, shorten, writer
from shoal.data.matrix import Rows, pair_rows, pairs, read_header
from shoal.data.texts import LABELS, Examples, LabelData, Texts, numbered_labels


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
        >>> data.train.texts.features.indices.tolist(), data.labels.titles
        ([1, 4, 3], ['l0', 'l1', 'l2'])
    """
    path = Path(path)
    if path.is_file():
        examples = _read_examples(path, encoding)
        return LabelData.unsplit(name_of(path), examples, numbered_labels(examples.labels.n_cols))
    train, test = (_read_examples(_find(path, end), encoding) for end in ("train.txt", "test.txt"))
    for what, n, other in (
        ("labels", train.labels.n_cols, test.labels.n_cols),
        ("features", _width(train), _width(test)),
    ):
        expect(n == other, str(path), f"as many {what} in both files, {n}", other, "correct one")
    train, test = (
        Examples(x.texts, x.labels, read_filter(path, split, x.labels.shape))
        for split, x in (("trn", train), ("tst", test))
    )
    return LabelData(name_of(path), train, test, numbered_labels(train.labels.n_cols))


@text_format(
    "bow",
    read,
    steps=(
        reduce.bare_examples,
        reduce.unweigh_labels,
        reduce.count_labels,
        reduce.drop_relevance,
    ),
    suffixes=(".txt",),
    files=("*train.txt",),
    order=1,  # other .txt files are recognized by their first lines
)
def write(data: LabelData, folder: Path) -> None:
    """Write ``train.txt``, ``test.txt`` and filter files; examples must have features."""
    for split, end, examples in (("trn", "train", data.train), ("tst", "test", data.test)):
        features = examples.texts.features
        if features is None:
            fail(f"{end} examples", "features", "texts", "choose a format of texts, as xc")
        with writer(folder / f"{end}.txt") as file:
            file.write(f"{len(examples)} {features.n_cols} {examples.labels.n_cols}\n")
            rows = zip(pair_rows(examples.labels), pair_rows(features), strict=True)
            for words, weights in rows:
                ids = ",".join(word.partition(":")[0] for word in words)
                file.write(" ".join([ids, *weights]) + "\n")
        write_filter(examples.drop, folder, split)


def _find(folder: Path, end: str) -> Path:
    """The one file whose name ends in `end`, filter files apart."""
    found = [path for path in sorted(folder.glob(f"*{end}")) if "filter" not in path.name]
    want = f"one file whose name ends in {end}"
    expect(len(found) == 1, str(folder), want, [p.name for p in found] or "none", "rename it")
    return found[0]


def _read_examples(path: Path, encoding: str) -> Examples:
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
    expect_numbered(f"{path}:1", "labels", n_labels, truth.nnz, LABELS)
    return Examples.of(Texts.of_features(features.csr(n_features, n)), truth)


def _read_labels(name: str, text: str) -> tuple[list[int], list[float]]:
    try:
        ids = [int(word) for word in text.split(",")] if text else []
    except ValueError:
        fail(name, "label ids with commas between them", shorten(text), "correct the line")
    return ids, [1.0] * len(ids)


def _width(examples: Examples) -> int:
    return examples.texts.features.n_cols if examples.texts.features is not None else 0
