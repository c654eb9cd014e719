"""PECOS's text2text files: label numbers, a tab and the text of an example per line.

``2,6<TAB>red mug``, or with relevances ``2::2.0,6::0.5<TAB>red mug``; label numbers count from 0
and are lines of a file of label texts. A folder holds the training and test examples and the label
texts; the labels of one file alone, those that occur, are called l0, l1, ….
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.csr import Csr
from shoal.core.errors import fail
from shoal.data import reduce
from shoal.data.filters import read_filter, write_filter
from shoal.data.formats.registry import name_of, text_format
from shoal.data.formats.xc import TEXTS, find
from shoal.data.lines import lines, shorten, write_lines, writer
from shoal.data.matrix import COLUMNS, Rows, pair_rows
from shoal.data.texts import Examples, LabelData, Texts

FILES = {"trn": ("training-data.txt", "train.txt"), "tst": ("test-data.txt", "test.txt")}
LABELS = "output-labels.txt"


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
        (['red mug', 'tea'], tensor([1.0000, 1.0000, 0.5000]), ['l0', 'l1', 'l2'])
    """
    path = Path(path)
    if path.is_file():
        texts, rows = _read_rows(path, encoding)
        labels = rows.csr(COLUMNS)  # a number may be of any size: only those that occur are kept
        used, column = labels.indices.unique(return_inverse=True)
        labels = Csr(labels.indptr, column, len(used), labels.values)
        names = Texts.of([f"l{i}" for i in used.tolist()])
        return LabelData.unsplit(name_of(path), Examples.of(texts, labels), names)
    label_file = find(path, TEXTS["lbl"]) or path / LABELS
    labels = Texts.of([line for _, line in lines(label_file, encoding)])
    parts: list[Examples] = []
    for split, names in FILES.items():
        texts, rows = _read_rows(find(path, names) or path / names[0], encoding)
        truth = rows.csr(len(labels))
        parts.append(Examples(texts, truth, read_filter(path, split, truth.shape)))
    return LabelData(name_of(path), parts[0], parts[1], labels)


@text_format(
    "text2text",
    read,
    steps=(
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.line_examples,
        reduce.line_labels,
        reduce.number_examples,
        reduce.number_labels,
    ),
    suffixes=(".txt",),
    files=(FILES["trn"][0], LABELS, "*train.txt"),  # PECOS's examples have train.txt, as bow has
    begins=lambda line: "\t" in line,
)
def write(data: LabelData, folder: Path) -> None:
    """Write ``training-data.txt``, ``test-data.txt``, ``output-labels.txt`` and filter files."""
    write_lines(folder / LABELS, data.labels.titles)
    for split, examples in (("trn", data.train), ("tst", data.test)):
        weighed = examples.labels.values is not None
        rows = zip(pair_rows(examples.labels, "::"), examples.texts.titles, strict=True)
        with writer(folder / FILES[split][0]) as file:
            for words, text in rows:
                ids = words if weighed else [word.partition("::")[0] for word in words]
                file.write(f"{','.join(ids)}\t{text}\n")
        write_filter(examples.drop, folder, split)


def _read_rows(path: Path, encoding: str) -> tuple[Texts, Rows]:
    titles, rows = [], Rows(path, 1)
    for number, line in lines(path, encoding):
        cell, tab, text = line.partition("\t")
        if "\t" in text:
            remedy = "put a space for each tab of the text; a table with a header is a .tsv"
            fail(f"{path}:{number}", "labels, a tab and a text", shorten(line), remedy)
        try:
            if not tab:
                raise ValueError
            cut = [word.partition("::") for word in cell.split(",")] if cell.strip() else []
            rows.append([int(i) for i, _, _ in cut], [float(v or 1) for _, _, v in cut])
        except ValueError:
            want = "'label,label<TAB>text' or 'label::relevance,…<TAB>text'"
            remedy = "correct the line; a table with a header is a .tsv"
            fail(f"{path}:{number}", want, shorten(line), remedy)
        titles.append(text)
    return Texts.of(titles), rows
