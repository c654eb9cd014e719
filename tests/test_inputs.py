"""Tables and texts are read as meant, or refused in one line; what means less says so.

Inputs as people have them, through the command: each test is one kind of fault
(docs/results/faults.md), each line of its table one input of that kind.
"""

from __future__ import annotations

import gzip
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import shoal as library
from shoal.cli.main import VERBS
from shoal.core.errors import InputError
from shoal.data import load_labels
from shoal.data.nodes import tf_idf
from shoal.data.texts import Texts, as_texts
from shoal.text.vocabulary import learn
from tests.command import ONE_LINE, result, shoal

WORDS = ("red", "blue", "old", "new", "big", "small", "plain", "fine")
THINGS = ("mug", "hat", "shoe", "lamp", "chair")
SHORT = "--steps 4 --batch-size 16 --cluster-size 4 --dim 8".split()


def rows(n: int = 60) -> list[tuple[str, list[str]]]:
    """Texts that differ, with one or two labels of ten."""
    found = []
    for i in range(n):
        thing, word = THINGS[i % 5], WORDS[i % 8]
        found.append((f"{word} {thing} number {i}", [f"{thing}s", word][: 1 + i % 2]))
    return found


def table(path: Path, what: list[tuple[str, list[str]]], between: str = "|") -> Path:
    """A CSV of texts and labels."""
    lines = (f'"{text}","{between.join(labels)}"\n' for text, labels in what)
    path.write_text("text,labels\n" + "".join(lines))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a run of four steps on it whose scores are cosines."""
    folder = tmp_path_factory.mktemp("inputs")
    table(folder / "t.csv", rows())
    words = ["train", "labels", folder / "t.csv", *SHORT, "--rank", "encoder"]
    result(*words, "--out", folder / "run")
    return folder


# -- A1: the split is the run's -------------------------------------------------------------------


def test_a1_rows_that_were_trained_on_are_never_judged(world: Path, tmp_path: Path) -> None:
    """The table grows, is sorted, shrinks, is corrected: what was trained on is not in the test."""
    run, own = world / "run", world / "t.csv"
    before = result("evaluate", run)
    model, text = library.open(run), own.read_text()
    wrong = [(text, ["hats"]) for text, _ in rows()]
    changes = {
        "grown": ([*rows(), ("a new cup", ["hats"])], 1),
        "sorted": (sorted(rows()), 0),
        "corrected": (wrong, 0),
    }
    try:
        for name, (changed, more) in changes.items():
            table(own, changed)
            found = shoal("evaluate", run, "--json")
            assert json.loads(found.out)["examples"] in (before["examples"], before["examples"] + 1)
            assert ("t has changed since the run was trained" in found.err) <= bool(more), name
            test = model.test_examples(load_labels(own))
            trained = {x for x, _ in rows()} - {x for x in load_labels(own).test.texts.all()}
            assert not trained & set(test.texts.all())
        table(own, rows()[:40])
        assert "training examples: 0 new" in shoal("evaluate", run).err
    finally:
        own.write_text(text)
    assert result("evaluate", run) == before


# -- A2: all rows of a named file -----------------------------------------------------------------


def test_a2_all_rows_of_a_named_file_are_judged(world: Path, tmp_path: Path) -> None:
    """Also one that says test in every row, and one in which a label never occurs."""
    run, others = world / "run", [(f"{text} again", labels) for text, labels in rows(20)]
    plain = table(tmp_path / "plain.csv", others)
    lines = plain.read_text().splitlines()
    (tmp_path / "test.csv").write_text(
        "\n".join([lines[0] + ",split", *(line + ",test" for line in lines[1:])]) + "\n"
    )
    found = [result("evaluate", run, "--source", tmp_path / x) for x in ("plain.csv", "test.csv")]
    assert [x["examples"] for x in found] == [20, 20] and found[0]["test"] == pytest.approx(
        found[1]["test"]
    )
    out = tmp_path / "kept.jsonl"
    result("evaluate", run, "--source", plain, "--out", out, "--k", 2)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(x["text"], sorted(x["truth"])) for x in kept] == [(t, sorted(y)) for t, y in others]
    assert all(len(x["labels"]) == 2 for x in kept)


def test_a2_labels_are_matched_by_text_where_names_are_numbers(tmp_path: Path) -> None:
    """A folder with its labels in another order has the same metrics."""
    texts, names = [text for text, _ in rows()], sorted({x for _, y in rows() for x in y})
    dense = np.array([[name in labels for name in names] for _, labels in rows()])
    for folder, order in (("a", range(len(names))), ("b", range(len(names) - 1, -1, -1))):
        (tmp_path / folder).mkdir()
        lines = "\n".join(names[i] for i in order) + "\n"
        (tmp_path / folder / "Y.txt").write_text(lines)
        for part, cut in (("trn", slice(0, 40)), ("tst", slice(40, 60))):
            (tmp_path / folder / f"X.{part}.txt").write_text("\n".join(texts[cut]) + "\n")
            matrix = scipy.sparse.csr_matrix(dense[cut][:, list(order)].astype(np.float32))
            scipy.sparse.save_npz(tmp_path / folder / f"Y.{part}.npz", matrix)
    words = ["train", "labels", tmp_path / "a", *SHORT, "--rank", "encoder"]
    trained = result(*words, "--out", tmp_path / "run")
    found = result("evaluate", tmp_path / "run", "--source", tmp_path / "b")
    assert found["test"] == pytest.approx(trained["test"])


def test_a2_a_folder_of_train_and_test_is_a_data_set(tmp_path: Path) -> None:
    """train.csv and test.csv: nothing else is held out."""
    table(tmp_path / "train.csv", rows(40))
    table(tmp_path / "test.csv", rows(60)[40:])
    found = result("data", tmp_path)
    assert (found["train"]["examples"], found["test"]["examples"]) == (40, 20)
    (tmp_path / "test.csv").unlink()
    assert shoal("data", tmp_path).refused


# -- A3: predict reads what data reads ------------------------------------------------------------

TEXTS = ["red mug", "old hat"]


def _frame(tmp_path: Path) -> Iterator[Path]:
    """The two texts in every kind of file, named for the reader that must take them."""
    records = [{"text": x, "labels": ["hats"]} for x in TEXTS]
    lines = "".join(json.dumps(x) + "\n" for x in records)
    documents = [{"uid": str(i), "title": x, "content": ""} for i, x in enumerate(TEXTS)]
    files = {
        "a.txt": "red mug\nold hat\n",
        "b.csv": "text,labels\nred mug,hats\nold hat,\n",
        "c.csv": "text;labels\nred mug;hats\nold hat;hats\n",
        "d.csv": "text\tlabels\nred mug\thats\nold hat\thats\n",
        "e.tsv": "text\tlabels\nred mug\thats\nold hat\thats\n",
        "f.jsonl": lines,
        "g.JSONL": lines,
        "h.ndjson": lines,
        "i.json": lines,
        "j.json": json.dumps(records),
        "k.json": json.dumps(records, indent=2),
        "l.json": "".join(json.dumps(x) + "\n" for x in documents),
        "m.jsonl": "".join(json.dumps(x) + "\n" for x in documents),
        "n.txt": "0,1\tred mug\n1\told hat\n",
        "o.tsv": "red mug\t<x:1>\nold hat\t<x:2>\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        yield tmp_path / name
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        yield tmp_path / f"{name}.gz"
    for name, mark in (("p.csv", "utf-8-sig"), ("q.csv", "utf-16"), ("r.csv", "utf-32")):
        (tmp_path / name).write_bytes(files["b.csv"].encode(mark))
        yield tmp_path / name


def test_a3_predict_has_the_readers_of_data(world: Path, tmp_path: Path) -> None:
    """Every kind of file: two texts, no header among them and no label."""
    for path in _frame(tmp_path):
        found = result("predict", world / "run", path, "--k", 1)
        assert [x["text"] for x in found["predictions"]] == TEXTS, path.name


def test_a3_a_run_knows_the_columns_that_it_was_trained_on(tmp_path: Path) -> None:
    """predict and evaluate read another table as train read the run's, unless they are told."""
    lines = [f"{text};{'/'.join(labels)}" for text, labels in rows()]
    shop = tmp_path / "shop.csv"
    shop.write_text("title;category\n" + "\n".join(lines) + "\n")
    chosen = "--text-column title --labels-column category --separator /".split()
    words = ["train", "labels", shop, *chosen, *SHORT, "--rank", "encoder"]
    result(*words, "--out", tmp_path / "run")
    found = result("predict", tmp_path / "run", shop, "--k", 1)["predictions"]
    assert [x["text"] for x in found] == [text for text, _ in rows()]
    (tmp_path / "more.csv").write_text("title;category\na red mug;mugs/red\n")
    assert result("evaluate", tmp_path / "run", "--source", tmp_path / "more.csv")["examples"] == 1


