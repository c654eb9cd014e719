"""AttentionXML's and LightXML's folders: one text per line, and beside it its labels by name.

``{train,test}_labels.txt`` holds names with spaces between them, ``{train,test}_raw_texts.txt`` or,
where that is missing, ``{train,test}_texts.txt`` the texts. A label is its name, in which ``_`` may
stand for a space; labels that no example has do not exist. Where all names are numbers and the
folder has a file of label texts, as X-Transformer's have, they are its lines, from 0.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, expect_folder
from shoal.data import reduce
from shoal.data.formats.registry import name_of, text_format
from shoal.data.formats.xc import TEXTS, find
from shoal.data.lines import lines, write_lines, writer
from shoal.data.texts import Examples, LabelData, Texts, matrix_of, names_of


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
        texts.append(Texts.of([line for _, line in lines(path, encoding)]))
        label_file = folder / f"{split}_labels.txt"
        rows.append([line.split() for _, line in lines(label_file, encoding)])
        n, found = len(texts[-1]), len(rows[-1])
        want = f"{n} lines, as {path.name} has"
        expect(n == found, str(label_file), want, found, "take both from one release")
    names = sorted({name for split in rows for row in split for name in row})
    label_file = find(folder, TEXTS["lbl"])
    if label_file is not None and all(name.isdecimal() for name in names):
        # numbers of lines of a file of texts, as in X-Transformer's data
        titles = [line for _, line in lines(label_file, encoding)]
        beyond = [name for name in names if int(name) >= len(titles)]
        want = f"texts of all labels, as {beyond[0]} of train_labels.txt" if beyond else ""
        remedy = "take both from one release"
        expect(not beyond, str(label_file), want, f"{len(titles)} lines", remedy)
        names.sort(key=int)
        texts_of_labels = Texts.of([titles[int(name)] for name in names], names)
    else:
        texts_of_labels = Texts.of(names, names)
    train, test = (Examples.of(texts[i], matrix_of(rows[i], names)) for i in (0, 1))
    return LabelData(name_of(folder), train, test, texts_of_labels)


@text_format(
    "attentionxml",
    read,
    steps=(
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.line_examples,
        reduce.number_examples,
        reduce.drop_relevance,
        reduce.drop_filters,
        reduce.name_labels(lambda text: "_".join(text.replace("\ufeff", "").split())),
    ),
    files=("train_labels.txt", "train_raw_texts.txt", "train_texts.txt"),
)
def write(data: LabelData, folder: Path) -> None:
    """Write ``{train,test}_texts.txt`` and ``{train,test}_labels.txt``."""
    for split, examples in (("train", data.train), ("test", data.test)):
        write_lines(folder / f"{split}_texts.txt", examples.texts.titles)
        with writer(folder / f"{split}_labels.txt") as file:
            rows = names_of(examples.labels, data.labels.titles)
            file.writelines(" ".join(row) + "\n" for row in rows)
