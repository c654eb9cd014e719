"""The command line, run in this process: its status and what it printed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from typing import Any, NamedTuple

from shoal.cli import main as cli

ONE_LINE = re.compile(r"shoal: [^\n]+: expected [^\n]+, got [^\n]+; [^\n]+\n")


class Outcome(NamedTuple):
    """What a command left: its status and its two streams."""

    status: int
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """Whether it ended with status 2, no result, and one line that says what was wrong."""
        return self.status == 2 and self.out == "" and bool(ONE_LINE.fullmatch(self.err))


def shoal(*words: object) -> Outcome:
    """Run the command line."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["shoal", *map(str, words)]
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
    return Outcome(status, out.getvalue(), err.getvalue())


def result(*words: object) -> dict[str, Any]:
    """The JSON object that a command prints; it must end well."""
    found = shoal(*words, "--json")
    assert found.status == 0, found.err
    return json.loads(found.out)
