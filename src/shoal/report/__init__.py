"""What a run did, as one page: loss, validation, hardness of negatives, time, memory, examples.

Everything comes from the run's log and settings, so that a report needs neither the data nor the
model; what a run did not log is said on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.core.errors import InputError, expect, fail
from shoal.data.lines import write_whole
from shoal.report.history import History
from shoal.training.run import Run


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: of the run, finished or not.
        out: the file; ``report.html`` in the folder by default.

    Returns:
        where the page lies.

    Raises:
        InputError: if there is no run, its log is empty or damaged, or the page cannot be written.
    """
    from shoal.report.page import page

    run, history = _read(folder)
    stages = {
        path.name: History.of({}, found)
        for path in sorted(run.folder.iterdir())
        if path.is_dir() and (found := Run(path, {}).log())
    }
    with _of_a_log(folder):
        text = page(run.folder.resolve().name, history, stages)
    out = Path(out) if out is not None else run.folder / "report.html"
    write_whole(out, [text])
    return out


def compare(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one page on two or three runs: metrics, curves, time, settings that differ.

    Args:
        folders: of the runs, finished or not.
        out: the file; ``comparison.html`` in the first folder by default.

    Returns:
        where the page lies.

    Raises:
        InputError: as :func:`report`, or if the runs are not two or three different ones.
    """
    from shoal.report.compare import comparison

    different = len({Path(folder).resolve() for folder in folders}) == len(folders)
    good = different and len(folders) in (2, 3)
    said = ", ".join(map(str, folders))
    expect(good, "runs", "two or three different ones", said, "name each once")
    runs = {_name(folder, folders): _read(folder)[1] for folder in folders}
    with _of_a_log(folders[0]):
        text = comparison(runs)
    out = Path(out) if out is not None else Path(folders[0]) / "comparison.html"
    write_whole(out, [text])
    return out


def _read(folder: str | Path) -> tuple[Run, History]:
    """A run and its log."""
    run = Run.open(folder)
    log = run.log()
    expect(bool(log), str(folder), "a run with a log", "none", "train it, or name another run")
    with _of_a_log(folder):
        return run, History.of(run.settings, log)


def _name(folder: str | Path, folders: Sequence[str | Path]) -> str:
    """A run's name, or its whole path where two have the same name."""
    names = [Path(other).resolve().name for other in folders]
    name = Path(folder).resolve().name
    return name if names.count(name) == 1 else str(folder)


@contextmanager
def _of_a_log(folder: str | Path) -> Iterator[None]:
    """Refuse what is no log of shoal's, wherever that shows.

    Raises:
        InputError: in place of what a log of another kind leads to.
    """
    from jinja2 import TemplateError

    try:
        yield
    except InputError:
        raise
    except (
        LookupError,
        ArithmeticError,
        TypeError,
        ValueError,
        AttributeError,
        TemplateError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        fail(str(folder), "a log as shoal train writes it", reason, "restore the file")
