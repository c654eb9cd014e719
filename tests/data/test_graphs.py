"""Readers of graphs: what is read is what was written, nothing is run, and damage is named."""

from __future__ import annotations

import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import shoal
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.data import graphs, is_graph, links, matrix
from shoal.data.graph import FORMATS, GraphData, graph_format
from shoal.data.graphs import arrays as files
from shoal.data.graphs import load_links, load_nodes, planetoid
from shoal.data.links import LinkData
from shoal.data.nodes import NodeData, node_data
from tests.planted import planted_graph


def arrays(**changes: Tensor | None) -> dict[str, Tensor]:
    """PyG's layout: five nodes, an edge from each to the next, two classes, masks."""
    n = torch.arange(5)
    made = {
        "edge_index": torch.stack([n, (n + 1) % 5]),
        "x": torch.eye(5)[:, :3].contiguous(),
        "y": n % 2,
        "train_mask": n < 2,
        "val_mask": n == 2,
        "test_mask": n > 2,
    }
    return {key: value for key, value in (made | changes).items() if value is not None}


def save(path: Path, made: dict[str, Tensor]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in made.items()})  # pyright: ignore
    else:
        save_file(made, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_pygs_arrays_read(tmp_path: Path, suffix: str) -> None:
    """A node reads the sources of its edges; features, classes and masks are kept."""
    path = save(tmp_path / f"five{suffix}", arrays())
    assert is_graph(str(path))
    data = load_nodes(str(path))
    assert data.name == "five" and data.class_names == ("0", "1") and not data.multi_label
    assert data.graph.take(torch.arange(5))[0].tolist() == [4, 0, 1, 2, 3]
    assert isinstance(data.features, Tensor) and torch.equal(data.features, arrays()["x"])
    parts = (data.train, data.valid, data.test)
    assert [part.tolist() for part in parts] == [[0, 1], [2], [3, 4]]


def test_several_classes_a_node_and_unknown_ones(tmp_path: Path) -> None:
    """A matrix of truth values is multi-label; NaN is unknown, and no random split draws it."""
    many = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])
    data = node_data_of(arrays(y=many))
    assert data.multi_label and torch.equal(data.target, many.bool())
    masks = dict.fromkeys(("train_mask", "val_mask", "test_mask"))
    y = torch.tensor([[1.0], [0.0], [float("nan")], [1.0], [0.0]])
    data = node_data_of(arrays(y=y, **masks))
    assert data.target.tolist() == [1, 0, -1, 1, 0]
    found = torch.cat([data.train, data.valid, data.test]).sort().values
    assert found.tolist() == [0, 1, 3, 4]


def node_data_of(made: dict[str, Tensor]) -> NodeData:
    return node_data(files.of_arrays("x", made))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no graph": ({"edge_index": None}, "graph: expected indptr and indices, or edge_index"),
    "turned": (
        {"edge_index": torch.zeros(5, 3).long()},
        r"edge_index: expected whole numbers, \[2",
    ),
    "an end too far": ({"edge_index": torch.tensor([[0], [5]])}, r"ids in \[0, 5\), got 5"),
    "features of others": ({"x": torch.ones(4, 3)}, r"edge_index: expected ids in \[0, 4\), got 4"),
    "NaN": ({"x": torch.full((5, 3), torch.nan)}, "x: expected finite rows, got NaN"),
    "no classes": ({"y": None}, r"expected classes, got no \['y'\]"),
    "numbers that are no classes": (
        {"y": torch.tensor([0, 1, 0, 1, 2**31])},
        "y: expected classes counted from 0, below 1048576, got 2147483648",
    ),
    "no columns": ({"x": torch.ones(5, 0)}, r"x: expected numbers \[5, features\]"),
    "half a class": ({"y": torch.full((5,), 0.5)}, "y: expected whole numbers, or one column"),
    "counts": ({"y": torch.full((5, 2), 2)}, "y: expected 0 and 1 in a matrix of classes"),
    "two masks": ({"val_mask": None}, "masks: expected train_mask, val_mask, test_mask, got"),
    "ten splits": (
        {"val_mask": torch.ones(5, 10).bool()},
        r"pick one split of each, such as mask\[:, 0\]",
    ),
    "empty": ({"val_mask": torch.zeros(5).bool()}, "valid: expected at least one node, got none"),
    "twice": ({"val_mask": torch.ones(5).bool()}, "expected no id twice, got 4 repeats"),
    "unknown": ({"y": torch.tensor([0, -1, 0, 1, 1])}, "got none for node 1; leave nodes without"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_named(tmp_path: Path, name: str) -> None:
    """Every wrong array: one line with the file, the key, and what to do."""
    changes, message = BAD[name]
    path = save(tmp_path / "five.npz", arrays(**changes))
    with pytest.raises(InputError, match=rf"five\.npz: .*{message}"):
        load_nodes(path)


def test_nodes_are_numbered_from_0(tmp_path: Path) -> None:
    """Two links among ten billion nodes are numbers of something else, not a graph of that size."""
    ids = torch.tensor([[0, 1], [1, 10**10]])
    np.savez(tmp_path / "far.npz", edge_index=ids)
    with pytest.raises(InputError, match=r"far\.npz: edge_index: expected nodes numbered from 0"):
        load_links(str(tmp_path / "far.npz"))


def test_a_damaged_safetensors_is_named(tmp_path: Path) -> None:
    """Half a file."""
    path = save(tmp_path / "five.safetensors", arrays())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"five\.safetensors: expected a whole \.safetensors"):
        load_nodes(path)


