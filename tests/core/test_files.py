"""Whole or not at all: files and folders that are written aside, and pickles that are refused."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shoal.core import files
from shoal.core.errors import InputError
from shoal.core.files import expect_inside, expect_no_pickle, file_aside, folder_aside

fcntl = pytest.importorskip("fcntl", reason="locks, modes and pipes as Linux and macOS have them")


def everything(folder: Path) -> dict[str, str]:
    """All files below a folder, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_a_file_is_new_or_old(tmp_path: Path) -> None:
    """In the block the old one stands; after it the new one; after an error the old one alone."""
    path = tmp_path / "sub" / "a"
    for text in ("one", "two"):
        with file_aside(path) as new:
            new.write_text(text)
    with pytest.raises(OSError, match="full"), file_aside(path) as new:
        new.write_text("half of th")
        raise OSError("disk full")
    assert everything(tmp_path) == {"sub/a": "two"}


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """A file that its writer keeps to its owner has the mode of any new file."""
    plain = tmp_path / "plain"
    plain.touch()
    with file_aside(tmp_path / "a") as new:
        new.touch(mode=0o600)
    with folder_aside(tmp_path / "b") as folder:
        (folder / "c").touch(mode=0o600)
    written = [tmp_path / "a", tmp_path / "b" / "c"]
    assert {path.stat().st_mode for path in written} == {plain.stat().st_mode}


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_new_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    """The same for folders, where the system can exchange two of them and where it cannot."""
    if not in_one_step:
        monkeypatch.setattr(files, "_exchanged", lambda one, two: False)
    folder = tmp_path / "out"
    for text in ("one", "two"):
        with folder_aside(folder) as new:
            assert text == "one" or everything(folder) == {"one": "one", "in/one": "one"}
            (new / text).write_text(text)
            (new / "in").mkdir()
            (new / "in" / text).write_text(text)
    with pytest.raises(OSError, match="full"), folder_aside(folder) as new:
        (new / "three").write_text("half")
        raise OSError("disk full")
    assert everything(tmp_path) == {"out/two": "two", "out/in/two": "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    """The next write begins with an empty folder."""
    (tmp_path / ".out.shoal-new").mkdir()
    (tmp_path / ".out.shoal-new" / "half").write_text("hal")
    with folder_aside(tmp_path / "out") as new:
        assert list(new.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import numpy, resource, signal
from pathlib import Path
from safetensors.numpy import save_file
from shoal.core.files import file_aside
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
with file_aside(Path("a")) as new:
    save_file({"rows": numpy.ones(100_000)}, new)
"""


def test_what_a_library_left_beside_goes(tmp_path: Path) -> None:
    """safetensors writes to a name of its own and renames it; after a kill that is cleared, too."""
    words = [sys.executable, "-c", KILLED]
    died = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert died.returncode == -signal.SIGXFSZ, died.stderr
    assert list(tmp_path.rglob(".tmp*"))
    with file_aside(tmp_path / "a") as new:
        new.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "deep/er/x.pkl"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """Anywhere below the folder, whatever lies beside it."""
    (tmp_path / "model.safetensors").write_text("")
    expect_no_pickle(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{path.name}: expected safetensors and JSON alone, got"):
        expect_no_pickle(tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_link_stays_and_what_it_points_to_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    """Written through the link; where nobody may write, nothing is, unless one is root."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(mode)
    link.symlink_to("target")
    if mode == 0o444 and os.geteuid() != 0:
        with pytest.raises(PermissionError), file_aside(link) as new:
            new.write_text("new")
        return
    with file_aside(link) as new:
        new.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """What is written comes out of its other end, and it is a pipe still."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with file_aside(pipe) as new:
        new.write_text("through")
    reader.join()
    assert read == ["through"] and pipe.is_fifo()


def test_a_device_is_written_into() -> None:
    """A full one says so, and stays a device."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("a device that is always full is Linux's own")
    with pytest.raises(OSError, match="No space"), file_aside(Path("/dev/full")) as new:
        new.write_text("x" * 10_000)
    assert Path("/dev/full").is_char_device()


_OWNER = """
import sys, time
from pathlib import Path
from shoal.core.files import file_aside
with file_aside(Path(sys.argv[1])) as new:
    new.write_text("half")
    print("owned", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_none_after_its_death(tmp_path: Path) -> None:
    """A second one is told who owns the place; when that is killed, the next one clears up."""
    words = [sys.executable, "-c", _OWNER, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "owned\n"
        want = f"no other process writes to, got one of process {owner.pid} on .*; wait for it"
        with pytest.raises(InputError, match=want), file_aside(tmp_path / "out"):
            pass
        owner.kill()
    with file_aside(tmp_path / "out") as new:
        new.write_text("whole")
    assert everything(tmp_path) == {"out": "whole"}


def test_where_folders_cannot_be_opened_nor_files_synced_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows has it: a folder cannot be opened, and fsync needs a handle that writes."""
    real_open, real_fsync = os.open, os.fsync

    def open_(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, flags, *more, **named)

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real_fsync(handle)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    with file_aside(tmp_path / "a") as new:
        new.write_text("a")
    with folder_aside(tmp_path / "b") as folder:
        (folder / "c").write_text("c")
    monkeypatch.undo()
    assert everything(tmp_path) == {"a": "a", "b/c": "c"}


def test_a_link_that_leaves_a_folder_is_refused(tmp_path: Path) -> None:
    """One that stays inside is not, nor one from a snapshot of the hub's cache to its blobs."""
    run, cache = tmp_path / "run", tmp_path / "models--a--b"
    for folder in (run / "deep", cache / "snapshots" / "1", cache / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (run / "file").write_text("")
    (run / "deep" / "link").symlink_to("../file")
    (cache / "blobs" / "x").write_text("")
    (cache / "snapshots" / "1" / "file").symlink_to("../../blobs/x")
    expect_inside(run)
    expect_inside(cache / "snapshots" / "1")
    (run / "deep" / "log.jsonl").symlink_to("../../secret")
    with pytest.raises(InputError, match=r"log\.jsonl: expected files of the folder's own, got a"):
        expect_inside(run)
