"""table: three formats read alike, the split is seeded or told, bad rows are named by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError
from shoal.data import table
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
    """Every row arrives once with its labels, sorted; a fifth of them in the test part."""
    data = table.read(write(tmp_path / f"t{suffix}", ROWS))
    assert pairs(data) == {(text, tuple(sorted(labels))) for text, labels in ROWS}
    assert (len(data.train), len(data.test), data.name) == (16, 4, "t")
    assert data.labels.titles == ["a;c", "b 0", "b 1", "b 2"]


def test_split_is_seeded(tmp_path: Path) -> None:
    """The seed alone decides; fraction sets the size; uids are line numbers."""
    path = write(tmp_path / "t.csv", ROWS)
    first, again, other = (table.read(path, seed=seed).test.texts.uids for seed in (0, 0, 1))
    assert first == again != other
    assert len(table.read(path, fraction=0.5).test) == 10
    data = table.read(path)
    uids = sorted(int(x) for x in data.train.texts.uids + data.test.texts.uids)
    assert uids == list(range(2, 22))


def test_split_column_is_obeyed(tmp_path: Path) -> None:
    """Rows go where the column says, in the file's order."""
    path = tmp_path / "t.jsonl"
    rows = [{"text": f"t{i}", "labels": ["x"], "split": ["train", "test"][i % 2]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = table.read(path)
    assert data.train.texts.titles == ["t0", "t2", "t4"]
    assert data.test.texts.titles == ["t1", "t3", "t5"]


def test_quotes_line_breaks_names_and_separators(tmp_path: Path) -> None:
    """CSV cells may hold line breaks; TSV quotes are text; columns and separator are arguments."""
    path = tmp_path / "t.csv"
    path.write_text('x,body,tags\n1,"two\nlines","a, b ,a"\n\n2,one,b\n')
    data = table.read(path, text="body", labels="tags", separator=",", fraction=0.5)
    assert pairs(data) == {("two\nlines", ("a", "b")), ("one", ("b",))}
    assert sorted(data.train.texts.uids + data.test.texts.uids) == ["2", "5"]
    path = tmp_path / "t.tsv"
    path.write_text('text\tlabels\nsay "hi\tx\n"\tx\n')
    assert pairs(table.read(path)) == {('say "hi', ("x",)), ('"', ("x",))}


GOOD = "text,labels\ngood,x\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "words,labels\ngood,x\n", r":2: expected a column 'text', got columns words"),
        ("a.csv", "", r"a\.csv: expected at least 2 rows"),
        ("a.csv", GOOD, r"a\.csv: expected at least 2 rows"),
        ("a.csv", GOOD + " ,x\n", r":3: expected a text in 'text', got ' '"),
        ("a.csv", GOOD + "t,\n", r":3: expected labels in 'labels' with '\|' between them, got ''"),
        ("a.csv", GOOD + "t, | \n", r":3: expected labels"),
        ("a.csv", GOOD + "t,x,y\n", r":3: expected 2 cells, as the first line has, got 3"),
        ("a.csv", GOOD + '"t,x\n', r":3: expected well-formed CSV"),
        ("a.csv", "text,labels,split\nt,x,train\nt,x,dev\n", r":3: expected 'train' or 'test'"),
        ("a.csv", "text,labels,split\nt,x,train\nt,x,train\n", r"'train' and 'test' rows"),
        ("a.tsv", "text\tlabels\nt\tx\nt\n", r":3: expected 2 cells"),
        ("a.jsonl", '{"text": "t", "labels": "x"}\n{"text"\n', r":2: expected a JSON object"),
        ("a.jsonl", "[1]\n", r":1: expected a JSON object, got '\[1\]'"),
        ("a.jsonl", '{"text": "t", "labels": []}\n', r":1: expected labels"),
        ("a.jsonl", '{"text": "t", "labels": [3]}\n', r":1: expected labels"),
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
    with pytest.raises(InputError, match=r"a\.jsonl:2: expected a 'split' in every row"):
        table.read(tmp_path / "a.jsonl")


def test_encoding_is_an_argument(tmp_path: Path) -> None:
    """latin-1 is refused with its line, and read on request."""
    path = tmp_path / "a.csv"
    path.write_bytes("text,labels\nté,x\nt,y\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.csv:2: expected utf-8"):
        table.read(path)
    assert ("té", ("x",)) in pairs(table.read(path, encoding="latin-1"))
