"""The registry of text formats: what a format is, how it is recognized, and how one is added.

A file in this folder defines a format: a reader, and a writer under :func:`text_format`. Nothing
else names it, so that adding a format is adding a file; one of a user's own is registered when its
module is imported::

    def read(path: Path, encoding: str) -> LabelData: ...

    @text_format("poems", read, suffixes=(".poems",))
    def write(data: LabelData, path: Path) -> None: ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from shoal.data.lines import lines, suffix_of
from shoal.data.reduce import Step, reduce
from shoal.data.texts import LabelData

Reader = Callable[..., LabelData]
Writer = Callable[[LabelData, str | Path], list[str]]


@dataclass(frozen=True)
class Format:
    """A text format, as :func:`text_format` describes it.

    Attributes:
        name: what ``shoal convert --to`` calls it.
        read: from a path and the encoding of its texts; of a table, also its columns.
        write: into a path; returns what the format could not hold.
        steps: what is taken out of a data set before it is written.
        suffixes: of the files that are read.
        files: patterns of the files by which a folder is recognized.
        begins: whether a file's first line is one of this format, where others share its suffix.
        order: formats of a lower order are tried first.
        columns: whether it is a table, whose columns can be chosen.
    """

    name: str
    read: Reader
    write: Writer
    steps: tuple[Step, ...] = ()
    suffixes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    begins: Callable[[str], bool] | None = None
    order: int = 0
    columns: bool = False

    @property
    def suffix(self) -> str:
        """Of what is written: none for a folder."""
        single = self.columns or not self.files
        return self.suffixes[0] if self.suffixes and single else ""

    def fits(self, path: Path) -> bool:
        """Whether a file or folder is in this format, by its names and first lines alone."""
        if path.is_file():
            return suffix_of(path) in self.suffixes and self._begins(path)
        # a pattern with a star is weak evidence: other formats have such files, too
        found = ((pattern, file) for pattern in self.files for file in path.glob(pattern))
        return any("*" not in pattern or self._begins(file) for pattern, file in found)

    def _begins(self, path: Path) -> bool:
        if self.begins is None:
            return True
        _, line = next(lines(path, "latin-1"), (1, ""))  # any bytes: what is looked for is ASCII
        return self.begins(line)


FORMATS: dict[str, Format] = {}


def text_format(
    name: str,
    read: Reader,
    *,
    steps: tuple[Step, ...] = (),
    suffixes: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    begins: Callable[[str], bool] | None = None,
    order: int = 0,
    columns: bool = False,
) -> Callable[[Callable[[LabelData, Path], None]], Writer]:
    """Register a format by its writer: a decorator.

    The function that is decorated is given what `steps` leave of a data set, and a path that is not
    there yet; it fills the folder or file. The function that takes its place takes any data set,
    replaces files of the same names, and returns what the format could not hold.

    A reader is given a path and the encoding of its texts. Where a source does not say which
    examples are for testing, it returns :meth:`LabelData.unsplit`.

    Args:
        name: what ``shoal convert --to`` calls it.
        read: the reader.
        steps: what the format cannot hold (:mod:`shoal.data.reduce`).
        suffixes: of the files that are read, lower case, ".gz" apart.
        files: patterns of the files by which a folder is recognized; one that has none is written
            as one file, if it has a suffix, and so is a table.
        begins: says of a first line whether the file is in this format; needed where others share a
            suffix, or a pattern with a star.
        order: of those that fit, the format of the lowest order reads.
        columns: whether `read` takes :class:`shoal.data.cells.Columns` as well.
    """

    def register(fill: Callable[[LabelData, Path], None]) -> Writer:
        @wraps(fill)
        def write(data: LabelData, path: str | Path) -> list[str]:
            left, lost = reduce(data, steps)
            fill(left, Path(path))
            return lost

        FORMATS[name] = Format(name, read, write, steps, suffixes, files, begins, order, columns)
        return write

    return register


def name_of(path: Path) -> str:
    """What a data set is called: its file without suffixes, or its folder.

    Example:
        >>> name_of(Path("data/mugs.csv.gz"))
        'mugs'
    """
    path = path.resolve()
    return path.name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0]
