"""Staged copies: equal to indexing; no buffer is filled while a copy out of it is on its way."""

from __future__ import annotations

import pytest
import torch

from shoal.core.errors import InputError
from shoal.fetch.staged import Auto, Lane, Staged

TABLE = torch.arange(60.0).view(10, 6)
IDS = torch.tensor([9, 0, 3, 3, 7, 1, 2])


class Copy:
    """A copy that ends only when it is waited for; keeps a journal."""

    def __init__(self, name: int, journal: list[str]) -> None:
        self.name, self.journal = name, journal

    def record(self) -> None:
        self.journal.append(f"copy {self.name}")

    def synchronize(self) -> None:
        self.journal.append(f"wait {self.name}")


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_rows_are_those_of_indexing(rows: int) -> None:
    """Whatever fits a buffer, into `out` or not, of any dtype; no ids and no columns, too."""
    for table in (TABLE, TABLE.bool(), TABLE.bfloat16(), TABLE.to(torch.complex128), TABLE[:, 0]):
        staged = Staged(table, piece_bytes=rows * table[0].nbytes)
        assert torch.equal(staged.read(IDS), table[IDS])
        out = torch.empty_like(table[IDS])
        assert staged.read(IDS.int(), out) is out and torch.equal(out, table[IDS])
        assert staged.read(IDS[:0]).shape == (0, *table.shape[1:])
    assert Staged(TABLE[:, :0]).read(IDS).shape == (7, 0)


def test_a_buffer_is_filled_again_only_when_its_copy_has_ended() -> None:
    """Two buffers take turns; each is waited for before the host writes to it, in any read."""
    journal: list[str] = []
    lanes = iter(range(2))

    def make_lane(nbytes: int, device: torch.device) -> Lane:
        return Lane(torch.empty(nbytes, dtype=torch.uint8), Copy(next(lanes), journal))

    staged = Staged(TABLE, piece_bytes=2 * 24, make_lane=make_lane)
    staged.read(IDS)  # four pieces
    assert journal == [f"{what} {lane}" for lane in (0, 1, 0, 1) for what in ("wait", "copy")]
    staged.read(IDS[:1])
    assert journal[-2:] == ["wait 0", "copy 0"]


def test_bad_ids_are_named_at_once() -> None:
    """The host reads, so it says so in the same call."""
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 10\), got 10"):
        Staged(TABLE).read(torch.tensor([10]))


def test_each_size_is_measured_once() -> None:
    """Reads of one size and thread count measure once; another size measures anew."""
    calls: list[tuple[str, int]] = []

    def way(name: str):
        def read(ids, out):
            calls.append((name, len(ids)))
            return TABLE[ids]

        return read

    times = iter(range(10**6))
    ways = {"zero-copy": way("zero-copy"), "staged": way("staged")}
    auto = Auto(ways, 1 << 20, lambda device: float(next(times)))
    auto.read(IDS)
    measured = len(calls)
    assert measured == 2 * 4 + 1 and {name for name, _ in calls} == set(ways)
    auto.read(IDS[:5])
    assert len(calls) == measured + 1  # 5 and 7 rows share the choice
    auto.read(IDS[:2])
    assert len(calls) == measured + 1 + 9
    assert [choice.rows for choice in auto.choices] == [8, 2]
    assert auto.choices[0].row_bytes == 1 << 20 and auto.choices[0].threads == 1


def test_one_way_is_not_measured() -> None:
    """Where rows can only be staged there is nothing to find out, however large the read."""
    auto = Auto({"staged": lambda ids, out: TABLE[ids]}, 1 << 30)
    assert torch.equal(auto.read(IDS), TABLE[IDS])
    assert auto.choices[0].way == "staged" and not auto.choices[0].seconds
