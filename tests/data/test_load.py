"""load(): a name, a folder or a file finds its reader; importing reads nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal import data
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.data.nodes import NodeData


def test_each_kind_of_source_finds_its_reader(tmp_path: Path) -> None:
    """A table, and the folder that it is written to, give the same labels."""
    (tmp_path / "t.csv").write_text("text,labels\na,x\nb,y|x\nc,y\n")
    table = data.load(tmp_path / "t.csv")
    xc.write(table, tmp_path / "folder")
    folder = data.load(str(tmp_path / "folder"))
    assert (table.name, folder.name) == ("t", "folder")
    assert table.labels.titles == folder.labels.titles == ["x", "y"]
    assert table.train.texts.all() == folder.train.texts.all()
    assert isinstance(data.load("wordnet-graph"), NodeData)


def test_a_trained_model_is_no_data(tmp_path: Path) -> None:
    """The folder of a run or an export: one line that names what opens it."""
    for name in ("model.json", "settings.json", "export.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(InputError, match=r"got a trained model; open it with shoal\.open"):
            data.load(tmp_path / name)


def test_no_option_is_accepted_and_ignored(tmp_path: Path) -> None:
    """Columns are of tables: any other source refuses them."""
    (tmp_path / "a.txt").write_text("0\ttea\n")
    for source in ("wordnet", "wordnet-graph", str(tmp_path / "a.txt"), (["a"], ["b"])):
        with pytest.raises(
            InputError, match=r"a table, whose columns .*; leave out text, separator"
        ):
            data.load(source, text_column="x", separator=",")


def test_what_is_no_source_is_named() -> None:
    """Numbers, lists, names that no file system takes; and a graph where labels are needed."""
    for source in (7, ["a", "b"], None):
        with pytest.raises(InputError, match=r"source: expected a name, a path, \(texts, labels"):
            data.load(source)
    with pytest.raises(InputError, match="File name too long"):
        data.load(Path("x" * 300))
    with pytest.raises(InputError, match="wordnet-graph: expected texts with labels, got a graph"):
        data.load_labels("wordnet-graph")


def test_unknown_sources_list_what_is_possible(tmp_path: Path) -> None:
    """A name that is none, and a file of another kind: the three possibilities are listed."""
    (tmp_path / "t.pdf").write_text("")
    for source, got in (("wordnets", "no such file"), (str(tmp_path / "t.pdf"), "another kind")):
        with pytest.raises(InputError, match=f'"wordnet", a file ending in .csv, .*got {got}'):
            data.load(source)


def test_importing_the_package_is_light() -> None:
    """`import shoal.data` brings no torch."""
    code = "import sys, shoal.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_wordnet_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second import of the module runs where reading any file is an error."""
    from shoal.data import wordnet

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    assert wordnet.__file__ is not None
    # not by the loader, whose cached bytecode would be that of the checked module
    code = compile(Path(wordnet.__file__).read_bytes(), wordnet.__file__, "exec")
    monkeypatch.setattr("shoal.data.lines._open", refuse)
    with pytest.raises(AssertionError, match="a file was read"):
        wordnet.read()
    monkeypatch.setattr(Path, "open", refuse)
    exec(code, {"__name__": "shoal.data.wordnet", "__file__": wordnet.__file__})
