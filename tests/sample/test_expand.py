"""Block samplers: blocks say exactly what the seeds touch, whatever the route."""

from __future__ import annotations

import pickle
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.block import Block
from shoal.core.csr import Csr
from shoal.core.errors import InputError
from shoal.sample.expand import (
    BlockSampler,
    Chain,
    Hop,
    NeighborSampler,
    ShortlistSampler,
    dst_then_src,
    expand,
)
from shoal.sample.relabel import Scratch, distinct, locate
from tests.strategies import csrs, ids_below


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(csr: Csr) -> Csr:
    """The same rows as a graph: columns beyond the rows wrap around."""
    n = max(csr.n_rows, 1)
    return Csr(csr.indptr, csr.indices % n, csr.n_rows, csr.values)


def parts(block: Block) -> tuple[Tensor, ...]:
    return block.dst, block.src, block.indptr, block.indices, block.edges


def same(left: list[Block], right: list[Block]) -> bool:
    one, other = ([x for block in blocks for x in parts(block)] for blocks in (left, right))
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def check(block: Block, csr: Csr) -> None:
    """The block is well-formed and each of its entries is the entry of `csr` that it names."""
    owner = block.dst[block.csr.row_ids()]
    assert torch.equal(csr.row_ids()[block.edges], owner)
    assert torch.equal(csr.indices[block.edges].long(), block.src[block.indices])
    assert block.src.unique().numel() == block.src.numel()
    assert all(x.dtype == torch.int64 for x in parts(block))
    if block.dst_in_src:
        assert torch.equal(block.src[: block.dst.numel()], block.dst)


@given(csrs(min_rows=1), ids_below(10**6), st.sampled_from([None, 0, 1, 3]), st.booleans())
def test_entries_are_the_csr_s(csr: Csr, ids: Tensor, fanout: int | None, induced: bool) -> None:
    """Entries name rows, columns and positions of the Csr; src is what they touch, once."""
    block = expand(csr, ids % csr.n_rows, fanout, seeded(), induced=induced)
    check(block, csr)
    touched = csr.indices[block.edges].long()
    assert set(touched.tolist()) <= set(block.src.tolist())
    if fanout is None or not induced:
        assert block.src.tolist() == list(dict.fromkeys(touched.tolist()))


@given(csrs(min_rows=1, min_cols=1), ids_below(10**6), ids_below(10**6), st.integers(0, 2))
def test_induced_block_holds_every_known_entry(
    csr: Csr, ids: Tensor, extra: Tensor, fanout: int
) -> None:
    """The mask of an induced block equals dense[dst][:, src], doubles and extra included."""
    ids, extra = ids % csr.n_rows, extra % csr.n_cols
    block = expand(csr, ids, fanout, seeded(), induced=True, extra=extra)
    check(block, csr)
    counts = csr.with_values(None).to_dense()[ids][:, block.src]
    torch.testing.assert_close(block.csr.to_dense(), counts)
    assert torch.equal(block.mask(), counts > 0)
    drawn = expand(csr, ids, fanout, seeded(), extra=extra)
    assert torch.equal(drawn.src, block.src)
    assert set(drawn.edges.tolist()) <= set(block.edges.tolist())


@given(csrs(min_rows=1), st.permutations(range(8)), st.sampled_from([None, 1, 2]), st.booleans())
def test_graph_blocks_begin_with_their_seeds(
    csr: Csr, order: list[int], fanout: int | None, replace: bool
) -> None:
    """Blocks chain from the input hop to the seeds, each src begins with its dst, in order."""
    graph = square(csr)
    seeds = torch.tensor(order)
    seeds = seeds[seeds < graph.n_rows]
    blocks = NeighborSampler(graph, [fanout, 2, fanout], replace)(seeds, seeded())
    assert torch.equal(blocks[-1].dst, seeds)
    for block in blocks:
        check(block, graph)
        assert block.dst_in_src
    for far, near in pairwise(blocks):
        assert torch.equal(far.dst, near.src)


def test_isolated_nodes_and_no_seeds_are_legal() -> None:
    """A node without neighbors reads only itself; no seeds make empty blocks."""
    graph = Csr.from_lists([[], [0]], n_cols=2)
    (block,) = NeighborSampler(graph, [2])(torch.tensor([0]), seeded())
    assert block.src.tolist() == [0] and block.indptr.tolist() == [0, 0]
    nobody = torch.empty(0, dtype=torch.int64)
    for sampler in (NeighborSampler(graph, [2, 2]), ShortlistSampler(graph), Hop(graph)):
        for block in sampler(nobody, seeded()):
            assert block.src.numel() == 0 and block.indptr.tolist() == [0]


def test_first_fanout_is_the_seeds_own() -> None:
    """On a complete graph, fan-outs [1, 3] give the seed one neighbor and those three each."""
    complete = Csr.from_dense(~torch.eye(9, dtype=torch.bool))
    far, near = NeighborSampler(complete, [1, 3])(torch.tensor([4]), seeded())
    assert near.indptr.diff().tolist() == [1] and far.indptr.diff().tolist() == [3, 3]


