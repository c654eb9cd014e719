"""Row optimizers: each row moves as the dense optimizer moves it, over the steps that touch it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from torch import Tensor

from shoal.core.errors import InputError
from shoal.fetch import stepping
from shoal.fetch.stepping import Rows, coalesce, noise_like, round_stochastically
from shoal.fetch.unified import unified
from shoal.fetch.update import RowAdagrad, RowAdam, RowSGD
from tests.fetch.standin import Driver, far
from tests.strategies import ids_below

MAKERS: list[Callable[[], Rows]] = [
    lambda: RowSGD(0.3),
    lambda: RowAdagrad(0.1),
    lambda: RowAdagrad(0.1, per_row=False),
    lambda: RowAdam(0.1, betas=(0.8, 0.9)),
]


def steps(
    n: int = 20, d: int = 3, count: int = 12, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Distinct random rows and their gradients; some rows are touched often, some never."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        ids = torch.randperm(n - 2, generator=generator)[: n // 2]
        yield ids, torch.randn(len(ids), d, generator=generator, dtype=dtype)


def start(n: int = 20, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense_by_row(
    table: Tensor, make: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The oracle: one parameter and one dense optimizer for every row."""
    rows = [row.clone().requires_grad_() for row in table]
    optimizers = [make([row]) for row in rows]

    def step(ids: Tensor, grad: Tensor) -> Tensor:
        for i, g in zip(ids.tolist(), grad, strict=True):
            rows[i].grad = g
            optimizers[i].step()
        return torch.stack([row.detach() for row in rows])

    return step


def test_adam_moves_each_row_as_torch_moves_it_alone() -> None:
    """RowAdam is torch.optim.Adam for every row, over the row's own steps."""
    table, optimizer = start(), RowAdam(0.1, betas=(0.8, 0.9), eps=1e-3)
    oracle = dense_by_row(table, lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.9), eps=1e-3))
    before = table.clone()
    for ids, grad in steps():
        optimizer.step(table, ids, grad)
        torch.testing.assert_close(table, oracle(ids, grad))
    assert torch.equal(table[-2:], before[-2:]) and not torch.equal(table[0], before[0])


def test_sgd_moves_each_row_as_torch_moves_it() -> None:
    """RowSGD is torch.optim.SGD restricted to the touched rows."""
    table, optimizer = start(), RowSGD(0.3)
    oracle = dense_by_row(table, lambda p: torch.optim.SGD(p, 0.3))
    for ids, grad in steps():
        optimizer.step(table, ids, grad)
        torch.testing.assert_close(table, oracle(ids, grad))


@pytest.mark.parametrize(("d", "per_row"), [(1, True), (3, False)])
def test_adagrad_is_torch_adagrad(d: int, per_row: bool) -> None:
    """With one number a row, its mean is that number; without per_row, at any width."""
    table, optimizer = start(d=d), RowAdagrad(0.1, per_row=per_row)
    oracle = dense_by_row(table, lambda p: torch.optim.Adagrad(p, 0.1))
    for ids, grad in steps(d=d):
        optimizer.step(table, ids, grad)
        torch.testing.assert_close(table, oracle(ids, grad))


def test_adagrad_follows_its_formula() -> None:
    """Wider rows: one sum of mean squares a row scales the whole row."""
    table, optimizer = start(), RowAdagrad(0.1, eps=1e-3)
    expected, total = table.clone(), torch.zeros(20, dtype=torch.float64)
    for ids, grad in steps():
        optimizer.step(table, ids, grad)
        total[ids] += grad.square().mean(1)
        expected[ids] -= 0.1 * grad / (total[ids].sqrt() + 1e-3)[:, None]
        torch.testing.assert_close(table, expected)


