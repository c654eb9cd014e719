"""Host rows as a device sees them: in place, in bounds, waited for; or staged, and equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from shoal.core.errors import InputError
from shoal.fetch.device_rows import DeviceRows, device_view
from shoal.fetch.inplace import Bounds, InPlace
from shoal.fetch.quantized import QuantizedRows
from shoal.fetch.staged import Staged
from tests.fetch.standin import FAR, Driver, far
from tests.strategies import ids_below

CPU = torch.device("cpu")
IDS = torch.tensor([3, 0, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_the_view_is_the_tables_memory(driver: Driver, dtype: torch.dtype) -> None:
    """Rows, columns of rows and later rows are seen in place, for every width of element."""
    rows = (torch.arange(40) % 2).view(5, 8).to(dtype)
    for table in (rows, rows[:, 2:7], rows[1:], rows.T[:4]):
        reads = DeviceRows(table)
        assert torch.equal(reads.gather(far(IDS)).cpu(), table[IDS])
        out = far(torch.empty_like(table[IDS]))
        assert reads.gather(far(IDS), out) is out and torch.equal(out.cpu(), table[IDS])
    view = device_view(rows, CPU)
    rows[0, 0] = 1
    assert bool(view[0, 0] == 1) and driver.journal.count("register") >= 1


@given(ids_below(9))
def test_a_wrong_id_reads_a_row_and_is_reported_once(ids: torch.Tensor) -> None:
    """Ids beyond either end read the nearest row; the host then learns of one of them, once."""
    ids, bounds = ids - 3, Bounds(4)  # rows 0 … 3, ids -3 … 5
    fault = bounds.fault(CPU)
    assert torch.equal(bounds.inside(ids, fault), ids.clamp(0, 3))
    bounds.inside(torch.tensor([0, 3]), fault)  # a good read does not hide a bad one
    bad = [x for x in ids.tolist() if not 0 <= x < 4]
    if bad:
        with pytest.raises(
            InputError, match=rf"ids in \[0, 4\), got ({min(bad)}|{max(bad)}) in an"
        ):
            bounds.report()
    bounds.report()


def test_ids_out_of_range_on_a_device_are_an_error_at_the_next_call(driver: Driver) -> None:
    """The wrong read gives rows and no crash; the next call names the id; then all is well."""
    table = torch.arange(20.0).view(5, 4)
    reads = DeviceRows(table)
    for wrong in (5, -1):
        assert reads.gather(far(torch.tensor([1, wrong]))).shape == (2, 4)
        with pytest.raises(InputError, match=rf"\[0, 5\), got {wrong} in an earlier read on meta"):
            reads.gather(far(IDS))
        assert torch.equal(reads.gather(far(IDS)).cpu(), table[IDS])
    reads.gather(far(torch.tensor([7])))
    with pytest.raises(InputError, match="got 7 in an earlier read"):
        reads.synchronize(writes=True)  # the host has waited, so it knows


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_index_is_refused_before_the_launch(driver: Driver) -> None:
    """Floats, bytes and matrices of ids."""
    reads = DeviceRows(torch.ones(5, 4))
    for ids in (torch.ones(2), torch.ones(2, dtype=torch.int16), torch.ones(2, 2).long()):
        with pytest.raises(InputError, match="ids: expected a 1-d int32 or int64 tensor"):
            reads.gather(far(ids))
    assert driver.journal == []


def test_writes_land_in_the_tables_memory(driver: Driver) -> None:
    """A device copies or adds rows; a wrong id writes nothing; the host waits before it looks."""
    table = torch.zeros(5, 2)
    rows = DeviceRows(table)
    rows.synchronize()
    assert driver.journal == []  # nothing was written, so nobody waits
    assert rows.put(IDS[:2], far(torch.tensor([[1.0, 2], [3, 4]])))
    assert rows.put(far(IDS), far(torch.ones(3, 2)), add=True)
    with pytest.raises(InputError, match=r"\[0, 5\), got 5"):
        rows.put(torch.tensor([0, 5]), far(torch.ones(2, 2)))
    rows.synchronize()
    rows.synchronize()
    assert driver.journal == ["register", "synchronize"]
    assert table.tolist() == [[4, 5], [0, 0], [0, 0], [3, 4], [0, 0]]


def test_the_host_waits_for_reads_before_it_writes(driver: Driver) -> None:
    """A read in flight does not hold up the host's reads, but its writes."""
    reads = DeviceRows(torch.ones(5, 2))
    reads.gather(far(IDS))
    reads.synchronize()
    assert driver.journal == ["register"]
    reads.synchronize(writes=True)
    assert driver.journal == ["register", "synchronize"]


