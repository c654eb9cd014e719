"""Folders that hold a matrix file, a text file and a filter file per split, under the known names.

The Extreme Classification Repository's folders (Bhatia et al., 2016) hold ``{trn,tst,lbl}.json.gz``
(texts, one JSON object per line), ``{trn,tst}_X_Y.txt`` (labels as sparse pairs) and perhaps filter
files. Those that were derived from them (for PECOS, DEXML, ELIAS, Renée, X-BERT) differ in names
and kinds of file alone, and each part is read by its own kind: so :func:`read` takes each part from
the first of its names that is there. Where a matrix file is missing, ``target_ind`` and
``target_rel`` of the texts serve; where texts are missing, features do. A published split is read
as it stands: examples without labels and empty texts are kept, since results are compared row by
row; :func:`shoal.data.describe.describe` counts them. Formats: docs/reference/formats.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_folder, expect_numbered, fail
from shoal.data import reduce
from shoal.data.filters import read_filter, write_filter
from shoal.data.formats.registry import name_of, text_format
from shoal.data.lines import json_object, lines, shorten, writer
from shoal.data.matrix import Rows, read_matrix, write_matrix
from shoal.data.texts import LABELS, Examples, LabelData, Texts, numbered_labels

# names in the order of preference: the XC repository's own, then those of single projects
_TEXTS = ("{0}.json.gz", "{0}.json", "raw/{0}_X.txt", "{0}_X.txt", "X.{0}.txt")
TEXTS = {
    "trn": (*(x.format("trn") for x in _TEXTS), "train_raw_texts.txt", "train_texts.txt"),
    "tst": (*(x.format("tst") for x in _TEXTS), "test_raw_texts.txt", "test_texts.txt"),
    "lbl": (
        "lbl.json.gz",
        "lbl.json",
        "raw/Y.txt",
        "Y.txt",
        "raw/lbl_X.txt",
        "lbl_X.txt",
        "Z.txt",
        "Z.all.txt",  # PECOS's guide to xlinear
        "Z.raw.txt",
        "output-items.txt",
        "output-labels.txt",
        "label_map.txt",
        "label.raw.txt",
        "raw/Yf.txt",
        "Yf.txt",
    ),
}
FEATURES = {
    "trn": ("trn_X_Xf.txt", "X.trn.npz", "X.trn.npy"),
    "tst": ("tst_X_Xf.txt", "X.tst.npz", "X.tst.npy"),
    "lbl": ("lbl_X_Xf.txt",),
}
MATRICES = {"trn": ("trn_X_Y.txt", "Y.trn.npz"), "tst": ("tst_X_Y.txt", "Y.tst.npz")}


def read(folder: str | Path, encoding: str = "utf-8") -> LabelData:
    """Read a data set of the XC repository, or of a project that took its data from there.

    A label written twice for one example counts once (relevances, where there are any other than 1,
    are added). Relevances are finite and above 0.

    Args:
        folder: holds for each split texts or features and a label matrix, and for labels texts,
            features or nothing: labels are then called l0, l1, ….
        encoding: of the texts; "latin-1" for old files, which accepts any bytes.

    Returns:
        the data set, named after the folder.

    Raises:
        InputError: naming file and line, if a file is missing or damaged, an id is out of range, a
            number is not one, or files disagree in how many examples or labels there are.
    """
    folder = expect_folder(folder, "trn.json.gz, tst.json.gz and lbl.json.gz")
    labels = None
    if find(folder, TEXTS["lbl"] + FEATURES["lbl"]):
        labels, _ = _read_documents(folder, "lbl", encoding)
    n_labels = None if labels is None else len(labels)
    train = _read_examples(folder, "trn", n_labels, encoding)
    test = _read_examples(folder, "tst", train.labels.n_cols, encoding)
    if labels is None:
        given = train.labels.nnz + test.labels.nnz
        expect_numbered(str(folder), "labels", train.labels.n_cols, given, LABELS)
        labels = numbered_labels(train.labels.n_cols)
        if train.texts.features is None:
            said = "%s: no texts of labels (%s, …): they are called l0, l1, …, and found by example"
            logging.getLogger("shoal").warning(said, folder, ", ".join(TEXTS["lbl"][:7]))
    return LabelData(name_of(folder), train, test, labels)


@text_format(
    "xc",
    read,
    steps=(reduce.bare_examples, reduce.bare_labels),  # other texts beside features
    files=(*TEXTS["trn"][:5], TEXTS["lbl"][0], *MATRICES["trn"]),
    order=-1,  # X-BERT's folders have texts under AttentionXML's names
)
def write(data: LabelData, folder: Path) -> None:
    """Write the XC repository's own names; the same bytes for the same data.

    Texts are written with ASCII escapes, because readers in the wild take them for latin-1.
    """
    _write_documents(data.labels, folder, "lbl", None)
    for split, examples in (("trn", data.train), ("tst", data.test)):
        _write_documents(examples.texts, folder, split, examples.labels)
        write_matrix(examples.labels, folder / MATRICES[split][0])
        write_filter(examples.drop, folder, split)


def find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


# -- parts -------------------------------------------------------------------------------------


def _read_examples(folder: Path, split: str, n_labels: int | None, encoding: str) -> Examples:
    matrix = find(folder, MATRICES[split])
    wants_targets = matrix is None and n_labels is not None
    texts, rows = _read_documents(folder, split, encoding, wants_targets)
    if matrix is not None:
        labels = read_matrix(matrix)
    elif rows is not None and n_labels is not None:
        labels = rows.csr(n_labels)
    else:
        name, want = str(folder / MATRICES[split][0]), f"labels (or {MATRICES[split][1]})"
        fail(name, f"a file with {want}", "nothing there", "check the folder")
    n = labels.n_cols if n_labels is None else n_labels
    want = f"{len(texts)} examples (as there are texts) and {n} labels"
    good = labels.shape == (len(texts), n)
    name = f"{matrix}:1" if matrix and matrix.suffix == ".txt" else str(matrix)
    expect(good, name, want, labels.shape, "take all files from one release")
    return Examples(texts, labels, read_filter(folder, split, labels.shape))


def _read_documents(
    folder: Path, part: str, encoding: str, wants_targets: bool = False
) -> tuple[Texts, Rows | None]:
    """Texts of a part; and the labels that JSON lines may hold, where they are wanted."""
    path = find(folder, TEXTS[part] + FEATURES[part])
    if path is None:
        others = ", ".join(TEXTS[part][1:] + FEATURES[part])
        name, want = str(folder / TEXTS[part][0]), f"a file with texts (or {others})"
        fail(name, want, "nothing there", "check the folder")
    if path.name in FEATURES[part]:
        return Texts.of_features(read_matrix(path, features=True)), None
    if path.suffix == ".txt":
        return Texts.of([line for _, line in lines(path, encoding)]), None
    rows = Rows(path, first_line=1) if wants_targets else None
    return read_texts(path, encoding, rows), rows


def _write_documents(texts: Texts, folder: Path, part: str, targets: Csr | None) -> None:
    if texts.features is None:
        write_texts(texts, folder / TEXTS[part][0], targets)
    else:
        write_matrix(texts.features, folder / FEATURES[part][0])


# -- texts as JSON lines -----------------------------------------------------------------------


def stream(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[str, str, str]]:
    """Yield uid, title and content of each line of a text file; memory holds one.

    So a vocabulary can be learned from a file larger than memory:
    ``learn(f"{title} {content}" for _, title, content in stream(path))``.

    Yields:
        what one document is made of.

    Raises:
        InputError: naming file and line, if one is no JSON object with uid and title.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text('{"uid": "B0", "title": "red mug"}')
        ...     list(stream(Path(folder, "a.json")))
        [('B0', 'red mug', '')]
    """
    for _, _, fields in _records(Path(path), encoding):
        yield fields


def read_texts(path: Path, encoding: str = "utf-8", targets: Rows | None = None) -> Texts:
    """Read a text file, and its label ids into `targets` where that is given.

    Raises:
        InputError: naming file and line, if one is no JSON object with uid and title.
    """
    texts = Texts([], [], [])
    for name, record, (uid, title, content) in _records(path, encoding):
        texts.uids.append(uid)
        texts.titles.append(title)
        texts.contents.append(content)
        if targets is not None:
            _add_targets(targets, name, record)
    return texts


def _records(
    path: Path, encoding: str
) -> Iterator[tuple[str, dict[str, Any], tuple[str, str, str]]]:
    """The documents of a text file.

    Yields:
        file and line, the whole record, and its uid, title and content.
    """
    for number, line in lines(path, encoding):
        name = f"{path}:{number}"
        record = json_object(name, line)
        title: Any = record.get("title")
        content = record.get("content", "")
        good = "uid" in record and isinstance(title, str) and isinstance(content, str)
        if not good:
            fail(name, "uid, title and content, texts both", shorten(record), "correct the line")
        yield name, record, (str(record["uid"]), title, content)


def _add_targets(targets: Rows, name: str, record: dict[str, Any]) -> None:
    ids: Any = record.get("target_ind")
    values: Any = record.get("target_rel", [1.0] * len(ids) if isinstance(ids, list) else None)
    good = _all_are(ids, int) and _all_are(values, (int, float)) and len(ids) == len(values)
    want = "target_ind, whole numbers, and as many target_rel"
    expect(good, name, want, shorten(record), "correct the line")
    targets.append(ids, values)


def _all_are(values: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def write_texts(texts: Texts, path: Path, targets: Csr | None = None) -> None:
    """Write a text file, with label ids where `targets` are given.

    Raises:
        InputError: if the file cannot be written.
    """
    with writer(path) as file:
        for i in range(len(texts)):
            record: dict[str, Any] = {
                "uid": texts.uids[i],
                "title": texts.titles[i],
                "content": texts.contents[i],
            }
            if targets is not None:
                record |= _target_fields(targets, i)
            file.write(json.dumps(record) + "\n")


def _target_fields(targets: Csr, i: int) -> dict[str, Any]:
    row = slice(int(targets.indptr[i]), int(targets.indptr[i + 1]))
    ids = targets.indices[row].tolist()
    values = [1.0] * len(ids) if targets.values is None else targets.values[row].tolist()
    return {"target_ind": ids, "target_rel": values}
