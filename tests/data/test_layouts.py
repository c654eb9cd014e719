"""Graphs as other projects save them: one graph in every layout is one graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from shoal.core.errors import InputError
from shoal.data.graphs import is_graph, load_nodes, read
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


LINES = {
    "a.txt": ("\t", "# Directed graph\n# FromNodeId\tToNodeId\n", "{}\t{}"),
    "b.csv": (",", "id,source,target,weight\n", "7,{},{},0.5"),
    "c.csv": (";", "Source;Target\n", "{};{}"),
    "d.edgelist": (" ", "", "{} {} {{}}"),
    "e.tsv": ("\t", "", "{}\t{}"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("names", [False, True])
def test_edges_in_every_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, names: bool
) -> None:
    """One cycle by numbers, or by names in the order of their first edge; weights are named."""
    _, head, line = LINES[name]
    ends = [(f"p{u}", f"p{v}") if names else (u, v) for u, v in EDGES.T.tolist()]
    path = tmp_path / name
    path.write_text(head + "".join(line.format(*pair) + "\n" for pair in ends))
    assert np.array_equal(read(path).graph.to_dense().numpy(), GRAPH.T.toarray())
    assert ("6 nodes have names" in caplog.text) == names
    assert ("not read: id, weight" in caplog.text) == (name == "b.csv")
    assert names or is_graph(path)


def test_tables_of_texts_are_no_graphs(tmp_path: Path) -> None:
    """Columns that name ends beside a text do not make edges of it."""
    (tmp_path / "m.csv").write_text("from,to,subject\n1,2,red mug\n")
    (tmp_path / "b.txt").write_text("2 5 3\n0,2 1:0.5 4:1.2\n 3:0.7\n")
    (tmp_path / "t.txt").write_text("0\tred mug\n1\ttea\n")
    assert not any(is_graph(tmp_path / name) for name in ("m.csv", "b.txt", "t.txt"))


def test_edges_and_nodes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder of two tables, and networkx's files of the same graph."""
    (tmp_path / "g").mkdir()
    rows = [f"p{i},{a},{b},c{y},text" for i, ((a, b), y) in enumerate(zip(ROWS, Y, strict=True))]
    (tmp_path / "g" / "nodes.csv").write_text("id,a,b,label,title\n" + "\n".join(rows) + "\n")
    pairs = [f"p{u},p{v}" for u, v in EDGES.T.tolist()]
    (tmp_path / "g" / "edges.csv").write_text("source,target\n" + "\n".join(pairs) + "\n")
    graph = networkx.DiGraph()
    for i in range(N):
        graph.add_node(i, a=float(ROWS[i, 0]), b=float(ROWS[i, 1]), category=f"c{Y[i]}")
    graph.add_edges_from(EDGES.T.tolist())
    networkx.write_graphml(graph, tmp_path / "g.graphml")
    networkx.write_gml(graph, tmp_path / "g.gml")
    for name in ("g", "g.graphml", "g.gml"):
        data = load_nodes(tmp_path / name)
        assert np.array_equal(data.graph.to_dense().numpy(), GRAPH.T.toarray())
        assert np.array_equal(np.asarray(data.features), ROWS)
        assert data.target.tolist() == Y.tolist() and data.class_names == ("c0", "c1", "c2")
    assert "g: not read: column title of nodes" in caplog.text
    (tmp_path / "g" / "edges.csv").write_text("source,target\np0,q\n")
    with pytest.raises(InputError, match="ids of nodes, as in column id, got 'q'"):
        read(tmp_path / "g")


class Harm:
    """What a stranger may pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_a_saved_data_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyG's Data and dictionaries of tensors are read; any other class is refused, unrun."""
    pyg = pytest.importorskip("torch_geometric.data")
    tensors = {"edge_index": torch.from_numpy(EDGES), "x": torch.from_numpy(ROWS)}
    for found in (pyg.Data(**tensors), tensors):
        torch.save(found, tmp_path / "d.pt")
        graph = read(tmp_path / "d.pt")
        assert np.array_equal(graph.graph.to_dense().numpy(), GRAPH.T.toarray())
        assert np.array_equal(np.asarray(graph.features), ROWS)
    torch.save({"edge_index": Harm()}, tmp_path / "h.pt")
    with pytest.raises(InputError, match=r"h\.pt: expected a graph as tensors, got a class"):
        read(tmp_path / "h.pt")
    assert "run" not in capsys.readouterr().out
