"""A run's folder: made once, opened again, and never in the way of the next try."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.training.run import Run

ASKED = {"task": "labels", "source": "a.csv", "dim": 8, "seed": 0, "steps": 5}


def test_created_run_is_opened_again(tmp_path: Path) -> None:
    """Settings, record and checkpoints come back; best is preferred to last."""
    run = Run.create(tmp_path / "a" / "b", ASKED)
    run.write("start", {"step": 0})
    run.save_last({"step": 2})
    assert run.load_model() == {"step": 2}
    run.save_best({"step": 1})
    again = Run.open(tmp_path / "a" / "b")
    assert again.settings == ASKED and again.log()[0]["event"] == "start"
    assert again.load_last() == {"step": 2} and again.load_model() == {"step": 1}


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder with a checkpoint is taken, and stays as it is."""
    run = Run.create(tmp_path, ASKED)
    run.save_last({"step": 2})
    with pytest.raises(InputError, match="a folder without a run, got a run; pass --resume"):
        Run.create(tmp_path, ASKED | {"dim": 4})
    assert Run.open(tmp_path).settings == ASKED and run.load_last() == {"step": 2}


def test_run_without_a_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    """What ended before its first checkpoint does not block the folder, and leaves nothing."""
    run = Run.create(tmp_path, ASKED)
    run.write("start", {})
    run.save_best({"step": 1})
    again = Run.create(tmp_path, {"dim": 4})
    assert again.log() == [] and not again.best.exists()
    with pytest.raises(InputError, match="a file with a checkpoint, got nothing there"):
        again.load_last()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    """The first setting that differs is named, unless it is free; a new one differs from None."""
    run = Run.create(tmp_path, ASKED)
    run.expect_settings(ASKED | {"steps": 9}, {"steps"})
    with pytest.raises(InputError, match=r"dim: expected 8, as the run in .* was begun, got 4"):
        run.expect_settings({"dim": 4}, {"steps"})
    with pytest.raises(InputError, match="loss: expected None"):
        run.expect_settings({"loss": "triplet"}, set())


@pytest.mark.parametrize("content", [None, "", "[1]", '{"dim"'])
def test_folder_that_holds_no_run(tmp_path: Path, content: str | None) -> None:
    """Without whole settings there is no run."""
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json: expected the settings of a run"):
        Run.open(tmp_path)


def test_places_that_cannot_be(tmp_path: Path) -> None:
    """A missing folder, a file, a place below a file: one line each."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder with a run, got nothing there"):
        Run.open(tmp_path / "absent")
    with pytest.raises(InputError, match="expected a folder with a run, got a file"):
        Run.open(tmp_path / "file")
    with pytest.raises(InputError, match="a folder to write to, got Not a directory"):
        Run.create(tmp_path / "file" / "sub", ASKED)
    run = Run(tmp_path / "file", {})
    with pytest.raises(InputError, match="a folder to write to, got Not a directory"):
        run.write("step", {})


def test_record_leaves_out_a_line_cut_short(tmp_path: Path) -> None:
    """A process that was killed in mid-line costs that line only."""
    run = Run.create(tmp_path, ASKED)
    run.write("step", {"step": 1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert [event["step"] for event in run.log()] == [1]


def test_checkpoints_are_due_by_the_clock(tmp_path: Path) -> None:
    """A save is due once `save_seconds` have passed since the last one."""
    now = time.monotonic()
    assert Run(tmp_path, {}, save_seconds=0.0).save_due(now)
    assert not Run(tmp_path, {}).save_due(now) and Run(tmp_path, {}).save_due(now - 61)


def test_a_run_of_an_earlier_version_keeps_its_log(tmp_path: Path) -> None:
    """``record.jsonl``, the log's name in 0.1, is read and written on."""
    run = Run.create(tmp_path, ASKED)
    (tmp_path / "record.jsonl").write_text('{"event": "step", "step": 1}\n')
    run.write("step", {"step": 2})
    assert [event["step"] for event in run.log()] == [1, 2]
    assert not (tmp_path / "log.jsonl").exists()


def test_the_start_says_where_a_run_was_made(tmp_path: Path) -> None:
    """Versions, threads and the machine, beside what the caller says."""
    run = Run.create(tmp_path, ASKED)
    run.start({"data": "planted", "settings": ASKED})
    (start,) = run.log()
    assert start["event"] == "start" and start["data"] == "planted" and start["settings"] == ASKED
    assert set(start["versions"]) == {"shoal", "torch", "python"} and start["threads"] > 0
    assert start["machine"] and "processor" in start
