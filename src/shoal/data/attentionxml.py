"""AttentionXML's and LightXML's folders: a text a line, and beside it its labels by name.

``{train,test}_labels.txt`` holds names with spaces between them, ``{train,test}_raw_texts.txt`` or,
where that is missing, ``{train,test}_texts.txt`` the texts. A label is its name, in which ``_`` may
stand for a space; labels that no point has do not exist.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, expect_folder
from shoal.data import reduce
from shoal.data.lines import lines, writer
from shoal.data.names import named_matrix, names_of
from shoal.data.npz import write_lines
from shoal.data.texts import LabelData
from shoal.data.xc import find

STEPS = (
    reduce.unweigh_points,
    reduce.unweigh_labels,
    reduce.line_points,
    reduce.number_points,
    reduce.drop_relevance,
    reduce.drop_filters,
    reduce.name_labels(lambda text: "_".join(text.replace("\ufeff", "").split())),
)


def read(folder: str | Path, encoding: str = "utf-8") -> LabelData:
    """Read a folder of texts and label names.

    Args:
        folder: as the module says.
        encoding: of the files.

    Returns:
        the data set, named after the folder; its labels sorted by name.

    Raises:
        InputError: naming the file, if one is missing or damaged, or there are not as many lines
            of labels as of texts.
    """
    folder = expect_folder(folder, "train_texts.txt and train_labels.txt")
    texts, rows = [], []
    for split in ("train", "test"):
        default = folder / f"{split}_texts.txt"
        path = find(folder, (f"{split}_raw_texts.txt", default.name)) or default
        texts.append(reduce.of_titles([line for _, line in lines(path, encoding)]))
        label_file = folder / f"{split}_labels.txt"
        rows.append([line.split() for _, line in lines(label_file, encoding)])
        n, found = len(texts[-1]), len(rows[-1])
        want = f"{n} lines, as {path.name} has"
        expect(n == found, str(label_file), want, found, "take both from one release")
    train, test, labels = named_matrix(texts, rows)
    return LabelData(folder.resolve().name, train, test, labels)


def write(data: LabelData, folder: str | Path) -> list[str]:
    """Write ``{train,test}_texts.txt`` and ``{train,test}_labels.txt``.

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
    for split, points in (("train", data.train), ("test", data.test)):
        write_lines(points.texts, folder / f"{split}_texts.txt")
        with writer(folder / f"{split}_labels.txt") as file:
            file.writelines(" ".join(row) + "\n" for row in names_of(points.labels, data.labels))
    return lost
