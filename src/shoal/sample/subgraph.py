"""The subgraph around some seeds, over one relation or many, at all times or up to the seeds' own.

Each node is expanded once, at the hop at which it first appears, so that one subgraph serves all
layers of a model (PyG's convention; :func:`~shoal.sample.expand.expand` draws anew at every hop).

*Typed graphs are one graph.* Nodes of all types share one numbering, and a :class:`TypedGraph` is
one Csr: a row for each relation and each node that it leads to, columns for the nodes of all types.
So a hop over many relations is one draw (:mod:`shoal.sample.fanout`) and one numbering of what it
brings (:mod:`shoal.sample.relabel`), as over a single one, and is cut apart by type in the end.

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

from shoal.core.csr import Csr, flagged
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
    """

    csr: Csr
    src: Any = None
    dst: Any = None
    times: Shaped[Tensor, " e"] | None = None


@dataclass(frozen=True)
class Part:
    """Where a relation lies in a typed graph.

    Attributes:
        src: the type of nodes that its edges come from.
        dst: the type that they lead to.
        row: its first row.
        entry: its first entry.
        nnz: how many entries it has.
        law: whether it is drawn by weights, and whether in time.
    """

    src: Any
    dst: Any
    row: int
    entry: int
    nnz: int
    law: tuple[bool, bool]


@dataclass(frozen=True, eq=False)
class TypedGraph:
    """Nodes of several types, and relations among them, as one matrix.

    Attributes:
        counts: how many nodes of each type there are.
        first: the number of each type's first node among all.
        parts: the relations, by any name, such as PyG's triples.
        csr: their rows one below the other; columns number the nodes of all types.
        times: of all entries; None if no relation has any.
    """

    counts: Mapping[Any, int]
    first: Mapping[Any, int]
    parts: Mapping[Any, Part]
    csr: Csr
    times: Shaped[Tensor, " e"] | None
    scratch: Scratch = field(default_factory=Scratch, repr=False)

    @staticmethod
    def of(counts: Mapping[Any, int], relations: Mapping[Any, Relation]) -> TypedGraph:
        """Join relations.

        Raises:
            InputError: if the shape of one is not that of its types.

        Example:
            >>> by = Csr.from_lists([[0, 1], [1]], n_cols=3)
            >>> graph = TypedGraph.of({"paper": 2, "author": 3}, {
            ...     "by": Relation(by, "author", "paper"),
            ...     "wrote": Relation(by.transpose(), "paper", "author")})
            >>> graph.csr.shape, graph.csr.indices.tolist(), graph.parts["wrote"].row
            ((5, 5), [2, 3, 3, 0, 0, 1], 2)
        """
        first = dict(zip(counts, accumulate(counts.values(), initial=0), strict=False))
        parts: dict[Any, Part] = {}
        row = entry = 0
        for name, one in relations.items():
            shape = counts.get(one.dst), counts.get(one.src)
            expect(one.csr.shape == shape, str(name), f"shape {shape}", one.csr.shape, "align them")
            law = one.csr.values is not None, one.times is not None
            parts[name] = Part(one.src, one.dst, row, entry, one.csr.nnz, law)
            row, entry = row + one.csr.n_rows, entry + one.csr.nnz
        several, ones = list(relations.values()), list(parts.values())
        starts = [x.csr.indptr[:-1] + part.entry for x, part in zip(several, ones, strict=True)]
        columns = [x.csr.indices.long().add(first[x.src]) for x in several]
        weights = [x.csr.values for x in several]
        csr = Csr(
            torch.cat([*starts, torch.tensor([entry])]),
            torch.cat(columns) if columns else torch.empty(0, dtype=torch.int64),
            sum(counts.values()),
            _filled(weights, ones),
        )
        return TypedGraph(counts, first, parts, csr, _filled([x.times for x in several], ones))