# -- OGB -------------------------------------------------------------------------------------------


def ogb_folder(folder: Path, **tables: np.ndarray | None) -> Path:
    """A ring of six nodes as OGB unpacks it; None leaves a table out."""
    n = np.arange(6)
    made = {
        "raw/edge": np.stack([n, (n + 1) % 6], 1),
        "raw/num-node-list": np.array([[6]]),
        "raw/node-feat": np.stack([n, n / 2], 1),
        "raw/node-label": (n % 3)[:, None],
        "split/time/train": n[:3, None],
        "split/time/valid": n[3:4, None],
        "split/time/test": n[4:, None],
    }
    for name, table in (made | tables).items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        if table is not None:
            np.savetxt(path, table, delimiter=",", fmt="%g")
    return folder


def test_ogb_nodes(tmp_path: Path) -> None:
    """Both directions of each edge, features, classes and the split; the name is the folder's."""
    folder = ogb_folder(tmp_path / "ogbn_ring")
    assert is_graph(str(folder))
    data = load_nodes(str(folder))
    assert (data.name, data.class_names) == ("ogbn-ring", ("0", "1", "2"))
    assert data.graph.take(torch.tensor([0, 3]))[0].tolist() == [1, 5, 2, 4]
    assert isinstance(data.features, Tensor) and data.features[3].tolist() == [3, 1.5]
    assert (data.train.tolist(), data.test.tolist()) == ([0, 1, 2], [4, 5])


def test_ogb_proteins_features_are_the_mean_of_edges(tmp_path: Path) -> None:
    """Without node features a node has the mean of its edges'; several classes a node."""
    rows, y = np.arange(6.0)[:, None], np.eye(6)[:, :2]
    tables = {"raw/edge-feat": rows, "raw/node-feat": None, "raw/node-label": y}
    data = load_nodes(str(ogb_folder(tmp_path / "p", **tables)))
    assert isinstance(data.features, Tensor) and data.multi_label
    assert data.features.flatten().tolist() == [2.5, 0.5, 1.5, 2.5, 3.5, 4.5]


def test_ogb_in_one_archive(tmp_path: Path) -> None:
    """ogbn-papers100M keeps arrays: the same graph comes out."""
    text = load_nodes(ogb_folder(tmp_path / "text"))
    left_out = dict.fromkeys(("raw/edge", "raw/node-feat", "raw/node-label"))
    folder = ogb_folder(tmp_path / "arrays", **left_out)
    assert isinstance(text.features, Tensor)
    edge_index = np.stack([np.arange(6), (np.arange(6) + 1) % 6])
    np.savez(folder / "raw" / "data.npz", edge_index=edge_index, node_feat=text.features.numpy())
    np.savez(folder / "raw" / "node-label.npz", node_label=text.target.numpy()[:, None])
    data = load_nodes(str(folder))
    assert torch.equal(data.graph.indices, text.graph.indices)
    assert torch.equal(data.target, text.target) and torch.equal(data.train, text.train)


