"""Subgraphs over typed relations: brute force finds the same, and nothing comes from the future."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.relabel import Register, TreeRegister
from shoal.sample.subgraph import Relation, Subgraph, TypedGraph, subgraph, until


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Rows = list[list[tuple[int, int]]]
"""For each node of a relation's target type (source, time), by time."""


@dataclass
class Drawn:
    """What Hypothesis draws; beartype, which reads random items, is called outside of it."""

    counts: dict[str, int]
    relations: list[tuple[str, str, Rows]]
    seeds: dict[str, list[tuple[int, int]]]
    timed: bool
    last: bool
    disjoint: bool

    def question(self) -> tuple[dict[str, Any], dict[Any, Relation]]:
        """The arguments of ``subgraph`` that are not the draws' law, and the relations."""
        relations: dict[Any, Relation] = {}
        for i, (src, dst, rows) in enumerate(self.relations):
            csr = Csr.from_lists([[u for u, _ in row] for row in rows], self.counts[src])
            times = torch.tensor([t for row in rows for _, t in row], dtype=torch.int64)
            relations[i] = Relation(csr, src, dst, times if self.timed else None)
        ids, times = (
            {k: torch.tensor([x[i] for x in xs], dtype=torch.int64) for k, xs in self.seeds.items()}
            for i in (0, 1)
        )
        more = {"times": times} if self.timed else {"disjoint": self.disjoint}
        graph = TypedGraph.of(self.counts, relations)
        return {"graph": graph, "seeds": ids, "last": self.last, **more}, relations


@st.composite
def questions(draw: st.DrawFn) -> Drawn:
    """One to three types and relations, multigraphs with empty rows, seeds of some types."""
    kinds = draw(st.sampled_from(["a", "ab", "abc"]))
    counts = {kind: draw(st.integers(1, 5)) for kind in kinds}

    def timed(kind: str) -> st.SearchStrategy[list[tuple[int, int]]]:
        node = st.tuples(st.integers(0, counts[kind] - 1), st.integers(0, 4))
        return st.lists(node, max_size=5)

    relations = []
    for _ in range(draw(st.integers(1, 3))):
        src, dst = draw(st.sampled_from(kinds)), draw(st.sampled_from(kinds))
        rows = [sorted(draw(timed(src)), key=lambda x: x[1]) for _ in range(counts[dst])]
        relations.append((src, dst, rows))
    some = draw(st.lists(st.sampled_from(kinds), unique=True, min_size=1))
    flags = (draw(st.booleans()) for _ in range(3))
    return Drawn(counts, relations, {kind: draw(timed(kind)) for kind in some}, *flags)


def ask(question: dict[str, Any], fanouts: list[int | None], **options: Any) -> Subgraph:
    named = dict.fromkeys(question["graph"].parts, fanouts)
    return subgraph(**question, fanouts=named, generator=seeded(), **options)


def moments_of(question: dict[str, Any]) -> list[float]:
    """The time of each tree; without times the end of all."""
    if "times" not in question:
        return [float("inf")] * sum(map(len, question["seeds"].values()))
    return torch.cat([question["times"][kind] for kind in question["seeds"]]).tolist()


def brute(question: dict[str, Any], relations: dict[Any, Relation], hops: int) -> tuple[dict, dict]:
    """Nodes as (tree, id) by type, edges as (source, target, entry) by relation, by loops."""
    graph, moments = question["graph"], moments_of(question)
    disjoint = "times" in question or question["disjoint"]
    found: dict[Any, list[tuple[int, int]]] = {kind: [] for kind in graph.counts}
    number = 0
    for kind, ids in question["seeds"].items():
        for v in ids.tolist():
            found[kind].append((number if disjoint else 0, v))
            number += 1
    edges: dict[Any, list[tuple[int, int, int]]] = {name: [] for name in relations}
    begin = dict.fromkeys(found, 0)
    for _ in range(hops):
        end = {kind: len(nodes) for kind, nodes in found.items()}
        for name, relation in relations.items():
            for at in range(begin[relation.dst], end[relation.dst]):
                tree, v = found[relation.dst][at]
                for entry in range(int(relation.csr.indptr[v]), int(relation.csr.indptr[v + 1])):
                    if relation.times is not None and relation.times[entry] > moments[tree]:
                        continue
                    node = (tree, int(relation.csr.indices[entry]))
                    if node not in found[relation.src]:
                        found[relation.src].append(node)
                    edges[name].append((found[relation.src].index(node), at, entry))
        begin = end
    return found, edges


