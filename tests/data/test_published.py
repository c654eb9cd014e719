"""Files as projects publish them, written out by hand: each reads as what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from shoal.core.errors import InputError
from shoal.data import load
from shoal.data.formats import bow
from shoal.data.matrix import read_matrix, write_matrix
from shoal.data.texts import LabelData

TRUTH = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])


def lay(folder: Path, **files: str) -> Path:
    """Write files into a folder; ``__`` in a name stands for a dot, ``___`` for a slash."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def assert_mugs(data: LabelData, labels: list[str], n_test: int = 3) -> None:
    """Three training points with the labels of TRUTH, and their first `n_test` for testing."""
    assert data.train.texts.titles == ["red mug", "", "green tea"]
    assert data.test.texts.titles == data.train.texts.titles[:n_test]
    assert data.labels.titles == labels
    assert torch.equal(data.train.labels.to_dense(), TRUTH)
    assert torch.equal(data.test.labels.to_dense(), TRUTH[:n_test])


MUGS = "red mug\n\ngreen tea\n"
PAIRS = "3 3\n0:1 2:1.0\n\n1:1.00000\n"


def save_npz(folder: Path, truth: torch.Tensor = TRUTH) -> Path:
    """Y.trn.npz and Y.tst.npz as scipy writes them."""
    for split in ("trn", "tst"):
        scipy.sparse.save_npz(folder / f"Y.{split}.npz", scipy.sparse.csr_matrix(truth.numpy()))
    return folder


def test_dexml(tmp_path: Path) -> None:
    """Matrices of scipy, texts in raw/; features beside texts are not needed."""
    save_npz(tmp_path)
    raw = {"raw___trn_X__txt": MUGS, "raw___tst_X__txt": MUGS, "raw___Y__txt": "cup\ntea\nred\n"}
    assert_mugs(load(lay(tmp_path, **raw, X__trn__npz="never read")), ["cup", "tea", "red"])


@pytest.mark.parametrize("labels", ["Y__txt", "Z__txt", "output-items__txt"])
def test_pecos(tmp_path: Path, labels: str) -> None:
    """Matrices of scipy, texts beside them; the label texts under any of three names."""
    texts = {"X__trn__txt": MUGS, "X__tst__txt": MUGS, labels: "cup\ntea\nred"}
    assert_mugs(load(lay(save_npz(tmp_path), **texts)), ["cup", "tea", "red"])


def test_x_bert_and_renee(tmp_path: Path) -> None:
    """The same parts under other names: each is found by its own."""
    texts = {"train_raw_texts__txt": MUGS, "test_raw_texts__txt": MUGS}
    x_bert = save_npz(lay(tmp_path / "x", **texts, label_map__txt="cup\ntea\nred\n"))
    assert_mugs(load(x_bert), ["cup", "tea", "red"])
    matrices = {"trn_X_Y__txt": PAIRS, "tst_X_Y__txt": PAIRS, "Y__txt": "cup\ntea\nred\n"}
    filters = {"tst_filter_labels__txt": "0 1\n"}
    texts = {"trn_X__txt": MUGS, "tst_X__txt": MUGS}
    data = load(lay(tmp_path / "r", **matrices, **texts, **filters))
    assert_mugs(data, ["cup", "tea", "red"])
    assert data.test.drop.to_dense().nonzero().tolist() == [[0, 1]] and data.train.drop.nnz == 0


