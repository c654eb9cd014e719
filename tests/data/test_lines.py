"""lines(): plain and gzipped files read alike, and damage is named by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.data.lines import lines


def test_gzip_and_plain_read_alike(tmp_path: Path) -> None:
    """The same bytes give the same numbered lines, without line ends or byte order mark."""
    raw = "\ufeffred\r\n\nné\u2028x".encode()
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw))
    expected = [(1, "red"), (2, ""), (3, "né\u2028x")]
    assert list(lines(tmp_path / "a.txt")) == expected
    assert list(lines(tmp_path / "a.txt.gz")) == expected


def test_truncated_gzip_says_how_far_it_got(tmp_path: Path) -> None:
    """Lines before the cut are yielded; then one error names the file."""
    text = "".join(f"{i * i * 7919 % 10007}\n" for i in range(200_000))
    packed = gzip.compress(text.encode())
    path = tmp_path / "cut.gz"
    path.write_bytes(packed[: len(packed) // 2])
    seen = 0
    with pytest.raises(InputError, match=r"cut\.gz: expected a whole, readable file.*after line"):
        for number, _ in lines(path):
            seen = number
    assert seen > 1000


@pytest.mark.parametrize("raw", [b"plain text", b"\x1f\x8b\x08\x00" + b"\xff" * 40])
def test_foreign_gzip_is_refused(tmp_path: Path, raw: bytes) -> None:
    """A file that only calls itself .gz, or whose body is noise, is an InputError."""
    (tmp_path / "x.gz").write_bytes(raw)
    with pytest.raises(InputError, match="readable file"):
        list(lines(tmp_path / "x.gz"))


def test_foreign_bytes_name_line_and_remedy(tmp_path: Path) -> None:
    """A line that is not UTF-8 is named; latin-1 reads it."""
    path = tmp_path / "old.txt"
    path.write_bytes(b"tea\ncaf\xe9\n")
    with pytest.raises(
        InputError, match=r'old\.txt:2: expected utf-8.*0xe9.*encoding="windows-1252"'
    ):
        list(lines(path))
    assert list(lines(path, "latin-1")) == [(1, "tea"), (2, "café")]


def test_missing_file_is_named(tmp_path: Path) -> None:
    """No file: the path and what was there."""
    with pytest.raises(InputError, match="nothing there"):
        list(lines(tmp_path / "absent.txt"))