def ogb_links(folder: Path, kind: str) -> Path:
    """Links of a ring, saved by torch as numpy arrays, tensors, or sources and targets."""
    ogb_folder(folder, **{f"split/time/{name}": None for name in ("train", "valid", "test")})
    ids = np.arange(6)
    for name, some in (("train", ids[:4]), ("valid", ids[4:5]), ("test", ids[5:])):
        edge = np.stack([some, (some + 1) % 6], 1)
        part: dict[str, Any] = {"edge": edge, "edge_neg": edge, "weight": edge[:, 0]}
        if kind == "tensors":
            part = {"edge": torch.from_numpy(edge)}
        if kind == "ends":
            part = {"source_node": edge[:, 0], "target_node": edge[:, 1]}
        torch.save(part, folder / "split" / "time" / f"{name}.pt")
    return folder


@pytest.mark.parametrize("kind", ["arrays", "tensors", "ends"])
def test_ogb_links(tmp_path: Path, kind: str) -> None:
    """Messages pass along training links alone, in both directions."""
    data = load_links(str(ogb_links(tmp_path / "ogbl_ring", kind)))
    assert (data.valid.tolist(), data.test.tolist()) == ([[4], [5]], [[5], [0]])
    assert data.train.take(torch.arange(6))[0].tolist() == [1, 2, 3, 4]
    assert data.graph.degrees().tolist() == [1, 2, 2, 2, 1, 0]
    assert data.known.nnz == 6


class Evil:
    """Would make a file, were it unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "raw/node-label.csv.gz").unlink(), r"node-label\.csv\.gz: .*nothing there"),
        (lambda f: (f / "raw/edge.csv.gz").write_bytes(b"no"), r"edge\.csv\.gz: expected numbers"),
        (lambda f: ogb_folder(f, **{"raw/edge": np.ones((2, 3))}), "expected two columns, got 3"),
        (lambda f: ogb_folder(f, **{"raw/edge": np.full((2, 2), 9)}), r"ids in \[0, 6\), got 9"),
        (lambda f: (f / "split/other").mkdir(), r"split: expected the folder of one split"),
        (lambda f: ogb_folder(f, **{"raw/triplet-type-list": np.ones((1, 3))}), "got several"),
        (lambda f: ogb_folder(f, **{"split/time/train": np.full((1, 1), 9)}), r"got 9"),
    ],
)
def test_damaged_ogb_folders_are_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """A missing, foreign or wrong table, several types: one line that names it."""
    folder = ogb_folder(tmp_path / "ogbn_ring")
    (folder / "raw/node-feat.csv.gz").unlink() if "features" in message else None
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_nodes(str(folder))


def test_a_split_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads links with weights alone: a pickle that calls something is an error."""
    monkeypatch.chdir(tmp_path)
    folder = ogb_links(tmp_path / "ogbl_ring", "arrays")
    torch.save({"edge": Evil()}, folder / "split" / "time" / "train.pt")
    with pytest.raises(InputError, match=r"train\.pt: expected a dictionary of arrays"):
        load_links(str(folder))
    assert not Path("ran").exists()


# -- Planetoid -------------------------------------------------------------------------------------


def planetoid_folder(folder: Path, protocol: int = 4) -> Path:
    """Seven nodes: two to learn from, one to choose by, tests 6, 4 and 3; node 5 is a gap."""
    from scipy.sparse import csr_matrix

    folder.mkdir()
    rows, classes = np.arange(12.0).reshape(6, 2), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    graph = defaultdict(list, {0: [1, 1, 0], 1: [0], 2: [6], 6: [2, 3]})
    made = {
        "x": csr_matrix(rows[:2]), "y": classes[:2], "allx": csr_matrix(rows[:3]),
        "ally": classes[:3], "tx": csr_matrix(rows[3:]), "ty": classes[3:], "graph": graph,
    }  # fmt: skip
    for name, value in made.items():
        (folder / f"ind.seven.{name}").write_bytes(pickle.dumps(value, protocol=protocol))
    (folder / "ind.seven.test.index").write_text("6\n4\n3\n")
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_planetoid(tmp_path: Path, protocol: int) -> None:
    """Test rows find their numbers, the gap has no class, edges stand once in both directions."""
    folder = planetoid_folder(tmp_path / "p", protocol)
    assert is_graph(str(folder))
    data = load_nodes(str(folder))
    assert data.name == "seven" and data.target.tolist() == [0, 1, 2, 2, 1, -1, 0]
    assert isinstance(data.features, Csr)
    assert data.features.to_dense()[:, 0].tolist() == [0, 2, 4, 10, 8, 0, 6]
    parts = (data.train, data.valid, data.test)
    assert [part.tolist() for part in parts] == [[0, 1], [2], [3, 4, 6]]
    assert data.graph.to_dense().nonzero().tolist() == [
        [0, 1], [1, 0], [2, 6], [3, 6], [6, 2], [6, 3],
    ]  # fmt: skip