# -- A4: lists in cells, columns, encodings -------------------------------------------------------

LISTS: dict[str, Callable[[list[str]], str]] = {
    "pandas": str,
    "json": json.dumps,
    "numpy": lambda x: str(np.array(x)),
    "tuple": lambda x: str(tuple(x)),
    "array": lambda x: repr(np.array(x, dtype=object)),
    "postgres": lambda x: "{" + ",".join(x) + "}",
    "plain": lambda x: "[" + ", ".join(x) + "]",
    "tags": lambda x: "".join(f"<{y}>" for y in x),
    "bars": "|".join,
    "spaced": " | ".join,
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a4_lists_in_cells_are_lists(tmp_path: Path, kind: str, suffix: str) -> None:
    """However a program prints a list of labels, its items are the labels."""
    cells = [{"text": text, "labels": LISTS[kind](labels)} for text, labels in rows()]
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(x) + "\n" for x in cells))
    else:
        quoted = ("{text},".format(**x) + '"' + x["labels"].replace('"', '""') + '"' for x in cells)
        path.write_text("text,labels\n" + "\n".join(quoted) + "\n")
    found = result("data", path)
    assert found["labels"] == len({x for _, labels in rows() for x in labels})
    assert found["train"]["pairs"] + found["test"]["pairs"] == sum(len(y) for _, y in rows())


