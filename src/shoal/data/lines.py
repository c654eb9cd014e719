"""Lines of a text file, plain or gzipped, one at a time, with the number that errors name.

Every text reader of shoal's goes through :func:`lines`, so that a missing, truncated or foreign
file ends in one message that says which file and which line; every writer through :func:`writer`.
A byte order mark says how a file is encoded, whatever encoding was asked for.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import expect, expect_file, fail
from shoal.core.files import file_aside
from shoal.data.unread import opened

# encodings whose line end is more than one byte, by the mark that a file begins with; that of
# UTF-32 begins as UTF-16's does
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# what other files begin with, and what to do with them
_NO_TEXT = {
    b"\x1f\x8b": ("a gzip file", "name it {}.gz"),
    b"PK\x03\x04": ("a zip file, as those of Excel are", "unpack it, or save it as CSV"),
    b"PAR1": ("a Parquet file", "name it {}.parquet"),
}


def lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    r"""Yield (number, text) for every line, numbered from 1, without its line end.

    A byte order mark before the first line is dropped; one of UTF-16 or UTF-32 says how to read the
    file. A name that ends in ``.gz`` is decompressed as it is read; memory holds one line.

    Args:
        path: the file.
        encoding: how its bytes are text; "latin-1" accepts any bytes.

    Yields:
        the line's number and its text.

    Raises:
        InputError: if the file is missing, truncated, not gzip, or a line is not in `encoding`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_bytes(b"red\r\nblue\n")
        ...     list(lines(Path(folder, "a.txt")))
        [(1, 'red'), (2, 'blue')]
    """
    path = expect_file(path, "lines of text")
    opened(path)
    number, raw = 0, b""
    try:
        with _open(path) as file:
            wide = _wide(path, file.peek(4)[:4], encoding)
            if wide is not None:
                with io.TextIOWrapper(file, wide, newline="\n") as texts:
                    for number, text in enumerate(texts, 1):
                        yield number, text.removeprefix("\ufeff").rstrip("\r\n")
                return
            for number, raw in enumerate(file, 1):
                text = raw.decode(encoding).rstrip("\r\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        bad = f"byte {error.object[error.start]:#04x} at position {error.start + 1}"
        guess = _guess(raw, encoding)
        remedy = f'pass the encoding that it was saved in, such as encoding="{guess}" '
        fail(f"{path}:{number}", f"{encoding} text", bad, f"{remedy}(--encoding {guess})")
    except (EOFError, OSError, zlib.error) as error:
        got = f"{error} (after line {number})"
        fail(str(path), "a whole, readable file", got, "copy or download it again")


def _wide(path: Path, head: bytes, encoding: str) -> str | None:
    """The encoding of a file whose characters have more than one byte each; None for others.

    Raises:
        InputError: if the file is in one of them and does not say so, or `encoding` is none.
    """
    try:
        name = codecs.lookup(encoding).name
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        fail("encoding", "a text encoding of Python's", error, 'use "utf-8" or "latin-1"')
    for mark, (kind, remedy) in _NO_TEXT.items():
        expect(not head.startswith(mark), str(path), "text", kind, remedy.format(path.name))
    marked = next((wide for mark, wide in _MARKS.items() if head.startswith(mark)), None)
    if marked is not None or name.startswith(("utf-16", "utf-32")):
        return marked or name
    zeros = [i for i, byte in enumerate(head) if byte == 0]
    if zeros in ([1, 3], [0, 2]):
        guess = "utf-16-le" if zeros == [1, 3] else "utf-16-be"
        remedy = f'pass encoding="{guess}" (--encoding {guess})'
        fail(f"{path}:1", f"{encoding} text", "a zero in every other byte", remedy)
    return None


def _guess(line: bytes, encoding: str) -> str:
    """An encoding that a line can be in: Excel's, else one that takes any bytes."""
    try:
        line.decode("windows-1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "latin-1" if codecs.lookup(encoding).name == "cp1252" else "windows-1252"


def _open(path: Path) -> io.BufferedReader:
    if path.suffix != ".gz":
        return path.open("rb")
    # A GzipFile cuts its lines in Python, a buffered reader around it in C: twice as fast.
    return io.BufferedReader(gzip.GzipFile(path), 1 << 18)  # pyright: ignore[reportArgumentType]


def json_object(name: str, line: str) -> dict[str, Any]:
    r"""The JSON object that a line holds.

    Args:
        name: file and line, for the message.
        line: the text.

    Raises:
        InputError: if it is no object, or escapes half of a character (a lone surrogate), which no
            tokenizer and no UTF-8 file takes.

    Example:
        >>> json_object("a.jsonl:1", '{"text": "t\\u00e9"}')
        {'text': 'té'}
    """
    try:
        record = json.loads(line, object_pairs_hook=_once)
        if "\\ud" in line.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        fail(name, "a JSON object", f"{error} in {shorten(line)}", "correct the line")
    expect(isinstance(record, dict), name, "a JSON object", shorten(line), "write one a line")
    return record


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two that are alike, JSON says that the last one wins.

    Raises:
        ValueError: if two are alike.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


@contextmanager
def writer(path: Path) -> Iterator[io.TextIOBase]:
    """Open a UTF-8 file to write lines to, gzipped where its name ends in ``.gz``.

    Its folder is made if need be. A gzip file carries neither name nor time, so that the same text
    makes the same bytes.

    Yields:
        where to write the text.

    Raises:
        InputError: as :func:`saving`.
    """
    with saving(path) as raw:
        if path.suffix != ".gz":
            with io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as file:
                yield file
            return
        with (
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file,  # pyright: ignore[reportArgumentType]
        ):
            yield file


@contextmanager
def saving(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file to write bytes to, all of them or none (:func:`shoal.core.files.file_aside`).

    Yields:
        where to write the bytes.

    Raises:
        InputError: if the file cannot be written, or a text holds half of a character.
    """
    try:
        with file_aside(path) as new, new.open("wb") as raw:
            yield raw
    except OSError as error:
        reason = error.strerror or error
        fail(str(path), "a place that can be written", reason, "name another or free space")
    except UnicodeEncodeError as error:
        fail(str(path), "texts of whole characters", error, "mend the text")


def write_lines(path: Path, texts: Iterable[str]) -> None:
    """Write a text file of one text per line.

    Raises:
        InputError: if it cannot be written.
    """
    with writer(path) as file:
        file.writelines(f"{text}\n" for text in texts)


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Write all pieces to a file, or leave what was there.

    Raises:
        InputError: if it cannot be written to.
    """
    with writer(path) as file:
        file.writelines(pieces)


def shorten(text: object, width: int = 60) -> str:
    """Quote `text` for a message, cut after `width` characters.

    Example:
        >>> shorten("a" * 9, width=4)
        "'aaaa…'"
    """
    whole = text if isinstance(text, str) else str(text)
    return repr(whole if len(whole) <= width else whole[:width] + "…")


def suffix_of(path: Path) -> str:
    """The suffix that names a file's format, in lower case: ``.csv`` of ``a.csv.gz``, too.

    Example:
        >>> suffix_of(Path("a.csv.gz")), suffix_of(Path("a.TXT")), suffix_of(Path("a.gz"))
        ('.csv', '.txt', '')
    """
    path = path.with_suffix("") if path.suffix == ".gz" else path
    return path.suffix.lower()


def as_tensor(numbers: array[int] | array[float]) -> Tensor:
    """An array that a reader filled ("q" or "d"), as a tensor in the same memory.

    Example:
        >>> as_tensor(array("q", [3, 1]))
        tensor([3, 1])
    """
    dtype = {"q": torch.int64, "d": torch.float64}[numbers.typecode]
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.zeros(0, dtype=dtype)