def test_a_pickle_of_python_2_reads(tmp_path: Path) -> None:
    """The published files are Python 2's: old names, and bytes that are no text."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'i2'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\xe9\\x00\\x01\\x00'\ntb."
    )
    (tmp_path / "a").write_bytes(array)
    assert planetoid.unpickle(tmp_path / "a").tolist() == [233, 1]


@pytest.mark.parametrize(
    "made",
    [
        pickle.dumps(Evil()),
        pickle.dumps({"a": [Evil()]}, protocol=0),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I999999999\ntS'b'\ntR.",
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.",
        b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.",
        b"",
        b"\x80\x04K",
    ],
)
def test_a_pickle_that_names_more_is_refused(
    tmp_path: Path, made: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions, other classes, memory out of nothing, half a file: refused, and nothing ran."""
    monkeypatch.chdir(tmp_path)
    folder = planetoid_folder(tmp_path / "p")
    (folder / "ind.seven.graph").write_bytes(made)
    with pytest.raises(InputError, match=r"ind\.seven\.graph: expected a pickle of arrays"):
        load_nodes(str(folder))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test.index", "6\nx\n3\n", r"test\.index:2: expected a node's number, got x"),
        ("test.index", "", "expected a node's number a line, got none"),
        ("test.index", "6\n", r"test\.index: expected a number a row of tx and ty, got 1"),
        ("ty", None, r"ind\.seven\.ty: expected a file"),
    ],
)
def test_damaged_planetoid_folders_are_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    """A number that is none, too few of them, a missing file."""
    path = planetoid_folder(tmp_path / "p") / f"ind.seven.{name}"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_nodes(str(path.parent))


# -- links -----------------------------------------------------------------------------------------


def random_graph(n: int = 40) -> Csr:
    dense = torch.rand(n, n, generator=torch.Generator().manual_seed(0)) < 0.15
    return Csr.from_dense(dense)


