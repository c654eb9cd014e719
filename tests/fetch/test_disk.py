"""Rows in a file: plain indexing, bit for bit, or an error that names the file."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.core.errors import InputError
from shoal.core.mapped import layout_of, map_array, tensors_of
from shoal.fetch import disk
from shoal.fetch.disk import DiskRows, runs
from shoal.fetch.unified import unified
from tests.strategies import ids_below

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.float16)


def rows_of(n: int, *row: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *row, generator=generator).mul(50).to(dtype)


def bits(rows: Tensor) -> Tensor:
    return torch.empty(rows.numel(), dtype=rows.dtype).copy_(rows.flatten()).view(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@settings(max_examples=20)
@given(
    n=st.integers(1, 300),
    row=st.sampled_from([(), (1,), (3,), (33,), (2, 5), (700,)]),
    dtype=st.sampled_from(DTYPES),
    ids=ids_below(10**6),
    threads=st.sampled_from([1, 3, 16]),
)
def test_every_read_is_plain_indexing(folder, n, row, dtype, ids, threads) -> None:
    """Any width, dtype, order and number of repeats; both formats; every number of threads."""
    rows, ids = rows_of(n, *row, dtype=dtype), ids % n
    path = folder / "rows.safetensors"
    save_file({"a": torch.zeros(3, dtype=torch.uint8), "rows": rows}, path)
    tables = [DiskRows(path, "rows", threads=threads)]
    if dtype != torch.bfloat16:
        np.save(folder / "rows.npy", rows.numpy())
        tables.append(DiskRows(folder / "rows.npy", threads=threads))
    for table in tables:
        assert table.shape == rows.shape and table.dtype == dtype and len(table) == n
        for index in (ids, ids.int()):
            assert torch.equal(bits(table.gather(index)), bits(rows[ids]))
        out = torch.empty_like(rows[ids])
        assert table.gather(ids, out) is out and torch.equal(bits(out), bits(rows[ids]))
        apart = torch.empty(len(ids), *row, 2, dtype=dtype)[..., 0]  # not contiguous
        assert torch.equal(bits(table.gather(ids, apart)), bits(rows[ids]))


@given(
    rows=st.lists(st.integers(0, 5000), min_size=1, max_size=60),
    start=st.sampled_from([0, 64, 128, 4095]),
    width=st.sampled_from([1, 4, 100, 512, 4096, 9000, 300_000]),
)
def test_runs_join_what_is_near(rows, start, width) -> None:
    """Each row is in one run; a run's rows share a stretch and lie less than nine pages apart."""
    rows = np.sort(np.array(rows))
    first = runs(rows, start, width)
    assert first[0] == 0 and (np.diff(first) > 0).all()
    begin, end = start + rows * width, start + (rows + 1) * width - 1
    for i in range(1, len(rows)):
        near = begin[i] // 4096 - end[i - 1] // 4096 <= 8
        same = begin[i] // (128 << 10) == begin[i - 1] // (128 << 10)
        assert (i not in first) == (near and same)


def test_neighbors_are_read_at_once_and_repeats_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adjacent rows take one read, far ones a read each; the law above could do without."""
    np.save(tmp_path / "x.npy", rows_of(4000, 256).numpy())
    table, reads = DiskRows(tmp_path / "x.npy"), []

    def counting(file: int, buffers: list[memoryview], at: int, read=os.preadv) -> int:
        reads.append(sum(len(x) for x in buffers))
        return read(file, buffers, at)

    monkeypatch.setattr(os, "preadv", counting)
    table.gather(torch.tensor([7, 5, 6, 5]))
    assert reads == [3 * 1024]
    reads.clear()
    table.gather(torch.tensor([0, 3999, 2000]))
    assert reads == [1024] * 3


def test_reads_that_come_in_parts_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that gives seven bytes at a time gives the same rows."""
    rows = rows_of(50, 5)
    np.save(tmp_path / "x.npy", rows.numpy())
    table, ids = DiskRows(tmp_path / "x.npy"), torch.tensor([3, 4, 49, 0])
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: read(file, [views[0][:7]], at))
    assert torch.equal(table.gather(ids), rows[ids])