def test_features_without_texts(tmp_path: Path) -> None:
    """Sparse pairs on both sides: examples and labels have no text."""
    features = "3 5\n4:1.2 1:0.5\n\n0:-3\n"
    names = ("trn_X_Y__txt", "tst_X_Y__txt", "trn_X_Xf__txt", "tst_X_Xf__txt")
    files = dict(zip(names, (PAIRS, PAIRS, features, features), strict=True))
    data = load(lay(tmp_path, **files))
    assert data.train.texts.spelled().titles == ["f1 f4", "", "f0"]
    assert data.train.texts.titles == ["", "", ""] and data.labels.titles[2] == "l2"
    weights = data.train.texts.features
    assert weights is not None and weights.to_dense()[2, 0] == -3
    part = data.train.texts.subset(torch.tensor([2])).features
    assert part is not None and part.to_dense().tolist() == [[-3, 0, 0, 0, 0]]
    data = load(lay(tmp_path, lbl_X_Xf__txt="3 5\n1:1\n4:2 0:1\n\n"))
    assert data.labels.features is not None
    assert data.labels.spelled().titles == ["f1", "f0 f4", ""]


def test_bag_of_words(tmp_path: Path) -> None:
    """The old format, with a space or none before a point without labels; one file or two."""
    rows = "3 5 3\n0,2 1:0.5 4:1.2\n 3:0.7\n3:0.7\n"
    data = load(lay(tmp_path, eurlex_train__txt=rows, eurlex_test__txt="1 5 3\n1 0:1\n"))
    assert data.train.texts.spelled().titles == ["f1 f4", "f3", "f3"]
    assert data.train.labels.to_dense().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert data.test.labels.to_dense().tolist() == [[0, 1, 0]]
    alone = load(tmp_path / "eurlex_train.txt")
    assert len(alone.train) + len(alone.test) == 3 and len(alone.labels) == 3
    lay(tmp_path, eurlex_test__txt="1 6 3\n1 0:1\n")
    with pytest.raises(InputError, match="expected as many features in both files, 5, got 6"):
        load(tmp_path)
    lay(tmp_path, eurlex_test__txt="1 5 3\n1;2 0:1\n")
    with pytest.raises(InputError, match=r"test\.txt:2: expected label ids with commas"):
        bow.read(tmp_path)


def test_text2text(tmp_path: Path) -> None:
    """PECOS's one-file format, with and without relevances, alone and with label texts."""
    rows = "0,2\tred mug\n\t\n1::0.5\tgreen tea\n"
    data = load(lay(tmp_path, train__txt=rows, test__txt=rows, Y__txt="cup\ntea\nred\n"))
    assert data.train.labels.to_dense().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0.5, 0]]
    assert data.test.texts.titles == ["red mug", "", "green tea"]
    assert data.labels.titles == ["cup", "tea", "red"]
    lay(tmp_path, big__txt="7,2000000000\ta\n7\tb\n")
    assert load(tmp_path / "big.txt").labels.titles == ["l7", "l2000000000"]
    lay(tmp_path, train__txt="red\tmug\n")
    with pytest.raises(InputError, match=r"train\.txt:1: expected 'label,label<TAB>text'"):
        load(tmp_path)


def test_beir(tmp_path: Path) -> None:
    """Graded scores are relevances, a score of zero is none, unjudged queries are left out."""
    corpus = '{"_id": "d1", "title": "cup", "text": "holds"}\n{"_id": "d2", "text": "b"}\n'
    queries = "".join(f'{{"_id": "q{i}", "text": "t{i}", "metadata": {{}}}}\n' for i in range(5))
    head = "query-id\tcorpus-id\tscore\n"
    files = {"qrels___train__tsv": f"{head}q3\td2\t2\nq1\td1\t1\nq1\td2\t0\nq4\td1\t-1\n"}
    files |= {"qrels___test__tsv": f"{head}q0\td2\t1\n", "qrels___dev__tsv": f"{head}q2\td1\t1\n"}
    data = load(lay(tmp_path, corpus__jsonl=corpus, queries__jsonl=queries, **files))
    assert data.train.texts.uids == ["q1", "q3", "q4"] and data.test.texts.titles == ["t0"]
    assert data.train.labels.to_dense().tolist() == [[1, 0], [0, 2], [0, 0]]
    assert data.labels.all() == ["cup holds", "b"] and data.labels.uids == ["d1", "d2"]
    for name, text, message in (
        ("qrels___test__tsv", f"{head}q1\td2\t1\n", r"test\.tsv: expected queries that train\.tsv"),
        ("qrels___test__tsv", f"{head}q9\td2\t1\n", r"test\.tsv:2: expected a query of queries"),
        ("qrels___test__tsv", f"{head}q0\td9\t1\n", r"test\.tsv:2: expected a document of corpus"),
        ("qrels___test__tsv", f"{head}q0\td1\tnan\n", r"test\.tsv:2: expected a finite score"),
        ("qrels___test__tsv", f"{head}q0 0 d1 1\n", r"test\.tsv:2: expected 'query<TAB>document"),
        ("corpus__jsonl", corpus + corpus, r"corpus\.jsonl: expected each _id once, got 2 twice"),
        ("corpus__jsonl", '{"_id": 1, "text": "a"}\n', r"corpus\.jsonl:1: expected strings as _id"),
    ):
        with pytest.raises(InputError, match=message):
            load(lay(tmp_path, **{name: text}))