def test_adam_is_sparse_adam_on_rows_of_every_step() -> None:
    """torch.optim.SparseAdam counts steps for the whole table: equal where every step touches.

    Its eps stands beside the uncorrected root, so the two are compared where eps is nothing. On a
    row first touched at step 10 they differ, as the docstring says.
    """
    table, optimizer = start(), RowAdam(0.1, eps=1e-300)
    embedding = table.clone().requires_grad_()
    sparse = torch.optim.SparseAdam([embedding], 0.1, eps=1e-300)
    always = torch.arange(10)
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        ids = always if step < 9 else torch.cat([always, torch.tensor([15])])
        grad = torch.randn(len(ids), 3, generator=generator, dtype=torch.float64)
        embedding.grad = torch.sparse_coo_tensor(
            ids[None], grad, embedding.shape, check_invariants=True
        )
        sparse.step()
        optimizer.step(table, ids, grad)
        torch.testing.assert_close(table[always], embedding.detach()[always])
    late = (table - start())[15].abs(), (embedding.detach() - start())[15].abs()
    torch.testing.assert_close(late[0], torch.full((3,), 0.1, dtype=torch.float64))
    ratio = 0.1 / (1 - 0.9**10) / (0.001 / (1 - 0.999**10)) ** 0.5
    torch.testing.assert_close(late[1] / late[0], torch.full((3,), ratio, dtype=torch.float64))