def test_many_threads_may_gather_together(tmp_path: Path) -> None:
    """Gathers of several loaders' workers do not mix."""
    rows = rows_of(2000, 16)
    np.save(tmp_path / "x.npy", rows.numpy())
    table, wrong = DiskRows(tmp_path / "x.npy"), []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            ids = torch.randint(2000, (300,), generator=generator)
            if not torch.equal(table.gather(ids), rows[ids]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_copies_open_the_file_anew(tmp_path: Path) -> None:
    """Pickled and copied tables read the same rows by a file handle of their own."""
    rows = rows_of(9, 2)
    save_file({"a": rows + 1, "b": rows}, tmp_path / "x.safetensors")
    table = DiskRows(tmp_path / "x.safetensors", "b", threads=2)
    again = [pickle.loads(pickle.dumps(table)), copy.deepcopy(table)]
    del table
    for other in again:
        assert torch.equal(other.gather(torch.tensor([8, 1])), rows[[8, 1]])
        assert repr(other).startswith("DiskRows(") and "(9, 2), torch.float32" in repr(other)


# -- faults --------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def overwrite(path: Path) -> None:
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"12345678")
    # as a write one second later would have left it
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (cut, r"the file that was opened \(size \d+\), got size \d+"),
    (replace, r"the file that was opened \(.*\), got (time of change|inode) \d+"),
    (overwrite, r"the file that was opened \(time of change \d+\), got time of change \d+"),
    (Path.unlink, "the file that was opened, got .*No such file"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0].__name__)
@pytest.mark.parametrize("during", [False, True], ids=["before", "during"])
def test_a_file_that_changes_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault, during
) -> None:
    """Cut, replaced, overwritten, removed: before a gather or in its midst, no row is given out."""
    path = tmp_path / "x.npy"
    np.save(path, rows_of(100, 8).numpy())
    table, (change, message) = DiskRows(path), fault
    if during:
        read = os.preadv

        def late(file: int, views: list[memoryview], at: int) -> int:
            if not changed:
                changed.append(True)
                change(path)
            return read(file, views, at)

        changed: list[bool] = []
        monkeypatch.setattr(os, "preadv", late)
    else:
        change(path)
    ids = torch.arange(100)
    with pytest.raises(InputError, match=f"x.npy: expected ({message}|a whole file, got its end)"):
        table.gather(ids)
    with pytest.raises(InputError, match=r"x.npy: expected the file that was opened"):
        table.gather(ids[:1])


def test_an_unreadable_place_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's own error comes out as ours."""
    np.save(tmp_path / "x.npy", rows_of(10, 8).numpy())
    table = DiskRows(tmp_path / "x.npy")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(InputError, match=r"x.npy: expected a file that can be read, got .*Errno 5"):
        table.gather(torch.tensor([1]))


