"""Graphs without features: who reads whom, from arrays, a saved Csr, or a text of edges.

A text holds two node numbers a line, with blanks, a tab or a comma between them, as the SNAP
collection has them; lines that begin with # and a first line of words are skipped. In the edge
``u v`` node v reads u, as messages go in PyG.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from shoal.core.csr import Csr
from shoal.core.errors import expect, fail
from shoal.data import is_graph
from shoal.data.arrays import expect_numbered
from shoal.data.graphs import load_graph
from shoal.data.lines import as_tensor, lines, shorten

_TEXTS = (".txt", ".tsv", ".csv", ".edges", ".gz")


def read_graph(source: str | Path) -> Csr:
    r"""Read who reads whom; row v of the result lists the nodes that v reads.

    Args:
        source: any graph that ``shoal train`` reads (:mod:`shoal.data.graphs`); the folder of a
            saved Csr; or a text of edges, perhaps gzipped.

    Raises:
        InputError: naming the file, and in a text the line, if anything is not as described.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("# from to\n0 1\n2 1\n")
        ...     read_graph(Path(folder, "a.txt")).take(torch.tensor([1]))[0].tolist()
        [0, 2]
    """
    path = Path(source)
    if is_graph(str(source)):
        return load_graph(str(source))
    if path.is_dir():
        return _square(path, Csr.open(path))
    want = "wordnet-graph, or a file or folder of a graph"
    expect(path.exists(), str(path), want, "nothing there", "check the path")
    known = path.suffix in _TEXTS
    expect(known, str(path), f".npz, a folder, or one of {_TEXTS}", path.suffix, "convert it")
    return _of_text(path)


def _square(path: Path, csr: Csr) -> Csr:
    square = csr.n_rows == csr.n_cols
    expect(square, str(path), "as many rows as columns, the nodes", csr.shape, "save a graph")
    return csr


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
    expect_numbered(str(path), n, edges.shape[1])
    return Csr.from_edge_index(edges, n)