@dataclass(frozen=True, eq=False)
class Subgraph:
    """Nodes by their type, edges by their relation.

    Attributes:
        nodes: ids in the order in which they came, seeds first.
        trees: the number of the seed in whose tree each node stands; None where they share nodes.
        sources: positions in `nodes` that edges come from.
        targets: positions that they lead to.
        edges: their positions in the relation's own Csr.
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
    last: bool = False,
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
        last: where there are times, draw from the latest entries that a fan-out admits: without
            replacement all of them.
        induced: once the nodes are found, return every entry between them, not only those drawn.

    Raises:
        InputError: if a seed is out of range, times are missing, or as
            :func:`~shoal.sample.fanout.draw`.

    Example:
        Paper 0 has two authors, one of whom wrote paper 1.

        >>> by = Csr.from_lists([[0, 1], [1]], n_cols=2)
        >>> relations = {"by": Relation(by, "author", "paper"),
        ...              "wrote": Relation(by.transpose(), "paper", "author")}
        >>> graph = TypedGraph.of({"paper": 2, "author": 2}, relations)
        >>> all_twice = dict.fromkeys(relations, [None, None])
        >>> found = subgraph(graph, {"paper": torch.tensor([0])}, all_twice, torch.Generator())
        >>> found.nodes["author"].tolist(), found.nodes["paper"].tolist()
        ([0, 1], [0, 1])
        >>> found.node_counts["paper"], found.edge_counts["wrote"]
        ([1, 0, 1], [0, 3])
    """
    timed = any(part.law[1] for part in graph.parts.values())
    remedy = "pass times of the seeds, since relations have times"
    expect(times is not None or not timed, "times", "one a seed", "none", remedy)
    moments = None if times is None else torch.cat([times[kind] for kind in seeds])
    register = _seeded(graph, seeds, disjoint or times is not None)
    found = _Found(graph, register, moments, last)
    for hop in range(max(map(len, fanouts.values()), default=0)):
        for names, fanout in _alike(graph, {name: x[hop] for name, x in fanouts.items()}):
            found.draw(names, fanout, generator, replace)
        found.advance()
    if induced:
        found.induce()
    return found.subgraph()


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


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Nodes of one type that came together.

    Attributes:
        ids: among the nodes of all types.
        begin: the first one's place among the nodes of its type; the others follow.
        trees: the tree of each; None where trees share nodes.
    """

    ids: Int[Tensor, " b"]
    begin: int
    trees: Any

    def places(self) -> Int[Tensor, " b"]:
        """Their places among the nodes of their type."""
        return torch.arange(self.begin, self.begin + len(self.ids))


class _Found:
    """What was found so far: nodes of all types in one register, edges by relation and hop."""

    def __init__(
        self,
        graph: TypedGraph,
        register: Register | TreeRegister,
        moments: Shaped[Tensor, " t"] | None,
        last: bool,
    ) -> None:
        self.graph, self.register, self.moments, self.last = graph, register, moments, last
        self.draws: list[tuple[Sequence[Any], Sequence[int], Tensor, Tensor, Tensor]] = []
        self.edge_counts: dict[Any, list[int]] = {name: [] for name in graph.parts}
        self.places: dict[Any, list[Any]] = {kind: [] for kind in graph.counts}
        self.node_counts: dict[Any, list[int]] = {kind: [] for kind in graph.counts}
        self.front: dict[Any, _Nodes] = {}
        self.seen = 0
        self.advance()

    def advance(self) -> None:
        """Sort by type what came last; these nodes read at the next hop."""
        register, new = self.register, slice(self.seen, len(self.register.ids))
        places: dict[Any, Any] = dict.fromkeys(self.node_counts, new)
        if len(places) > 1:
            bounds = torch.tensor(list(self.graph.first.values())[1:])
            kinds = torch.bucketize(register.ids[new], bounds, right=True)
            places = {kind: flagged(kinds == i) + self.seen for i, kind in enumerate(places)}
        for kind, at in places.items():
            self.front[kind] = self._nodes(at, sum(self.node_counts[kind]))
            self.places[kind].append(at)
            self.node_counts[kind].append(len(self.front[kind].ids))
        self.seen = new.stop

    def draw(
        self, names: Sequence[Any], fanout: int | None, generator: Generator, replace: bool
    ) -> None:
        """Add a hop over relations that are drawn alike."""
        columns, trees, targets, edges, cuts = self._read(
            names, self.front, fanout, generator, replace
        )
        sources = self.register.number(columns, trees)
        self.draws.append((names, cuts, sources, targets, edges))
        for name, (a, b) in zip(names, pairwise(cuts), strict=True):
            self.edge_counts[name].append(b - a)

    def induce(self) -> None:
        """Put every edge between the nodes in place of those that were drawn."""
        self.draws = []
        every = {kind: self._nodes(at, 0) for kind, at in self._all().items()}
        for names, _ in _alike(self.graph, dict.fromkeys(self.edge_counts)):
            columns, trees, targets, edges, cuts = self._read(names, every, None)
            sources, inside = self.register.find(columns, trees)
            kept = flagged(inside)
            cuts = torch.searchsorted(kept, torch.tensor(cuts)).tolist()
            self.draws.append((names, cuts, sources[kept], targets[kept], edges[kept]))

    def subgraph(self) -> Subgraph:
        """Cut it apart by type."""
        every = {kind: self._nodes(at, 0) for kind, at in self._all().items()}
        number = None
        if len(every) > 1:  # a type's nodes are numbered among themselves
            number = torch.empty_like(self.register.ids)
            for kind, at in self._all().items():
                number.index_copy_(0, at, every[kind].places())
        parts = self.graph.parts
        pieces: dict[Any, list[tuple[Tensor, ...]]] = {name: [] for name in parts}
        for names, cuts, sources, targets, edges in self.draws:
            sources = sources if number is None else number.index_select(0, sources)
            for name, (a, b) in zip(names, pairwise(cuts), strict=True):
                entries = edges[a:b] - parts[name].entry
                pieces[name].append((sources[a:b], targets[a:b], entries))
        sources, targets, edges = (
            {name: _joined([hop[i] for hop in hops]) for name, hops in pieces.items()}
            for i in range(3)
        )
        disjoint = self.register.trees is not None
        return Subgraph(
            nodes={kind: x.ids - self.graph.first[kind] for kind, x in every.items()},
            trees={kind: x.trees for kind, x in every.items()} if disjoint else None,
            sources=sources,
            targets=targets,
            edges=edges,
            node_counts=self.node_counts,
            edge_counts=self.edge_counts,
        )

    def _nodes(self, at: Any, begin: int) -> _Nodes:
        """Those at some places of the register."""
        ids, trees = (
            x if x is None else x[at] if isinstance(at, slice) else x.index_select(0, at)
            for x in (self.register.ids, self.register.trees)
        )
        assert ids is not None
        return _Nodes(ids, begin, trees)

    def _all(self) -> dict[Any, Any]:
        """Where the nodes of each type stand in the register."""
        if len(self.places) == 1:
            return dict.fromkeys(self.places, slice(None))
        return {kind: _joined(hops) for kind, hops in self.places.items()}

    def _read(
        self,
        names: Sequence[Any],
        nodes: Mapping[Any, _Nodes],
        fanout: int | None,
        generator: Generator | None = None,
        replace: bool = False,
    ) -> tuple[Tensor, Any, Tensor, Tensor, list[int]]:
        """What nodes read: columns, their trees, the readers, entries, and the relations' cuts."""
        graph, parts = self.graph, [self.graph.parts[name] for name in names]
        readers = [nodes[part.dst] for part in parts]
        shifts = [part.row - graph.first[part.dst] for part in parts]
        rows = torch.cat([x.ids + shift for x, shift in zip(readers, shifts, strict=True)])
        trees = None if self.register.trees is None else torch.cat([x.trees for x in readers])
        start, degrees = graph.csr.spans(rows)
        weighted, timed = parts[0].law
        if timed and graph.times is not None and self.moments is not None:
            degrees = until(graph.times, start, start + degrees, self.moments[trees]) - start
            if self.last and fanout is not None:
                start, degrees = start + (degrees - fanout).clamp(min=0), degrees.clamp(max=fanout)
        weights = graph.csr.values if weighted else None
        edges, offsets = draw_spans(start, degrees, fanout, generator, replace, weights)
        owner = torch.repeat_interleave(offsets.diff(), output_size=len(edges))
        ends = torch.tensor([0, *accumulate(len(x.ids) for x in readers)])
        return (
            graph.csr.indices.index_select(0, edges),
            None if trees is None else trees.index_select(0, owner),
            torch.cat([x.places() for x in readers]).index_select(0, owner),
            edges,
            offsets[ends].tolist(),
        )