def test_bad_files_are_named(tmp_path: Path) -> None:
    """Missing, foreign, truncated, ambiguous, in Fortran order, without rows or of no numbers."""
    rows = np.ones((50, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "columns.npy", np.asfortranarray(rows))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "big.npy", rows.astype(">f4"))
    np.save(tmp_path / "one.npy", np.float32(1))
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "text.npy").write_text("no array")
    save_file({"a": torch.ones(50, 4), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    for name, message in (
        ("absent.npy", "expected a file .* got nothing there"),
        ("x.csv", "expected a .npy, .npz or .safetensors file, got .csv"),
        ("x.safetensors", r"expected name, one of \['a', 'b'\], got None"),
        ("columns.npy", r"expected rows one after the other \(C order\), got Fortran order"),
        ("words.npy", "expected a whole .npy file of numbers"),
        ("big.npy", "expected a whole .npy file of numbers"),
        ("text.npy", "expected a whole .npy file of numbers"),
        ("one.npy", "expected at least one axis, got a number"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            DiskRows(tmp_path / name)
    for name in ("x.npy", "x.safetensors"):
        cut(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: expected a whole"):
            DiskRows(tmp_path / name, "a")


@pytest.mark.usefixtures("unchecked")
def test_bad_ids_and_outs_are_named(tmp_path: Path) -> None:
    """Negative, too large, of another kind; an out of another shape, dtype or device."""
    np.save(tmp_path / "x.npy", np.ones((5, 4), dtype=np.float32))
    table, ids = DiskRows(tmp_path / "x.npy"), torch.tensor([1, 2])
    for bad, out, message in (
        (torch.tensor([-1]), None, r"ids: expected ids in \[0, 5\), got -1"),
        (torch.tensor([5]), None, r"ids: expected ids in \[0, 5\), got 5"),
        (torch.tensor([1.0]), None, "ids: expected a 1-d int32 or int64 tensor"),
        (torch.tensor([[1]]), None, "ids: expected a 1-d int32 or int64 tensor"),
        (ids, torch.empty(3, 4), r"out: expected \(2, 4\) torch.float32, got \(3, 4\)"),
        (ids, torch.empty(2, 4).half(), "out: expected .* got .* torch.float16"),
        (ids, torch.empty(2, 4, device="meta"), "out: expected the device of the ids, cpu, got me"),
    ):
        with pytest.raises(InputError, match=message):
            table.gather(bad, out)
    with pytest.raises(InputError, match="threads: expected a whole number of at least 1"):
        DiskRows(tmp_path / "x.npy", threads=0)


def test_a_system_without_preadv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none; mapping works there."""
    monkeypatch.delattr(os, "preadv")
    with pytest.raises(InputError, match="DiskRows: expected a system with preadv"):
        DiskRows(tmp_path / "x.npy")


def test_layouts_are_those_of_numpy_and_safetensors(tmp_path: Path) -> None:
    """The bytes between start and end are the rows', in files of every format."""
    rows = rows_of(7, 3)
    np.save(tmp_path / "x.npy", rows.numpy())
    np.savez(tmp_path / "x.npz", b=np.ones(5), x=rows.numpy())
    save_file({"b": torch.ones(5), "x": rows}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.npz", "x.safetensors"):
        layout = layout_of(tmp_path / name, "x")
        raw = (tmp_path / name).read_bytes()[layout.start : layout.end]
        assert raw == rows.numpy().tobytes() and layout.row_bytes == 12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_are_mapped_as_they_are_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    """Every tensor of a file equals what its own library loads, numbers and empty ones too."""
    saved = {"a": torch.arange(6).view(2, 3).to(dtype), "n": torch.tensor(1).to(dtype)}
    saved["none"] = torch.empty(0, 4, dtype=dtype)
    save_file(saved, tmp_path / "x.safetensors")
    found = {name: map_array(x) for name, x in tensors_of(tmp_path / "x.safetensors").items()}
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor)
    found["a"][0, 0] = 1  # this process's copy
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], saved["a"])


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_files_larger_than_memory_are_read_and_mapped(tmp_path: Path, kind: str) -> None:
    """A file with a hole of four times the machine's memory, in which a row is not zero."""
    path = tmp_path / f"x.{kind}"
    n = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 512
    begin = hollow(path, n)
    with path.open("r+b") as file:
        file.seek(begin + 512 * (n - 3))
        file.write(torch.ones(128).numpy().tobytes())
    ids, expected = torch.tensor([n - 3, 0]), torch.tensor([[1.0], [0.0]]).expand(2, 128)
    assert torch.equal(DiskRows(path).gather(ids), expected)
    assert torch.equal(unified(path).gather(ids), expected)


def hollow(path: Path, n: int) -> int:
    """Make a file of `n` rows of 128 zeros that takes no room on disk; where the rows begin."""
    head = io.BytesIO()
    if path.suffix == ".safetensors":
        told = {"x": {"dtype": "F32", "shape": [n, 128], "data_offsets": [0, 512 * n]}}
        text = json.dumps(told).encode()
        head.write(len(text).to_bytes(8, "little") + text)
    else:
        form = {"descr": "<f4", "fortran_order": False, "shape": (n, 128)}
        np.lib.format.write_array_header_1_0(head, form)
    with path.open("wb") as file:
        file.write(head.getvalue())
        file.truncate(head.tell() + 512 * n)
    return head.tell()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Its rows cannot be read by themselves; a damaged one is named as well."""
    np.savez_compressed(tmp_path / "x.npz", x=np.ones((3, 2)))
    with pytest.raises(InputError, match="expected arrays as they are, got compressed ones"):
        DiskRows(tmp_path / "x.npz")
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "y.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"y.npz: expected a whole \.npz file"):
        DiskRows(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", x=np.ones((3, 2)), y=np.zeros(90))
    lies = (tmp_path / "z.npz").read_bytes().replace(b"(3, 2)", b"(9, 2)")
    (tmp_path / "z.npz").write_bytes(lies)  # three rows, and then another array's bytes
    with pytest.raises(InputError, match=r"z.npz: expected a whole .npz file, got 176 bytes where"):
        DiskRows(tmp_path / "z.npz", "x")
    with pytest.raises(InputError, match=r"x.npz: expected name, one of \['x'\], got y"):
        DiskRows(tmp_path / "x.npz", "y")


@pytest.mark.gpu
def test_cuda_ids_give_cuda_rows(tmp_path: Path) -> None:
    """Rows are read on the host and arrive where the ids are."""
    rows = rows_of(1000, 33)
    np.save(tmp_path / "x.npy", rows.numpy())
    ids = torch.randint(0, 1000, (500,))
    read = disk.DiskRows(tmp_path / "x.npy").gather(ids.cuda())
    assert read.is_cuda and torch.equal(read.cpu(), rows[ids])
