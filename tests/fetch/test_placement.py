"""Placement, generated from the tables of the document: the logic, and what really happens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shoal.core.errors import InputError
from shoal.fetch import placement
from shoal.fetch.placement import Kind, Place, is_unified, place
from shoal.fetch.unified import UnifiedTensor, unified
from tests.fetch.standin import FAR, Driver, far

PAGE = Path(__file__).parents[2].joinpath("docs/concepts/placement.md").read_text(encoding="utf-8")


def table_of(header: str) -> list[list[str]]:
    """The rows of the document's table with this header."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


OPERANDS = {tuple(map(Kind, row[0].split(", "))): row[1] for row in table_of("| operands |")}
READS = [row[1:] for row in table_of("| spelling | rows | ids |")]
WRITES = [row[1:] for row in table_of("| spelling | ids | new rows |")]


def test_the_document_is_the_rules() -> None:
    """Every pair and triple stands in the table once, with the place that the rules give it."""
    combinations = [
        combo
        for size in (2, 3)
        for combo in itertools.combinations_with_replacement(
            (Kind.UNIFIED, Kind.HOST, Kind.DEVICE, Kind.NUMBER), size
        )
        if Kind.UNIFIED in combo
    ]
    assert {combo: str(place(frozenset(combo))) for combo in combinations} == OPERANDS
    assert {str(rule.place) for rule in placement.RULES} == set(OPERANDS.values())


# -- operands ------------------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "add": (2, lambda a, b: a + b),
    "subtract": (2, lambda a, b: b - a),
    "compare": (2, lambda a, b: torch.lt(a, b)),
    "matmul": (2, lambda a, b: a @ b),
    "linear": (2, functional.linear),
    "where": (3, lambda a, b, c: torch.where(a, b, c)),
    "addcmul": (3, lambda a, b, c: torch.addcmul(a, b, c, value=0.5)),
    "addmm": (3, torch.addmm),
}


def plain_operands(name: str, kinds: tuple[Kind, ...]) -> list[Tensor]:
    """Host tensors of the right shapes: square matrices, numbers, and a mask for torch.where."""
    generator = torch.Generator().manual_seed(len(name))
    shapes = [() if kind is Kind.NUMBER else (3, 3) for kind in kinds]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [made[0] > 0, *made[1:]] if name == "where" else made


def exists(name: str, kinds: tuple[Kind, ...]) -> bool:
    """Whether torch has the operation: a matrix product with a number is none."""
    try:
        OPERATIONS[name][1](*plain_operands(name, kinds))
    except RuntimeError:
        return False
    return True


CASES = [
    pytest.param(name, kinds, expected, id=f"{name}-{'-'.join(kinds)}")
    for combo, expected in OPERANDS.items()
    for kinds in sorted(set(itertools.permutations(combo)))
    for name, (count, _) in OPERATIONS.items()
    if count == len(combo) and exists(name, kinds)
]


def placed(x: Tensor, kind: Kind, **settings: Any) -> Tensor:
    if kind is Kind.UNIFIED:
        return unified(x.clone(), **settings)
    return far(x) if kind is Kind.DEVICE else x.clone()


def expect_place(result: Tensor, expected: str, home: str, propagates: bool) -> None:
    where = home if expected == "default" else expected
    unified_ = expected == "default" and propagates and result.dim() > 0
    assert is_unified(result) == unified_
    assert result.device.type == ("meta" if where == "device" and not unified_ else "cpu")


@pytest.mark.parametrize(("name", "kinds", "expected"), CASES)
def test_operands_meet_where_the_table_says(
    name: str, kinds: tuple[Kind, ...], expected: str, driver: Driver
) -> None:
    """Result, place and kind, for every order of every pair and triple, at home here and there."""
    plain, run = plain_operands(name, kinds), OPERATIONS[name][1]
    value = run(*plain)
    for home, propagates in itertools.product(("host", "device"), (False, True)):
        settings = {"default_device": FAR if home == "device" else None, "propagates": propagates}
        operands = [placed(x, kind, **settings) for x, kind in zip(plain, kinds, strict=True)]
        if expected == Place.REFUSED:
            with pytest.raises(InputError, match="expected operands that share a device"):
                run(*operands)
            continue
        result = run(*operands)
        expect_place(result, expected, home, propagates)
        assert torch.equal(result.cpu() + 0, value + 0)


