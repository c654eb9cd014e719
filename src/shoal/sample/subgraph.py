"""The subgraph around some seeds, over one relation or many, at all times or up to the seeds' own.

Each node is expanded once, at the hop at which it first appears, so that one subgraph serves all
layers of a model (PyG's convention; :func:`~shoal.sample.expand.expand` draws anew at every hop). A
graph of one type of nodes and edges is one :class:`Relation`. A hop draws entries of each relation
(:mod:`shoal.sample.fanout`) and numbers the nodes that they bring (:mod:`shoal.sample.relabel`).

*In time*: an entry is read only if it is not later than the seed whose tree the node stands in, so
every seed has a tree of its own. The rows of such a relation are sorted by time, and what may be
read of a row is its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Generator, Tensor

from shoal.core.csr import Csr
from shoal.core.errors import expect, expect_ids
from shoal.sample.fanout import draw_spans
from shoal.sample.relabel import Register, Scratch, TreeRegister


@dataclass(frozen=True, eq=False)
class Relation:
    """Edges from nodes of one type to nodes of another.

    Attributes:
        csr: row v lists the sources of v's edges; values, if there are any, are weights to draw by.
        src: the type of its columns.
        dst: the type of its rows.
        times: of each entry, never falling within a row; None for edges of all times.
        last: draw from the latest entries that a fan-out admits: all of them without replacement.
    """

    csr: Csr
    src: Any = None
    dst: Any = None
    times: Shaped[Tensor, " e"] | None = None
    last: bool = False

    def draw(
        self,
        rows: Int[Tensor, " b"],
        moments: Shaped[Tensor, " b"] | None,
        fanout: int | None,
        generator: Generator | None = None,
        replace: bool = False,
    ) -> tuple[Int[Tensor, " e"], Int[Tensor, " b_plus_1"]]:
        """Entries of each row that are not later than its moment, as fanout's ``draw`` has them.

        Example:
            >>> csr, times = Csr.from_lists([[4, 7, 5]], n_cols=9), torch.tensor([1, 3, 8])
            >>> relation = Relation(csr, times=times, last=True)
            >>> relation.draw(torch.tensor([0, 0]), torch.tensor([3, 9]), None)
            (tensor([0, 1, 0, 1, 2]), tensor([0, 2, 5]))
            >>> relation.draw(torch.tensor([0, 0]), torch.tensor([3, 9]), 1, Generator())
            (tensor([1, 2]), tensor([0, 1, 2]))
        """
        start, degrees = self.csr.spans(rows)
        if self.times is not None and moments is not None:
            degrees = until(self.times, start, start + degrees, moments) - start
            if self.last and fanout is not None:
                start, degrees = start + (degrees - fanout).clamp(min=0), degrees.clamp(max=fanout)
        return draw_spans(start, degrees, fanout, generator, replace, self.csr.values)


@dataclass(frozen=True, eq=False)
class TypedGraph:
    """Nodes of several types, and relations among them.

    Attributes:
        counts: how many nodes of each type there are.
        relations: by any name, such as PyG's triples.

    Raises:
        InputError: if the shape of a relation is not that of its types.
    """

    counts: Mapping[Any, int]
    relations: Mapping[Any, Relation]
    scratch: Mapping[Any, Scratch] = field(init=False, repr=False)  # to number nodes by

    def __post_init__(self) -> None:
        """Check shapes."""
        for name, one in self.relations.items():
            shape = self.counts.get(one.dst), self.counts.get(one.src)
            expect(one.csr.shape == shape, str(name), f"shape {shape}", one.csr.shape, "align them")
        object.__setattr__(self, "scratch", {kind: Scratch() for kind in self.counts})


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Nodes by their type, edges by their relation.

    Attributes:
        nodes: ids in the order in which they came, seeds first.
        trees: the number of the seed in whose tree each node stands; None where they share nodes.
        sources: positions in `nodes` that edges come from.
        targets: positions that they lead to.
        edges: their positions in the relation's Csr.
        node_counts: how many nodes each hop brought, seeds first.
        edge_counts: how many edges each hop drew.
    """

    nodes: dict[Any, Int[Tensor, " s"]]
    trees: dict[Any, Int[Tensor, " s"]] | None
    sources: dict[Any, Int[Tensor, " e"]]
    targets: dict[Any, Int[Tensor, " e"]]
    edges: dict[Any, Int[Tensor, " e"]]
    node_counts: dict[Any, list[int]]
    edge_counts: dict[Any, list[int]]