def test_attentionxml(tmp_path: Path) -> None:
    """Labels by name, sorted; raw texts before tokenized ones; as many lines in both files."""
    labels = {"train_labels__txt": "b_c a\n\na\n", "test_labels__txt": "z\n"}
    texts = {
        "train_texts__txt": "x\nx\nx\n",
        "test_texts__txt": "t\n",
        "train_raw_texts__txt": MUGS,
    }
    data = load(lay(tmp_path, **labels, **texts))
    assert data.train.texts.titles == ["red mug", "", "green tea"]
    assert data.labels.titles == ["a", "b_c", "z"]
    assert data.train.labels.to_dense().tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    lay(tmp_path, train_labels__txt="a\n")
    with pytest.raises(InputError, match=r"train_labels\.txt: expected 3 lines, as train_raw_tex"):
        load(tmp_path)


def test_annif(tmp_path: Path) -> None:
    """One file is told from a table by its first line; a folder has a vocabulary."""
    rows = "red mug\t<http://a/1> <http://a/2>\n\t\ngreen tea\t<http://a/2>\n"
    subjects = "<http://a/2>\ttea things\n<http://a/1>\tcup\n<http://a/3>\tred\n"
    data = load(lay(tmp_path, train__tsv=rows, test__tsv=rows, subjects__tsv=subjects))
    assert (
        data.labels.titles == ["tea things", "cup", "red"] and data.labels.uids[1] == "http://a/1"
    )
    assert data.train.labels.to_dense().tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    alone = load(tmp_path / "train.tsv")
    assert alone.labels.titles == ["http://a/1", "http://a/2"]
    lay(tmp_path, test__tsv="x\t<http://a/9>\n")
    with pytest.raises(InputError, match=r"test\.tsv:1: expected subjects of subjects\.tsv"):
        load(tmp_path)
    lay(tmp_path, test__tsv="x <http://a/1>\n")
    with pytest.raises(InputError, match=r"test\.tsv:1: expected 'text<TAB><URI>"):
        load(tmp_path)


# -- scipy's matrices ------------------------------------------------------------------------------