def test_what_is_asked_about_a_table_stays_on_the_host(driver: Driver) -> None:
    """Shape, device, views, copies and conversions, also of a table whose home is a device."""
    rows = torch.arange(12.0).view(4, 3)
    table = unified(rows, default_device=FAR)
    assert table.device.type == "cpu" and table.shape == (4, 3) and len(table) == 4
    for view in (table[1:3], table.T, table.view(3, 4), table.clone(), table.cpu(), table.double()):
        assert view.device.type == "cpu"
    assert table.numpy().base is not None and table[1, 2].item() == 5.0 and driver.journal == []
    assert (table * 2).device == FAR and driver.journal == ["register"]


def test_workers_stay_on_the_host(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader's worker and a forked child leave the home alone."""
    table = unified(torch.ones(4, 3), default_device=FAR)
    monkeypatch.setattr(placement.torch.utils.data, "get_worker_info", lambda: object())
    assert (table + 1).device.type == "cpu" and table[torch.tensor([1])].device.type == "cpu"
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert not placement.reachable(torch.device("cuda"))


@pytest.mark.parametrize("room", [1 << 40, 0])
@pytest.mark.filterwarnings("ignore:rows are staged")
def test_in_place_operations_write_the_hosts_rows(room: int, driver: Driver) -> None:
    """From a device, by it or, where it cannot reach them, by the host; the table is returned."""
    driver.room = room
    host = torch.ones(3, 3)
    table, x = unified(host), torch.arange(9.0).view(3, 3)
    assert table.add_(far(x)) is table
    table *= far(torch.tensor(2.0))
    table.copy_(table + far(x))
    torch.sub(table, far(x), out=table)
    table[1:2] = 5.0
    assert torch.equal(host, torch.cat([2 * (1 + x[:1]), torch.full((1, 3), 5.0), 2 * (1 + x[2:])]))
    assert ("synchronize" in driver.journal) == (room > 0)


def test_gradients_come_back_to_the_host(driver: Driver) -> None:
    """A table that requires a gradient meets device operands; its gradient is torch's."""
    rows, x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(3, 3)
    plain, table = rows.clone().requires_grad_(), unified(rows.clone()).requires_grad_()
    (plain @ x * plain).sum().backward()
    (table @ far(x) * table).sum().backward()
    assert table.grad is not None and plain.grad is not None
    torch.testing.assert_close(table.grad + 0, plain.grad)
    carries = unified(torch.ones(3, 3), propagates=True).requires_grad_()
    assert type(carries * 2) is Tensor and type(carries.detach() * 2) is UnifiedTensor


# -- rows and ids --------------------------------------------------------------------------------

IDS = torch.tensor([3, 0, 3])
SPELLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "getitem": lambda rows, ids: rows[ids],
    "select": lambda rows, ids: torch.index_select(rows, 0, ids),
    "method": lambda rows, ids: rows.index_select(0, ids),
    "embedding": lambda rows, ids: functional.embedding(ids, rows),
}


@pytest.mark.parametrize("home", ["host", "device"])
@pytest.mark.parametrize("spelling", SPELLED)
@pytest.mark.parametrize(("rows", "ids", "expected"), READS)
def test_rows_arrive_where_the_table_says(
    rows: str, ids: str, expected: str, spelling: str, home: str, driver: Driver
) -> None:
    """Every spelling of a read, for unified rows and for unified ids."""
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    settings = {"default_device": FAR if home == "device" else None}
    table, index = placed(values, Kind(rows), **settings), placed(IDS, Kind(ids), **settings)
    result = SPELLED[spelling](table, index)
    expect_place(result, expected, home, propagates=False)
    assert torch.equal(result.cpu(), values[IDS])


def test_lists_and_negative_ids_follow_the_home(driver: Driver) -> None:
    """A list is ids of the host; below zero they count from the end, also on a device."""
    rows = torch.arange(12.0).view(4, 3)
    table = unified(rows, default_device=FAR)
    assert table[[3, -4]].device == FAR and torch.equal(table[[3, -4]].cpu(), rows[[3, -4]])
    square = torch.tensor([[-1, 1]])
    assert torch.equal(unified(rows)[far(square)].cpu(), rows[square])


