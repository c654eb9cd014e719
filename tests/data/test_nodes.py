"""NodeData and its reader: splits are partitions, features equal loops, damage is named."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data.graphs import load_nodes, read
from shoal.data.nodes import NodeData, node_data, tf_idf


def save(path: Path, **changes: np.ndarray | None) -> Path:
    """A ring of ten nodes with one feature each, two classes; None removes a key."""
    n = 10
    arrays = {
        "indptr": np.arange(n + 1),
        "indices": ((np.arange(n) + 1) % n).astype(np.int32),
        "x_indptr": np.arange(n + 1),
        "x_indices": (np.arange(n) % 3).astype(np.int32),
        "x_data": np.arange(1, n + 1, dtype=np.float32),
        "x_shape": np.array([n, 3]),
        "y": (np.arange(n) % 2).astype(np.int32),
    }
    kept: dict = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(path, **kept)
    return path


def test_read_keeps_every_number(tmp_path: Path) -> None:
    """Graph, features and classes are the arrays; the three parts are a seeded 60/20/20."""
    data = load_nodes(save(tmp_path / "ring.npz"))
    assert data.name == "ring" and data.class_names == ("0", "1")
    assert data.graph.indices.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.features.to_dense()[4].tolist() == [0, 5, 0]
    assert data.target.tolist() == [0, 1] * 5
    parts = (data.train, data.valid, data.test)
    assert [len(part) for part in parts] == [6, 2, 2]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(10))
    again = load_nodes(tmp_path / "ring.npz")
    other = node_data(read(tmp_path / "ring.npz"), seed=1)
    assert torch.equal(data.valid, again.valid) and not torch.equal(data.train, other.train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, r"ring\.npz: arrays: expected classes, got no \['y'\]"),
        ({"indices": np.full(10, 10)}, r"ring\.npz: indices: expected ids in \[0, 10\), got 10"),
        ({"indptr": np.arange(11)[::-1].copy()}, r"ring\.npz: indptr"),
        ({"x_shape": np.array([10, 2])}, r"ring\.npz: indices: expected ids in \[0, 2\), got 2"),
        ({"x_data": np.full(10, np.nan, np.float32)}, r"ring\.npz: x_data: expected finite rows"),
        (
            {"y": np.full(10, -1)},
            r"ring\.npz: y: expected at least three nodes with a class, got 0",
        ),
        ({"y": np.zeros(9, np.int64)}, r"ring\.npz: "),
        ({"indptr": np.array([{}], dtype=object)}, r"ring\.npz: graph: expected indptr and"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_damage_names_file_and_array(tmp_path: Path, changes: dict, message: str) -> None:
    """A missing key, ids out of range, NaN, pickled objects: one line that names the file."""
    with pytest.raises(InputError, match=message):
        load_nodes(save(tmp_path / "ring.npz", **changes))


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    """No file, and half a file."""
    with pytest.raises(InputError, match="nothing there"):
        load_nodes(tmp_path / "absent.npz")
    path = save(tmp_path / "ring.npz")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"ring\.npz: expected a whole \.npz"):
        load_nodes(path)


@pytest.mark.usefixtures("unchecked")
def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    """Overlapping splits, classes without names, features of other nodes."""
    data = load_nodes(save(tmp_path / "ring.npz"))
    same = (data.graph, data.features, data.target)
    with pytest.raises(InputError, match="train, valid, test: expected no id twice, got 2 repeats"):
        NodeData("x", *same, data.train, data.valid, data.valid, data.class_names)
    with pytest.raises(InputError, match=r"target: expected ids in \[0, 1\), got 1"):
        NodeData("x", *same, data.train, data.valid, data.test, ("only",))
    few = Csr.from_lists([[0]], 3)
    with pytest.raises(InputError, match="features: expected 10 rows"):
        NodeData("x", data.graph, few, data.target, data.train, data.valid, data.test, ("0", "1"))


def test_tf_idf_is_the_formula() -> None:
    """Against loops over words: count times ln(n / documents), rows of length one or empty."""
    texts = ["Red cup, red mug", "a cup", "", "the mug: red", "once", "cup cup a"]
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    names = list(dict.fromkeys(w for row in words for w in row))
    documents = {w: sum(w in row for row in words) for w in names}
    names = [w for w in names if documents[w] >= 2]
    expected = torch.zeros(len(texts), len(names))
    for i, row in enumerate(words):
        for j, w in enumerate(names):
            expected[i, j] = row.count(w) * math.log(len(texts) / documents[w])
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(tf_idf(texts).to_dense(), expected)
    assert int((expected.norm(dim=1) > 0).sum()) == 4


def test_tf_idf_of_nothing_is_empty() -> None:
    """No texts, texts without words, and one word in all of them: no NaN."""
    assert tf_idf([]).shape == (0, 0)
    assert tf_idf(["", "!"]).shape == (2, 0)
    assert tf_idf(["a", "a"]).to_dense().tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("name", ["coauthor-cs", "amazon-computers"])
def test_published_graphs_read(outside_data: Path, name: str) -> None:
    """Every node stands in one part, and every class occurs."""
    data = load_nodes(outside_data / name / f"{name}.npz")
    n = data.graph.n_rows
    assert len(data.train) + len(data.valid) + len(data.test) == n
    assert abs(len(data.train) - 0.6 * n) < 2
    assert len(data.target.unique()) == len(data.class_names)
