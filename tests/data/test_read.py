"""What is read to predict for, and frames in memory: stand-ins for pandas and datasets."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from shoal.core.errors import InputError
from shoal.data import load_labels
from shoal.data.cells import Columns
from shoal.data.formats import FORMATS
from shoal.data.read import read_texts_to_predict
from tests.data.made import SUFFIX, make_data

LINES = "red mug, holds tea\n\n green tea \n"


class Frame:
    """The part of a pandas DataFrame that is read: `columns`, and arrays by name."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = list(columns)
        self.cells = columns

    def __getitem__(self, name: str) -> np.ndarray:
        made = np.empty(len(self.cells[name]), dtype=object)
        made[:] = self.cells[name]
        return made


class Dataset(Frame):
    """The part of a datasets.Dataset that is read: `column_names`, lists, and named classes."""

    def __init__(self, features: dict[str, Any], **columns: list[Any]) -> None:
        super().__init__(**columns)
        self.column_names = self.columns
        del self.columns
        self.features = features

    def __getitem__(self, name: str) -> list[Any]:
        return self.cells[name]


def test_lines_of_text(tmp_path: Path) -> None:
    """A .txt, packed or not: one text per line, blank ones too, outer spaces gone."""
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    for name in ("a.txt", "b.txt.gz"):
        texts = read_texts_to_predict(tmp_path / name)
        assert texts.titles == ["red mug, holds tea", "", "green tea"]
    (tmp_path / "a.txt").write_bytes(b"tea\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"a\.txt:2: expected utf-8"):
        read_texts_to_predict(tmp_path / "a.txt")
    assert read_texts_to_predict(tmp_path / "a.txt", encoding="latin-1").titles[1] == "café"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz"])
def test_tables_by_their_text_alone(tmp_path: Path, name: str) -> None:
    """The text column in the file's order, whatever the labels hold; title and content apart."""
    rows = {
        ".csv": 'body,head,labels\n"red, mug",cup,\ntea,,x\n',
        ".tsv": "body\thead\tlabels\nred, mug\tcup\t\ntea\t\tx\n",
        ".jsonl": '{"body": "red, mug", "head": "cup"}\n{"body": "tea", "head": null}\n',
    }[Path(name.removesuffix(".gz")).suffix]
    raw = rows.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    texts = read_texts_to_predict(tmp_path / name, Columns(text="body", title="head"))
    assert (texts.titles, texts.contents) == (["cup", ""], ["red, mug", "tea"])
    assert read_texts_to_predict(tmp_path / name, Columns(text="body")).titles == [
        "red, mug",
        "tea",
    ]
    with pytest.raises(InputError, match=r"expected a column 'text'.*pass text_column"):
        read_texts_to_predict(tmp_path / name)


def test_empty_texts_keep_their_place(tmp_path: Path) -> None:
    """One prediction per row: an empty cell is a text, too; one that is no text is refused."""
    (tmp_path / "a.csv").write_text("text,labels\nmug,x\n,y\n")
    assert read_texts_to_predict(tmp_path / "a.csv").titles == ["mug", ""]


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    """Half of a surrogate pair, nesting without end, a number as text: file and line."""
    for line, want in (
        ('{"text": "\\ud800"}', "a JSON object"),
        ("[" * 100_000, "a JSON object"),
        ('{"text": 3}', "a text in 'text'"),
    ):
        (tmp_path / "a.jsonl").write_text('{"text": "tea"}\n' + line + "\n")
        with pytest.raises(InputError, match=rf"a\.jsonl:2: expected {want}"):
            read_texts_to_predict(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_its_texts(tmp_path: Path, name: str) -> None:
    """A folder gives its test split; a table all of its rows, features their own."""
    path = tmp_path / f"a{SUFFIX[name]}"
    FORMATS[name].write(make_data(featured=name == "bow"), path)
    data, texts = load_labels(path), read_texts_to_predict(path)
    rows = data.train.texts.all() if SUFFIX[name] else []
    assert texts.all() == rows + data.test.texts.all()
    assert (texts.features is None) == (name != "bow")


def test_single_files_give_all_rows(tmp_path: Path) -> None:
    """Files of annif, text2text and bag of words, an .npz of features, XC's JSON lines."""
    (tmp_path / "a.tsv").write_text("red mug\t<x:1>\ntea\t<x:2>\n")
    (tmp_path / "b.txt").write_text("0,2\tred mug\n1::0.5\ttea\n")
    for name in ("a.tsv", "b.txt"):
        assert read_texts_to_predict(tmp_path / name).titles == ["red mug", "tea"]
    (tmp_path / "c.txt").write_text("2 5 3\n0,2 1:0.5 4:1.2\n 3:0.7\n")
    scipy.sparse.save_npz(
        tmp_path / "d.npz", scipy.sparse.csr_matrix([[0, 1, 0, 0, 2], [0, 0, 0, 3, 0]])
    )
    np.save(tmp_path / "f.npy", np.array([[0, 1, 0, 0, 2], [0, 0, 0, 3, 0]], dtype=np.float16))
    for name in ("c.txt", "d.npz", "f.npy"):
        texts = read_texts_to_predict(tmp_path / name)
        assert texts.spelled().titles == ["f1 f4", "f3"] and texts.titles == ["", ""]
    (tmp_path / "e.json").write_text('{"uid": "B0", "title": "mug", "content": "red"}\n')
    texts = read_texts_to_predict(tmp_path / "e.json")
    assert (texts.uids, texts.titles, texts.contents) == (["B0"], ["mug"], ["red"])


def test_texts_in_memory() -> None:
    """A list, and a frame by its text column."""
    assert read_texts_to_predict(["a", "b"]).titles == ["a", "b"]
    assert read_texts_to_predict(Frame(text=["a", "b"])).titles == ["a", "b"]
    with pytest.raises(InputError, match="wordnet-graph: expected texts, got a graph"):
        read_texts_to_predict("wordnet-graph")
    with pytest.raises(InputError, match="leave out text"):
        read_texts_to_predict(["a"], Columns(text="a"))


def test_a_frame_is_a_table() -> None:
    """Columns, separator, lists in cells, a split, missing titles: as in a file."""
    labels = ["cups;kitchen", ["drinks"], np.array(["cups"], dtype=object)]
    frame = Frame(
        text=["red mug", "tea", "cup"],
        head=["Mug", None, float("nan")],
        labels=labels,
        split=["train", "test", "train"],
    )
    data = load_labels(frame, title_column="head", separator=";")
    assert data.labels.titles == ["cups", "drinks", "kitchen"] and data.own_split
    assert (data.train.texts.titles, data.test.texts.contents) == (["Mug", ""], ["tea"])
    with pytest.raises(InputError, match="row 1: expected a text in 'text', got 'None'"):
        load_labels(Frame(text=["a", None], labels=["x", "y"]))
    with pytest.raises(InputError, match="columns: expected a column 'labels', got columns text;"):
        load_labels(Frame(text=["a"]))
    with pytest.raises(InputError, match="data in memory: expected at least one row"):
        load_labels(Frame(text=[], labels=[]))
    with pytest.raises(InputError, match=r"row 0: expected labels in 'labels'.*got '3.5'"):
        load_labels(Frame(text=["a"], labels=[3.5]))


def test_a_dataset_names_its_classes() -> None:
    """Numbers of a ClassLabel, alone or in lists, become names; -1 is a row without a label."""
    classes = SimpleNamespace(names=["cup", "drink"])
    one = Dataset({"labels": classes}, text=["mug", "tea"], labels=[0, 1])
    many = Dataset(
        {"labels": SimpleNamespace(feature=classes)}, text=["mug", "tea"], labels=[[0, 1], [1]]
    )
    assert load_labels(one).labels.titles == load_labels(many).labels.titles == ["cup", "drink"]
    unknown = Dataset({"labels": classes}, text=["mug"], labels=[-1])
    with pytest.raises(InputError, match="row 0: expected labels in 'labels'"):
        load_labels(unknown)


def test_pandas_itself() -> None:
    """A real frame, its columns and an indicator matrix, where pandas is installed."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["red mug", "tea", "cup"], "labels": ["a|b", "c", "a"]})
    data = load_labels(frame)
    assert data.labels.titles == ["a", "b", "c"] and len(data.train) + len(data.test) == 3
    pair = load_labels((frame["text"], frame["labels"]))
    assert pair.labels.titles == ["a", "a|b", "c"]
    matrix = pandas.DataFrame({"x": [1, 0, 1], "y": [0, 1, 0]})
    indicators = load_labels((frame["text"], matrix))
    assert indicators.labels.titles == ["x", "y"]
    frame.loc[1, "text"] = None
    with pytest.raises(InputError, match=r"row 1: expected a text|texts\[1\]: expected a string"):
        load_labels(frame)