SPELLED_WRITES: dict[str, Callable[[Any, Tensor, Tensor], object]] = {
    "setitem": lambda table, ids, rows: table.__setitem__(ids, rows),
    "copy": lambda table, ids, rows: table.index_copy_(0, ids, rows),
    "add": lambda table, ids, rows: table.index_add_(0, ids, rows, alpha=2),
}


@pytest.mark.parametrize("spelling", SPELLED_WRITES)
@pytest.mark.parametrize("room", [1 << 40, 0])
@pytest.mark.parametrize(("ids", "rows", "by"), WRITES)
@pytest.mark.filterwarnings("ignore:rows are staged")
def test_rows_are_written_by_whom_the_table_says(
    ids: str, rows: str, by: str, spelling: str, room: int, driver: Driver
) -> None:
    """The host's memory holds the new rows, whoever wrote them, and whether it may or not."""
    driver.room, write = room, SPELLED_WRITES[spelling]
    plain, new = torch.zeros(5, 2), torch.tensor([[1.0, 2], [3, 4]])
    host, index = plain.clone(), torch.tensor([4, 1])
    write(plain, index, new)
    table = unified(host)
    write(table, placed(index, Kind(ids)), placed(new, Kind(rows)))
    assert torch.equal(table + 0, plain) and torch.equal(host, plain)
    assert ("synchronize" in driver.journal) == (by == "device" and room > 0)


def test_writes_that_do_not_fit_write_nothing(driver: Driver) -> None:
    """Ids out of range are found before a device writes; a table that learns refuses in-place."""
    table = unified(torch.zeros(3, 2))
    for ids in (torch.tensor([0, 3]), far(torch.tensor([0, -4]))):
        with pytest.raises(InputError, match=r"ids: expected ids in \[0, 3\)"):
            table[ids] = far(torch.ones(2, 2))
    table[far(torch.tensor([-1]))] = far(torch.ones(1, 2).double())  # counts from the end; is cast
    table[far(torch.tensor([0]))] = 3.0
    assert (table + 0).tolist() == [[3, 3], [0, 0], [1, 1]]
    leaf = unified(torch.zeros(3, 2)).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        leaf.index_add_(0, far(torch.tensor([0])), far(torch.ones(1, 2)))


@pytest.mark.parametrize(
    "settings", [{}, {"padding_idx": -1}, {"scale_grad_by_freq": True}, {"sparse": True}]
)
def test_the_gradient_of_a_device_read_is_torchs(driver: Driver, settings: dict[str, Any]) -> None:
    """Dense or sparse, with padding and scaling: what embedding gives a plain parameter."""
    rows, ids = torch.randn(4, 3), torch.tensor([[3, 0, 3], [1, 1, 3]])
    weight = torch.randn(2, 3, 3)
    plain, table = rows.clone().requires_grad_(), unified(rows.clone()).requires_grad_()
    (functional.embedding(ids, plain, **settings) * weight).sum().backward()
    (functional.embedding(far(ids), table, **settings) * far(weight)).sum().backward()
    assert plain.grad is not None and table.grad is not None
    assert table.grad.is_sparse == settings.get("sparse", False)
    torch.testing.assert_close(table.grad.to_dense() + 0, plain.grad.to_dense())


@pytest.mark.gpu
@pytest.mark.parametrize("home", ["host", "device"])
def test_the_rules_hold_on_a_device(home: str) -> None:
    """The same tables on CUDA: pairs by addition, triples by torch.where."""
    cuda = torch.device("cuda", 0)
    made: dict[Kind, Callable[[Tensor], Tensor]] = {
        Kind.UNIFIED: lambda x: unified(x, default_device=cuda if home == "device" else None),
        Kind.DEVICE: lambda x: x.to(cuda),
    }
    for combo, expected in OPERANDS.items():
        name = "add" if len(combo) == 2 else "where"
        for kinds in set(itertools.permutations(combo)):
            plain, run = plain_operands(name, kinds), OPERATIONS[name][1]
            operands = [made.get(k, Tensor.clone)(x) for x, k in zip(plain, kinds, strict=True)]
            if expected == Place.REFUSED:
                with pytest.raises(InputError):
                    run(*operands)
                continue
            result = run(*operands)
            where = home if expected == "default" else expected
            assert result.is_cuda == (where == "device")
            assert torch.equal(result.cpu(), run(*plain))