def nodes_of(found: Subgraph, kind: Any) -> list[tuple[int, int]]:
    ids = found.nodes[kind]
    trees = torch.zeros_like(ids) if found.trees is None else found.trees[kind]
    return list(zip(trees.tolist(), ids.tolist(), strict=True))


def edges_of(found: Subgraph, name: Any) -> list[tuple[int, int, int]]:
    parts = found.sources[name], found.targets[name], found.edges[name]
    return list(zip(*(x.tolist() for x in parts), strict=True))


@given(questions(), st.integers(1, 3))
def test_whole_neighborhoods_are_brute_forces(drawn: Drawn, hops: int) -> None:
    """Nodes, trees, edges and their order, of one relation or many, at all times or up to one."""
    question, relations = drawn.question()
    found = ask(question, [None] * hops)
    nodes, edges = brute(question, relations, hops)
    for kind, expected in nodes.items():
        assert nodes_of(found, kind) == expected
        assert sum(found.node_counts[kind]) == len(expected)
    for name, expected in edges.items():
        assert edges_of(found, name) == expected
        assert sum(found.edge_counts[name]) == len(expected)


@given(questions(), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.booleans())
def test_draws_obey_fan_outs_and_time(drawn: Drawn, fanouts: list[int], replace: bool) -> None:
    """Every edge is an entry; each node is expanded at its hop, by min(k, what it has) entries."""
    question, relations = drawn.question()
    graph, moments = question["graph"], moments_of(question)
    found = ask(question, list(fanouts), replace=replace)
    hop_of = {
        kind: [hop for hop, count in enumerate(counts) for _ in range(count)]
        for kind, counts in found.node_counts.items()
    }
    for kind in graph.counts:
        brought = nodes_of(found, kind)[found.node_counts[kind][0] :]
        assert len(set(brought)) == len(brought)
        assert not set(brought) & set(nodes_of(found, kind)[: found.node_counts[kind][0]])
    for name, relation in relations.items():
        sources, targets = nodes_of(found, relation.src), nodes_of(found, relation.dst)
        entries_of: list[list[int]] = [[] for _ in targets]
        for source, target, entry in edges_of(found, name):
            (tree, u), (same, v) = sources[source], targets[target]
            assert tree == same and relation.csr.indices[entry] == u
            assert relation.csr.indptr[v] <= entry < relation.csr.indptr[v + 1]
            entries_of[target].append(entry)
        hops = hop_of[relation.dst]
        for (tree, v), hop, entries in zip(targets, hops, entries_of, strict=True):
            k = fanouts[hop] if hop < len(fanouts) else 0
            known = range(*relation.csr.indptr[v : v + 2].tolist())
            if relation.times is not None:
                known = [x for x in known if relation.times[x] <= moments[tree]]
            if question["last"] and relation.times is not None and k < len(known):
                known = known[len(known) - k :]
            assert set(entries) <= set(known)
            if replace:
                assert len(entries) == (k if known else 0)
            else:
                assert len(set(entries)) == len(entries) == min(k, len(known))


@given(questions(), st.integers(0, 2))
def test_induced_edges_are_all_between_the_nodes(asked: Drawn, fanout: int) -> None:
    """The nodes are those of the draws, the edges every entry between two of them in a tree."""
    question, relations = asked.question()
    moments = moments_of(question)
    found = ask(question, [fanout, None], induced=True)
    drawn = ask(question, [fanout, None])
    for name, relation in relations.items():
        assert nodes_of(found, relation.src) == nodes_of(drawn, relation.src)
        sources, targets = nodes_of(found, relation.src), nodes_of(found, relation.dst)
        expected = []
        for at, (tree, v) in enumerate(targets):
            for entry in range(*relation.csr.indptr[v : v + 2].tolist()):
                node = (tree, int(relation.csr.indices[entry]))
                late = relation.times is not None and relation.times[entry] > moments[tree]
                if node in sources and not late:
                    expected.append((sources.index(node), at, entry))
        assert edges_of(found, name) == expected


def shares(relation: Relation, moment: int | None, k: int, trials: int = 4000) -> dict[int, float]:
    """How often each entry of row 0 is drawn."""
    graph = TypedGraph.of({None: relation.csr.n_rows}, {None: relation})
    seeds = {None: torch.zeros(trials, dtype=torch.int64)}
    times = None if moment is None else {None: torch.full((trials,), moment)}
    found = subgraph(graph, seeds, {None: [k]}, seeded(), times=times)
    return {e: n / trials for e, n in Counter(found.edges[None].tolist()).items()}


