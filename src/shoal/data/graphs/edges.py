"""Graphs without features: from a text of edges, or a saved Csr.

A text holds two node numbers a line, with blanks, a tab or a comma between them, as the SNAP
collection has them; lines that begin with # and a first line of words are skipped. In the edge
``u v`` node v reads u, as messages go in PyG.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_file, expect_numbered, fail
from shoal.data.graph import GraphData, graph_format
from shoal.data.lines import as_tensor, lines, shorten

_TEXTS = (".txt", ".tsv", ".csv", ".edges", ".gz")


def _is_text(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).suffix in _TEXTS


@graph_format("edges", _is_text, distinct=False)
def read(path: str | Path) -> GraphData:
    r"""Read a text of edges, perhaps gzipped; row v of the result lists the nodes that v reads.

    Raises:
        InputError: naming the file and the line, if anything is not as described.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("# from to\n0 1\n2 1\n")
        ...     read(Path(folder, "a.txt")).graph.take(torch.tensor([1]))[0].tolist()
        [0, 2]
    """
    return GraphData(Path(path).stem, _of_text(expect_file(path, "edges")))


def _is_csr(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source, "indptr.npy").is_file()


@graph_format("csr", _is_csr, distinct=False)
def read_csr(path: str | Path) -> GraphData:
    """Read the folder of a saved :class:`~shoal.core.csr.Csr`.

    Raises:
        InputError: if it is damaged, or no graph.
    """
    csr = Csr.open(path)
    square = csr.n_rows == csr.n_cols
    expect(square, str(path), "as many rows as columns, the nodes", csr.shape, "save a graph")
    return GraphData(Path(path).resolve().name, csr)


def _of_text(path: Path) -> Csr:
    ends = array("q")
    for number, line in lines(path):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#") or (number == 1 and not words[0].isdecimal()):
            continue
        good = len(words) >= 2 and all(x.isdecimal() and len(x) < 19 for x in words[:2])
        expect(good, f"{path}:{number}", "two node numbers", shorten(line), "correct the line")
        ends.extend((int(words[0]), int(words[1])))
    if not ends:
        fail(str(path), "edges", "none", "check the file")
    edges = as_tensor(ends).view(-1, 2).T
    n = int(edges.max()) + 1
    expect_numbered(str(path), "nodes", n, edges.shape[1])
    return Csr.from_edge_index(edges, n)
