"""The kernel that draws subsets gives what the torch line gives, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.csr import Csr
from shoal.sample import fanout
from shoal.sample.counter import CounterRandom
from shoal.sample.expand import NeighborSampler
from shoal.sample.fanout import by_columns, draw
from tests.strategies import csrs, ids_below

triton = pytest.importorskip("triton", reason="needs the extra kernels, which is for Linux")


@settings(max_examples=12)
@given(csrs(min_rows=1), ids_below(10**6), st.integers(0, 4), st.integers(-(2**63), 2**63 - 1))
def test_the_kernel_draws_the_same_subsets(csr: Csr, ids: Tensor, k: int, key: int) -> None:
    """For any rows, fan-out and key: the same positions in the same order, bit by bit."""
    from shoal.sample import _triton

    ids = ids % csr.n_rows
    start, degrees = csr.indptr[ids], csr.degrees()[ids]
    offsets = torch.nn.functional.pad(degrees.clamp(max=k).cumsum(0), (1, 0))
    expected = by_columns(start, degrees, offsets, k, CounterRandom(key))
    assert torch.equal(_triton.subsets(start, degrees, offsets, k, key), expected)


@pytest.fixture
def graph() -> Csr:
    """A ring of 300 nodes, each with 40 neighbors; the last two have fewer and none."""
    columns = (torch.arange(300)[:, None] + torch.arange(40)) % 300
    indptr = torch.cat([torch.arange(0, 299 * 40, 40), torch.tensor([298 * 40 + 7] * 2)])
    return Csr(indptr, columns.flatten()[: int(indptr[-1])], 300)


def test_blocks_of_a_seed_are_the_same_on_a_device(graph: Csr, monkeypatch) -> None:
    """Two hops by the kernel and two by torch: one seed gives the same blocks."""
    seeds = torch.arange(270, 300)

    def blocks() -> list[Tensor]:
        sampled = NeighborSampler(graph, [15, 10])(seeds, torch.Generator().manual_seed(3))
        return [x for block in sampled for x in (block.src, block.indptr, block.edges)]

    on_host = blocks()
    monkeypatch.setattr(fanout, "_RUNS_KERNELS", ("cpu",))
    blocks()  # the first use of the kernel is compared with torch
    drawn = []
    monkeypatch.setattr(fanout, "by_columns", lambda *args: drawn.append(args))
    assert all(torch.equal(x, y) for x, y in zip(blocks(), on_host, strict=True))
    assert not drawn  # torch drew nothing


def test_without_a_compiler_torch_draws(graph: Csr, monkeypatch) -> None:
    """Where Triton fails there is one warning, and the same entries."""

    def no_compiler(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler")

    rows, expected = torch.arange(9), None
    for runs in ((), ("cpu",)):
        monkeypatch.setattr(fanout, "_RUNS_KERNELS", runs)
        monkeypatch.setattr(fanout, "_probe", no_compiler)
        generator = torch.Generator().manual_seed(0)
        if runs:
            with pytest.warns(UserWarning, match="Failed to find C compiler"):
                found = draw(graph, rows, 5, generator)
            assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
        else:
            expected = draw(graph, rows, 5, generator)


@pytest.mark.gpu
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_devices_draw_what_the_host_draws(weighted: bool, replace: bool) -> None:
    """Every law, from one seed: the same positions and offsets on a CUDA device."""
    weights = torch.rand(6000, generator=torch.Generator().manual_seed(1))
    csr = Csr(torch.arange(0, 6001, 60), torch.arange(6000), 6000, weights)
    rows = torch.randint(100, (5000,), generator=torch.Generator().manual_seed(2))
    draws = [
        draw(on, ids, 15, torch.Generator().manual_seed(0), replace=replace, weighted=weighted)
        for on, ids in ((csr, rows), (csr.to("cuda"), rows.cuda()))
    ]
    assert all(torch.equal(x, y.cpu()) for x, y in zip(*draws, strict=True))
