"""Annif's short-text files: a text, a tab and the URIs of its subjects, a line a point, no header.

``red mug<TAB><http://a/1> <http://a/2>``. A folder holds ``train.tsv`` and ``test.tsv`` of such
lines and ``subjects.tsv``, Annif's subject vocabulary, a line a label: ``<http://a/1><TAB>cups``.
One file alone is split at random, and its labels are spelled by their URIs.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, expect_folder, fail
from shoal.data import reduce
from shoal.data.lines import lines, shorten, writer
from shoal.data.names import names_of, numbered
from shoal.data.texts import Examples, LabelData, Texts, no_pairs, split_at_random

STEPS = (
    reduce.unweigh_points,
    reduce.unweigh_labels,
    reduce.line_points,
    reduce.line_labels,
    reduce.number_points,
    reduce.uri_labels,
    reduce.drop_relevance,
    reduce.drop_filters,
)


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
        (['x:1', 'x:2'], ['tea'])
    """
    path = Path(path)
    if path.is_file():
        texts, rows = _read_points(path, encoding)
        names = sorted({uri for row in rows for uri in row})
        labels = numbered(rows, {uri: i for i, uri in enumerate(names)})
        points = Examples(texts, labels, no_pairs(*labels.shape))
        return split_at_random(path.stem, points, reduce.of_titles(names, names))
    folder = expect_folder(path, "train.tsv, test.tsv and subjects.tsv")
    subjects = _read_subjects(folder / "subjects.tsv", encoding)
    ids = {uri: i for i, uri in enumerate(subjects.uids)}
    parts: list[Examples] = []
    for split in ("train", "test"):
        texts, rows = _read_points(folder / f"{split}.tsv", encoding, ids)
        labels = numbered(rows, ids)
        parts.append(Examples(texts, labels, no_pairs(*labels.shape)))
    return LabelData(folder.resolve().name, parts[0], parts[1], subjects)


def write(data: LabelData, folder: str | Path) -> list[str]:
    """Write ``train.tsv``, ``test.tsv`` and ``subjects.tsv``.

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
    with writer(folder / "subjects.tsv") as file:
        pairs = zip(data.labels.uids, data.labels.titles, strict=True)
        file.writelines(f"<{uri}>\t{title}\n" for uri, title in pairs)
    uris = reduce.of_titles(data.labels.uids)
    for split, points in (("train", data.train), ("test", data.test)):
        with writer(folder / f"{split}.tsv") as file:
            rows = zip(points.texts.titles, names_of(points.labels, uris), strict=True)
            file.writelines(f"{text}\t{' '.join(f'<{u}>' for u in row)}\n" for text, row in rows)
    return lost


def _read_points(
    path: Path, encoding: str, known: dict[str, int] | None = None
) -> tuple[Texts, list[list[str]]]:
    """Texts and the URIs of each; all of them `known` where that is given."""
    titles, rows = [], []
    for number, line in lines(path, encoding):
        text, tab, cell = line.partition("\t")
        expect(bool(tab), f"{path}:{number}", "'text<TAB><URI> <URI>'", shorten(line), "add a tab")
        row = [_uri(word) for word in cell.split()]
        unknown = [] if known is None else [uri for uri in row if uri not in known]
        if unknown:
            want = "subjects of subjects.tsv"
            fail(f"{path}:{number}", want, shorten(unknown[0]), "add it or correct the line")
        titles.append(text)
        rows.append(row)
    return reduce.of_titles(titles), rows


def _read_subjects(path: Path, encoding: str) -> Texts:
    uris, titles = [], []
    for number, line in lines(path, encoding):
        word, tab, title = line.partition("\t")
        expect(bool(tab), f"{path}:{number}", "'<URI><TAB>label'", shorten(line), "add a tab")
        uris.append(_uri(word.strip()))
        titles.append(title)
    twice = len(uris) - len(set(uris))
    expect(twice == 0, str(path), "each URI once", f"{twice} twice", "remove the doubles")
    return reduce.of_titles(titles, uris)


def _uri(word: str) -> str:
    return word.removeprefix("<").removesuffix(">")
