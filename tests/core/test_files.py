"""Whole or not at all: files and folders that are written aside, and pickles that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.core import files
from shoal.core.errors import InputError
from shoal.core.files import expect_no_pickle, file_aside, folder_aside


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
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new" / "half").write_text("hal")
    with folder_aside(tmp_path / "out") as new:
        assert list(new.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
