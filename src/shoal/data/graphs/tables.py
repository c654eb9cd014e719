"""Graphs as tables: a folder of edges and nodes, and what networkx reads (GraphML, GML, GEXF).

``edges.csv`` names the ends of each edge, ``nodes.csv`` one node a row: its id, numbers as
features, a class, perhaps the split. SNAP's ``NAME_edges.csv`` and ``NAME_target.csv`` are such a
folder. All suffixes of tables are read. Nodes are numbered by the rows of their table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from shoal.core.csr import Csr
from shoal.core.distribution import require
from shoal.core.errors import InputError, expect, expect_file, fail, naming
from shoal.data.cells import READ, kind_of
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.edges import ends_in
from shoal.data.lines import shorten, suffix_of
from shoal.data.unread import naming_unread, say_unread

_EDGES, _NODES = ("edges", "*_edges"), ("nodes", "*_target", "*_nodes")
_IDS = ("id", "node_id", "nodeid", "node", "name", "uid")
_CLASSES = ("label", "labels", "y", "class", "target", "category")
_PARTS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_OF_NETWORKX = {".graphml": "read_graphml", ".gml": "read_gml", ".gexf": "read_gexf"}


def _table(folder: Path, names: Sequence[str]) -> Path | None:
    found = chain.from_iterable(sorted(folder.glob(f"{name}.*")) for name in names)
    return next((path for path in found if suffix_of(path) in READ), None)


def _is_folder(source: Any) -> bool:
    folder = Path(source) if isinstance(source, str | Path) else None
    return folder is not None and folder.is_dir() and _table(folder, _EDGES) is not None


@graph_format("edges and nodes", _is_folder)
def read(folder: str | Path) -> GraphData:
    """Read a folder of two tables; the edge ``u,v`` is one that v reads.

    Raises:
        InputError: naming the file, if one is damaged, or an edge ends at no node.
    """
    folder = Path(folder)
    edges, nodes = _table(folder, _EDGES), _table(folder, _NODES)
    expect(nodes is not None, str(folder), "a table of nodes (nodes.csv) beside", edges, "add it")
    assert edges is not None and nodes is not None
    with naming_unread(folder):
        records = [record for _, record in kind_of(nodes).read(nodes, "utf-8")]
        rows = [record for _, record in kind_of(edges).read(edges, "utf-8")]
    first = rows[0] if rows else {}
    ends = ends_in(first)
    remedy = "name the columns source and target"
    expect(ends is not None, str(edges), "columns of two ends", list(first), remedy)
    assert ends is not None
    say_unread(edges, [f"column {name}" for name in first if name not in ends and name])
    with naming(folder):
        return _graph(
            folder.resolve().name, records, ((row[ends[0]], row[ends[1]]) for row in rows)
        )


def _is_networkx(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix.lower() in _OF_NETWORKX


@graph_format("networkx", _is_networkx)
def read_networkx(path: str | Path) -> GraphData:
    """Read GraphML, GML or GEXF; edges of an undirected graph lead both ways.

    Raises:
        InputError: naming the file, if it is damaged, or networkx is not installed.
    """
    path = expect_file(path, "a graph")
    try:
        networkx = require("networkx", str(path), "pyg")
        graph = getattr(networkx, _OF_NETWORKX[path.suffix.lower()])(path)
    except InputError:
        raise
    except Exception as error:  # expat, networkx: each has its own
        got = str(error).partition("\n")[0] or type(error).__name__
        fail(str(path), f"a whole {path.suffix} file", got, "write or download it again")
    records = [{"node_id": node, **about} for node, about in graph.nodes(data=True)]
    beside = {key for _, _, about in graph.edges(data=True) for key in about}
    say_unread(path, sorted(f"{key} of edges" for key in beside - {"id", "key"}))
    pairs = [(u, v) for u, v in graph.edges()]
    both = pairs if graph.is_directed() else pairs + [(v, u) for u, v in pairs]
    with naming(path):
        return _graph(path.stem, records, both)


def _graph(name: str, records: list[dict[str, Any]], edges: Iterable[tuple[Any, Any]]) -> GraphData:
    """A graph of nodes' records and edges between their ids."""
    expect(len(records) > 0, "nodes", "one a row", "none", "write some below the columns")
    columns = {str(key).strip().lower(): key for record in records for key in record}
    key = next((columns[x] for x in ("node_id", *_IDS) if x in columns), next(iter(records[0])))
    number = {str(record.get(key)): i for i, record in enumerate(records)}
    twice = len(records) - len(number)
    expect(twice == 0, f"nodes: {key}", "each id once", f"{twice} twice", "remove the doubles")
    pairs = [(str(u), str(v)) for u, v in edges]
    lost = next((end for pair in pairs for end in pair if end not in number), None)
    if lost is not None:
        fail(
            "edges", f"ids of nodes, as in column {key}", shorten(lost), "add the node, or drop it"
        )
    ids = [[number[u] for u, _ in pairs], [number[v] for _, v in pairs]]
    graph = Csr.from_edge_index(torch.tensor(ids, dtype=torch.int64).view(2, -1), len(records))
    label = next((columns[x] for x in _CLASSES if x in columns), None)
    split = columns.get("split")
    others = [x for x in columns.values() if x not in (key, label, split)]
    numbers = {x: [_number(record.get(x)) for record in records] for x in others}
    used = [x for x in others if None not in numbers[x]]
    say_unread(name, [f"column {x} of nodes" for x in others if x not in used])
    features = torch.tensor([numbers[x] for x in used]).T.contiguous() if used else None
    y, names = (None, None) if label is None else _classes([x.get(label) for x in records])
    parts = {} if split is None else _split([record.get(split) for record in records])
    return GraphData(name, graph, features, y, parts, class_names=names)


def _number(cell: Any) -> float | None:
    try:
        found = float(cell)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < float("inf") else None


def _classes(cells: list[Any]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Classes by their names; of an empty cell, -1 and NaN, none is known."""
    texts = ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]
    known = {x for x in texts if x not in ("", "-1", "nan", "None")}
    whole = all(x.isdecimal() for x in known)
    names = tuple(sorted(known, key=int if whole else None))
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number.get(x, -1) for x in texts]), names


def _split(cells: list[Any]) -> dict[str, torch.Tensor]:
    said = [_PARTS.get(str(cell).strip().lower(), "") for cell in cells]
    return {x: torch.tensor([part == x for part in said]) for x in ("train", "valid", "test")}