def planted(n: int = 60, m: int = 40, seed: int = 0) -> Csr:
    return Csr.from_dense(torch.rand(n, m, generator=seeded(seed)) < 0.15)


def test_shortlist_holds_positives_and_extra() -> None:
    """Each seed with labels has one in src; without extra nothing else is there; extra adds."""
    labels = planted()
    seeds = torch.arange(0, 60, 3)
    (plain,) = ShortlistSampler(labels)(seeds, seeded())
    (more,) = ShortlistSampler(labels, extra=30)(seeds, seeded())
    dense = labels.to_dense()[seeds]
    assert torch.equal(plain.mask().any(1), dense.any(1))
    assert plain.src.numel() <= seeds.numel() and bool(dense[:, plain.src].any(0).all())
    assert more.src.numel() > plain.src.numel()
    assert torch.equal(more.mask(), dense[:, more.src] > 0)


def test_shortlist_marks_more_than_it_drew() -> None:
    """The induced mask is not vacuous: it holds positives of a point drawn for another."""
    labels = planted()
    (block,) = ShortlistSampler(labels)(torch.arange(60), seeded())
    assert block.edges.numel() > 60


def test_shortlist_positives_follow_weights() -> None:
    """Weighted positives come in proportion to the values, uniform ones do not."""
    labels = Csr(torch.tensor([0, 2]), torch.tensor([0, 1]), 2, torch.tensor([1.0, 9.0]))
    point = torch.tensor([0])

    def share(sampler: ShortlistSampler) -> float:
        gen = seeded()
        return sum(sampler(point, gen)[0].src.tolist() == [1] for _ in range(150)) / 150

    assert abs(share(ShortlistSampler(labels, weighted=True)) - 0.9) < 0.1
    assert abs(share(ShortlistSampler(labels)) - 0.5) < 0.15


def test_link_prediction_is_a_chain() -> None:
    """Shortlist over the graph, then neighborhoods of all of its nodes; hops join end to end."""
    graph = square(planted(40, 40))
    links = ShortlistSampler(graph, extra=4, dst_in_src=True)
    seeds = torch.tensor([7, 3, 21])
    far, near, pairs = Chain(links, NeighborSampler(graph, [3, 2]))(seeds, seeded())
    assert torch.equal(near.dst, pairs.src) and torch.equal(far.dst, near.src)
    assert torch.equal(pairs.src[:3], seeds)
    assert torch.equal(pairs.mask(), graph.to_dense()[seeds][:, pairs.src] > 0)


def test_texts_of_both_sides_are_a_chain() -> None:
    """Documents' and labels' tokens come as one hop whose rows are dst, then src below them."""
    labels = planted()
    docs, names = planted(60, 30, seed=1), planted(40, 30, seed=2)
    texts = docs.stack(names)
    sampler = Chain(ShortlistSampler(labels), Hop(texts), partial(dst_then_src, offset=docs.n_rows))
    seeds = torch.tensor([5, 5, 9])
    bags, shortlist = sampler(seeds, seeded())
    tokens = bags.csr.to_dense() @ torch.eye(30)[bags.src]
    expected = torch.cat([docs.to_dense()[seeds], names.to_dense()[shortlist.src]])
    torch.testing.assert_close(tokens, expected)


def samplers() -> list[BlockSampler]:
    graph = square(planted(200, 200))
    weighted = graph.with_values(torch.rand(graph.nnz) + 0.1)
    links = ShortlistSampler(graph, 2, extra=5, dst_in_src=True)
    return [
        NeighborSampler(graph, [4, 3]),
        NeighborSampler(graph, [4, 3], replace=True),
        NeighborSampler(weighted, [4, 3], weighted=True),
        links,
        Chain(links, NeighborSampler(graph, [3])),
    ]


