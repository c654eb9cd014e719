"""Annif's short-text files: a text, a tab and the URIs of its subjects per line, no header.

``red mug<TAB><http://a/1> <http://a/2>``. A folder holds ``train.tsv`` and ``test.tsv`` of such
lines and ``subjects.tsv``, Annif's subject vocabulary, one line per label:
``<http://a/1><TAB>cups``. The labels of one file alone are spelled by their URIs.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, expect_folder, fail
from shoal.data import reduce
from shoal.data.formats.registry import name_of, text_format
from shoal.data.lines import lines, shorten, writer
from shoal.data.texts import Examples, LabelData, Texts, matrix_of, names_of


def read(path: str | Path, encoding: str = "utf-8") -> LabelData:
    r"""Read one file, or a folder of three.

    Args:
        path: the file or the folder.
        encoding: of the files.

    Returns:
        the data set, named after the path; uids of labels are their URIs.

    Raises:
        InputError: naming file and line, if a file is missing, a line has no tab, or a subject is
            not in the vocabulary.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.tsv").write_text("red mug\t<x:1> <x:2>\ntea\t<x:2>\n")
        ...     data = read(Path(folder, "a.tsv"))
        >>> data.labels.uids, data.train.texts.titles
        (['x:1', 'x:2'], ['red mug', 'tea'])
    """
    path = Path(path)
    if path.is_file():
        texts, rows = _read_examples(path, encoding)
        names = sorted({uri for row in rows for uri in row})
        examples = Examples.of(texts, matrix_of(rows, names))
        return LabelData.unsplit(name_of(path), examples, Texts.of(names, names))
    folder = expect_folder(path, "train.tsv, test.tsv and subjects.tsv")
    subjects = _read_subjects(folder / "subjects.tsv", encoding)
    known = set(subjects.uids)
    parts: list[Examples] = []
    for split in ("train", "test"):
        texts, rows = _read_examples(folder / f"{split}.tsv", encoding, known)
        parts.append(Examples.of(texts, matrix_of(rows, subjects.uids)))
    return LabelData(name_of(folder), parts[0], parts[1], subjects)


def begins(line: str) -> bool:
    """Whether a line is a text and URIs, or a URI and a label, and no line of column names."""
    first, tab, rest = line.partition("\t")
    words = [first] if first.startswith("<") else rest.split()
    return bool(tab and words) and all(word[0] == "<" for word in words)


@text_format(
    "annif",
    read,
    steps=(
        reduce.unweigh_examples,
        reduce.unweigh_labels,
        reduce.line_examples,
        reduce.line_labels,
        reduce.number_examples,
        reduce.uri_labels,
        reduce.drop_relevance,
        reduce.drop_filters,
    ),
    suffixes=(".tsv",),
    files=("subjects.tsv",),
    begins=begins,
)
def write(data: LabelData, folder: Path) -> None:
    """Write ``train.tsv``, ``test.tsv`` and ``subjects.tsv``."""
    with writer(folder / "subjects.tsv") as file:
        pairs = zip(data.labels.uids, data.labels.titles, strict=True)
        file.writelines(f"<{uri}>\t{title}\n" for uri, title in pairs)
    for split, examples in (("train", data.train), ("test", data.test)):
        rows = names_of(examples.labels, data.labels.uids)
        with writer(folder / f"{split}.tsv") as file:
            for text, row in zip(examples.texts.titles, rows, strict=True):
                file.write(f"{text}\t{' '.join(f'<{uri}>' for uri in row)}\n")


def _read_examples(
    path: Path, encoding: str, known: set[str] | None = None
) -> tuple[Texts, list[list[str]]]:
    """Texts and the URIs of each; all of them `known` where that is given."""
    titles, rows = [], []
    for number, line in lines(path, encoding):
        text, tab, cell = line.partition("\t")
        expect(bool(tab), f"{path}:{number}", "'text<TAB><URI> <URI>'", shorten(line), "add a tab")
        odd = [word for word in cell.split() if word[0] + word[-1] != "<>"]
        if odd:
            want = "URIs in angle brackets behind the text"
            fail(f"{path}:{number}", want, shorten(odd[0]), "write <URI> <URI>, or name columns")
        row = [_uri(word) for word in cell.split()]
        unknown = [] if known is None else [uri for uri in row if uri not in known]
        if unknown:
            want = "subjects of subjects.tsv"
            fail(f"{path}:{number}", want, shorten(unknown[0]), "add it or correct the line")
        titles.append(text)
        rows.append(row)
    return Texts.of(titles), rows


def _read_subjects(path: Path, encoding: str) -> Texts:
    uris, titles = [], []
    for number, line in lines(path, encoding):
        word, tab, title = line.partition("\t")
        expect(bool(tab), f"{path}:{number}", "'<URI><TAB>label'", shorten(line), "add a tab")
        uris.append(_uri(word.strip()))
        titles.append(title)
    twice = len(uris) - len(set(uris))
    expect(twice == 0, str(path), "each URI once", f"{twice} twice", "remove the doubles")
    return Texts.of(titles, uris)


def _uri(word: str) -> str:
    return word.removeprefix("<").removesuffix(">")
