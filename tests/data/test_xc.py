"""xc: what is written reads back; the published variants read; every damage names file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.describe import describe
from shoal.data.formats import xc
from shoal.data.texts import Examples, LabelData, Texts, no_pairs
from tests.data.made import assert_same, make_data
from tests.strategies import csrs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole data set, to be damaged."""
    xc.write(make_data(), tmp_path / "tiny")
    return tmp_path / "tiny"


# -- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("relevance", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_reads_back(tmp_path: Path, seed: int, relevance: bool) -> None:
    """read(write(data)) is data to the last bit; writing it again makes the same bytes."""
    data = make_data(seed, relevance)
    xc.write(data, tmp_path / "tiny")
    again = xc.read(tmp_path / "tiny")
    assert again.name == "tiny" and data.train.labels.nnz and data.test.drop.nnz
    assert_same(data, again)
    xc.write(again, tmp_path / "b")
    for path in (tmp_path / "tiny").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@settings(max_examples=20)
@given(csrs())
def test_sparse_pairs_round_trip(csr: Csr) -> None:
    """A matrix with doubles, empty rows and weights reads back as its coalesced self."""
    once = csr.coalesce()
    with TemporaryDirectory() as name:
        xc.write_matrix(once, Path(name, "m.txt"))
        again = xc.read_matrix(Path(name, "m.txt"))
        xc.write_matrix(csr.with_values(None), Path(name, "doubles.txt"))
        merged = xc.read_matrix(Path(name, "doubles.txt"))
    torch.testing.assert_close(again.to_dense(), once.to_dense(), rtol=0, atol=0)
    assert torch.equal(merged.to_dense(), (csr.with_values(None).to_dense() > 0).float())


@pytest.mark.parametrize("relevance", [False, True])
def test_targets_in_the_texts_equal_the_matrix_files(folder: Path, relevance: bool) -> None:
    """Without X_Y files, target_ind and target_rel give the same data."""
    data = make_data(relevance=relevance)
    xc.write(data, folder)
    for split in ("trn", "tst"):
        (folder / f"{split}_X_Y.txt").unlink()
    assert_same(data, xc.read(folder))


def test_filters_may_be_missing_empty_or_renamed(folder: Path) -> None:
    """No file and an empty file mean no pairs; both names of the file are read."""
    data = make_data()
    (folder / "filter_labels_train.txt").rename(folder / "trn_filter_labels.txt")
    (folder / "filter_labels_test.txt").write_text("")
    again = xc.read(folder)
    assert torch.equal(again.train.drop.to_dense(), data.train.drop.to_dense())
    assert again.test.drop.shape == (5, 6) and again.test.drop.nnz == 0
    (folder / "trn_filter_labels.txt").unlink()
    assert xc.read(folder).train.drop.nnz == 0


def test_a_published_split_is_read_as_it_stands(folder: Path) -> None:
    """Examples without labels and empty texts stay where they are, and are counted."""
    about = describe(xc.read(folder))
    assert about["train"]["examples"] == 7 and about["train"]["unlabeled"] >= 1
    assert about["train"]["empty_texts"] == sum(not x for x in make_data().train.texts.all()) > 0


def test_latin_1_on_request(folder: Path) -> None:
    """A text in latin-1 is refused by name and line, and read when the caller says so."""
    row = '{"uid": "x", "title": "café", "content": "", "target_ind": [0]}\n'
    with gzip.open(folder / "tst.json.gz", "wt", encoding="latin-1") as file:
        file.write(row * 5)
    with pytest.raises(InputError, match=r"tst\.json\.gz:1: expected utf-8"):
        xc.read(folder)
    assert xc.read(folder, encoding="latin-1").test.texts.titles == ["café"] * 5


# -- damage --------------------------------------------------------------------------------------


