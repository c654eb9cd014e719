"""Tables that travel to other processes, or are copied: as their file's path if they have one."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.core.errors import InputError
from shoal.fetch.disk import DiskRows
from shoal.fetch.tiered import TieredTable
from shoal.fetch.unified import UnifiedTensor, unified
from shoal.fetch.update import RowAdam
from tests.fetch.test_disk import rows_of

N = 5000
ROWS = rows_of(N, 16)  # 320 kB
IDS = torch.tensor([0, 7, 7, N - 1])

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda table: pickle.loads(pickle.dumps(table)),
    "spawn": lambda table: pickle.loads(bytes(ForkingPickler.dumps(table))),
}
counts_own_pages = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere rows travel whole"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file({"x": ROWS, "y": ROWS[:3].clone()}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


MADE: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: unified(ROWS.clone()),
    "mapped": lambda path: unified(path, name="x"),
    "learning": lambda path: unified(path, RowAdam(), name="x"),
    "disk": lambda path: DiskRows(path, "x"),
    "tiers of memory": lambda path: TieredTable(ROWS, torch.arange(N).float(), device_rows=20),
    "tiers of a map": lambda path: TieredTable(unified(path, name="x"), device_rows=20),
    "tiers of a file": lambda path: TieredTable(DiskRows(path, "x"), host_rows=20),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", MADE)
def test_a_copy_gives_the_same_rows(kind: str, way: str, path: Path) -> None:
    """Of every kind of table, before and after reads, by every way of copying."""
    table = MADE[kind](path)
    for _ in range(2):
        found = COPIES[way](table)
        assert type(found) is type(table)
        assert torch.equal(found.gather(IDS), ROWS[IDS])
        table.gather(IDS)


@counts_own_pages
@pytest.mark.parametrize(
    "kind", ["mapped", "learning", "disk", "tiers of a map", "tiers of a file"]
)
def test_rows_of_a_file_stay_there(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent is a path, a thousandth of the rows; from another folder too."""
    monkeypatch.chdir(path.parent)
    table = MADE[kind](Path(path.name))
    table.gather(torch.arange(N))
    sent = [pickle.dumps(table), bytes(ForkingPickler.dumps(table))]
    # the counts of reads travel with tiers that place rows by them
    assert all(len(x) < (50_000 if "tiers" in kind else 1500) for x in sent)
    monkeypatch.chdir("/")
    assert all(torch.equal(pickle.loads(x).gather(IDS), ROWS[IDS]) for x in sent)


def _by_index(table: UnifiedTensor) -> None:
    table[torch.tensor([7])] = torch.ones(1, 16)


def _by_numpy(table: UnifiedTensor) -> None:
    np.asarray(table._plain)[7] = 1


def _by_update(table: UnifiedTensor) -> None:
    table.update(torch.tensor([7]), torch.ones(1, 16))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("write", [_by_index, _by_numpy, _by_update])
def test_rows_that_were_written_travel(
    write: Callable[[UnifiedTensor], None], way: str, path: Path
) -> None:
    """Whatever wrote to a mapped table, a copy has what was written, and the file has not."""
    table = unified(path, RowAdam(), name="x")
    write(table)
    found = COPIES[way](table)
    assert torch.equal(found.gather(IDS), table.gather(IDS))
    assert not torch.equal(found.gather(IDS), ROWS[IDS])
    assert torch.equal(unified(path, name="x").gather(IDS), ROWS[IDS])


@counts_own_pages
def test_a_copy_of_a_mapped_table_is_apart(path: Path) -> None:
    """What one writes the other does not see."""
    table = unified(path, name="x")
    other = copy.deepcopy(table)
    _by_index(other)
    assert torch.equal(table.gather(IDS), ROWS[IDS]) and other[7, 0] == 1


def test_tiers_keep_what_they_learned(path: Path) -> None:
    """A copy holds the rows that were read most, and goes on counting."""
    table = TieredTable(DiskRows(path, "x"), host_rows=1)
    table.gather(torch.tensor([7, 7, 3]))
    table.refresh()
    other = pickle.loads(pickle.dumps(table))
    other.gather(torch.tensor([7, 5]))
    assert other.use()["host"].measured == 0.5
    other.gather(torch.tensor([5, 5, 5]))
    other.refresh()
    other.gather(torch.tensor([5]))
    assert other.use()["host"].measured == 1


def test_tiers_are_asked_as_tensors_are(path: Path) -> None:
    """``table[ids]``, and ``to`` for the host alone."""
    table = TieredTable(DiskRows(path, "x"), host_rows=5)
    assert torch.equal(table.to("cpu")[IDS], ROWS[IDS])
    with pytest.raises(InputError, match="device: expected the host, got meta; leave it out"):
        table.to("meta")


@counts_own_pages
@pytest.mark.parametrize("kind", ["mapped", "disk", "tiers of a map", "tiers of a file"])
@pytest.mark.parametrize("change", ["time", "rows", "gone"])
def test_a_file_that_changed_is_named(kind: str, change: str, path: Path) -> None:
    """On arrival; other rows never come in place of those that were sent."""
    sent = pickle.dumps(MADE[kind](path))
    if change == "time":
        os.utime(path, (1, 1))
    else:
        path.unlink()
    if change == "rows":
        save_file({"x": ROWS[:9].clone()}, path)
    with pytest.raises(InputError, match=r"x\.safetensors"):
        pickle.loads(sent)


def test_state_dicts_hold_rows(path: Path) -> None:
    """A module's state can be read without shoal and without the file."""
    module = torch.nn.Embedding(N, 16)
    module.weight = unified(torch.nn.Parameter(unified(path, name="x")._plain))  # pyright: ignore
    state = pickle.loads(pickle.dumps(module.state_dict()))
    assert type(state["weight"]) is Tensor and torch.equal(state["weight"], ROWS)
