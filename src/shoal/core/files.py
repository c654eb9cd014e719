"""Writes that a killed process, a full disk or a power cut cannot leave half done.

What is new is written beside the old, handed to the disk (fsync) and only then takes the old one's
place, in one rename. A folder that exists already trades places with the new one, which Linux does
in one step (renameat2); elsewhere there is a moment between two renames.

And what a folder may hold: numbers, texts and JSON, never a pickle, since reading one runs code.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.core.errors import fail

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD: paths are as the process sees them

# A umask is only read by setting it, which is no matter while a process begins.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Write a whole file or leave the old one; its folder is made if need be.

    Yields:
        the path to write to, beside `path`; whatever is raised removes it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with file_aside(Path(folder, "a")) as new:
        ...         _ = new.write_text("whole")
        ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
        [('a', 'whole')]
    """
    new = path.with_name(path.name + ".new")
    try:
        if not path.parent.exists():  # where that is a file, the write below fails and names it
            path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        _share(new)
        sync(new)
        new.replace(path)
        sync(path.parent)
    finally:
        new.unlink(missing_ok=True) if path.parent.is_dir() else None


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Fill a whole folder or leave the old one, which goes when the new one stands in its place.

    Yields:
        an empty folder beside `folder`; whatever is raised removes it. What a killed process left
        there is removed by the next one.
    """
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _share(path)
            sync(path)
        _take_place(new, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _take_place(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is, and what was there, if anything, where `new` was."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        old = folder.with_name(f".{folder.name}.old")
        folder.rename(old)
        new.rename(folder)
        old.rename(new)


def _exchanged(one: Path, two: Path) -> bool:
    """Whether the system could let two paths trade places in one step."""
    if sys.platform != "linux":
        return False
    try:
        call = ctypes.CDLL(None).renameat2
    except AttributeError:  # a C library without it
        return False
    return call(_HERE, os.fsencode(one), _HERE, os.fsencode(two), _EXCHANGE) == 0


def _share(path: Path) -> None:
    """Let others read a file as the user's umask has it; safetensors writes for its owner alone."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)


def sync(path: Path) -> None:
    """Hand a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def expect_no_pickle(folder: Path) -> None:
    """Raise if a model's folder holds a file that would be read as a pickle.

    Raises:
        InputError: naming the first such file.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)
    if found:
        remedy = "remove it: reading a pickle runs code, and shoal never wrote it"
        fail(str(found[0]), "safetensors and JSON alone", "a pickle", remedy)