def edit_line(path: Path, number: int, text: str) -> None:
    """Replace a line, in a plain or a gzipped file."""
    packed = path.suffix == ".gz"
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    rows = raw.decode().split("\n")
    rows[number - 1] = text
    raw = "\n".join(rows).encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize(
    ("file", "number", "text", "message"),
    [
        ("trn_X_Y.txt", 1, "seven 6", r":1: expected 2 counts below 2\^31.*'seven 6'"),
        ("trn_X_Y.txt", 1, "7 6 5", r":1: expected 2 counts"),
        ("trn_X_Y.txt", 1, "7 -6", r":1: expected 2 counts"),
        ("trn_X_Y.txt", 1, "8 6", r"expected 8 rows, as its first line says, got 7"),
        ("trn_X_Y.txt", 1, "7 9", r":1: expected 7 examples .* and 6 labels, got \(7, 9\)"),
        ("trn_X_Y.txt", 3, "1:1 6:1", r":3: expected label ids in \[0, 6\), got 6"),
        ("tst_X_Y.txt", 2, "-1:1", r":2: expected label ids in \[0, 6\), got -1"),
        ("tst_X_Y.txt", 6, "0:nan", r":6: expected finite relevances above 0, got nan"),
        ("tst_X_Y.txt", 6, "0:0", r":6: expected finite relevances above 0, got 0"),
        ("trn_X_Y.txt", 4, "1:x", r":4: expected pairs 'column:value'.*'1:x'"),
        ("trn_X_Y.txt", 4, "1.5:1", r":4: expected pairs"),
        ("trn_X_Y.txt", 4, "1", r":4: expected pairs"),
        ("trn_X_Y.txt", 4, f"{10**20}:1", r":4: expected ids below"),
        ("trn.json.gz", 2, '{"uid": "a"', r":2: expected a JSON object.*got Expecting"),
        ("trn.json.gz", 2, '{"uid": "a"}', r":2: expected uid, title and content, texts both"),
        ("trn.json.gz", 2, "[1]", r":2: expected a JSON object.*got '\[1\]'"),
        ("trn.json.gz", 2, "", r":2: expected a JSON object"),
        ("lbl.json.gz", 3, '{"uid": "a", "title": 3}', r":3: expected uid, title and content"),
        ("filter_labels_test.txt", 1, "5 0", r":1: .*row in \[0, 5\) .*label in \[0, 6\).*'5 0'"),
        ("filter_labels_test.txt", 1, "0 6", r":1: expected 'row label'"),
        ("filter_labels_train.txt", 1, "-1 0", r":1: expected 'row label'"),
        ("filter_labels_train.txt", 2, "1", r":2: expected 'row label'"),
    ],
)
def test_damage_names_file_and_line(
    folder: Path, file: str, number: int, text: str, message: str
) -> None:
    """Each kind of damage: one line with the file, the line, what was expected and what came."""
    edit_line(folder / file, number, text)
    with pytest.raises(InputError, match=message) as caught:
        xc.read(folder)
    assert str(caught.value).startswith(str(folder / file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ('"target_ind": [0, 6]', r":2: expected label ids in \[0, 6\), got 6"),
        ('"target_ind": [-1]', r":2: expected label ids in \[0, 6\), got -1"),
        ('"target_ind": [0], "target_rel": [NaN]', r":2: expected finite relevances"),
        ('"target_ind": [0], "target_rel": [1, 1]', r":2: expected target_ind"),
        ('"target_ind": ["0"]', r":2: expected target_ind"),
        ('"target_ind": null', r":2: expected target_ind"),
        ('"target": [0]', r":2: expected target_ind"),
    ],
)
def test_bad_targets_in_the_texts_are_named(folder: Path, targets: str, message: str) -> None:
    """Where no matrix file is, the line of the text file is named."""
    (folder / "trn_X_Y.txt").unlink()
    edit_line(folder / "trn.json.gz", 2, f'{{"uid": "a", "title": "t", {targets}}}')
    with pytest.raises(InputError, match=message) as caught:
        xc.read(folder)
    assert str(caught.value).startswith(str(folder / "trn.json.gz"))


def test_missing_and_truncated_files_are_named(folder: Path) -> None:
    """A folder without a text file, a file cut short, no folder at all."""
    whole = (folder / "trn.json.gz").read_bytes()
    (folder / "trn.json.gz").write_bytes(whole[:-12])
    with pytest.raises(InputError, match=r"trn\.json\.gz: expected a whole, readable file"):
        xc.read(folder)
    (folder / "trn.json.gz").unlink()
    with pytest.raises(InputError, match=r"trn\.json\.gz: expected a file.*nothing there"):
        xc.read(folder)
    with pytest.raises(InputError, match="absent: expected a folder"):
        xc.read(folder / "absent")
    (folder / "tst_X_Y.txt").write_text("")
    with pytest.raises(InputError, match=r"tst_X_Y\.txt:1: expected 2 counts"):
        xc.read_matrix(folder / "tst_X_Y.txt")


def test_texts_and_matrix_must_agree_in_rows(folder: Path) -> None:
    """One text more than the matrix has rows: both files are named."""
    with gzip.open(folder / "trn.json.gz", "at") as file:
        file.write(json.dumps({"uid": "x", "title": "y", "content": ""}) + "\n")
    with pytest.raises(InputError, match=r"trn_X_Y\.txt:1: expected 8 examples \(as there"):
        xc.read(folder)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    """A file where the folder should be made: expected, got and remedy."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="expected a place that can be written"):
        xc.write(make_data(), tmp_path / "taken")


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    """No test points at all round-trips: a header and nothing else."""
    data = make_data()
    nobody = Examples(Texts([], [], []), no_pairs(0, 6), no_pairs(0, 6))
    xc.write(LabelData("tiny", data.train, nobody, data.labels), tmp_path)
    assert len(xc.read(tmp_path).test) == 0


@pytest.mark.slow
def test_half_a_million_rows_read(outside_data: Path) -> None:
    """522,919 and 130,686 rows, counted against the numbers published with them."""
    about = describe(xc.read(outside_data / "yso-finna-en"))
    assert about["train"]["examples"] == 522_919 and about["test"]["examples"] == 130_686
    assert about["labels"] == 24_820 and about["train"]["labels_per_example"] == 2.437
