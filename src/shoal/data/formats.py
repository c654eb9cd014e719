"""Which format a source is in, and how each is read and written: what ``load`` and ``convert`` use.

A folder's format is told by the files in it, a file's by its suffix and, where two formats share
one, by its first line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from shoal.core.errors import InputError, expect, fail
from shoal.data import annif, attentionxml, beir, bow, npz, table, text2text, xc
from shoal.data.cells import TABLES
from shoal.data.lines import lines
from shoal.data.texts import LabelData

Reader = Callable[[Path, str], LabelData]
Writer = Callable[[LabelData, Path], list[str]]


@dataclass(frozen=True)
class Format:
    """A format that can be written.

    Attributes:
        read: from a path and the encoding of its texts.
        write: into a path; what the format could not hold comes back.
        suffix: of the file; none for a folder.
    """

    read: Reader
    write: Writer
    suffix: str = ""


def _read_table(path: Path, encoding: str) -> LabelData:
    return table.read(path, encoding=encoding)


FORMATS = {
    "xc": Format(xc.read, xc.write),
    "npz": Format(xc.read, npz.write),
    "pecos": Format(xc.read, npz.write_pecos),
    "text2text": Format(text2text.read, text2text.write),
    "beir": Format(beir.read, beir.write),
    "attentionxml": Format(attentionxml.read, attentionxml.write),
    "annif": Format(annif.read, annif.write),
    "bow": Format(bow.read, bow.write),
    **{suffix[1:]: Format(_read_table, table.write, suffix) for suffix in TABLES},
}

# the first of these whose files are there, any of them, reads a folder
_FOLDERS: tuple[tuple[str, tuple[str, ...], Reader], ...] = (
    ("XC, npz, PECOS", xc.TEXTS["trn"][:5] + xc.TEXTS["lbl"][:1] + xc.MATRICES["trn"], xc.read),
    ("BEIR", ("corpus.jsonl", "queries.jsonl"), beir.read),
    ("AttentionXML", ("train_labels.txt", "train_raw_texts.txt", "train_texts.txt"),
     attentionxml.read),
    ("Annif", ("subjects.tsv",), annif.read),
    ("text2text", (text2text.FILES["trn"][0], text2text.LABELS), text2text.read),
    ("bag of words", ("*train.txt",), bow.read),
)  # fmt: skip


def load(path: Path, encoding: str) -> LabelData:
    """Read a folder or a file in the format that it is found to be in.

    Raises:
        InputError: if it is in none that is known, or damaged.
    """
    if path.is_dir():
        return _folder_reader(path)(path, encoding)
    if path.is_file():
        return _file_reader(path, encoding)(path, encoding)
    _refuse(path, "no such file or folder")


def convert(source: str, out: Path, to: str, encoding: str = "utf-8") -> dict[str, Any]:
    r"""Write a data set in another format; what that cannot hold is said on standard error.

    Everything is written to the side and then renamed: `out` is there whole or not at all.

    Args:
        source: what :func:`shoal.data.load` takes.
        out: a file or folder that is not there yet.
        to: a name of `FORMATS`.
        encoding: of the source's texts.

    Returns:
        what was written, and what was lost.

    Raises:
        InputError: if the source cannot be read, the format cannot hold it at all, `out` is taken
            or its suffix is another format's.

    Example:
        >>> with TemporaryDirectory() as folder:
        ...     mugs, out = Path(folder, "mugs.csv"), Path(folder, "mugs")
        ...     _ = mugs.write_text("text,labels\nred mug,cup\ntea,drink\n")
        ...     done = convert(str(mugs), out, "beir")
        ...     sorted(path.name for path in out.iterdir()), done["labels"], done["lost"]
        (['corpus.jsonl', 'qrels', 'queries.jsonl'], 2, [])
    """
    from shoal.data import load as load_source

    form = FORMATS[to]
    good = out.suffix == form.suffix if form.suffix else out.suffix not in TABLES
    want = f"a name that ends in {form.suffix}" if form.suffix else "the name of a folder"
    expect(good, "out", want, out, "rename it or change --to")
    expect(not out.exists(), str(out), "nothing there yet", "a file or folder", "remove it first")
    data = load_source(source, encoding)
    lost = _write_whole(form, data, out)
    for what in lost:
        print(f"shoal: {to} cannot hold {what}", file=sys.stderr)
    counts = {"train": len(data.train), "test": len(data.test), "labels": len(data.labels)}
    return {"source": source, "out": str(out), "format": to, **counts, "lost": lost}


def _write_whole(form: Format, data: LabelData, out: Path) -> list[str]:
    side = ""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as side:
            lost = form.write(data, Path(side, out.name))
            Path(side, out.name).rename(out)
    except InputError as error:
        raise InputError(str(error).replace(str(Path(side, out.name)), str(out))) from None
    except OSError as error:
        fail(str(out), "a place that can be written", error, "name another or free space")
    return lost


def _folder_reader(folder: Path) -> Reader:
    for name, files, read in _FOLDERS:
        if any(next(folder.glob(file), None) for file in files):
            return _text2text_or_bow(folder) if name == "bag of words" else read
    found = sorted(path.name for path in folder.iterdir())[:8]
    _refuse(folder, f"a folder of {', '.join(found) or 'no files'}")


def _text2text_or_bow(folder: Path) -> Reader:
    """PECOS's own examples have train.txt as the old XC folders do: the first line tells."""
    return _txt_reader(bow.find(folder, "train.txt"), "latin-1")  # any bytes: a tab is a tab


def _file_reader(path: Path, encoding: str) -> Reader:
    if path.suffix == ".txt":
        return _txt_reader(path, encoding)
    if path.suffix == ".tsv" or path.name.endswith(".tsv.gz"):
        return annif.read if _is_annif(path, encoding) else _read_table
    if path.suffix in TABLES:
        return _read_table
    _refuse(path, "another kind of file")


def _txt_reader(path: Path, encoding: str) -> Reader:
    return text2text.read if "\t" in _first_line(path, encoding) else bow.read


def _is_annif(path: Path, encoding: str) -> bool:
    """Whether a table begins with a text and URIs in angle brackets, not with column names."""
    _, tab, uris = _first_line(path, encoding).partition("\t")
    return bool(tab and uris.split()) and all(word[0] == "<" for word in uris.split())


def _first_line(path: Path, encoding: str) -> str:
    _, line = next(lines(path, encoding), (1, ""))
    return line


def _refuse(source: Path, got: str) -> NoReturn:
    folders = "; ".join(f"{', '.join(files)} ({name})" for name, files, _ in _FOLDERS)
    want = f'"wordnet", a folder with {folders}; or a file ending in {", ".join(TABLES)}'
    fail(str(source), f"{want} or .txt", got, "name one of these")
