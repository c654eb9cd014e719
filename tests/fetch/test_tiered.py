"""Tiers: plain indexing wherever rows lie; placement by scores or counts; shares as predicted."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.core.errors import InputError
from shoal.fetch import cache, inplace, tiered
from shoal.fetch.cache import RowCache, hottest, share
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import unified
from shoal.fetch.update import RowSGD
from shoal.training.loader import Loader, Table
from tests.fetch.standin import Driver
from tests.fetch.test_disk import rows_of
from tests.strategies import ids_below

N = 200


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiers") / "x.npy"
    np.save(path, rows_of(N, 5).numpy())
    return path


ROWS = rows_of(N, 5)


@settings(max_examples=40)
@given(
    on_disk=st.booleans(),
    hot=st.sampled_from([0, 1, 50, N, 10 * N]),
    warm=st.sampled_from([0, 30, N]),
    batches=st.lists(ids_below(N, max_size=30), max_size=3),
    scored=st.booleans(),
)
def test_wherever_rows_lie_a_gather_is_plain_indexing(
    path, on_disk, hot, warm, batches, scored
) -> None:
    """Every division among device (the CPU in its place), host and disk, before and after moves."""
    scores = torch.rand(N, generator=torch.Generator().manual_seed(0)) if scored else None
    rows, warm = (DiskRows(path), warm) if on_disk else (ROWS, 0)
    table = TieredTable(rows, scores, device_rows=hot, host_rows=warm)
    assert isinstance(table, Table) and table.shape == (N, 5) and table.dtype == torch.float32
    assert sum(use.rows for use in table.use().values()) == N
    for ids in batches:
        assert torch.equal(table.gather(ids), ROWS[ids])
        out = torch.empty(len(ids), 5)
        assert table.gather(ids.int(), out) is out and torch.equal(out, ROWS[ids])
        table.refresh()
    assert sum(use.rows for use in table.use().values()) == N


def test_tiers_are_filled_in_the_order_of_scores(path: Path) -> None:
    """The hottest rows are on the device, the next in host memory; reads are counted where they
    were served."""
    scores = torch.arange(N).double().flip(0)  # row 0 is the hottest
    table = TieredTable(path, scores, device_rows=10, host_rows=20)
    table.gather(torch.tensor([0, 9, 10, 29, 30, 31, 199, 9]))
    use = table.use()
    assert list(use) == ["device", "host", "disk"]
    assert [tier.rows for tier in use.values()] == [10, 20, N - 30]
    assert [tier.measured for tier in use.values()] == [3 / 8, 2 / 8, 3 / 8]
    total = float(scores.sum())
    by_hand = [float(part.sum()) / total for part in scores.split([10, 20, N - 30])]
    assert [tier.predicted for tier in use.values()] == pytest.approx(by_hand)
    assert repr(table).splitlines()[2].split() == ["device", "10", "9.77", "37.50"]


def test_held_rows_are_read_where_they_are_held(path: Path) -> None:
    """A held row comes from its copy: without this the law above could pass with empty tiers."""
    base = ROWS.clone()
    table = TieredTable(base, torch.arange(N), device_rows=2)
    base += 1
    read = table.gather(torch.tensor([N - 1, 0, N - 2]))
    assert torch.equal(read, torch.stack([ROWS[N - 1], ROWS[0] + 1, ROWS[N - 2]]))


def test_observed_rows_are_placed_between_epochs(path: Path) -> None:
    """Nothing is held until the first refresh; then what was asked for most, and it moves along."""
    table = TieredTable(path, device_rows=2, host_rows=1)
    assert [use.predicted for use in table.use().values()] == [None] * 3
    table.refresh()  # nothing was asked for: nothing moves
    table.gather(torch.tensor([7, 7, 7, 8, 8, 9, 3]))
    assert table.use()["disk"].measured == 1
    table.refresh()
    use = table.use()
    assert use["device"].predicted == pytest.approx(5 / 7) and use["device"].measured is None
    table.gather(torch.tensor([7, 8, 3, 9, 100]))
    assert [x.measured for x in table.use().values()] == [2 / 5, 1 / 5, 2 / 5]
    table.gather(torch.tensor([100] * 9))
    table.refresh()
    table.gather(torch.tensor([100, 7, 8]))
    assert [x.measured for x in table.use().values()] == pytest.approx([2 / 3, 1 / 3, 0])


def test_rows_that_stay_are_not_read_again(path: Path) -> None:
    """Moving copies only what comes."""
    held, read = RowCache(3, ROWS.shape, ROWS.dtype, torch.device("cpu")), []

    def reading(ids: Tensor) -> Tensor:
        read.append(ids.tolist())
        return ROWS[ids]

    held.fill(torch.tensor([1, 5, 9]), reading)
    held.fill(torch.tensor([1, 6, 9]), reading)
    assert read == [[1, 5, 9], [6]] and held.ids.tolist() == [1, 6, 9]
    assert torch.equal(held.rows, ROWS[[1, 6, 9]])


def test_a_loader_takes_tiers_and_places_rows_anew_after_each_epoch() -> None:
    """The same batches as from a plain tensor, prefetched by two threads, and hits grow."""
    batches = [[0, 1, 2], [1, 2, 3], [2, 50]]
    table = TieredTable(ROWS, device_rows=3)
    loaders = [
        Loader(batches, lambda seeds, generator: [], x, seed=0, workers=2) for x in (table, ROWS)
    ]
    for _ in range(2):
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one.src, other.src)
        assert table.use()["device"].measured is None  # refreshed: the count begins anew
    measured = [table.use()["device"].measured for _ in loaders[0]]
    assert (measured[-1] or 0) > 0.5


def test_refresh_and_gather_exclude_one_another() -> None:
    """Gathers that run while rows move give the same rows as ever."""
    table, wrong = TieredTable(ROWS, device_rows=20), []

    def read(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            ids = (torch.rand(40, generator=generator) ** (1 + seed) * N).long()
            if not torch.equal(table.gather(ids), ROWS[ids]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        table.refresh()
    assert wrong == [] and table.use()["device"].rows == 20


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_hottest_is_the_best_choice(scores, data) -> None:
    """No other rows have a larger share; ids come sorted, each at most once."""
    count = data.draw(st.integers(0, len(scores)))
    more = data.draw(st.integers(0, len(scores) - count))
    values = torch.tensor(scores, dtype=torch.float64)
    first, second = hottest(values, [count, more])
    assert first.tolist() == sorted(set(first.tolist())) and len(first) == count
    assert float(values[first].sum()) == sum(sorted(scores, reverse=True)[:count])
    both = sorted([*first.tolist(), *second.tolist()])
    assert sum(scores[i] for i in both) == sum(sorted(scores, reverse=True)[: count + more])
    if sum(scores):
        assert share(values, torch.tensor(both, dtype=torch.int64)) <= 1


# -- faults --------------------------------------------------------------------------------------


class Refusing:
    """Stands in for a device's allocator with room for so many rows."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if shape[0] > self.room:
            raise self.error
        return torch.empty(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_device_without_room_gets_a_smaller_cache(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Fewer rows are held, a warning says how many, and reads are as ever; also with no room."""
    for room, fits in ((70, 56), (0, 0)):  # 100 · 0.75 · 0.75
        monkeypatch.setattr(cache, "_empty", Refusing(room, error))
        said = r"100 rows \(0.0 MiB\) were to be held on cpu, which has room for "
        with pytest.warns(UserWarning, match=f"{said}{fits} of them"):
            table = TieredTable(ROWS, torch.arange(N), device_rows=100)
        use = table.use()
        assert use.get("device") is None if fits == 0 else use["device"].rows == fits
        ids = torch.arange(N)
        assert torch.equal(table.gather(ids), ROWS)


def test_other_errors_of_an_allocator_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a lack of memory makes a smaller cache."""
    monkeypatch.setattr(cache, "_empty", Refusing(0, RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        TieredTable(ROWS, torch.arange(N), device_rows=1)


def test_a_file_that_changes_under_the_tiers_is_named(tmp_path: Path) -> None:
    """Held rows go on; what must come from the file ends in an error; a failed move loses none."""
    np.save(tmp_path / "x.npy", ROWS.numpy())
    table = TieredTable(tmp_path / "x.npy", device_rows=1, host_rows=1)
    table.gather(torch.tensor([1, 1, 2, 3]))
    table.refresh()
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    assert torch.equal(table.gather(torch.tensor([2, 1])), ROWS[[2, 1]])
    for _ in range(3):
        with pytest.raises(InputError, match=r"x.npy: expected the file that was opened"):
            table.gather(torch.tensor([1, 5, 5, 5, 5]))


def test_a_failed_move_leaves_no_wrong_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading fails while rows move, later gathers are still right."""
    table = TieredTable(ROWS, device_rows=2)
    table.gather(torch.tensor([1, 2]))
    table.refresh()
    table.gather(torch.tensor([5] * 9))
    hold = RowCache.fill

    def failing(self: RowCache, ids: Tensor, read: object) -> None:
        def broken(_: Tensor) -> Tensor:
            raise InputError("x: gone")

        hold(self, ids, broken)

    monkeypatch.setattr(RowCache, "fill", failing)
    with pytest.raises(InputError, match="gone"):
        table.refresh()
    ids = torch.tensor([1, 2, 5])
    assert torch.equal(table.gather(ids), ROWS[ids])
    monkeypatch.undo()
    table.refresh()
    assert torch.equal(table.gather(ids), ROWS[ids])


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named(path: Path) -> None:
    """Counts, scores, ids and tables that do not fit."""
    scores = torch.ones(N)
    for make, message in (
        (lambda: TieredTable(ROWS, scores, device_rows=-1), "device_rows: expected at least 0"),
        (lambda: TieredTable(ROWS, scores, host_rows=2), "host_rows: expected 0, as all rows are"),
        (lambda: TieredTable(ROWS, scores[1:]), r"scores: expected one per row, \(200,\), got"),
        (lambda: TieredTable(ROWS, -scores), "scores: expected finite numbers of at least 0"),
        (lambda: TieredTable(ROWS, scores / 0), "scores: expected finite numbers of at least 0"),
        (lambda: TieredTable(7), "rows: expected a tensor, an array, DiskRows or a path"),
        (
            lambda: TieredTable(ROWS, scores, device="cuda:99"),
            "device: expected a device that torch",
        ),
        (
            lambda: TieredTable(path).gather([3]),
            "ids: expected a 1-d int32 or int64 tensor, got list",
        ),
        (lambda: TieredTable("absent.npy"), "absent.npy: expected a file"),
        (
            lambda: TieredTable(unified(ROWS.clone(), RowSGD(1.0))),
            "rows: expected rows that do not learn",
        ),
        (lambda: TieredTable(path).gather(torch.tensor([N])), r"ids: expected ids in \[0, 200\)"),
        (lambda: TieredTable(path).gather(torch.tensor([-1])), r"ids: expected ids in \[0, 200\)"),
        (
            lambda: TieredTable(ROWS, scores, device_rows=3).gather(
                torch.arange(5), torch.empty(4, 5)
            ),
            r"out: expected \(5, 5\) torch.float32, got \(4, 5\)",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize("sort_count", [1, 1 << 20])
def test_a_kernel_reads_both_memories_at_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, sort_count: int
) -> None:
    """A device that reads host memory: held rows from their copies, hits counted, ids in bounds,
    nothing divided; by scores and by counts, before and after rows move."""
    pytest.importorskip("triton", reason="needs the extra kernels, which is for Linux")
    monkeypatch.setattr(tiered, "_READS_THE_HOST", ("cpu",))
    monkeypatch.setattr(inplace, "_RUNS_KERNELS", ("cpu",))
    monkeypatch.setattr(inplace, "SORT_COUNT", sort_count)
    monkeypatch.setattr(TieredTable, "_in_parts", None)
    base = ROWS.clone()
    table = TieredTable(base, torch.arange(N), device_rows=2)
    base += 1
    ids = torch.tensor([N - 1, 0, N - 2, N - 1])
    read = table.gather(ids)
    assert torch.equal(read, torch.stack([ROWS[N - 1], ROWS[0] + 1, ROWS[N - 2], ROWS[N - 1]]))
    assert table.use()["device"].measured == 3 / 4 and table.use()["host"].measured == 1 / 4
    out = torch.empty(4, 5)
    assert table.gather(ids.int(), out) is out and torch.equal(out, read)
    with pytest.raises(InputError, match=r"out: expected \(4, 5\)"):
        table.gather(ids, torch.empty(4, 4))
    table.gather(torch.tensor([N]))
    with pytest.raises(InputError, match=rf"ids in \[0, {N}\), got {N} in an earlier read"):
        table.gather(ids)
    counted = TieredTable(ROWS, device_rows=2)
    assert torch.equal(counted.gather(torch.tensor([7, 7, 8, 3])), ROWS[[7, 7, 8, 3]])
    counted.refresh()
    assert torch.equal(counted.gather(torch.tensor([7, 3, 9, 7])), ROWS[[7, 3, 9, 7]])
    assert counted.use()["device"].measured == 3 / 4  # 3 and 7: of equal counts the lower id


@pytest.mark.gpu
def test_cuda_ids_find_hot_rows_on_the_device(path: Path) -> None:
    """Device, registered host memory and disk give the rows of plain indexing on the device."""
    scores = torch.rand(N)
    for rows, warm in ((ROWS, 0), (DiskRows(path), 40)):
        table = TieredTable(rows, scores, device_rows=50, host_rows=warm, device="cuda")
        ids = torch.randint(0, N, (300,))
        read = table.gather(ids.cuda())
        assert read.is_cuda and torch.equal(read.cpu(), ROWS[ids])
        held = scores.argsort(descending=True, stable=True)[:50]
        assert table.use()["device"].measured == float(torch.isin(ids, held).double().mean())
        assert torch.equal(table.gather(ids), ROWS[ids])
        with pytest.raises(InputError, match="ids: expected ids in"):
            table.gather(torch.tensor([N]).cuda())
            torch.cuda.synchronize()
            table.gather(torch.tensor([0]).cuda())