def _alike(
    graph: TypedGraph, fanouts: Mapping[Any, int | None]
) -> list[tuple[list[Any], int | None]]:
    """Relations that one draw serves: of the same fan-out, weighted or not, in time or not."""
    groups: dict[tuple[int | None, tuple[bool, bool]], list[Any]] = {}
    for name, part in graph.parts.items():
        groups.setdefault((fanouts[name], part.law), []).append(name)
    return [(names, fanout) for (fanout, _), names in groups.items()]


def _seeded(
    graph: TypedGraph, seeds: Mapping[Any, Int[Tensor, " b"]], disjoint: bool
) -> Register | TreeRegister:
    """The seeds, numbered by type; a tree's number counts seeds in the order in which they came."""
    trees = dict(zip(seeds, accumulate(map(len, seeds.values()), initial=0), strict=False))
    ids, roots = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for kind, n in graph.counts.items():
        if kind in seeds:
            expect_ids("seeds" if kind is None else f"seeds of {kind}", seeds[kind], n)
            ids.append(seeds[kind].long() + graph.first[kind])
            roots.append(torch.arange(len(seeds[kind])) + trees[kind])
    nodes, n = torch.cat(ids), graph.csr.n_cols
    if disjoint:
        return TreeRegister(nodes, torch.cat(roots), n)
    return Register(nodes, graph.scratch.ids(n, nodes.device))


def _filled(several: Sequence[Tensor | None], parts: Sequence[Part]) -> Tensor | None:
    """Numbers of all entries, with ones for relations that have none; None if none has."""
    given = [x for x in several if x is not None]
    if not given:
        return None
    ones = (given[0].new_ones(part.nnz) for part in parts)
    return _joined([one if x is None else x for x, one in zip(several, ones, strict=True)])


def _joined(several: Sequence[Tensor]) -> Tensor:
    """One after the other; the only one as it is."""
    return several[0] if len(several) == 1 else torch.cat(list(several))
