"""What a run did, as one page: loss, validation, hardness of negatives, time, memory, examples.

Everything comes from the run's log and settings, so that a report needs neither the data nor the
model; what a run did not log is said on the page.
"""

from __future__ import annotations

from pathlib import Path

from shoal.core.errors import expect, fail
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
    from jinja2 import TemplateError

    from shoal.report.page import page

    run = Run.open(folder)
    log = run.log()
    expect(bool(log), str(folder), "a run with a log", "none", "train it, or name another run")
    try:
        stages = {
            path.name: History.of({}, found)
            for path in sorted(run.folder.iterdir())
            if path.is_dir() and (found := Run(path, {}).log())
        }
        text = page(run.folder.resolve().name, History.of(run.settings, log), stages)
    except (KeyError, TypeError, ValueError, AttributeError, TemplateError) as error:
        reason = f"{type(error).__name__}: {error}"
        fail(str(folder), "a log as shoal train writes it", reason, "restore the file")
    out = Path(out) if out is not None else run.folder / "report.html"
    write_whole(out, [text])
    return out