def test_refusal_falls_back_to_staging_with_one_warning(driver: Driver) -> None:
    """A driver that says no costs speed and one warning, not rows."""
    driver.room = 8
    rows = torch.arange(20.0).view(5, 4)
    reads = DeviceRows(rows)
    with pytest.warns(UserWarning, match="staged through pinned memory .* error 2, no more memory"):
        assert torch.equal(reads.gather(far(IDS)).cpu(), rows[IDS])
    out = far(torch.empty(3, 4))
    assert reads.gather(far(IDS), out) is out and torch.equal(out.cpu(), rows[IDS])
    with pytest.raises(InputError, match=r"\[0, 5\), got 5; check"):
        reads.gather(far(torch.tensor([5])))  # the host reads, so it says so at once
    assert not reads.put(IDS, far(torch.ones(3, 4))) and driver.journal == ["register"]


def test_mapped_and_empty_rows_are_never_registered(driver: Driver) -> None:
    """Registering a mapped file would read all of it; the driver takes no empty range."""
    rows = torch.arange(20.0).view(5, 4)
    assert torch.equal(DeviceRows(rows, mapped=True).gather(far(IDS)).cpu(), rows[IDS])
    for empty in (rows[:0], rows[:, :0]):
        assert DeviceRows(empty).gather(far(IDS[:0])).shape == (0, *empty.shape[1:])
    assert driver.journal == []


def test_complex_doubles_are_seen_as_pairs_of_integers(driver: Driver) -> None:
    """No integer is as wide as complex128: two stand for it; numbers that lie apart are staged."""
    rows = torch.arange(20).view(5, 4).to(torch.complex128) * 1j
    assert torch.equal(DeviceRows(rows).gather(far(IDS)).cpu(), rows[IDS])
    with pytest.warns(UserWarning, match=r"no way to show scattered torch\.complex128"):
        assert torch.equal(DeviceRows(rows.T).gather(far(IDS)).cpu(), rows.T[IDS])


@pytest.mark.parametrize("refused", [False, True])
def test_means_and_floats_are_those_of_the_host(driver: Driver, refused: bool) -> None:
    """Bags are averaged and packed rows decoded on the device, read in place or staged."""
    rows = QuantizedRows.of(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    reads = DeviceRows(rows.packed, mapped=refused)
    bags = IDS, torch.tensor([0, 2, 3]), torch.tensor([1.0, 3.0, 2.0])
    assert torch.equal(reads.gather_floats(far(IDS)).cpu(), rows.gather(IDS))
    mean = reads.gather_mean(*map(far, bags)).cpu()
    torch.testing.assert_close(mean, rows.gather_mean(*bags))
    assert driver.journal == ([] if refused else ["register"])


def test_what_was_picked_can_be_read(driver: Driver) -> None:
    """Small reads take zero-copy unmeasured, large ones the faster way; rows are equal."""
    table = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0))
    reads, many = DeviceRows(table), torch.arange(64).flip(0)
    assert torch.equal(reads.gather(far(IDS)).cpu(), table[IDS])
    assert torch.equal(reads.gather(far(many)).cpu(), table[many])
    (few_rows, many_rows) = reads.choices[FAR]
    assert (few_rows.way, few_rows.rows, dict(few_rows.seconds)) == ("zero-copy", 4, {})
    assert set(many_rows.seconds) == {"zero-copy", "staged"}
    assert many_rows.seconds[many_rows.way] == min(many_rows.seconds.values())
    reads.forget()
    assert reads.choices == {}


@pytest.mark.gpu
def test_kernels_views_and_copies_agree_on_a_device() -> None:
    """On CUDA, for every width of element: zero-copy by kernel, by torch, and staged."""
    device = torch.device("cuda", 0)
    ids = torch.randint(1000, (20_000,), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.uint8, torch.half, torch.float32, torch.double, torch.complex128):
        for width in (1, 33, 300):
            table = torch.arange(1000 * width).view(1000, width).to(dtype)
            view, bounds = device_view(table, device), Bounds(1000)
            fault = torch.zeros(3, dtype=torch.int64, device=device)
            for sort_bytes in (0, 1 << 60):
                rows = InPlace(view, bounds, fault, sort_bytes).read(ids.to(device))
                assert torch.equal(rows.cpu(), table[ids])
            assert torch.equal(view[ids.to(device)].cpu(), table[ids])
            assert torch.equal(Staged(table).read(ids.to(device)).cpu(), table[ids])


@pytest.mark.gpu
def test_a_device_survives_a_wrong_id() -> None:
    """On CUDA a read out of range is reported, and the device goes on."""
    reads, device = DeviceRows(torch.ones(5, 2)), torch.device("cuda", 0)
    reads.gather(torch.tensor([5], device=device))
    torch.cuda.synchronize()
    with pytest.raises(InputError, match="got 5 in an earlier read on cuda:0"):
        reads.gather(IDS.to(device))
    assert reads.gather(IDS.to(device)).cpu().tolist() == [[1.0, 1.0]] * 3
