"""Tables: three formats read alike, columns can be chosen, bad rows are named by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError
from shoal.data import load_labels
from shoal.data.formats import table
from shoal.data.texts import LabelData

ROWS = [(f"text {i}, with a comma", [f"b {i % 3}", "a;c"][: 1 + i % 2]) for i in range(20)]


def write(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    """The same rows in the format that the suffix names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "labels": x}) + "\n" for t, x in rows))
    elif path.suffix == ".tsv":
        path.write_text("text\tlabels\n" + "".join(f"{t}\t{'|'.join(x)}\n" for t, x in rows))
    else:
        path.write_text("text,labels\n" + "".join(f'"{t}",{"|".join(x)}\n' for t, x in rows))
    return path


def pairs(data: LabelData) -> set[tuple[str, tuple[str, ...]]]:
    """What both parts say, as text and label names."""
    names = data.labels.titles
    found = set()
    for points in (data.train, data.test):
        for i in range(len(points)):
            ids = points.labels.take(torch.tensor([i]))[0].tolist()
            found.add((points.texts.text(i), tuple(names[j] for j in ids)))
    return found


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_all_formats_say_the_same(tmp_path: Path, suffix: str) -> None:
    """Every row arrives once with its labels, sorted; all of them in one part."""
    data = table.read(write(tmp_path / f"t{suffix}", ROWS))
    assert pairs(data) == {(text, tuple(sorted(labels))) for text, labels in ROWS}
    assert (len(data.train), len(data.test), data.name) == (20, 0, "t")
    assert not data.own_split and pairs(load_labels(tmp_path / f"t{suffix}")) == pairs(data)
    assert data.labels.titles == ["a;c", "b 0", "b 1", "b 2"]


def test_a_table_that_grew_keeps_its_test_rows(tmp_path: Path) -> None:
    """Rows added, sorted and corrected: what was tested before is tested, the rest trains."""
    before = load_labels(write(tmp_path / "t.csv", ROWS))
    more = [(f"new {i}", ["b 1"]) for i in range(30)]
    corrected = [(text, ["b 2"]) for text, _ in ROWS]
    after = load_labels(write(tmp_path / "t.csv", [*more, *reversed(corrected)]))
    assert 0 < len(before.test) < 10
    assert set(before.test.texts.titles) <= set(after.test.texts.titles)
    assert set(before.train.texts.titles) <= set(after.train.texts.titles)
    assert set(before.train.texts.uids + before.test.texts.uids) == {str(i) for i in range(2, 22)}


