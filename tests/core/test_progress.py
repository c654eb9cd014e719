"""The bar is for people who wait: not for pipes, and not for what is done at once."""

from __future__ import annotations

import io

import pytest

from shoal.core import progress as module
from shoal.core.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "after", "shown"),
    [(Terminal, 0.0, True), (Terminal, 60.0, False), (io.StringIO, 0.0, False)],
)
def test_bar_is_shown_to_who_waits_at_a_terminal(
    stream: type[io.StringIO], after: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts come through in order; words only at a terminal, once time has passed."""
    err = stream()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr(module, "_AFTER", after)
    assert list(progress(range(3), "cluster")) == [0, 1, 2]
    assert list(progress((x for x in "ab"), "cluster", 2)) == ["a", "b"]
    assert ("cluster" in err.getvalue()) == shown