@pytest.mark.parametrize("between", [";", "; ", ",", ", ", " / ", "/", " & ", "::", "\\n"])
def test_a4_other_separators_are_said_with_what_reads_them(tmp_path: Path, between: str) -> None:
    """Labels that look joined are counted; --separator splits them, or says they are one each."""
    path = table(tmp_path / "t.csv", rows(), between.replace("\\n", "\n"))
    found = shoal("data", path)
    match = re.search(r"(\d+) labels hold (.+?), as if they were several; pass --sep", found.err)
    assert found.status == 0 and match and int(match[1]) > 1
    asked = between.strip() or "\n"
    split = shoal("data", path, "--separator", asked.replace("\\n", "\n"), "--json")
    labels = len({x for _, labels in rows() for x in labels})
    assert json.loads(split.out)["labels"] == labels and "several" not in split.err
    assert "several" not in shoal("data", path, "--separator", "").err


def test_a4_labels_that_hold_commas_are_left_alone(tmp_path: Path) -> None:
    """Categories of a shop, and names: no word is said."""
    names = ["Clothing, Shoes & Jewelry", "Home, Garden & Pets", "Toys", "Books; used"]
    path = table(tmp_path / "t.csv", [(f"text {i}", [names[i % 4]]) for i in range(30)])
    assert shoal("data", path).err == "" and result("data", path)["labels"] == 4


def test_a4_a_row_for_each_pair_is_one_example_a_text(tmp_path: Path) -> None:
    """All labels of a text are its own, on one side of the split; rows named by uid only warn."""
    pairs = [(text, [label]) for text, labels in rows() for label in labels]
    path = table(tmp_path / "t.csv", pairs)
    found = shoal("data", path, "--json")
    assert "t.csv: 60 rows repeat texts with other labels: read as 30 examples" in found.err
    about = json.loads(found.out)
    assert about["train"]["examples"] + about["test"]["examples"] == 60
    assert about["train"]["pairs"] + about["test"]["pairs"] == len(pairs)
    lines = [
        f'{{"uid": {i}, "text": "{x}", "labels": "{y}"}}\n' for i, (x, (y,)) in enumerate(pairs)
    ]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    named = shoal("data", tmp_path / "t.jsonl", "--json")
    assert "60 rows have 30 texts with different labels" in named.err
    assert (
        json.loads(named.out)["train"]["examples"] + json.loads(named.out)["test"]["examples"] == 90
    )


