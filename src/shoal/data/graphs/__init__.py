"""Graphs by name, by path, or in memory: found among the formats, read, and described.

Each format is one file of this folder: ``wordnet-graph``, arrays (``.npz``, ``.safetensors``),
PyTorch Geometric's ``Data``, also as ``.pt``, folders of OGB, Planetoid, and of two tables, edges
as text, GraphML and its like, a saved ``Csr``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.core.csr import Csr
from shoal.core.errors import fail, naming
from shoal.data.graph import FORMATS, GraphData, GraphFormat
from shoal.data.graphs import (  # noqa: F401 (they register)
    arrays,
    edges,
    ogb,
    planetoid,
    pyg,
    tables,
    wordnet,
)
from shoal.data.links import LinkData, link_data, split_links
from shoal.data.nodes import NodeData, node_data


def is_graph(source: Any) -> bool:
    """Whether a source can be nothing but a graph, by its name and its folder's files alone."""
    return any(format.distinct and _holds(format, source) for format in FORMATS.values())


def _holds(format: GraphFormat, source: Any) -> bool:
    try:
        return format.holds(source)
    except (OSError, ValueError):  # a name that no file system takes
        return False


def read(source: Any) -> GraphData:
    """Read a graph of any format.

    Raises:
        InputError: if it is missing, damaged, or of a kind that is not known.
    """
    for format in reversed(FORMATS.values()):  # one of the user's own comes first
        if _holds(format, source):
            return format.read(source)
    if isinstance(source, str | Path):
        there = "something else" if Path(source).exists() else "nothing there"
        remedy = "check the path; docs/reference/formats.md lists what is read"
        fail(str(source), "a graph: wordnet-graph, or a file or folder of one", there, remedy)
    fail("data", "a graph, or its path", type(source).__name__, "convert it to PyG's Data, say")


def load(source: Any) -> NodeData | LinkData:
    """Read nodes to classify where they have classes, else links to predict.

    Raises:
        InputError: if it is missing, damaged, or of a kind that is not known.
    """
    graph = read(source)
    with naming(graph.name if not isinstance(source, str | Path) else source):
        links = graph.links is not None or graph.y is None
        return link_data(graph) if links else node_data(graph)


def load_nodes(source: Any, seed: int = 0) -> NodeData:
    """Nodes to classify, of whatever :func:`read` reads, or as they are.

    Args:
        source: a graph with classes.
        seed: of the split, where the source has none, or several.

    Raises:
        InputError: if the source is missing, damaged, or lacks classes.
    """
    if isinstance(source, NodeData):
        return source
    graph = read(source)
    with naming(graph.name if not isinstance(source, str | Path) else source):
        return node_data(graph, seed=seed)


def load_links(source: Any, seed: int = 0) -> LinkData:
    """Links to predict, of whatever :func:`read` reads, or as they are.

    Args:
        source: a graph; of :class:`NodeData`, whose links are not split yet, the edges.
        seed: of the split, where the source has none.

    Raises:
        InputError: if the source is missing, damaged, or has too few links.
    """
    if isinstance(source, LinkData):
        return source
    if isinstance(source, NodeData):
        return split_links(source.name, source.graph, source.features, seed=seed)
    graph = read(source)
    with naming(graph.name if not isinstance(source, str | Path) else source):
        return link_data(graph, seed)


def describe(source: Any) -> dict[str, Any]:
    """Count what a graph holds; the result can be written as JSON.

    Raises:
        InputError: if it is missing or damaged.
    """
    graph = read(source)
    degrees, features = graph.graph.degrees(), graph.features
    about: dict[str, Any] = {
        "name": graph.name,
        "nodes": graph.graph.n_rows,
        "edges": graph.graph.nnz,
        "edges_per_node": round(float(degrees.double().mean()), 3),
        "nodes_without_edges": int((degrees == 0).sum()),
        "edges_without_reverse": graph.graph.one_way(),
        "features": 0 if features is None else features.shape[1],
    }
    if isinstance(features, Csr):
        about["features_per_node"] = round(features.nnz / features.n_rows, 3)
    with naming(source):
        if graph.links is not None or graph.y is None:
            links = link_data(graph)
            held = {name: getattr(links, name).shape[1] for name in ("valid", "test")}
            return about | {"train": links.train.nnz, **held}
        nodes = node_data(graph)
    parts = {name: len(getattr(nodes, name)) for name in ("train", "valid", "test")}
    of_class = nodes.target.sum(0) if nodes.multi_label else nodes.target.clamp(min=-1)
    if not nodes.multi_label:
        of_class = of_class[of_class >= 0].bincount(minlength=len(nodes.class_names))
    return about | parts | {"classes": dict(zip(nodes.class_names, of_class.tolist(), strict=True))}
