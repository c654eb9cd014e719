"""Planetoid folders, ``ind.cora.{x,tx,allx,y,ty,ally,graph,test.index}``, without running code.

The files are pickles (Yang, Cohen, Salakhutdinov, "Revisiting semi-supervised learning with graph
embeddings", ICML 2016) of numpy arrays, scipy's csr matrices, and a dictionary of lists, which
:mod:`shoal.data.graphs.pickled` takes apart. The split is theirs: the first 20 nodes a class (the
rows of ``x``), the 500 that follow, and those of ``test.index``.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect, expect_numbered, fail, naming
from shoal.data.graph import GraphData, graph_format
from shoal.data.graphs.pickled import unpickle
from shoal.data.lines import lines

_PICKLES = ("y", "allx", "ally", "tx", "ty", "graph")
_VALID = 500  # nodes to choose by, as in the paper's code


def prefix_of(folder: str | Path) -> str | None:
    """``ind.cora`` of a folder that holds ``ind.cora.graph``; None where there is none."""
    names = sorted(path.name for path in Path(folder).glob("ind.*.graph"))
    return names[0].removesuffix(".graph") if names else None


def _holds(source: Any) -> bool:
    return isinstance(source, str | Path) and prefix_of(source) is not None


@graph_format("planetoid", _holds)
def read(folder: str | Path) -> GraphData:
    """Read a Planetoid folder: Cora, CiteSeer, PubMed.

    Nodes of which ``test.index`` leaves a gap (CiteSeer has 15) have no features and no class, and
    stand in no split. A node reads its neighbors in both directions; loops and doubles are dropped.

    Raises:
        InputError: naming the file, if one is missing or damaged, or they do not fit together.
    """
    folder = Path(folder)
    prefix = prefix_of(folder)
    if prefix is None:
        fail(str(folder), "a folder with ind.NAME.graph", "none", "check the path")
    parts = {part: unpickle(folder / f"{prefix}.{part}") for part in _PICKLES}
    test = _numbers(folder / f"{prefix}.test.index")
    try:
        with naming(folder):
            return _joined(prefix.removeprefix("ind."), parts, test)
    except InputError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        fail(str(folder), "the files of one Planetoid data set", error, "download them again")


def _joined(name: str, parts: dict[str, Any], test: Int[Tensor, " t"]) -> GraphData:
    """Put the rows of tests where their numbers are, below those that are known."""
    learned, known = len(parts["y"]), len(parts["ally"])
    both = parts["allx"].stack(parts["tx"])
    classes = np.concatenate([parts["ally"], parts["ty"]])
    rows, n = torch.cat([torch.arange(known), test]), max(int(test.max()) + 1, known)
    expect_numbered("test.index", "nodes", n, len(rows))
    same = len(rows) == both.n_rows == len(classes)
    expect(same, "test.index", "a number a row of tx and ty", len(test), "download it again")
    features = Csr.from_coo(rows[both.row_ids()], both.indices, (n, both.n_cols), both.values)
    target = torch.full((n,), -1)
    target[rows] = torch.from_numpy(classes.argmax(1)).long()
    graph = _graph(parts["graph"], n)
    valid = torch.arange(learned, min(learned + _VALID, known))
    split = {"train": torch.arange(learned), "valid": valid, "test": test.sort().values}
    names = tuple(map(str, range(classes.shape[1])))
    return GraphData(name, graph, features, target, split, class_names=names)


def _numbers(path: Path) -> Tensor:
    ids = []
    for number, line in lines(path):
        good = line.strip().isdecimal() and len(line) < 19
        expect(good, f"{path}:{number}", "a node's number", line, "download it again")
        ids.append(int(line))
    expect(len(ids) > 0, str(path), "a node's number a line", "none", "download it again")
    return torch.tensor(ids)


def _graph(neighbors: dict[int, list[int]], n: int) -> Csr:
    lengths = torch.tensor([len(x) for x in neighbors.values()])
    row = torch.tensor(list(neighbors), dtype=torch.int64).repeat_interleave(lengths)
    col = torch.tensor(list(chain.from_iterable(neighbors.values())), dtype=torch.int64)
    other = row != col
    row, col = row[other], col[other]
    return Csr.from_coo(torch.cat([row, col]), torch.cat([col, row]), (n, n)).coalesce()
