"""Where shoal writes: whole or not at all, one process at a time, nothing of anybody else's lost.

What is new is written beside the old, handed to the disk (fsync) and only then takes the old one's
place, in one rename. A folder that exists already trades places with the new one, which Linux does
in one step (renameat2); elsewhere there is a moment between two renames. What a killed process left
beside is cleared by the next one that writes to the same place; its names end in ``.shoal-new``.

And what a folder may hold: files of its own, and for a model numbers, texts and JSON, never a
pickle, since reading one runs code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.core.errors import fail

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
LOCK = ".shoal-lock"
"""The file by which a process owns the folder that it lies in, or with a name before it a path."""
_NEW, _OLD = ".shoal-new", ".shoal-old"
# what a shell opened for this process: written into, even where it is a plain file
_OPENED = ("/dev/fd/", "/dev/std", "/proc/self/fd/")

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD: paths are as the process sees them


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Write a whole file or leave the old one; its folder is made if need be.

    A link stays and what it points to is written; a file keeps its mode. Into a pipe or a device
    everything is written as it comes.

    Yields:
        the path to write to, in a scratch folder beside `path`, which whatever is raised removes;
        so what a library puts beside the file that it writes goes, too, in the end or, after a
        kill, with the next write.

    Raises:
        InputError: if another process is writing there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with file_aside(Path(folder, "a")) as new:
        ...         _ = new.write_text("whole")
        ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
        [('a', 'whole')]
    """
    if _is_stream(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    with scratch(path) as folder:
        new = folder / path.name
        new.touch()
        if path.exists():
            os.close(os.open(path, os.O_WRONLY))  # what may not be written to is not replaced
        mode = (path if path.exists() else new).stat().st_mode
        yield new
        sync(new)
        new.chmod(stat.S_IMODE(mode))  # safetensors writes for its owner alone
        new.replace(path)
        sync(path.parent)


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Fill a whole folder or leave the old one, which goes when the new one stands in its place.

    Yields:
        an empty folder beside `folder`; whatever is raised removes it.

    Raises:
        InputError: if another process is writing there.
    """
    folder = Path(os.path.realpath(folder))
    with scratch(folder) as new:
        yield new
        settle(new)
        _take_place(new, folder)
        sync(folder.parent)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, which is removed with all that is left in it in the end.

    Yields:
        the folder.

    Raises:
        InputError: if another process is writing to `path`.
    """
    if not path.parent.exists():  # where that is a file, the lock fails and names it
        path.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(path, _NEW)
    with owned(_beside(path, LOCK), path):
        try:
            _clear(new)
            new.mkdir()
            yield new
        finally:
            _clear(new)


def settle(path: Path) -> None:
    """Hand what was written in a scratch folder to the disk, with the modes of the umask."""
    made = path if path.is_dir() else path.parent
    mode = stat.S_IMODE(made.stat().st_mode) & 0o666  # safetensors writes for its owner alone
    for part in [*path.rglob("*"), path]:
        sync(part)
        if part.is_file():
            part.chmod(mode)


@contextmanager
def owned(lock: Path, what: Path) -> Iterator[None]:
    """Own a place while the block runs: no other process may.

    The lock is the system's (flock), so that it ends with the process, however that ends; the file
    says who holds it. Where there is no such lock, as on Windows, nobody is kept out.

    Args:
        lock: the file to lock, which is removed in the end.
        what: is owned, for the message.

    Yields:
        nothing.

    Raises:
        InputError: if another process owns it.
        OSError: if the file cannot be made.
    """
    handle = _locked(lock, what)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        os.close(handle)


def _locked(lock: Path, what: Path) -> int:
    """A handle on the lock file, locked."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _flock(handle)
            same = os.path.samestat(lock.stat(), os.fstat(handle))
        except FileNotFoundError:  # its owner has just removed it
            same = False
        except BlockingIOError:
            owner = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(handle)
            remedy = "wait for it or name another place"
            fail(str(what), "a place that no other process writes to", f"one of {owner}", remedy)
        except BaseException:
            os.close(handle)
            raise
        if same:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)


def _flock(handle: int) -> None:
    """Lock a file; nothing where the system has no such locks.

    Raises:
        OSError: BlockingIOError if another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise
        # else a file system without locks


def _is_stream(path: Path) -> bool:
    """Whether a path is written into rather than replaced: a pipe, a device, standard output."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    opened = str(path).startswith(_OPENED)
    return opened or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _clear(path: Path) -> None:
    """Remove what this module made."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.parent.is_dir():
        path.unlink(missing_ok=True)


def _take_place(new: Path, folder: Path) -> None:
    """Put `new` where `folder` is, and what was there, if anything, where `new` was."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        old = _beside(folder, _OLD)
        _clear(old)
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


def sync(path: Path) -> None:
    """Hand a file, or the names in a folder, to the disk; a folder where the system can do that.

    Raises:
        OSError: if the disk has no room or is broken.
    """
    folder = path.is_dir()
    try:
        # Windows syncs by handles that may write alone, and opens no folder
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if not folder:
            raise
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno == errno.EIO:  # network file systems say EINVAL
            raise
    finally:
        os.close(handle)


# -- what a folder may hold ------------------------------------------------------------------------


def expect_inside(folder: Path) -> None:
    """Raise if a folder that others may have made holds a link that leads out of it.

    In the Hugging Face cache, files of a snapshot are links to the repository's blobs beside it.

    Raises:
        InputError: naming the first such link.
    """
    whole = Path(os.path.realpath(folder))
    cached = [place for place in (whole, *whole.parents) if place.parent.name == "snapshots"]
    home = cached[0].parent.parent if cached else whole
    for place, folders, files in os.walk(folder):
        # wandb keeps links to its own logs in a run that it tracks; nothing there is ever read
        folders[:] = [name for name in folders if name != "wandb"]
        for name in sorted([*folders, *files]):
            path = Path(place, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                remedy = "put a copy of what it points to in its place"
                fail(str(path), "files of the folder's own", "a link that leaves it", remedy)


def expect_no_pickle(folder: Path) -> None:
    """Raise if a model's folder holds a file that would be read as a pickle.

    Raises:
        InputError: naming the first such file.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)
    if found:
        remedy = "remove it: reading a pickle runs code, and shoal never wrote it"
        fail(str(found[0]), "safetensors and JSON alone", "a pickle", remedy)
