r"""fastText's files: the labels of an example, each behind ``__label__``, and its text per line.

``__label__cats __label__red some text``; labels may also stand behind the text or in it. A folder
holds ``train.txt`` and ``test.txt``, or in place of the latter ``valid.txt``.
"""

from __future__ import annotations

import re
from pathlib import Path

from shoal.core.errors import fail
from shoal.data import reduce
from shoal.data.formats.registry import name_of, text_format
from shoal.data.formats.xc import find
from shoal.data.lines import lines, writer
from shoal.data.texts import Examples, LabelData, Texts, matrix_of, names_of

MARK = "__label__"
_MARKED = re.compile(rf"(?<![^ \t]){MARK}([^ \t]+)[ \t]*")


def read(path: str | Path, encoding: str = "utf-8") -> LabelData:
    r"""Read one file, or a folder of two.

    Args:
        path: the file or the folder.
        encoding: of the files.

    Returns:
        the data set, named after the path; labels are sorted by name.

    Raises:
        InputError: naming the folder, if a file is missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("__label__cup red mug __label__red\n")
        ...     data = read(Path(folder, "a.txt"))
        >>> data.labels.titles, data.train.texts.titles
        (['cup', 'red'], ['red mug '])
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        test = find(path, ("test.txt", "valid.txt"))
        if test is None:
            want = "train.txt, and test.txt or valid.txt"
            fail(str(path), want, "no file to test on", "name the one file itself")
        files = [path / "train.txt", test]
    sides = [_read_examples(file, encoding) for file in files]
    names = sorted({name for _, rows in sides for row in rows for name in row})
    parts = [Examples.of(texts, matrix_of(rows, names)) for texts, rows in sides]
    labels = Texts.of(names, names)
    if path.is_dir():
        return LabelData(name_of(path), parts[0], parts[1], labels)
    return LabelData.unsplit(name_of(path), parts[0], labels)


@text_format(
    "fasttext",
    read,
    steps=(
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.line_examples,
        reduce.drop_relevance,
        reduce.drop_filters,
        reduce.only_full,
        reduce.number_examples,
        reduce.name_labels(lambda text: "_".join(text.replace("\ufeff", "").split())),
    ),
    suffixes=(".txt",),
    files=("*train.txt",),
    begins=lambda line: line.startswith(MARK),
    order=-1,  # before text2text, since a tab may stand behind the labels
)
def write(data: LabelData, folder: Path) -> None:
    """Write ``train.txt`` and ``test.txt``; a label's spaces become ``_``."""
    for split, examples in (("train", data.train), ("test", data.test)):
        rows = names_of(examples.labels, data.labels.titles)
        with writer(folder / f"{split}.txt") as file:
            for text, row in zip(examples.texts.titles, rows, strict=True):
                file.write(" ".join([*(MARK + name for name in row), text]) + "\n")


def _read_examples(path: Path, encoding: str) -> tuple[Texts, list[list[str]]]:
    """Texts, and the names of the labels of each."""
    titles, rows = [], []
    for _, line in lines(path, encoding):
        titles.append(_MARKED.sub("", line))
        rows.append(_MARKED.findall(line))
    return Texts.of(titles), rows