@pytest.mark.parametrize("make", MAKERS)
def test_order_doubles_pieces_and_widths_do_not_matter(
    make: Callable[[], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffled ids, gradients split over double ids, int32 ids, many pieces: the same rows."""
    plain, other = start(), start()
    one, two = make(), make()
    for ids, grad in steps():
        one.step(plain, ids, grad)
        shuffled = torch.randperm(len(ids) * 2, generator=torch.Generator().manual_seed(5))
        doubled = torch.cat([0.25 * grad, 0.75 * grad])[shuffled]
        with monkeypatch.context() as patch:
            patch.setattr(stepping, "_PIECE_BYTES", 1)
            two.step(other, ids.repeat(2)[shuffled].int(), doubled)
        torch.testing.assert_close(plain, other)


@pytest.mark.parametrize("make", MAKERS)
def test_the_number_of_threads_does_not_matter(
    make: Callable[[], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread or three, pieces of rows of odd width: the same bits."""
    monkeypatch.setattr(stepping, "_PIECE_BYTES", 16 * 7 * 4)
    count, tables = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        table, optimizer = start(400, 7).float(), make()
        for ids, grad in steps(400, 7, dtype=torch.float32):
            optimizer.step(table, ids, grad)
        tables.append(table)
    torch.set_num_threads(count)
    assert torch.equal(*tables) and not torch.equal(tables[0], start(400, 7).float())


@pytest.mark.parametrize("make", MAKERS)
def test_resume_is_bit_equal(make: Callable[[], Rows]) -> None:
    """A fresh optimizer that loads a state continues as the one that saved it."""
    table, optimizer = start(), make()
    history = list(steps())
    for ids, grad in history[:5]:
        optimizer.step(table, ids, grad)
    optimizer.lr = 0.07  # as a scheduler would
    table2, optimizer2 = table.clone(), make()
    optimizer2.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ids, grad in history[5:]:
        optimizer.step(table, ids, grad)
        optimizer2.step(table2, ids, grad)
    assert torch.equal(table, table2) and optimizer2.lr == 0.07


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
def test_rows_of_any_shape(make: Callable[[], Rows], shape: tuple[int, ...]) -> None:
    """A row may be a number (a bias a label) or a matrix; the rest of the table stays."""
    table, ids = torch.zeros(shape), torch.tensor([3, 1])
    make().step(table, ids, torch.ones(2, *shape[1:]))
    moved = table.reshape(5, -1).ne(0).all(1)
    assert moved.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("make", MAKERS)
def test_zero_lr_zero_gradients_and_no_ids_move_nothing(make: Callable[[], Rows]) -> None:
    """A warm-up that begins at zero, a gradient of zeros and an empty batch are harmless."""
    table, optimizer = torch.ones(4, 2), make()
    ids = torch.tensor([2, 0])
    optimizer.step(table, ids, torch.zeros(2, 2))
    optimizer.step(table, ids[:0], torch.zeros(0, 2))
    optimizer.lr = 0.0
    optimizer.step(table, ids, torch.ones(2, 2))
    assert torch.equal(table, torch.ones(4, 2))


# -- bfloat16 ------------------------------------------------------------------------------------


def test_rounding_is_unbiased_and_to_a_neighbor() -> None:
    """Each number becomes one of its two neighbors, itself where it is one, and E[round(x)] = x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, generator=generator).mul(torch.logspace(-30, 30, 64)[:, None])
    count = 40_000
    wide = x.expand(64, count).contiguous()
    rounded = round_stochastically(wide, noise_like(wide, seed=1)).float()
    low = (x.view(torch.int32) >> 16 << 16).view(torch.float32)  # towards zero
    gap = ((x.view(torch.int32) >> 16) + 1 << 16).view(torch.float32) - low
    assert bool(((rounded == low) | (rounded == low + gap)).all())
    share = ((rounded - low) / gap).double().mean(1)
    expected = ((x - low) / gap).double().squeeze(1)
    assert 0.1 < float(expected.min()) + 0.5 and float((share - expected).abs().max()) < 5 / 400
    exact = x.bfloat16().float()
    assert torch.equal(round_stochastically(exact, noise_like(exact, 2)).float(), exact)


def test_rounding_keeps_infinity_and_every_nan() -> None:
    """Also the NaN of all ones, to which random bits would add up to minus zero."""
    x = torch.tensor([[float("inf"), float("-inf"), float("nan"), 0.0]])
    x = torch.cat([x, torch.tensor([[0x7FFFFFFF, -1]], dtype=torch.int32).view(torch.float32)], 1)
    for seed in range(8):
        rounded = round_stochastically(x, noise_like(x, seed)).float()
        torch.testing.assert_close(rounded, x, equal_nan=True)


def test_small_steps_of_a_bfloat16_table_survive() -> None:
    """300 steps of 2⁻¹¹ from 1 arrive in the mean; rounded to the nearest they stay at 1."""
    table, ids = torch.ones(8, 512, dtype=torch.bfloat16), torch.arange(7)
    optimizer, plain = RowSGD(2**-11), torch.ones((), dtype=torch.bfloat16)
    for _ in range(300):
        optimizer.step(table, ids, torch.ones(7, 512))
        plain = plain - 2**-11
    moved = table[:7].float()
    assert float(plain) == 1.0 and torch.equal(table[7:].float(), torch.ones(1, 512))
    assert abs(float(moved.mean()) - (1 - 300 * 2**-11)) < 5 * float(moved.std()) / 3584**0.5


@pytest.mark.parametrize("make", MAKERS)
def test_a_bfloat16_table_follows_a_float32_one(make: Callable[[], Rows]) -> None:
    """Many tables of bfloat16 are in the mean the one of float32, by gradients of either dtype."""
    exact = torch.ones(4, 1)
    many = torch.ones(4, 4096, dtype=torch.bfloat16)
    one, other, generator = make(), make(), torch.Generator().manual_seed(3)
    for _ in range(20):
        grad = torch.randn(3, 1, generator=generator).bfloat16()
        one.step(exact, torch.tensor([0, 3, 1]), grad.float())
        other.step(many, torch.tensor([0, 3, 1]), grad.expand(3, 4096).contiguous())
    assert all(x.dtype is not torch.bfloat16 for x in other.state.values())
    error = (many.float().mean(1) - exact.squeeze(1)).abs().max()
    assert error < 1e-3 and not torch.equal(exact[:2], torch.ones(2, 1))


def test_a_bfloat16_table_resumes_bit_equal_and_by_its_seed() -> None:
    """The random bits are a function of seed and step; another seed rounds otherwise."""

    def run(optimizer: Rows, split: bool = False) -> Tensor:
        table = start(20, 40).bfloat16()
        for i, (ids, grad) in enumerate(steps(20, 40, dtype=torch.float32)):
            if split and i == 6:
                state, optimizer = copy.deepcopy(optimizer.state_dict()), RowSGD(0.9, seed=5)
                optimizer.load_state_dict(state)
            optimizer.step(table, ids, grad)
        return table

    assert torch.equal(run(RowSGD(0.3, seed=5)), run(RowSGD(0.3, seed=5), split=True))
    assert not torch.equal(run(RowSGD(0.3, seed=5)), run(RowSGD(0.3, seed=6)))


# -- a device ------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1 << 40, 8192, 0])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.filterwarnings("ignore:rows are staged")
def test_a_device_steps_as_the_host_does(
    make: Callable[[], Rows], room: int, driver: Driver
) -> None:
    """Gradients and ids far away, doubles among them, move host rows and host state alike.

    Also where the driver takes the table but not all of the state, or nothing at all.
    """
    driver.room = room
    here, there = unified(start(40, 30), make()), unified(start(40, 30), make())
    for step, (ids, grad) in enumerate(steps(40, 30)):
        ids = torch.cat([ids, ids[:3]])
        grad = torch.cat([grad, grad[:3]])
        here.update(ids, grad)
        there.update(ids if step % 2 else far(ids), far(grad))
        torch.testing.assert_close(there[torch.arange(40)], here[torch.arange(40)])
    states = [table.optimizer.state_dict() for table in (here, there)]  # pyright: ignore
    torch.testing.assert_close(states[0], states[1])
    on_device = room > 8192 and "synchronize" in driver.journal
    assert on_device == (room > 8192)


def test_an_optimizer_of_ones_own_is_stepped_on_the_host(driver: Driver) -> None:
    """It need not know of devices: it gets host tensors."""

    class Signed:
        lr = 1.0

        def step(self, table: Tensor, ids: Tensor, grad: Tensor) -> None:
            assert table.is_cpu and ids.is_cpu and grad.is_cpu
            table[ids] -= self.lr * grad.sign()

        def state_dict(self) -> dict[str, object]:
            return {}

        def load_state_dict(self, state: object) -> None: ...

    table = unified(torch.zeros(3, 2), Signed())
    table.update(far(torch.tensor([1])), far(torch.tensor([[3.0, -2.0]])))
    assert table[torch.tensor([1])].tolist() == [[-1.0, 1.0]] and driver.journal == []


@given(ids_below(6))
def test_coalesce_sums_each_id_once(ids: Tensor) -> None:
    """Coalesced gradients, scattered, are the dense gradient; ids come distinct."""
    grad = torch.arange(len(ids) * 2, dtype=torch.float32).reshape(-1, 2)
    once, summed = coalesce(ids, grad)
    assert len(once.unique()) == len(once)
    dense = torch.zeros(6, 2).index_add_(0, ids, grad)
    assert torch.equal(torch.zeros(6, 2).index_copy_(0, once, summed), dense)


@pytest.mark.usefixtures("unchecked")
def test_bad_updates_are_named() -> None:
    """Ids, shapes and dtypes that do not fit, and settings out of range: InputError, rows whole."""
    table, optimizer, ids = torch.ones(4, 2), RowSGD(0.1), torch.tensor([0])
    with pytest.raises(InputError, match=r"ids: expected ids in \[0, 4\), got 4"):
        optimizer.step(table, torch.tensor([4]), torch.ones(1, 2))
    with pytest.raises(InputError, match=r"grad: expected one row an id, \(1, 2\), got \(1, 3\)"):
        optimizer.step(table, ids, torch.ones(1, 3))
    with pytest.raises(InputError, match=r"grad: expected torch\.float32"):
        optimizer.step(table, ids, torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(InputError, match="table: expected contiguous float32, float64 or bfloat16"):
        optimizer.step(table.half(), ids, torch.ones(1, 2).half())
    with pytest.raises(InputError, match="not contiguous"):
        optimizer.step(torch.ones(2, 4).T, ids, torch.ones(1, 2))
    assert torch.equal(table, torch.ones(4, 2))
    adam = RowAdam()
    adam.step(torch.ones(5, 2), ids, torch.ones(1, 2))
    with pytest.raises(InputError, match="m: expected 4 rows of state, got 5; load the state of"):
        adam.step(table, ids, torch.ones(1, 2))
    with pytest.raises(InputError, match="lr: expected a learning rate"):
        RowSGD(-1)
    with pytest.raises(InputError, match="betas: expected two numbers"):
        RowAdam(betas=(0.9, 1.0))
