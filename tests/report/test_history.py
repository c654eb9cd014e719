"""A run's history: what a resumed run overtook is gone, and seconds add up."""

from __future__ import annotations

from typing import Any

from shoal.report.history import History


def line(event: str, step: int, **metrics: Any) -> dict[str, Any]:
    return {"event": event, "step": step, **metrics}


def test_a_resumed_run_is_shown_as_one_that_was_not_stopped() -> None:
    """Killed after step 30 and resumed at 10: the same lines as of a run without the break."""
    whole = [line("refresh", 0, clusters=3)]
    whole += [line("step", step, loss=1.0 / step) for step in (10, 20, 30, 40)]
    whole += [line("refresh", 20, clusters=4), line("end", 40, stopped="steps")]
    lost = [line("step", 20, loss=9.0), line("refresh", 20, clusters=9), line("step", 30, loss=9.0)]
    broken = [*whole[:2], *lost, line("resume", 10), *whole[2:]]
    history, resumed = History.of({}, whole), History.of({}, broken)
    assert resumed.by_event.pop("resume") and resumed.by_event == history.by_event
    assert resumed.steps == 40 and history.over_steps("step", "loss")[0] == [10, 20, 30, 40]


def test_a_line_written_twice_counts_once_and_last() -> None:
    """A clustering before the checkpoint's step is done again by the run that goes on from it."""
    log = [line("refresh", 20, clusters=1), line("resume", 20), line("refresh", 20, clusters=2)]
    assert [x["clusters"] for x in History.of({}, log).all("refresh")] == [2]


def test_stages_add_up_to_the_whole() -> None:
    """Clustering and validation lie within training's seconds, those at its end do not."""
    log = [
        {"event": "start", "prepare_seconds": 5.0, "peak_mib": 100},
        line("refresh", 0, refresh_seconds=2.0),
        line("validate", 10, validate_seconds=3.0),
        line("step", 20, seconds=30.0, peak_mib=300),
        line("validate", 20, validate_seconds=4.0),
        line("test", 20, test_seconds=6.0, peak_mib=400),
    ]
    stages = {name: (seconds, peak) for name, seconds, peak in History.of({}, log).stages()}
    assert stages["Steps"] == (25.0, 300) and stages["Validate"][0] == 7.0
    assert list(stages) == ["Prepare", "Steps", "Refresh", "Validate", "Test"]
    assert sum(seconds for seconds, _ in stages.values()) == 5 + 30 + 4 + 6
    assert History.of({}, log).most("peak_mib") == 400


def test_numbers_that_are_none_are_no_points() -> None:
    """NaN and infinity are left out of a curve."""
    values = [1.0, float("nan"), float("inf"), 2.0]
    log = [line("step", i, loss=value) for i, value in enumerate(values)]
    assert History.of({}, log).over_steps("step", "loss") == ([0, 3], [1.0, 2.0])


def test_old_names_are_read_as_those_of_today() -> None:
    """A log of the first layout, and one of today: the same stages, clusters and seconds."""
    old = [line("refresh", 0, anew=True), line("end", 9, seconds=3.0), line("fuse", 0)]
    new = [line("refresh", 0, refreshed=True), line("end", 9, seconds=3.0), line("ensemble", 0)]
    old[-1]["fuse_seconds"] = new[-1]["ensemble_seconds"] = 2.0
    assert History.of({}, old).by_event == History.of({}, new).by_event
    whole = History.of({}, [*new, line("test", 9, seconds=8.0)])  # with classifiers and ensemble
    assert whole.seconds == 3.0 and ("Ensemble", 2.0, None) in whole.stages()