def test_split_column_is_obeyed(tmp_path: Path) -> None:
    """Rows go where the column says, in the file's order."""
    path = tmp_path / "t.jsonl"
    rows = [{"text": f"t{i}", "labels": "x", "split": ["train", "test"][i % 2]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = table.read(path)
    assert data.train.texts.titles == ["t0", "t2", "t4"]
    assert data.test.texts.titles == ["t1", "t3", "t5"] and data.own_split
    path.write_text(path.read_text().replace("train", "test"))
    assert len(table.read(path).test) == 6 and len(table.read(path).train) == 0


def test_quotes_line_breaks_names_and_separators(tmp_path: Path) -> None:
    """CSV cells may hold line breaks; TSV quotes are text; columns and separator are arguments."""
    path = tmp_path / "t.csv"
    path.write_text('x,body,tags\n1,"two\nlines","a, b ,a"\n\n2,one,b\n')
    columns = {"text_column": "body", "labels_column": "tags", "separator": ","}
    data = load_labels(path, **columns)
    assert pairs(data) == {("two\nlines", ("a", "b")), ("one", ("b",))}
    assert sorted(data.train.texts.uids + data.test.texts.uids) == ["2", "5"]
    path = tmp_path / "t.tsv"
    path.write_text('text\tlabels\nsay "hi\tx\n"\tx\n')
    assert pairs(table.read(path)) == {('say "hi', ("x",)), ('"', ("x",))}


GOOD = "text,labels\ngood,x\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "words,labels\ngood,x\n",
            r":1: expected a column 'text', got columns words,",
        ),
        ("a.csv", "", r"a\.csv: expected at least one row"),
        ("a.csv", "text,labels\n", r"a\.csv: expected at least one row"),
        (
            "a.csv",
            "text,labels,text\na,b,c\n",
            r":1: expected each column once, got two called",
        ),
        ("a.csv", GOOD + " ,x\n", r":3: expected a text in 'text', got ' '"),
        (
            "a.csv",
            GOOD + "t,\n",
            r":3: expected labels in 'labels', strings with '\|' .*got ''",
        ),
        ("a.csv", GOOD + "t, | \n", r":3: expected labels"),
        ("a.csv", GOOD + "t,x,y\n", r":3: expected 2 cells, as the first line has, got 3"),
        ("a.csv", GOOD + '"t,x\n', r":3: expected well-formed CSV"),
        ("a.csv", "text,labels,split\nt,x,train\nt,x,dev\n", r":3: expected 'train' or 'test'"),
        ("a.tsv", "text\tlabels\nt\tx\nt\n", r":3: expected 2 cells"),
        ("a.jsonl", '{"text": "t", "labels": "x"}\n{"text"\n', r":2: expected a JSON object"),
        ("a.jsonl", "[1]\n", r":1: expected a JSON object, got '\[1\]'"),
        ("a.jsonl", '{"text": "t", "labels": []}\n', r":1: expected labels"),
        ("a.jsonl", '{"text": "t", "labels": [3.5]}\n', r":1: expected labels"),
        ("a.jsonl", '{"text": "t", "labels": null}\n', r":1: expected labels"),
        ("a.jsonl", '{"text": null, "labels": "x"}\n', r":1: expected a text"),
        ("a.txt", GOOD, r"a\.txt: expected a suffix of \.csv, \.tsv, \.jsonl"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """Each kind of bad row: one line that names file and line, expected and got."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        table.read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_some_rows_with_a_split_are_refused(tmp_path: Path) -> None:
    """`split` stands in every row or in none: the first that lacks it is named."""
    rows = [{"text": "t", "labels": "x", "split": "test"}, {"text": "t", "labels": "x"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"a\.jsonl:2: expected a split in every row or in none"):
        table.read(tmp_path / "a.jsonl")


def test_encoding_is_an_argument(tmp_path: Path) -> None:
    """latin-1 is refused with its line, and read on request."""
    path = tmp_path / "a.csv"
    path.write_bytes("text,labels\nté,x\nt,y\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.csv:2: expected utf-8"):
        table.read(path)
    assert ("té", ("x",)) in pairs(table.read(path, encoding="latin-1"))


SHOP = "title,description,category,part\nMug,red;holds tea,cups;kitchen,test\nTea,,drinks,train\n"
CHOSEN = {
    "text_column": "description",
    "title_column": "title",
    "labels_column": "category",
    "separator": ";",
    "split_column": "part",
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_columns_are_chosen_in_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    """Text, title, labels, split and separator: the same options read the same everywhere."""
    header, *rows = [line.split(",") for line in SHOP.splitlines()]
    records = [dict(zip(header, row, strict=True)) for row in rows]
    path = tmp_path / f"shop{suffix}"
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(records), path)
    else:
        text = "".join(json.dumps(x) + "\n" for x in records) if "jsonl" in suffix else SHOP
        raw = (text.replace(",", "\t") if suffix == ".tsv" else text).encode()
        path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    data = load_labels(path, **CHOSEN)
    assert data.name == "shop" and data.labels.titles == ["cups", "drinks", "kitchen"]
    assert (data.test.texts.titles, data.test.texts.contents) == (["Mug"], ["red;holds tea"])
    assert (data.train.texts.titles, data.train.texts.contents) == (["Tea"], [""])
    assert data.own_split
    one = load_labels(path, **CHOSEN | {"separator": ""})
    assert one.labels.titles == ["cups;kitchen", "drinks"]


def test_a_missing_column_names_the_option_that_mends_it(tmp_path: Path) -> None:
    """The message says which option; with it, the table reads."""
    (tmp_path / "shop.csv").write_text(SHOP)
    chosen: dict[str, str] = {}
    for option in ("text_column", "labels_column"):
        with pytest.raises(
            InputError, match=rf"shop\.csv:1: expected a column .*pass {option} \(--"
        ):
            load_labels(tmp_path / "shop.csv", **chosen)
        chosen[option] = "title" if option == "text_column" else "category"
    assert len(load_labels(tmp_path / "shop.csv", **chosen).labels) == 2
    with pytest.raises(InputError, match=r"a column 'x', got columns title.*pass split_column"):
        load_labels(tmp_path / "shop.csv", split_column="x", **chosen)


def test_one_row_trains_and_nothing_is_tested(tmp_path: Path) -> None:
    """One example, one label: a data set without a test part."""
    (tmp_path / "one.csv").write_text("text,labels\ntea,drink\n")
    data = load_labels(tmp_path / "one.csv")
    assert (len(data.train), len(data.test), data.labels.titles) == (1, 0, ["drink"])


def test_what_tables_of_others_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Columns that are not read are named; the mark that most stand between separates; remedies."""
    (tmp_path / "a.jsonl").write_text(
        '{"text": "mug", "labels": "3", "weight": 2}\n{"text": "tea", "labels": ["1"]}\n'
    )
    assert load_labels(tmp_path / "a.jsonl", test=0).labels.titles == ["1", "3"]
    assert "a.jsonl: not read: column weight" in caplog.text
    (tmp_path / "b.csv").write_text('text;labels;"price, net"\nmug;cup;1,5\n')
    assert load_labels(tmp_path / "b.csv", test=0).train.texts.all() == ["mug"]
    (tmp_path / "c.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="save it as CSV in the program"):
        load_labels(tmp_path / "c.xlsx")
    with pytest.raises(InputError, match="got an address; download it and pass the file"):
        load_labels("https://example.org/a.csv")


def test_numbers_of_classes_are_names_in_every_table(tmp_path: Path) -> None:
    """CSV cannot tell 1 from "1": JSON, alone or in a list, reads the same labels."""
    (tmp_path / "t.csv").write_text("text,labels\nred mug,1|12\ntea,2\n")
    rows = [{"text": "red mug", "labels": [1, 12]}, {"text": "tea", "labels": 2}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = (table.read(tmp_path / name) for name in ("t.csv", "t.jsonl"))
    assert one.labels.titles == other.labels.titles == ["1", "12", "2"]
    assert one.train.labels.indices.tolist() == other.train.labels.indices.tolist()


def test_a_place_for_each_label_is_no_list_of_labels(tmp_path: Path) -> None:
    """[0, 1, 0] says which labels are true: as names it would be 0 and 1 in every row."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "labels": [0, 1]}\n{"text": "b", "labels": [0, 1, 0]}\n')
    with pytest.raises(InputError, match=r"t.jsonl:2: expected each label once, got '\[0, 1, 0\]'"):
        load_labels(path)
