"""What a run did, as one page: loss, validation, hardness of negatives, time, memory, examples.

Everything comes from the run's record and settings, so that a report needs neither the data nor the
model; what a run did not record is said on the page.
"""

from __future__ import annotations

from typing import Any

from shoal.cli import settings as asked
from shoal.core.errors import expect, fail
from shoal.data.lines import write_whole
from shoal.report.page import page
from shoal.report.story import Story
from shoal.training.run import Run


def report(settings: asked.Report) -> dict[str, Any]:
    """Run ``shoal report``: write the page.

    Returns:
        which run, and where the page lies.

    Raises:
        InputError: if there is no run, its record is empty or damaged, or the page cannot be
            written.
    """
    run = Run.open(settings.run)
    path = str(run.log_file)
    record = run.log()
    expect(bool(record), path, "what a run did", "nothing", "train it, or name another run")
    try:
        head = Story.of({}, Run(run.folder / "head", {}).log())
        text = page(run.folder.resolve().name, Story.of(run.settings, record), head)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        fail(path, "a record as shoal train writes it", reason, "restore the file")
    out = settings.out or run.folder / "report.html"
    write_whole(out, [text])
    return {"run": str(run.folder), "report": str(out)}