BAD = {
    "doubled.csv": "text,labels,text\na,b,c\n",
    "spaced.csv": "text, text ,labels\na,b,c\n",
    "doubled.jsonl": '{"text": "a", "text": "b", "labels": "c"}\n',
    "empty.csv": "text,labels\nred mug,\n",
    "blank.csv": "text,labels\nred mug, | \n",
    "no-list.csv": "text,labels\nred mug,[]\n",
    "missing.csv": "text,labels\nred mug,[nan]\n",
    "half.csv": "text,labels\nred mug,\"['a', nan]\"\n",
    "none.jsonl": '{"text": "a", "labels": null}\n',
    "number.jsonl": '{"text": "a", "labels": 3.5}\n',
    "numbers.jsonl": '{"text": "a", "labels": [1.5, true]}\n',
    "no-text.jsonl": '{"text": NaN, "labels": "x"}\n',
    "text.jsonl": '{"text": 3, "labels": "x"}\n',
    "columns.json": '{"text": {"0": "a"}, "labels": {"0": "b"}}\n',
    "swallowed.tsv": 'text\tlabels\n"red\tmug"\tcups\n',
    "third.txt": "0,2\tred mug\tcups\n1\ttea\tdrinks\n",
    "subjects.tsv": "red mug\t<x:1> cups\n",
    "no-mark.csv": "text,labels\nred mug,cups\n".encode("utf-16-le").decode("latin-1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a4_what_cannot_be_read_as_meant_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """The line names the file and, where there is one, the row."""
    (tmp_path / name).write_bytes(BAD[name].encode("latin-1"))
    found = shoal("data", tmp_path / name)
    assert found.refused and found.err.startswith(f"shoal: {tmp_path / name}"), found


def test_a4_quotes_of_a_tsv_are_counted_and_the_remedy_reads_them(tmp_path: Path) -> None:
    """The file named .csv: tabs are found, and quotes are read."""
    text = 'text\tlabels\n"red ""big"" mug"\t"cups|kitchen"\n"blue cup"\tcups\n'
    (tmp_path / "t.tsv").write_text(text)
    found = shoal("data", tmp_path / "t.tsv")
    assert "cells of 2 rows" in found.err and "name the file t.csv" in found.err
    (tmp_path / "t.csv").write_text(text)
    data = load_labels(tmp_path / "t.csv")
    assert data.labels.titles == ["cups", "kitchen"]
    assert sorted(data.train.texts.all() + data.test.texts.all()) == ["blue cup", 'red "big" mug']


def test_a4_a_tsv_that_is_quoted_throughout_is_read_so(tmp_path: Path) -> None:
    """Its column names stand in quotes, too."""
    (tmp_path / "t.tsv").write_text('"text"\t"labels"\n"red ""big"" mug"\t"cups|kitchen"\n')
    assert load_labels(tmp_path / "t.tsv").labels.titles == ["cups", "kitchen"]


def test_a4_the_remedy_for_a_column_names_the_one_that_is_there(tmp_path: Path) -> None:
    """Followed twice, to the letter, the table reads."""
    (tmp_path / "t.csv").write_text("Title,Tags\nred mug,cups\nold hat,hats\n")
    words: list[str] = []
    for _ in range(2):
        found = shoal("data", tmp_path / "t.csv", *words)
        (option,) = re.findall(r"\((--[a-z-]+ \w+)\)", found.err)
        words += option.split()
    assert result("data", tmp_path / "t.csv", *words)["labels"] == 2


@pytest.mark.parametrize("mark", [b"\x1f\x8b\x08\x00", b"PK\x03\x04\x14", b"PAR1\x15"])
def test_a4_files_of_another_kind_are_named_by_what_they_are(tmp_path: Path, mark: bytes) -> None:
    """gzip, Excel's zip and Parquet under the name of a CSV."""
    (tmp_path / "t.csv").write_bytes(mark + bytes(20))
    found = shoal("data", tmp_path / "t.csv")
    assert found.refused and "expected text, got a" in found.err


def test_a4_data_in_memory_is_warned_of_alike(caplog: pytest.LogCaptureFixture) -> None:
    """Joined labels, lists as text, texts that repeat with other labels: counted."""
    texts = [text for text, _ in rows()]
    for labels, told in (
        ([";".join(x) for _, x in rows()], "hold ';', as if they were several"),
        ([str(x) for _, x in rows()], "are lists as text"),
    ):
        library.load((texts, labels))
        assert told in caplog.text
    library.load(([*texts, texts[0]], [*(x for _, x in rows()), ["lamps"]]))
    assert "texts: 1 stand several times with different labels" in caplog.text
    caplog.clear()
    library.load((texts, [x for _, x in rows()]))
    assert not caplog.records


def test_a4_one_column_is_not_two_things(tmp_path: Path) -> None:
    """text, labels, title and split are four columns; a title that is not read is named."""
    path = table(tmp_path / "t.csv", rows())
    for option in ("labels", "title", "split-column"):
        flag = "--split" if option == "split-column" else f"--{option}-column"
        assert shoal("data", path, flag, "text").refused
    (tmp_path / "u.csv").write_text("title,text,labels\nmug,red mug,cups\n")
    assert "the column title is not read; name it: --title" in shoal("data", tmp_path / "u.csv").err


@pytest.mark.parametrize("verb", ["data", "predict", "evaluate", "train", "convert", "cluster"])
def test_a4_the_options_of_tables_hold_on_every_verb(verb: str) -> None:
    """Columns, separator, split and encoding."""
    told = shoal(verb, *["labels"] * (verb == "train"), "--help").out
    for option in (
        "text-column",
        "labels-column",
        "title-column",
        "separator",
        "split",
        "encoding",
    ):
        assert f"--{option}" in told


@pytest.mark.parametrize(
    "encoding", ["windows-1252", "latin-1", "utf-16-le", "utf-16-be", "cp1251"]
)
def test_a4_the_remedy_for_an_encoding_reads_the_file(tmp_path: Path, encoding: str) -> None:
    """What the line says to pass leads to a data set."""
    text = "text,labels\nthé,x\n" if encoding != "cp1251" else "text,labels\nчай,x\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    found = shoal("data", tmp_path / "t.csv")
    assert found.refused
    (option,) = re.findall(r"\((--encoding [\w-]+)\)", found.err)
    assert result("data", tmp_path / "t.csv", *option.split())["labels"] == 1


# -- A5: files that lay there unread --------------------------------------------------------------

LABEL_TEXTS = [
    "Z.all.txt",
    "lbl_X.txt",
    "label.raw.txt",
    "Yf.txt",
    "Y.txt",
    "Z.txt",
    "label_map.txt",
]


@pytest.mark.parametrize("name", [*LABEL_TEXTS, "labels-of-mine.txt", "raw/other.txt"])
def test_a5_label_texts_are_found_or_what_lies_unread_is_named(tmp_path: Path, name: str) -> None:
    """Under the names of the field's guides; a file of another name is said not to be read."""
    names = sorted({x for _, y in rows() for x in y})
    dense = np.array([[x in labels for x in names] for _, labels in rows()], dtype=np.float32)
    for part, cut in (("trn", slice(0, 40)), ("tst", slice(40, 60))):
        (tmp_path / f"X.{part}.txt").write_text("\n".join(x for x, _ in rows()[cut]) + "\n")
        scipy.sparse.save_npz(tmp_path / f"Y.{part}.npz", scipy.sparse.csr_matrix(dense[cut]))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("\n".join(names) + "\n")
    (tmp_path / "README.md").write_text("about\n")
    found = shoal("data", tmp_path)
    data = load_labels(tmp_path)
    if name in LABEL_TEXTS:
        assert data.labels.all() == names and found.err == ""
    else:
        assert f"not read: {name}\n" in found.err and "no texts of labels" in found.err


def test_a5_keys_of_graph_files(tmp_path: Path) -> None:
    """The split that DGL's and OGB's scripts keep is read; other keys are named."""
    n = 30
    edges = np.stack([np.arange(n), (np.arange(n) + 1) % n])
    arrays: dict[str, Any] = {"edge_index": edges, "y": np.arange(n) % 3, "x": np.eye(n)}
    for kinds in (("train_idx", "valid_idx", "test_idx"), ("train_mask", "val_mask", "test_mask")):
        ids = (np.arange(5), np.arange(5, 10), np.arange(10, 30))
        parts = [np.isin(np.arange(n), x) for x in ids] if "mask" in kinds[0] else ids
        held = dict(zip(kinds, parts, strict=True))
        extra = {"edge_weight": np.ones(n), "train_masks": np.ones((n, 2), dtype=bool)}
        np.savez(tmp_path / "g.npz", **arrays, **held, **extra)
        found = shoal("data", tmp_path / "g.npz", "--json")
        assert "not read: edge_weight, train_masks\n" in found.err
        about = json.loads(found.out)
        assert [about[x] for x in ("train", "valid", "test")] == [5, 5, 20]
    np.savez(tmp_path / "g.npz", **arrays, **held, train_idx=np.arange(5))
    assert shoal("data", tmp_path / "g.npz").refused


def test_a5_edges_that_go_one_way_are_counted(tmp_path: Path) -> None:
    """`shoal data` tells a directed graph from one that reads both ways."""
    edges = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
    for both, count in ((edges, 4), (np.concatenate([edges, edges[::-1]], 1), 0)):
        np.savez(tmp_path / "g.npz", edge_index=both, y=np.arange(4) % 2)
        assert result("data", tmp_path / "g.npz")["edges_without_reverse"] == count


# -- A6 and A7: what cannot be meant --------------------------------------------------------------


def _swapped(folder: Path) -> Path:
    """A PECOS folder whose label matrix is one of features."""
    folder.mkdir()
    dense = scipy.sparse.random(40, 30, 0.2, random_state=0).toarray() + np.eye(40, 30)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True).clip(1e-9)
    for part in ("trn", "tst"):
        (folder / f"X.{part}.txt").write_text("\n".join(x for x, _ in rows(40)) + "\n")
        matrix = scipy.sparse.csr_matrix(dense.astype(np.float32))
        scipy.sparse.save_npz(folder / f"Y.{part}.npz", matrix)
    return folder


def _ids(path: Path, form: str) -> Path:
    """A table whose labels are ids, one a row."""
    return table(path, [(x, [form.format(i)]) for i, (x, _) in enumerate(rows())])


CANNOT: dict[str, Callable[[Path], Path]] = {
    "numbers": lambda folder: _ids(folder / "t.csv", "{}"),
    "products": lambda folder: _ids(folder / "t.csv", "SKU{:05d}"),
    "hashes": lambda folder: _ids(folder / "t.csv", "{:016x}"),
    "alike": lambda folder: table(folder / "t.csv", [("a mug", ["cups"])] * 30),
    "swapped": lambda folder: _swapped(folder / "s"),
}


@pytest.mark.parametrize("kind", CANNOT)
def test_a6_a7_what_cannot_be_meant_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    """Refused in one line before anything is trained; `shoal data` says so, too."""
    source = CANNOT[kind](tmp_path)
    found = shoal("train", "labels", source, *SHORT, "--out", tmp_path / "run")
    assert found.status == 2 and ONE_LINE.fullmatch(found.err.splitlines(True)[-1]), found
    assert not (tmp_path / "run").exists()
    described = shoal("data", source)
    assert described.status == 0 and "training refuses this: " in described.err


def test_a6_labels_of_one_example_each_are_said_to_be(tmp_path: Path) -> None:
    """Names in words can be learned from, a little: a warning, once."""
    path = table(tmp_path / "t.csv", [(x, [f"about {x}"]) for x, _ in rows()])
    assert "no label has more than one example" in shoal("data", path).err


@pytest.mark.slow
def test_a6_scripts_without_spaces_need_no_spaces(tmp_path: Path) -> None:
    """The same Japanese, Chinese and Thai names learn as they do with spaces between words."""
    scripts = [
        (["赤い", "青い", "白い"], ["帽子", "靴下", "茶碗", "椅子"]),
        (["红色", "蓝色", "黄色"], ["鞋子", "袜子", "茶杯", "沙发"]),
        (["สีแดง", "สีฟ้า", "สีขาว"], ["หมวก", "ถุงเท้า", "แก้ว", "เก้าอี้"]),
    ]
    texts = [
        (f"{thing}{color}{i}", [thing])
        for colors, things in scripts
        for color in colors
        for thing in things
        for i in range(10)
    ]
    path = table(tmp_path / "t.csv", texts)
    words = ["train", "labels", path, "--epochs", 10, "--batch-size", 32, "--cluster-size", 8]
    found = result(*words, "--rank", "encoder", "--dim", 32, "--out", tmp_path / "run")
    assert found["test"]["P@1"] > 95


def test_a6_words_that_occur_once_are_said_to(caplog: pytest.LogCaptureFixture) -> None:
    """Texts that are ids share no word; titles of a language do."""
    with caplog.at_level(logging.WARNING, "shoal"):
        learn([f"x{i:04x}y" for i in range(600)])
    assert "600 of 600 words of the texts occur once" in caplog.text
    caplog.clear()
    learn([text for text, _ in rows(600)])
    assert not caplog.records


def test_a7_rankings_that_are_one_and_the_same_are_refused() -> None:
    """One ranker twice would weigh twice; two of a kind with other settings are two."""
    near = [library.NeighborRanker(near=10), library.NeighborRanker(near=20)]
    library.LabelModel(rankers=near)
    with pytest.raises(
        InputError, match=r"rankers: expected each once, got .*NeighborRanker twice"
    ):
        library.LabelModel(rankers=[near[0], library.NeighborRanker(near=10)])


# -- A8: strings where lists are meant ------------------------------------------------------------


def test_a8_one_string_is_one_text_in_every_public_function(world: Path) -> None:
    """One answer for one string; None and numbers in a list are refused by their position."""
    model = library.open(world / "run")
    words = learn(["red mug", "red hat"])
    one = {
        "predict": lambda x: [model.predict(x)],
        "encode": lambda x: model.encode(x).reshape(-1, 8),
        "unknown": model.unknown,
        "as_texts": lambda x: as_texts(x)[0],
        "Texts.of": Texts.of,
        "encoder.read": model.encoder.read,
        "encoder.known": lambda x: model.encoder.known(x).degrees(),
        "tokens": lambda x: words.tokens(x).degrees(),
        "bags": lambda x: words.bags(x).degrees(),
        "tf_idf": lambda x: tf_idf(x, 1).degrees(),
        "learn": lambda x: [learn(x)],
    }
    for name, function in one.items():
        assert len(function("red mug")) == 1, name
        for odd in (None, 3, 2.5, float("nan"), b"mug"):
            with pytest.raises(InputError, match=r"\[1\]: exp"):
                function(["red mug", odd])
    for odd in (None, 3, {"a": 1}, b"mug"):
        for name in ("predict", "encode", "unknown"):
            with pytest.raises(InputError, match="texts: expected"):
                getattr(model, name)(odd)
    many = model.add(labels="green hat")
    assert len(many.labels) == len(model.labels) + 1
    for texts, labels in (("red mug", ["cups"]), (["red mug"], "cups"), (["a", None], ["x", "y"])):
        with pytest.raises(InputError):
            library.LabelModel().fit(texts, labels)
    for labels in ([None], [float("nan")], [1.5], [["a", None]], [""]):
        with pytest.raises(InputError, match=r"labels\[0\]"):
            library.LabelModel().fit(["red mug"], labels)


# -- B9: cosines are said to be cosines -----------------------------------------------------------


def test_b9_cosines_are_said_to_be_wherever_scores_are_read(world: Path, tmp_path: Path) -> None:
    """In query and predict; --threshold is refused, and without it the same words succeed."""
    (tmp_path / "a.txt").write_text("red mug\n")
    for words in (["predict", world / "run", tmp_path / "a.txt"],
                  ["query", "red mug", "--run", world / "run"]):  # fmt: skip
        found = shoal(*words)
        assert found.status == 0 and "scores are cosines, no probabilities" in found.err
        assert result(*words)["scores"] == "cosines"
        assert shoal(*words, "--threshold", 0.5).refused


# -- B10: defaults and remedies -------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 60, 90, 130])
@pytest.mark.parametrize("valid", ["0", pytest.param("0.1", marks=pytest.mark.slow)])
def test_b10_any_size_of_data_trains_with_no_option(tmp_path: Path, n: int, valid: str) -> None:
    """The default batch is a multiple of the default cluster, and no larger than the data."""
    path = table(tmp_path / "t.csv", rows(n))
    words = ["train", "labels", path, "--steps", 1, "--valid", valid]
    found = result(*words, "--out", tmp_path / "run")
    assert found["steps"] == 1


def _follow(words: list[str], error: str) -> list[str] | None:
    """The words with the flag and value that a remedy names; None where it names none."""
    remedy = error.rpartition("; ")[2]
    for flag, value in re.findall(r"(--[a-z-]+) ([\w./|;-]+|\"[^\"]*\")", remedy):
        kept = [x for i, x in enumerate(words) if flag not in (x, words[i - 1] if i else "")]
        return [*kept, flag, value.strip('"')]
    argument = re.match(r"shoal: (?:--)?([a-z_-]+): ", error)
    number = re.search(r"(?:pass|try|use|to) (?:a \w+ of )?(\d[\d.]*)", remedy)
    if argument and number:
        flag = "--" + argument[1].replace("_", "-")
        kept = [x for i, x in enumerate(words) if flag not in (x, words[i - 1] if i else "")]
        return [*kept, flag, number[1]]
    if argument and ("leave it out" in remedy):
        flag = "--" + argument[1].replace("_", "-")
        return [x for i, x in enumerate(words) if flag not in (x, words[i - 1] if i else "")]
    return None


@pytest.mark.parametrize(
    "wrong",
    [
        "--batch-size 360",
        "--batch-size 100 --cluster-size 64",
        "--batch-size 7 --cluster-size 3",
        "--batch-size 5000 --cluster-size 48",
        "--valid 1.5",
        "--batches random --cluster-size 8",
        "--encoder bag --lora 8",
        "--rank encoder --rare 1",
        "--separator ; --labels-column tags",
    ],
)
@pytest.mark.whole
def test_b10_following_a_remedy_ends_well(tmp_path: Path, wrong: str) -> None:
    """Literally, step by step: success, or the error of another argument, never the same again."""
    path = table(tmp_path / "t.csv", rows())
    words = ["train", "labels", str(path), "--steps", "1", "--dim", "8"]
    words += [*([] if "--valid" in wrong else ["--valid", "0"]), *wrong.split()]
    seen: list[str] = []
    for turn in range(4):
        found = shoal(*words, "--out", tmp_path / f"run{turn}")
        if found.status == 0:
            return
        error = found.err.splitlines()[-1]
        about = error.split(": ")[1]
        assert about not in seen, (seen, error)
        seen.append(about)
        followed = _follow(words, error)
        if followed is None:
            assert about == f"{path}:1", error
            return
        words = followed


def test_b10_help_has_no_empty_default() -> None:
    """No option of any verb says that its default is nothing."""
    for verb in VERBS:
        words = [verb, "labels"] if verb == "train" else [verb]
        assert "(default: )" not in shoal(*words, "--help").out, verb


def test_b10_an_unknown_source_is_told_in_a_line_that_can_be_read(tmp_path: Path) -> None:
    """One line of at most 300 characters, and what it says to check is what is wrong."""
    found = shoal("data", tmp_path / "nothing")
    assert found.refused and len(found.err) < 300 + len(str(tmp_path)), found.err
    assert "no such file or folder; check the path" in found.err


# -- B12: units, seconds, and what a run records --------------------------------------------------


def test_b12_runs_record_what_they_were_made_with(world: Path) -> None:
    """Versions, threads, machine, device; how many examples; the size of batches in force."""
    events = library.Run.open(world / "run").log()
    start = events[0]
    assert {"versions", "threads", "machine", "processor", "device"} <= set(start)
    counts = start["examples"]
    assert counts["train"] + counts["held_out"] + counts["test"] == 60
    assert start["device"] == "cpu" and counts["labels"] == len(library.open(world / "run").labels)
    refresh = next(x for x in events if x["event"] == "refresh")
    assert refresh["batch_size"] == 16


@pytest.mark.slow
def test_b12_seconds_are_those_of_all_stages(tmp_path: Path) -> None:
    """train_seconds, the log's test and the model's file: encoder, classifiers and ensemble."""
    path = table(tmp_path / "t.csv", rows(2400))
    words = ["train", "labels", path, "--epochs", 1, "--dim", 8, "--valid", 0.2]
    found = result(*words, "--out", tmp_path / "run")
    events = {x["event"]: x for x in library.Run.open(tmp_path / "run").log()}
    assert {"classifiers", "ensemble"} <= set(events)
    later = events["classifiers"]["classifier_seconds"] + events["ensemble"]["ensemble_seconds"]
    assert later > 0
    whole = events["end"]["seconds"] + later
    assert abs(events["test"]["seconds"] - whole) < 0.1
    assert abs(found["train_seconds"] - whole) < 0.2
    card = shoal("export", tmp_path / "run", tmp_path / "export")
    assert card.status == 0
    about = (tmp_path / "export" / "README.md").read_text()
    assert re.search(r"training: \d+ steps of the encoder; \d+ s with all that was trained", about)


def test_b12_metrics_carry_their_unit(world: Path) -> None:
    """Tables say per cent, lines of progress too."""
    found = shoal("evaluate", world / "run")
    assert "test, per cent" in found.out
    assert "in per cent" in (inspect.getdoc(library.LabelModel.evaluate) or "")
    metrics = json.loads(shoal("evaluate", world / "run", "--json").out)["test"]
    assert all(0 <= x <= 100 for x in metrics.values()) and max(metrics.values()) > 1
    assert torch.is_tensor(library.open(world / "run").trained_on)
