"""What lay in a folder and was not read, said where the user reads it.

Readers take files by the names that they know, so a file of another name, such as the texts of
labels, is passed over. :func:`opened` notes each file that a reader opens; :func:`naming_unread`
names the others once the folder is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_log = logging.getLogger("shoal")
_NAMED = 8  # names in a message
# what people write about data, which is not data
_ABOUT = ("readme", "license", "licence", "notice", "citation", "changelog")

_opened: ContextVar[set[Path] | None] = ContextVar("opened", default=None)


def opened(path: Path) -> None:
    """Note that a reader opens a file."""
    seen = _opened.get()
    if seen is not None:
        seen.add(path.absolute())


@contextmanager
def naming_unread(source: object) -> Iterator[None]:
    """Log the files that lie in a folder and were not opened meanwhile; nothing of a single file.

    Subfolders count where a file in them was opened, or where they are called ``raw``; empty and
    hidden files, and those that tell about the data, such as README.md, do not.

    Yields:
        nothing.
    """
    folder = Path(source) if isinstance(source, str | Path) else None
    if folder is None or not folder.is_dir():
        yield
        return
    token = _opened.set(set())
    try:
        yield
        seen = _opened.get() or set()
    finally:
        _opened.reset(token)
    folders = {folder.absolute(), folder.absolute() / "raw", *(path.parent for path in seen)}
    inside = sorted(path for path in folder.absolute().rglob("*") if path.parent in folders)
    left = [path.relative_to(folder.absolute()) for path in inside if path not in seen]
    say_unread(folder, [str(x) for x in left if _holds_data(folder, x)])


def say_unread(where: object, names: Iterable[str]) -> None:
    """Log what was not read, if it is anything."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    if names:
        _log.warning("%s: not read: %s%s", where, ", ".join(names[:_NAMED]), more)


def _holds_data(folder: Path, path: Path) -> bool:
    name, file = path.name.lower(), folder / path
    about = name.startswith((".", *_ABOUT)) or name.endswith((".md", ".py", ".html"))
    return not about and file.is_file() and file.stat().st_size > 0