@pytest.mark.parametrize("sampler", samplers(), ids=lambda x: type(x).__name__)
def test_blocks_are_a_function_of_seeds_and_generator(sampler: BlockSampler) -> None:
    """Same seeds, same generator state: same blocks, also after other calls and from a pickle."""
    seeds = torch.arange(0, 200, 7)
    first = sampler(seeds, seeded(1))
    assert not same(first, sampler(seeds, seeded(2)))
    sampler(torch.arange(50), seeded(3))
    assert same(first, sampler(seeds, seeded(1)))
    assert same(first, pickle.loads(pickle.dumps(sampler))(seeds, seeded(1)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_width_changes_nothing(dtype: torch.dtype) -> None:
    """int32 and int64 columns, and int32 seeds, give the same blocks."""
    graph = square(planted(50, 50))
    narrow = Csr(graph.indptr, graph.indices.to(dtype), graph.n_cols)
    seeds = torch.arange(20)
    expected = NeighborSampler(graph, [3, 2])(seeds, seeded())
    assert same(NeighborSampler(narrow, [3, 2])(seeds.to(dtype), seeded()), expected)


def test_threads_share_a_sampler() -> None:
    """Four threads that call one sampler at once get what each would get alone."""
    sampler = NeighborSampler(square(planted(300, 300)), [5, 5])
    batches = [torch.arange(k, 300, 16) for k in range(16)]
    alone = [sampler(seeds, seeded(k)) for k, seeds in enumerate(batches)]
    found: list[list[Block]] = [[] for _ in batches]

    def work(offset: int) -> None:
        for _ in range(5):
            for k in range(offset, 16, 4):
                found[k] = sampler(batches[k], seeded(k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(a, b) for a, b in zip(alone, found, strict=True))


@given(ids_below(30, max_size=40), ids_below(30), st.integers(0, 2**31 - 1))
def test_relabelling_needs_no_clean_map(ids: Tensor, others: Tensor, garbage: int) -> None:
    """distinct() and locate() agree with a dict, whatever the map held before."""
    place = torch.randint(garbage + 1, (30,), generator=seeded(garbage)).int() - garbage // 2
    src = distinct(ids, place)
    assert src.tolist() == list(dict.fromkeys(ids.tolist()))
    local, known = locate(others, src, place)
    assert known.tolist() == [x in set(ids.tolist()) for x in others.tolist()]
    assert torch.equal(src[local[known]], others[known])


def test_scratch_is_reused_and_grows() -> None:
    """One map serves calls of one size, a wider Csr gets a wider one, another thread its own."""
    scratch, narrow, wide = Scratch(), planted(4, 10), planted(4, 20)
    first = scratch.columns(narrow)
    assert scratch.columns(narrow) is first
    assert scratch.columns(wide).numel() == 20
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scratch.map.numel()))
    thread.start()
    thread.join()
    assert elsewhere == [0]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    """Ids out of range, doubles, a rectangle as a graph, no hops: one line naming the argument."""
    labels = planted()
    graph = square(planted(5, 5))
    gen = seeded()
    with pytest.raises(InputError, match=r"dst: expected ids in \[0, 60\), got 60"):
        ShortlistSampler(labels)(torch.tensor([60]), gen)
    with pytest.raises(InputError, match=r"extra: expected ids in \[0, 40\), got -1"):
        expand(labels, torch.tensor([0]), extra=torch.tensor([-1]))
    with pytest.raises(InputError, match="dst: expected distinct ids, got an id twice"):
        NeighborSampler(graph, [2])(torch.tensor([1, 0, 1]), gen)
    with pytest.raises(InputError, match="csr: expected a square Csr"):
        NeighborSampler(labels, [2])(torch.tensor([1]), gen)
    with pytest.raises(InputError, match="fanouts: expected a number per hop"):
        NeighborSampler(graph, [])
    with pytest.raises(InputError, match="positives: expected a whole number of at least 1, got 0"):
        ShortlistSampler(labels, positives=0)
    with pytest.raises(InputError, match="extra: expected at least 0, got -1"):
        ShortlistSampler(labels, extra=-1)
    with pytest.raises(InputError, match="labels: expected some columns"):
        ShortlistSampler(Csr.from_lists([[]], 0))
    assert ShortlistSampler(Csr.from_lists([[0]], 1))(torch.tensor([0]), gen)[0].src.tolist() == [0]


@pytest.mark.slow
def test_web_graph_hops_are_subsets(outside_data: Path) -> None:
    """On a real graph every sampled entry is an edge, at min(k, degree) a node."""
    arrays = np.load(outside_data / "web-stanford" / "web-stanford.npz")
    indptr = torch.from_numpy(arrays["indptr"]).long()
    graph = Csr(indptr, torch.from_numpy(arrays["indices"]), indptr.numel() - 1)
    seeds = torch.randperm(graph.n_rows, generator=seeded())[:1024]
    for k, block in zip([10, 15], NeighborSampler(graph, [15, 10])(seeds, seeded()), strict=True):
        check(block, graph)
        assert torch.equal(block.indptr.diff(), graph.degrees()[block.dst].clamp(max=k))


def test_a_chain_prints_its_steps_in_order() -> None:
    """From the seeds to the input hop: which sampler, and which rows of a block seed the next."""
    labels = Csr.from_lists([[0], [1]], n_cols=2)
    tokens = Csr.from_lists([[0], [1], [1], []], n_cols=2)
    chain = Chain(ShortlistSampler(labels), Hop(tokens), partial(dst_then_src, offset=2))
    first, second = repr(chain).splitlines()
    assert first.startswith("seeds -> ShortlistSampler(labels=Csr(2 x 2, nnz=2, torch.int64)")
    assert second.startswith("  -> dst_then_src -> Hop(csr=Csr(4 x 2, nnz=3, torch.int64)")
    outer = repr(Chain(chain, Hop(tokens))).splitlines()
    assert outer[:2] == [first, second] and outer[2].startswith("  -> src -> Hop(")