def test_scipy_reads_what_is_written(tmp_path: Path) -> None:
    """scipy.sparse.load_npz gives the same matrix, and what save_npz writes reads here."""
    matrix = scipy.sparse.random(30, 40, 0.1, "csr", np.float32, random_state=0)
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix)
    ours = read_matrix(tmp_path / "a.npz")
    assert np.array_equal(ours.to_dense().numpy(), matrix.toarray())
    write_matrix(ours, tmp_path / "b.npz")
    theirs = scipy.sparse.load_npz(tmp_path / "b.npz")
    assert (theirs != matrix).nnz == 0 and theirs.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array(b"csc")}, "format: expected a csr matrix, got csc; save matrix"),
        ({"shape": np.array([3, -3])}, "expected a whole csr matrix, .*cannot be negative"),
        ({"shape": np.array([3.0, 3.0])}, "expected a whole csr matrix"),
        ({"shape": np.array([4, 3])}, "expected a whole csr matrix, .*pointer size 4 should be 5"),
        ({"shape": np.array([3, 2])}, "expected a whole csr matrix, .*indices must be < 2"),
        ({"shape": np.array([3, 2**31])}, r"data: expected numbers, rows and columns below 2\^31"),
        ({"indptr": np.array([0, 9, 2, 3])}, "expected a whole csr matrix, .*non-decreasing"),
        (
            {"data": np.array([1, 0, 1])},
            r"data: expected finite relevances above 0, got 0\.0 in row",
        ),
        ({"data": np.array([1, 1e300, 1])}, "data: expected finite relevances above 0, got inf"),
        ({"data": np.array(["a", "b", "c"])}, "data: expected numbers"),
        ({"data": np.array([{}, {}, {}])}, "expected a whole csr matrix, .*allow_pickle=False"),
        ({"data": None}, "expected a whole csr matrix, .*data is not a file"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_damaged_npz(tmp_path: Path, changes: dict, message: str) -> None:
    """Each array can be wrong in its own way; nothing pickled is ever loaded."""
    matrix = scipy.sparse.csr_matrix(TRUTH.numpy())
    arrays = {"indptr": matrix.indptr, "indices": matrix.indices, "data": matrix.data}
    arrays |= {"shape": np.array(matrix.shape), "format": np.array(b"csr")} | changes
    np.savez(tmp_path / "m.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=rf"m\.npz: {message}"):
        read_matrix(tmp_path / "m.npz")


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n", []),
        ("2 1\n", [[2, 1]]),
        ("2 1\n\n0\t0\n2 1\n", [[0, 0], [2, 1]]),
        ("2.000000e+00 1.000000e+00\n", [[2, 1]]),
    ],
)
@pytest.mark.parametrize(
    "name", ["filter_labels_train", "trn_filter_labels", "raw___filter_labels_train"]
)
def test_filter_files(tmp_path: Path, name: str, text: str, expected: list) -> None:
    """Empty, one pair, blank lines, doubles, what numpy.savetxt writes; under each name."""
    texts = {"raw___trn_X__txt": MUGS, "raw___tst_X__txt": MUGS, "raw___Y__txt": "cup\ntea\nred\n"}
    data = load(lay(save_npz(tmp_path), **texts, **{f"{name}__txt": text}))
    assert data.train.drop.to_dense().nonzero().tolist() == expected
    assert data.train.drop.shape == (3, 3) and data.test.drop.nnz == 0


def test_filter_npz(tmp_path: Path) -> None:
    """A matrix of the pairs instead of the pairs; its shape must be that of the labels."""
    texts = {"X__trn__txt": MUGS, "X__tst__txt": MUGS, "Y__txt": "cup\ntea\nred\n"}
    lay(save_npz(tmp_path), **texts)
    path = tmp_path / "filter_labels_test.npz"
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(TRUTH.numpy()))
    assert load(tmp_path).test.drop.indices.tolist() == [0, 2, 1]
    scipy.sparse.save_npz(path, scipy.sparse.csr_matrix(TRUTH.numpy()[:2]))
    with pytest.raises(InputError, match=r"test\.npz: expected a matrix of 3 examples and 3"):
        load(tmp_path)


@pytest.mark.parametrize("line", ["1", "1 2 3", "3 0", "0 3", "-1 0", "0.5 0", "nan 0", "a b"])
def test_bad_filter_lines(tmp_path: Path, line: str) -> None:
    """Anything but two whole numbers in range names its line."""
    texts = {"X__trn__txt": MUGS, "X__tst__txt": MUGS, "Y__txt": "cup\ntea\nred\n"}
    lay(save_npz(tmp_path), **texts, filter_labels_test__txt=f"0 0\n{line}\n")
    with pytest.raises(InputError, match=r"test\.txt:2: expected 'row label' with row in \[0, 3\)"):
        load(tmp_path)
