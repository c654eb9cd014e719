"""formats: what is written reads back in every format, and what a format cannot hold is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings

import shoal
from shoal.cli.main import main
from shoal.core.errors import InputError
from shoal.data import load
from shoal.data.formats import FORMATS, convert, npz, xc
from shoal.data.formats.registry import text_format
from shoal.data.lines import lines
from shoal.data.reduce import reduce
from shoal.data.texts import LabelData, label_data, names_of
from tests.data.made import SUFFIX, Drawn, assert_same, drawn, make_data


def can_hold(name: str, data: LabelData) -> bool:
    """Whether the format takes such data at all: the refusals, each of which has its own test."""
    if name == "bow":
        return data.train.texts.features is not None
    if SUFFIX[name]:
        left, _ = reduce(data, FORMATS[name].steps)
        return len(left.train) > 0 and len(left.test) > 0
    return True


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=5)
@given(raw=drawn())
def test_read_write_is_reduce(name: str, raw: Drawn) -> None:
    """read(write(data)) == reduce(data), which loses nothing when it is done once more."""
    data = raw.build()
    if not can_hold(name, data):
        return
    left, lost = reduce(data, FORMATS[name].steps)
    with TemporaryDirectory() as folder:
        path = Path(folder, f"tiny{SUFFIX[name]}")
        assert FORMATS[name].write(data, path) == lost
        again = FORMATS[name].read(path, "utf-8")
    assert_same(left, again)
    once_more, lost_again = reduce(again, FORMATS[name].steps)
    assert lost_again == []
    assert_same(again, once_more)
    if not lost:
        assert_same(data, again)


@pytest.mark.parametrize("featured", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_found_by_its_files(tmp_path: Path, name: str, featured: bool) -> None:
    """load() takes what convert wrote for what it is, and gives what the format's reader gives."""
    data = make_data(relevance=True, featured=featured)
    if not can_hold(name, data):
        return
    xc.write(data, tmp_path / "source")
    out = tmp_path / f"tiny{SUFFIX[name]}"
    done = convert(str(tmp_path / "source"), out, name)
    assert_same(load(out), reduce(data, FORMATS[name].steps)[0])
    assert (done["train"], done["test"], done["labels"]) == (7, 5, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", out.name])


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("xc", []),
        (
            "npz",
            ["layout.*of 9 examples", "layout.*of 5 labels", "uids of 12 e", "uids of 6 labels"],
        ),
        ("beir", ["title and content apart of 5 examples", "filter pairs"]),
        (
            "csv",
            [
                "layout.*of 9 examples",
                "relevances of",
                "filter pairs",
                "3 examples without",
                "as names",
            ],
        ),
    ],
)
def test_losses_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, lost: list[str]
) -> None:
    """One line on standard error for each thing that the format cannot hold, with its count."""
    xc.write(make_data(relevance=True), tmp_path / "source")
    done = convert(str(tmp_path / "source"), tmp_path / f"t{SUFFIX[name]}", name)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"shoal: {name} cannot hold {what}" for what in done["lost"]]
    assert len(said) == len(lost)
    assert all(re.search(a, b) for a, b in zip(lost, said, strict=True))


