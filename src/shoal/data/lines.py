"""Lines of a text file, plain or gzipped, one at a time, with the number that errors name.

Every text reader of shoal's goes through :func:`lines`, so that a missing, truncated or foreign
file ends in one message that says which file and which line.
"""

from __future__ import annotations

import gzip
import io
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from shoal._checks import expect_file, fail


def lines(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    r"""Yield (number, text) for every line, numbered from 1, without its line end.

    A byte order mark before the first line is dropped. A name that ends in ``.gz`` is decompressed
    as it is read; memory holds one line.

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
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                text = raw.decode(encoding).rstrip("\r\n")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        bad = f"byte {error.object[error.start]:#04x} at position {error.start + 1}"
        remedy = 'save the file as UTF-8, or pass encoding="latin-1"'
        fail(f"{path}:{number}", f"{encoding} text", bad, remedy)
    except (EOFError, OSError, zlib.error) as error:
        got = f"{error} (after line {number})"
        fail(str(path), "a whole, readable file", got, "copy or download it again")


def _open(path: Path) -> io.BufferedReader:
    if path.suffix != ".gz":
        return path.open("rb")
    # A GzipFile cuts its lines in Python, a buffered reader around it in C: twice as fast.
    return io.BufferedReader(gzip.GzipFile(path), 1 << 18)  # pyright: ignore[reportArgumentType]


def shorten(text: object, width: int = 60) -> str:
    """Quote `text` for a message, cut after `width` characters.

    Example:
        >>> shorten("a" * 9, width=4)
        "'aaaa…'"
    """
    whole = text if isinstance(text, str) else str(text)
    return repr(whole if len(whole) <= width else whole[:width] + "…")


def as_tensor(numbers: array[int] | array[float]) -> Tensor:
    """An array that a reader filled ("q" or "d"), as a tensor in the same memory.

    Example:
        >>> as_tensor(array("q", [3, 1]))
        tensor([3, 1])
    """
    dtype = {"q": torch.int64, "d": torch.float64}[numbers.typecode]
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.zeros(0, dtype=dtype)
