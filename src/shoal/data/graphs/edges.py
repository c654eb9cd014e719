"""Graphs without features: from a text of edges, or a saved Csr.

A text holds two nodes a line, with blanks, tabs, commas or semicolons between them, as the SNAP
collection has them; lines that begin with # or % are skipped. A first line of column names is
known by them (``source,target``), or by being the only words. Nodes are numbers from 0, or names,
which are numbered as they first occur, and that is said; so is what stands beside the two ends. In
the edge ``u v`` node v reads u, as messages go in PyG.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_file, expect_numbered, fail
from shoal.data.cells import kind_of
from shoal.data.graph import GraphData, graph_format
from shoal.data.lines import as_tensor, lines, shorten, suffix_of
from shoal.data.unread import say_unread

_log = logging.getLogger("shoal")
_TEXTS = (".txt", ".tsv", ".csv")
_ALONE = (".edges", ".edgelist")  # nothing else is called so
_ENDS = (
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("fromnodeid", "tonodeid"),
    ("id_1", "id_2"),
    ("id1", "id2"),
    ("node_1", "node_2"),
    ("node1", "node2"),
    ("source_id", "target_id"),
    ("from_id", "to_id"),
    ("head", "tail"),
    ("u", "v"),
)
_FIRST = 5  # lines by which a text of numbers is known to be one of edges


def ends_in(columns: Iterable[str]) -> tuple[str, str] | None:
    """The two columns that name the ends of an edge, if there are such.

    Example:
        >>> ends_in(["id", "Source", "Target"]), ends_in(["text", "labels"])
        (('Source', 'Target'), None)
    """
    found = {str(name).strip().lower(): name for name in columns}
    pair = next((pair for pair in _ENDS if set(pair) <= set(found)), None)
    return None if pair is None else (found[pair[0]], found[pair[1]])


def _is_text(source: Any) -> bool:
    known = (*_TEXTS, *_ALONE, ".parquet")
    return isinstance(source, str | Path) and suffix_of(Path(source)) in known


def _is_certain(source: Any) -> bool:
    """Whether a file's name or first lines say that it holds edges, and no texts."""
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or not _is_text(path) or not path.is_file():
        return False
    if suffix_of(path) in _ALONE:
        return True
    try:
        rows = [words for _, words in islice(_words(path, "latin-1"), _FIRST)]
    except InputError:  # whoever reads it says what is wrong
        return False
    ends = ends_in(rows[0]) if rows else None
    if ends is not None:  # beside them stand weights and times, and no texts
        at = [i for i, name in enumerate(rows[0]) if name not in ends]
        return all(_is_number(row[i]) for row in rows[1:] for i in at if i < len(row))
    numbers = all(map(_is_number, chain.from_iterable(rows)))
    return numbers and bool(rows) and all(_decimal(row, (0, 1)) for row in rows)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@graph_format("edges", _is_text, distinct=False)
@graph_format("edges, for certain", _is_certain)
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


def _words(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The words of each line that says something, names of columns included.

    Yields:
        the number of the line and its words.
    """
    if suffix_of(path) == ".parquet":
        for number, record in kind_of(path).read(path, encoding):
            if number == 1:
                yield 0, [str(name) for name in record]
            yield number, [str(cell) for cell in record.values()]
        return
    between: str | None = ""
    for number, line in lines(path, encoding):
        if not line.strip() or line.lstrip()[0] in "#%":
            continue
        if between == "":
            between = next((x for x in ",;\t" if x in line), None)
        yield number, [word.strip(' "') for word in line.strip().split(between)]


def _of_text(path: Path) -> Csr:
    ends, number_of = array("q"), dict[str, int]()
    head, at, named = _columns(path)
    for i, (line, words) in enumerate(_words(path)):
        if i == 0 and head:
            continue
        full = len(words) > max(at) and all(words[i] for i in at)
        good = full and (named or _decimal(words, at))
        shown = shorten(" ".join(words))
        expect(good, f"{path}:{line}", "two node numbers", shown, "correct the line")
        ends.extend(
            number_of.setdefault(words[i], len(number_of)) if named else int(words[i]) for i in at
        )
    if not ends:
        fail(str(path), "edges", "none", "check the file")
    edges = as_tensor(ends).view(-1, 2).T
    n = int(edges.max()) + 1
    if number_of:
        told = "%s: %d nodes have names, and are numbered as these first occur: %s is 0"
        _log.warning(told, path, n, next(iter(number_of)))
    expect_numbered(str(path), "nodes", n, edges.shape[1])
    return Csr.from_edge_index(edges, n)


def _decimal(words: list[str], at: tuple[int, int]) -> bool:
    return len(words) > max(at) and all(words[i].isdecimal() and len(words[i]) < 19 for i in at)


def _columns(path: Path) -> tuple[bool, tuple[int, int], bool]:
    """Whether the first line names columns, which two are ends, and whether these are names."""
    rows = [words for _, words in islice(_words(path), 2)]
    first, second = [*rows, [], []][:2]
    pair = ends_in(first)
    texts = {"text", "title", "label", "labels"} & {word.lower() for word in first}
    want, remedy = "two nodes a line", "name the columns of an edge's ends source and target"
    got = f"a column called {min(texts, default='')}, as tables of texts have"
    expect(pair is not None or not texts, str(path), want, got, remedy)
    at = (0, 1) if pair is None else (first.index(pair[0]), first.index(pair[1]))
    numbers = _decimal(first, at)
    head = pair is not None or (not numbers and _decimal(second, at))
    beside = first if pair is not None else [f"column {i + 1}" for i in range(len(first))]
    say_unread(path, [name for i, name in enumerate(beside) if i not in at])
    lead = second if head else first
    # a number with a sign is one that is wrong, and no name
    named = len(lead) > max(at) and not any(_is_number(lead[i]) for i in at)
    return head, at, named