def subgraph(
    graph: TypedGraph,
    seeds: Mapping[Any, Int[Tensor, " b"]],
    fanouts: Mapping[Any, Sequence[int | None]],
    generator: Generator,
    *,
    replace: bool = False,
    disjoint: bool = False,
    times: Mapping[Any, Shaped[Tensor, " b"]] | None = None,
    induced: bool = False,
) -> Subgraph:
    """Sample around the seeds, hop after hop.

    Args:
        graph: types and relations.
        seeds: ids by type; one that repeats is expanded as often, each time by draws of its own.
        fanouts: for each relation, entries drawn a node at each hop; None takes all.
        generator: where randomness comes from.
        replace: draw with replacement.
        disjoint: give each seed, numbered through all types, a tree that shares no node.
        times: of the seeds, by type, where relations have times; trees are disjoint then, and no
            entry is later than its tree's seed.
        induced: once the nodes are found, return every entry between them, not only those drawn.

    Raises:
        InputError: if a seed is out of range, times are missing, or as
            :func:`~shoal.sample.fanout.draw`.

    Example:
        Paper 0 has two authors, one of whom wrote paper 1.

        >>> by = Csr.from_lists([[0, 1], [1]], n_cols=2)
        >>> relations = {"by": Relation(by, "author", "paper"),
        ...              "wrote": Relation(by.transpose(), "paper", "author")}
        >>> graph = TypedGraph({"paper": 2, "author": 2}, relations)
        >>> all_twice = dict.fromkeys(relations, [None, None])
        >>> found = subgraph(graph, {"paper": torch.tensor([0])}, all_twice, torch.Generator())
        >>> found.nodes["author"].tolist(), found.nodes["paper"].tolist()
        ([0, 1], [0, 1])
        >>> found.node_counts["paper"], found.edge_counts["wrote"]
        ([1, 0, 1], [0, 3])
    """
    timed = any(relation.times is not None for relation in graph.relations.values())
    remedy = "pass times of the seeds, since relations have times"
    expect(times is not None or not timed, "times", "one a seed", "none", remedy)
    moments = None if times is None else torch.cat([times[kind] for kind in seeds])
    registers = _registers(graph, seeds, disjoint or times is not None)
    found: dict[Any, list[tuple[Tensor, ...]]] = {name: [] for name in graph.relations}
    sizes = {kind: [0, len(nodes.ids)] for kind, nodes in registers.items()}
    for hop in range(max(map(len, fanouts.values()), default=0)):
        for name, relation in graph.relations.items():
            readers, law = registers[relation.dst], (fanouts[name][hop], generator, replace)
            front = slice(*sizes[relation.dst][-2:])
            columns, trees, *rest = _read(relation, readers, front, moments, *law)
            found[name].append((registers[relation.src].number(columns, trees), *rest))
        for kind, nodes in registers.items():
            sizes[kind].append(len(nodes.ids))
    edge_counts = {name: [len(edges) for *_, edges in hops] for name, hops in found.items()}
    if induced:
        found = {
            name: [_between(relation, registers, moments)]
            for name, relation in graph.relations.items()
        }
    sources, targets, edges = (
        {name: torch.cat([hop[i] for hop in hops]) for name, hops in found.items()}
        for i in range(3)
    )
    trees = {kind: x.trees for kind, x in registers.items() if x.trees is not None}
    return Subgraph(
        nodes={kind: x.ids for kind, x in registers.items()},
        trees=trees or None,
        sources=sources,
        targets=targets,
        edges=edges,
        node_counts={kind: [b - a for a, b in pairwise(ends)] for kind, ends in sizes.items()},
        edge_counts=edge_counts,
    )


def until(
    times: Shaped[Tensor, " n"],
    start: Int[Tensor, " b"],
    stop: Int[Tensor, " b"],
    moments: Shaped[Tensor, " b"],
) -> Int[Tensor, " b"]:
    """Where each stretch of times that never fall passes a moment: all are bisected at once.

    Example:
        >>> times, start, stop = torch.tensor([1, 3, 3, 8]), torch.tensor([0, 1]), torch.tensor(4)
        >>> until(times, start, stop.expand(2), torch.tensor([3, 2])).tolist()
        [3, 1]
    """
    while bool((open_ := start < stop).any()):
        middle = (start + stop) // 2
        early = open_ & (times[middle.clamp(max=len(times) - 1)] <= moments)
        start = torch.where(early, middle + 1, start)
        stop = torch.where(early, stop, middle)  # of a closed stretch this is where it is closed
    return start


def _read(
    relation: Relation,
    readers: Register | TreeRegister,
    front: slice,
    moments: Shaped[Tensor, " t"] | None,
    fanout: int | None = None,
    generator: Generator | None = None,
    replace: bool = False,
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """What the nodes of a stretch read: columns, their trees, who reads each, and the edges."""
    rows, trees = readers.ids[front], None if readers.trees is None else readers.trees[front]
    then = None if moments is None or trees is None else moments[trees]
    edges, offsets = relation.draw(rows, then, fanout, generator, replace)
    owner = torch.repeat_interleave(offsets.diff(), output_size=len(edges))
    trees = None if trees is None else trees[owner]
    return relation.csr.indices.index_select(0, edges).long(), trees, owner + front.start, edges


def _between(
    relation: Relation,
    registers: Mapping[Any, Register | TreeRegister],
    moments: Shaped[Tensor, " t"] | None,
) -> tuple[Tensor, ...]:
    """Every entry between the nodes that were found: sources, targets and edges."""
    columns, trees, *rest = _read(relation, registers[relation.dst], slice(0, None), moments)
    sources, inside = registers[relation.src].find(columns, trees)
    return tuple(x[inside] for x in (sources, *rest))


def _registers(
    graph: TypedGraph, seeds: Mapping[Any, Int[Tensor, " b"]], disjoint: bool
) -> dict[Any, Register | TreeRegister]:
    """The seeds of each type, numbered; a tree's number counts seeds through all types."""
    none = torch.empty(0, dtype=torch.int64)
    trees = dict(zip(seeds, accumulate(map(len, seeds.values()), initial=0), strict=False))
    registers: dict[Any, Register | TreeRegister] = {}
    for kind, n in graph.counts.items():
        ids = seeds.get(kind, none)
        expect_ids("seeds" if kind is None else f"seeds of {kind}", ids, n)
        ids = ids.long()
        if disjoint:
            registers[kind] = TreeRegister(ids, torch.arange(len(ids)) + trees.get(kind, 0), n)
        else:
            registers[kind] = Register(ids, graph.scratch[kind].ids(n, ids.device))
    return registers