@pytest.mark.parametrize("k", [1, 2])
def test_each_neighbor_has_its_probability(k: int) -> None:
    """k of n, of those that are not later; weights are chances, in time too."""
    csr = Csr.from_lists([[1, 2, 3, 4, 4, 2]] + [[]] * 4, n_cols=5)
    times = torch.tensor([0, 1, 2, 5, 7, 9])
    uniform = shares(Relation(csr), None, k)
    assert uniform == pytest.approx(dict.fromkeys(range(6), k / 6), abs=0.03)
    early = shares(Relation(csr, times=times), 6, k)
    assert early == pytest.approx(dict.fromkeys(range(4), k / 4), abs=0.03)
    heavy = csr.with_values(torch.tensor([1.0, 3.0, 0.0, 4.0, 99.0, 99.0]))
    if k == 1:
        weighed = shares(Relation(heavy, times=times), 6, k)
        assert weighed == pytest.approx({0: 1 / 8, 1: 3 / 8, 3: 4 / 8}, abs=0.03)


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5), st.integers(-1, 10))
def test_bisection_counts_what_is_not_later(rows: list[list[int]], moment: int) -> None:
    """In every stretch at once, the last one included, also where there is nothing."""
    ends = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    times = torch.tensor([t for row in rows for t in sorted(row)], dtype=torch.int64)
    found = until(times, ends[:-1], ends[1:], torch.full((len(rows),), moment)) - ends[:-1]
    assert found.tolist() == [sum(t <= moment for t in row) for row in rows]


ids = st.lists(st.integers(0, 8), max_size=8)


@given(ids, st.lists(ids, max_size=3))
def test_registers_number_in_order_of_appearance(first: list[int], more: list[list[int]]) -> None:
    """Both registers are a dict of first positions; one tree each, or all the same."""
    plain = Register(torch.tensor(first, dtype=torch.int64), torch.empty(9, dtype=torch.int32))
    distinct = torch.tensor(list(dict.fromkeys(first)), dtype=torch.int64)
    tree = TreeRegister(distinct, torch.zeros_like(distinct), 9)
    for register, seen in ((plain, list(first)), (tree, distinct.tolist())):
        for part in more:
            asked = torch.tensor(part, dtype=torch.int64)
            trees: Any = None if register is plain else torch.zeros_like(asked)
            at, inside = register.find(asked, trees)
            assert inside.tolist() == [x in seen for x in part]
            for x in part:
                seen += [] if x in seen else [x]
            found = register.number(asked, trees)
            assert found.tolist() == [seen.index(x) for x in part]
            assert torch.equal(at[inside], found[inside]) and register.ids.tolist() == seen


def test_a_subgraph_is_its_generators() -> None:
    """The same seed gives the same draws, another one others."""
    n = 200
    rows = torch.randint(n, (4000,), generator=seeded())
    csr = Csr.from_coo(rows, rows.flip(0), (n, n))
    graph = TypedGraph.of({None: n}, {None: Relation(csr)})
    asked: dict[str, Any] = {"graph": graph, "seeds": {None: torch.arange(50)}}
    once, again, other = (
        subgraph(**asked, fanouts={None: [3, 2]}, generator=seeded(s)).edges[None].tolist()
        for s in (1, 1, 2)
    )
    assert once == again != other


def test_bad_graphs_are_refused() -> None:
    """Shapes that are not those of the types, ids out of range, times that are missing."""
    csr = Csr.from_lists([[0], [1]], n_cols=2)
    with pytest.raises(InputError, match=r"r: expected shape \(2, 3\), got \(2, 2\)"):
        TypedGraph.of({"a": 2, "b": 3}, {"r": Relation(csr, "b", "a")})
    graph = TypedGraph.of({"a": 2}, {"r": Relation(csr, "a", "a", torch.tensor([0, 1]))})
    zero: Tensor = torch.tensor([0])
    with pytest.raises(InputError, match="times: expected one a seed, got none"):
        subgraph(graph, {"a": zero}, {"r": [1]}, seeded())
    with pytest.raises(InputError, match=r"seeds of a: expected ids in \[0, 2\), got 2"):
        subgraph(graph, {"a": zero + 2}, {"r": [1]}, seeded(), times={"a": zero})