@pytest.mark.parametrize(
    ("out", "name", "message"),
    [
        ("t.csv", "tsv", r"out: expected a name that ends in \.tsv, got .*t\.csv"),
        ("t", "csv", r"out: expected a name that ends in \.csv"),
        ("t.csv", "xc", "out: expected the name of a folder"),
        ("source", "npz", "source: expected nothing there yet"),
        ("source/lbl.json.gz/x", "npz", "x: expected a place that can be written"),
        ("new", "bow", "train examples: expected features, got texts"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, out: str, name: str, message: str
) -> None:
    """A wrong name, a taken one, a format for other data: one line, and no file."""
    xc.write(make_data(), tmp_path / "source")
    with pytest.raises(InputError, match=message) as caught:
        convert(str(tmp_path / "source"), tmp_path / out, name)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_table_needs_examples_in_both_splits(tmp_path: Path) -> None:
    """No test example with text and labels: a table's writer refuses what would read otherwise."""
    data = make_data()
    nobody = data.test.subset(torch.tensor([0]))
    with pytest.raises(InputError, match="test examples: expected some with text and labels"):
        FORMATS["csv"].write(LabelData("x", data.train, nobody, data.labels), tmp_path / "t.csv")


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    """A lone surrogate, which Python's strings can hold and UTF-8 cannot, names the file."""
    data = make_data()
    data.labels.titles[0] = "\ud800"
    with pytest.raises(InputError, match=r"Y\.txt: expected texts of whole characters"):
        npz.write(data, tmp_path)


def test_latin_1_is_converted(tmp_path: Path) -> None:
    """convert reads old bytes when told to, and writes UTF-8."""
    path = tmp_path / "t.tsv"
    path.write_bytes("text\tlabels\nté\tx\nt\tý\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.tsv:2: expected utf-8.*--encoding windows-1252"):
        convert(str(path), tmp_path / "t.jsonl", "jsonl")
    convert(str(path), tmp_path / "t.jsonl", "jsonl", "latin-1")
    data = load(tmp_path / "t.jsonl")
    assert sorted(data.train.texts.titles + data.test.texts.titles) == ["t", "té"]
    with pytest.raises(InputError, match="encoding: expected a text encoding"):
        load(path, encoding="klingon")


@pytest.fixture
def poems() -> Iterator[None]:
    """A format of a user's own, in one place: a text and its label, with a slash between them."""

    def read(path: Path, encoding: str) -> LabelData:
        rows = [line.split(" / ") for _, line in lines(path, encoding)]
        texts, names = zip(*rows, strict=True)
        return replace(label_data(texts, names), name=path.stem)

    @text_format("poems", read, suffixes=(".poems",), steps=(*FORMATS["csv"].steps,))
    def write(data: LabelData, path: Path) -> None:
        for split in (data.train, data.test):
            rows = names_of(split.labels, data.labels.titles)
            pairs = zip(split.texts.all(), rows, strict=True)
            with path.open("a") as file:
                file.writelines(f"{text} / {row[0]}\n" for text, row in pairs)

    yield
    del FORMATS["poems"]


@pytest.mark.usefixtures("poems")
def test_a_format_is_added_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` reads it, `shoal convert` reads and writes it, an error lists it."""
    (tmp_path / "sea.poems").write_text("the sea / blue\na rose / red\n")
    data = shoal.load(tmp_path / "sea.poems")
    assert data.name == "sea" and data.labels.titles == ["blue", "red"]
    for source, out, to in (("sea.poems", "sea.csv", "csv"), ("sea.csv", "again.poems", "poems")):
        words = ["convert", str(tmp_path / source), str(tmp_path / out), "--to", to, "--json"]
        monkeypatch.setattr("sys.argv", ["shoal", *words])
        with pytest.raises(SystemExit, match="0"):
            main()
    again = shoal.load(tmp_path / "again.poems")
    assert sorted(again.train.texts.all() + again.test.texts.all()) == ["a rose", "the sea"]
    with pytest.raises(InputError, match=r"ending in .*\.poems"):
        load(tmp_path / "x.pdf")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """--to of no format: the known ones are listed."""
    with pytest.raises(InputError, match=r"to: expected one of annif, attentionxml.*, got xml"):
        convert("wordnet", tmp_path / "out", "xml")
    with pytest.raises(InputError, match="expected texts with labels, got a graph"):
        convert("wordnet-graph", tmp_path / "out", "xc")


@pytest.fixture(scope="module")
def wordnet() -> LabelData:
    """The shipped data, read once."""
    return load("wordnet")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "bow"])
def test_wordnet_in_every_format(tmp_path: Path, wordnet: LabelData, name: str) -> None:
    """Two hundred thousand texts go there and come back."""
    data = wordnet
    out = tmp_path / f"wordnet{SUFFIX[name]}"
    left, lost = reduce(data, FORMATS[name].steps)
    assert FORMATS[name].write(data, out) == lost
    again = load(out)
    for one, other in ((left.train, again.train), (left.test, again.test)):
        assert one.texts.titles == other.texts.titles and one.texts.uids == other.texts.uids
        assert torch.equal(one.labels.indices, other.labels.indices)
        assert torch.equal(one.drop.indices, other.drop.indices)
    assert left.labels.titles == again.labels.titles


@pytest.mark.parametrize("held", ["test.txt", "valid.txt"])
def test_fasttext_is_read_by_its_marks(tmp_path: Path, held: str) -> None:
    """One file, tabs too, or two in a folder; a mark within the text stays in it."""
    (tmp_path / "train.txt").write_text("__label__cup __label__red red mug\n__label__tea\ttea\n")
    one = FORMATS["fasttext"].read(tmp_path / "train.txt")
    assert one.labels.titles == ["cup", "red", "tea"]
    assert one.train.texts.titles == ["red mug", "tea"]
    assert len(load(tmp_path / "train.txt").labels) == 3
    (tmp_path / held).write_text("__label__tea a __label__ b\n")
    both = load(tmp_path)
    assert both.test.texts.titles == ["a __label__ b"] and both.own_split
    assert list(names_of(both.test.labels, both.labels.titles)) == [["tea"]]
