"""Reads in place: the kernels' and torch's give the same rows, in any order of reading."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from shoal.core.errors import InputError
from shoal.fetch import inplace
from shoal.fetch.gather import gather_mean
from shoal.fetch.inplace import Bounds, InPlace
from shoal.fetch.quantized import QuantizedRows

pytest.importorskip("triton", reason="needs the extra kernels, which is for Linux")

TABLE = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([7, 39, 0, 7])


def reader(table: Tensor = TABLE, sort_bytes: int = 1 << 60) -> InPlace:
    """Reads of a table by the CPU, which plays a device."""
    bounds = Bounds(len(table))
    return InPlace(table, bounds, bounds.fault(table.device), sort_bytes)


@pytest.fixture(params=[False, True], ids=["torch", "kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once by torch's kernels, once by ours in Triton's interpreter."""
    monkeypatch.setattr(inplace, "_RUNS_KERNELS", ("cpu",) if request.param else ())
    return request.param


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sort_bytes", [0, 1 << 60])
def test_rows_are_those_of_indexing(sort_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``table[ids]``, into `out` or not, ids sorted first or not, rows contiguous or not."""
    monkeypatch.setattr(inplace, "SORT_COUNT", 3)
    for table in (TABLE, TABLE[1:, 2:], TABLE.T[:5], TABLE[:, 0]):
        ids = IDS % len(table)
        reads = reader(table, sort_bytes)
        assert torch.equal(reads.read(ids), table[ids])
        out = torch.empty_like(table[ids])
        assert reads.read(ids.int(), out) is out and torch.equal(out, table[ids])
        apart = torch.empty((len(ids), *table.shape[1:], 2), dtype=table.dtype)[..., 0]
        assert torch.equal(reads.read(ids, apart), table[ids])
    halves = reader(TABLE.half(), sort_bytes)
    assert torch.equal(halves.read(IDS, floats=True), TABLE.half()[IDS].float())


def test_only_large_reads_of_large_tables_are_sorted() -> None:
    """A sort pays from SORT_BYTES and SORT_COUNT on."""
    many = torch.arange(inplace.SORT_COUNT) % 40
    assert reader(sort_bytes=960)._order(many)[1] is not None  # 40 x 6 x 4 bytes
    assert reader(sort_bytes=961)._order(many)[1] is None
    assert reader(sort_bytes=960)._order(many[1:])[1] is None


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", [-3, 40])
def test_an_id_outside_is_an_error_later(wrong: int) -> None:
    """Every read takes the nearest row for it, and the host learns of it by its next look."""
    reads, ids = reader(), torch.tensor([1, wrong])
    near = TABLE[ids.clamp(0, 39)]
    offsets = torch.tensor([0, 1, 2])
    means = partial(reads.mean, offsets=offsets, weights=None)
    for read in (reads.read, partial(reads.read, floats=True), means):
        assert torch.equal(read(ids), near)
        with pytest.raises(InputError, match=rf"ids in \[0, 40\), got {wrong} in an earlier read"):
            reads.bounds.report()
        reads.bounds.report()


@pytest.mark.usefixtures("kernels")
def test_means_are_those_of_the_host() -> None:
    """Weighted or not, of floats, doubles, halves and packed bytes; an empty bag is zeros."""
    packed = QuantizedRows.of(TABLE)
    offsets, weights = torch.tensor([0, 3, 3, 4]), torch.tensor([1.0, 0.0, 3.0, 2.0])
    for w in (None, weights):
        for table in (TABLE, TABLE.double()):
            expected = gather_mean(table, IDS, offsets, None if w is None else w.to(table.dtype))
            torch.testing.assert_close(reader(table).mean(IDS, offsets, w), expected)
        half = gather_mean(TABLE.half().float(), IDS, offsets, w)
        torch.testing.assert_close(reader(TABLE.half()).mean(IDS, offsets, w), half)
        mean = reader(packed.packed).mean(IDS, offsets, w)
        torch.testing.assert_close(mean, packed.gather_mean(IDS, offsets, w))


def test_the_kernel_s_mean_is_torch_s_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both scale an entry, then add it to its bag, in the order of the entries."""
    offsets, weights = torch.tensor([0, 3, 3, 4]), torch.tensor([1.0, 0.5, 3.0, 2.0])
    tables = (TABLE, TABLE.double(), TABLE.half(), TABLE.bfloat16(), QuantizedRows.of(TABLE).packed)
    for table in tables:
        monkeypatch.setattr(inplace, "_RUNS_KERNELS", ())
        expected = reader(table).mean(IDS, offsets, weights)
        monkeypatch.setattr(inplace, "_RUNS_KERNELS", ("cpu",))
        assert torch.equal(reader(table).mean(IDS, offsets, weights), expected)


def test_without_a_compiler_torch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton finds no C compiler: one warning, then torch reads the view, ids in bounds."""

    def no_compiler(device: torch.device) -> bool:
        raise RuntimeError("Failed to find C compiler. Please specify via CC")

    monkeypatch.setattr(inplace, "_RUNS_KERNELS", ("cpu",))
    monkeypatch.setattr(inplace, "_probe", no_compiler)
    reads = reader()
    with pytest.warns(UserWarning, match="torch's own kernels are used.*Failed to find C compiler"):
        assert torch.equal(reads.read(IDS), TABLE[IDS])
    assert torch.equal(reads.read(IDS), TABLE[IDS])  # a second warning would be an error