def test_no_part_knows_a_link_of_another() -> None:
    """Pairs are split whole: no direction of a hidden link is read, learned or in another part."""
    data = links.split_links("x", random_graph(), None, valid=0.1, test=0.2, seed=3)
    train = torch.stack([data.train.row_ids(), data.train.indices.long()])
    parts = [{frozenset(pair) for pair in x.T.tolist()} for x in (train, data.valid, data.test)]
    assert all(not parts[i] & parts[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    read = {frozenset(p) for p in data.graph.to_dense().nonzero().tolist()}
    assert read == parts[0]
    every = random_graph().to_dense().bool().fill_diagonal_(False)
    assert torch.equal(data.known.to_dense().bool(), every)
    assert abs(len(parts[2]) / sum(map(len, parts)) - 0.2) < 0.01
    both = [tuple(p) for p in data.test.T.tolist() if every[p[1], p[0]]]
    assert both and all((b, a) in both for a, b in both)


@pytest.mark.parametrize("source", ["seven", "ring", "five.npz"])
def test_every_source_has_links(tmp_path: Path, source: str) -> None:
    """Classes are not needed: links are drawn from any graph."""
    path = {
        "seven": lambda: planetoid_folder(tmp_path / "seven"),
        "ring": lambda: ogb_folder(tmp_path / "ring"),
        "five.npz": lambda: save(tmp_path / "five.npz", arrays(y=None, x=None)),
    }[source]()
    data = load_links(str(path), seed=1)
    assert data.train.nnz > 0 and (data.features is None) == (source == "five.npz")


def test_too_few_links_are_refused() -> None:
    """Two links make no three parts."""
    few = Csr.from_lists([[1], [2], []], n_cols=3)
    with pytest.raises(InputError, match="graph: expected at least three links to split, got 2"):
        links.split_links("x", few, None)


def test_what_is_no_graph_is_named(tmp_path: Path) -> None:
    """A folder of something else, and nothing at all."""
    for path in (tmp_path, tmp_path / "absent"):
        assert not is_graph(str(path))
        with pytest.raises(InputError, match=re.escape(f"{path}: expected a graph")):
            load_nodes(str(path))


def test_large_arrays_of_an_archive_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same arrays as ever, stored or compressed, rows or columns first; no pickle."""
    monkeypatch.setattr(matrix, "MAPPED_BYTES", 0)
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    saved = {"x": rows, "turned": np.asfortranarray(rows), "n": np.array(5), "none": rows[:0]}
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, **saved)
        found = files.read_arrays_of(tmp_path / name)
        assert found.keys() == saved.keys()
        assert all(np.array_equal(found[key].numpy(), saved[key]) for key in saved)
    np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"c\.npz: expected a whole \.npz of plain arrays"):
        files.read_arrays_of(tmp_path / "c.npz")


# -- edges alone -----------------------------------------------------------------------------------


def test_edges_are_read_from_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, tabs, commas, comments and a head: node v reads u of the edge u v."""
    for name, text in (
        ("a.txt", "# from to\n0 1\n2\t1\n\n1 0\n"),
        ("a.csv", "source,target\n0,1\n2,1\n1,0\n"),
        ("a.tsv", "0\t1\t0.5\n2\t1\t1\n1\t0\t2\n"),
    ):
        (tmp_path / name).write_text(text)
        graph = graphs.read(tmp_path / name).graph
        assert graph.to_dense().tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    shipped = planted_graph(n=20, classes=2)
    monkeypatch.setattr("shoal.data.wordnet.graph", lambda: shipped)
    assert load_nodes("wordnet-graph").graph is shipped.graph


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "0 1\n2\n", "a.txt:2: expected two node numbers, got '2'"),
        ("a.txt", "0 1\n2 -1\n", "a.txt:2: expected two node numbers, got '2 -1'"),
        ("a.txt", "0 1\n2 x\n", "a.txt:2: expected two node numbers, got '2 x'"),
        ("a.txt", "# nothing\n", "a.txt: expected edges, got none"),
        ("a.txt", "0 99999999999\n", "a.txt: expected nodes numbered from 0, got 100000000000"),
        ("a.mtx", "0 1\n", "a.mtx: expected a graph: .* got something else"),
        ("a.npz", "no archive", "a.npz: expected a whole .npz"),
    ],
)
def test_bad_graphs_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    """File and line, or file."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        graphs.read(tmp_path / name)
    with pytest.raises(
        InputError, match=r"none: expected a graph: wordnet-graph, or a file .* check the path"
    ):
        graphs.read(tmp_path / "none")


def test_a_saved_csr_must_be_a_graph(tmp_path: Path) -> None:
    """Labels of points are none."""
    Csr.from_lists([[2], [0]], n_cols=3).save(tmp_path / "labels")
    with pytest.raises(InputError, match="labels: expected as many rows as columns"):
        graphs.read(tmp_path / "labels")


def test_a_format_of_ones_own_is_one_function(tmp_path: Path, request) -> None:
    """A reader that is registered is found by every function that reads graphs, and trains."""
    request.addfinalizer(lambda: FORMATS.pop("ring"))

    @graph_format("ring", lambda source: str(source).endswith(".ring"))
    def read(source: Any) -> GraphData:
        n = torch.arange(int(Path(source).read_text()))
        ring = Csr.from_edge_index(torch.stack([n, (n + 1) % len(n)]), len(n))
        return GraphData("ring", ring, torch.eye(2)[n % 2], n % 2)

    path = tmp_path / "a.ring"
    path.write_text("30")
    assert is_graph(path) and graphs.describe(path)["classes"] == {"0": 15, "1": 15}
    assert shoal.NodeModel(hidden=4, device="cpu").fit(path, steps=1).steps == 1
    assert shoal.LinkModel(hidden=4, device="cpu").fit(path, steps=1).steps == 1


def test_load_decides_by_what_a_source_holds(tmp_path: Path) -> None:
    """Classes make nodes; without them, or with a split of links, links are to be predicted."""
    assert isinstance(graphs.load(save(tmp_path / "a.npz", arrays())), NodeData)
    assert isinstance(graphs.load(save(tmp_path / "b.npz", arrays(y=None))), LinkData)
    assert isinstance(graphs.load(ogb_links(tmp_path / "c", "arrays")), LinkData)
    assert isinstance(graphs.load(SimpleNamespace(**arrays())), NodeData)
    with pytest.raises(InputError, match="data: expected a graph, or its path, got int"):
        graphs.load(3)
