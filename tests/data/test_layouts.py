"""Graphs as other projects save them: one graph in every layout is one graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from shoal.data.graphs import load_nodes, read
from shoal.data.nodes import NodeData

N, EDGES = 6, np.array([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])
Y, ROWS = np.array([0, 1, 2, 0, 1, 2]), np.arange(12, dtype=np.float32).reshape(6, 2) % 5
GRAPH = sp.csr_matrix((np.ones(7, np.float32), (EDGES[0], EDGES[1])), (N, N))
MASKS = {"train": [1, 1, 1, 0, 0, 0], "val": [0, 0, 0, 1, 0, 0], "test": [0, 0, 0, 0, 1, 1]}


def parts(matrix: Any, name: str) -> dict[str, Any]:
    return {f"{name}{key}": getattr(matrix, key) for key in ("data", "indices", "indptr", "shape")}


def boxed(matrix: Any) -> np.ndarray:
    """A matrix pickled as an object array, as numpy.savez keeps it."""
    found = np.empty((), object)
    found[()] = matrix
    return found


WORDS = sp.csr_matrix(ROWS)
AS_STORED: dict[str, dict[str, Any]] = {
    "gnn-benchmark": parts(GRAPH, "adj_") | parts(WORDS, "attr_") | {"labels": Y},
    "its parts": parts(GRAPH, "adj_matrix.") | parts(WORDS, "attr_matrix.") | {"labels": Y},
    "GraphData": {"adj_matrix": boxed(GRAPH), "attr_matrix": boxed(WORDS), "label": Y},
}
AS_EDGES: dict[str, dict[str, Any]] = {
    "DGL": {"src": EDGES[0], "dst": EDGES[1], "feat": ROWS, "label": Y},
    "edges in rows": {"edge_index": EDGES.T, "x": ROWS, "y": Y},
    "one-hot": {"edge_index": EDGES, "x": ROWS, "y": np.eye(3)[Y]},
}


@pytest.mark.parametrize("name", [*AS_STORED, *AS_EDGES])
def test_every_layout_is_one_graph(tmp_path: Path, name: str) -> None:
    """The same neighbors, features and classes, whatever the arrays are called."""
    np.savez(tmp_path / "g.npz", **(AS_STORED | AS_EDGES)[name])
    data = load_nodes(tmp_path / "g.npz")
    want = GRAPH if name in AS_STORED else GRAPH.T
    assert data.features is not None
    dense = data.features if name in AS_EDGES else data.features.to_dense()
    assert np.array_equal(data.graph.to_dense().numpy(), want.toarray())
    assert np.array_equal(np.asarray(dense), ROWS)
    assert data.target.tolist() == (np.eye(3)[Y] > 0).tolist() if name == "one-hot" else Y.tolist()


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_a_matrix_of_scipy_is_a_graph(tmp_path: Path, form: str) -> None:
    """Rows read, in whatever form scipy saved the matrix."""
    sp.save_npz(tmp_path / "a.npz", GRAPH.asformat(form))
    found = read(tmp_path / "a.npz").graph
    assert np.array_equal(found.to_dense().numpy() != 0, GRAPH.toarray() != 0)


def test_the_seed_chooses_among_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """heterophilous-graphs' layout: edges in both directions, a row of masks a split."""
    masks = {f"{k}_masks": np.array([m, np.roll(m, 1)], bool) for k, m in MASKS.items()}
    np.savez(tmp_path / "h.npz", node_features=ROWS, node_labels=Y, edges=EDGES.T, **masks)

    def loaded(seed: int) -> NodeData:
        return load_nodes(tmp_path / "h.npz", seed)

    assert loaded(0).train.tolist() == [0, 1, 2] and loaded(1).train.tolist() == [1, 2, 3]
    assert loaded(2).train.tolist() == [0, 1, 2] and loaded(0).graph.one_way() == 0
    assert "2 splits: number 1 is read" in caplog.text
    np.savez(tmp_path / "r.npz", edge_index=np.tile(EDGES, 9), x=ROWS, y=Y)
    drawn = {tuple(load_nodes(tmp_path / "r.npz", seed).test.tolist()) for seed in range(9)}
    assert len(drawn) > 1


def test_what_is_beside_a_graph_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Strings name classes or are not read; objects are never run; empty classes are counted."""
    caplog.set_level(logging.WARNING)
    names = np.array(["fish", "bird", "cat"])[Y]
    made = {"edge_index": EDGES, "x": ROWS, "y": names, "titles": names}
    np.savez(tmp_path / "s.npz", meta=np.array({"a": print}, object), **made)
    data = load_nodes(tmp_path / "s.npz")
    assert data.class_names == ("bird", "cat", "fish")
    assert [data.class_names[i] for i in data.target.tolist()] == names.tolist()
    assert "s: not read: meta, titles" in caplog.text
    np.savez(tmp_path / "one.npz", edge_index=EDGES, x=ROWS, y=Y + 1)
    load_nodes(tmp_path / "one.npz")
    assert "y: 1 of 4 classes have no node, number 0 first" in caplog.text
