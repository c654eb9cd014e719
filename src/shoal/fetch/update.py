"""Rows that learn: optimizers whose state lives beside a table and whose step touches only s rows.

A batch gives gradients for the rows that it gathered, ``(ids [s], grad [s, d])``, never for a whole
table ``[n, d]``. A row optimizer reads, changes and writes back those s rows of the table and of
its state; time and traffic depend on s, not on n, and rows that no batch touches stay as they are.
The law that each one keeps: *every row moves as the dense optimizer would move it, had that seen
only the steps that touch the row.*

    RowSGD      x ← x − lr·g
    RowAdagrad  s ← s + mean(g²),  x ← x − lr·g / (√s + eps)               one s a row
    RowAdam     m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²
                x ← x − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + eps)              one t a row

Adam: Kingma and Ba (2015), Algorithm 1; Adagrad: Duchi, Hazan and Singer (2011), here with the mean
over a row in place of one entry a number, as recommender systems use it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from shoal._checks import expect, expect_ids
from shoal.fetch.threads import for_each

# Rows are updated in pieces of this size, so that what one pass reads is still in the cache for the
# next; measured for 12,000 × 256 rows: 512 kB best, on one thread and on two; 256 kB 1.1 × slower,
# 128 kB 1.35 × (the calls).
_PIECE_BYTES = 512 * 1024


@runtime_checkable
class RowOptimizer(Protocol):
    """What a table needs in order to learn."""

    lr: float
    """The learning rate; a scheduler sets it between steps."""

    def step(
        self, table: Float[Tensor, "n ..."], ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]
    ) -> None:
        """Move rows `ids` of `table`, in place, along their gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that :meth:`load_state_dict` takes."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        ...


def coalesce(
    ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]
) -> tuple[Int[Tensor, " u"], Float[Tensor, "u ..."]]:
    """Sum the gradients of ids that occur more than once.

    Returns:
        distinct ids ``[u]`` and one gradient each: the arguments themselves where no id occurs
        twice, so that the usual batch pays for a look and not for a copy; ascending otherwise.

    Example:
        >>> ids, grad = coalesce(torch.tensor([5, 2, 5]), torch.tensor([[1.0], [10.0], [100.0]]))
        >>> ids.tolist(), grad.tolist()
        ([2, 5], [[10.0], [101.0]])
    """
    sorted_ids, order = ids.sort(stable=True)
    begins = torch.ones_like(sorted_ids, dtype=torch.bool)
    torch.ne(sorted_ids[1:], sorted_ids[:-1], out=begins[1:])
    if bool(begins.all()):
        return ids, grad
    offsets = begins.nonzero().squeeze(1)
    summed = embedding_bag(order, grad.reshape(len(ids), -1), offsets, mode="sum")
    return sorted_ids[offsets], summed.reshape(-1, *grad.shape[1:])


class _Rows(ABC):
    """The part that all row optimizers share: checks, sorting, pieces, state."""

    def __init__(self, lr: float) -> None:
        expect(lr >= 0, "lr", "a learning rate of at least 0", lr, "raise it")
        self.lr = lr
        self.state: dict[str, Tensor] = {}

    def step(
        self, table: Float[Tensor, "n ..."], ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]
    ) -> None:
        """Move rows `ids` of `table`, in place, along their gradients; doubles are summed once.

        Raises:
            InputError: if ids are out of range, shapes do not fit, the state is another table's, or
                the table is not a contiguous float32 or float64 tensor.
        """
        _expect_update(table, ids, grad)
        rows = table.detach().view(len(table), -1)
        if not self.state:
            self.state = self._start(rows)
        for name, value in self.state.items():
            remedy = "load the state of this table"
            expect(len(value) == len(rows), name, f"{len(rows)} rows of state", len(value), remedy)
        ids, grad = ids.long(), grad.detach()
        if not _distinct(ids):
            ids, grad = coalesce(ids, grad)
        for_each(partial(self._move, rows), _pieces(ids, grad.reshape(-1, rows.shape[1])))

    def state_dict(self) -> dict[str, Any]:
        """``{"lr": …}`` and the state's tensors, not copied; no tensors before the first step."""
        return {"lr": self.lr, **self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; its tensors are used, not copied."""
        self.lr = float(state["lr"])
        self.state = {name: value for name, value in state.items() if name != "lr"}

    @abstractmethod
    def _start(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """State before the first step."""

    @abstractmethod
    def _move(
        self, rows: Float[Tensor, "n d"], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> None:
        """One step of a piece of distinct rows; several threads move different ones at once."""


class RowSGD(_Rows):
    """``x ← x − lr·g``; no state.

    Args:
        lr: learning rate, at least 0.

    Example:
        >>> table = torch.ones(3, 2)
        >>> RowSGD(lr=0.5).step(table, torch.tensor([2]), torch.tensor([[1.0, 2.0]]))
        >>> table.tolist()
        [[1.0, 1.0], [1.0, 1.0], [0.5, 0.0]]
    """

    def _start(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        return {}

    def _move(
        self, rows: Float[Tensor, "n d"], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> None:
        rows.index_add_(0, ids, grad, alpha=-self.lr)


class RowAdagrad(_Rows):
    """``s ← s + mean(g²), x ← x − lr·g/(√s + eps)`` with one number s a row: n numbers of state.

    A table of width 1 moves as :class:`torch.optim.Adagrad` moves it.

    Args:
        lr: learning rate, at least 0; 0.01 as in torch.optim.Adagrad.
        eps: keeps the first steps of tiny gradients finite; 1e-10 as in torch.optim.Adagrad.

    Example:
        >>> table = torch.zeros(2, 2)
        >>> RowAdagrad(lr=1.0, eps=0.0).step(table, torch.tensor([1]), torch.tensor([[1.0, 7.0]]))
        >>> table.tolist()  # √mean(1, 49) = 5
        [[0.0, 0.0], [-0.2..., -1.39...]]
    """

    def __init__(self, lr: float = 1e-2, *, eps: float = 1e-10) -> None:
        super().__init__(lr)
        expect(eps >= 0, "eps", "a number of at least 0", eps, "raise it")
        self.eps = eps

    def _start(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        return {"sum": torch.zeros(len(rows), dtype=rows.dtype)}

    def _move(
        self, rows: Float[Tensor, "n d"], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> None:
        mean = torch.linalg.vector_norm(grad, dim=1).square_().div_(grad.shape[1])
        total = self.state["sum"].index_add_(0, ids, mean).index_select(0, ids)
        root = _sqrt_(total).add_(self.eps).unsqueeze(1)
        rows.index_add_(0, ids, grad / root, alpha=-self.lr)


class RowAdam(_Rows):
    """Adam with one step count a row: 2·n·d numbers of state, and n counts.

    Every row moves as :class:`torch.optim.Adam` moves a tensor of its own that is stepped only when
    the row is touched. torch.optim.SparseAdam has one count for the whole table: the two are equal
    (but for where eps enters) on rows touched at every step, while a row first touched late moves
    there by up to (1−β₁)/√(1−β₂) ≈ 3.2 × lr and here by lr.

    Args:
        lr: learning rate, at least 0; 1e-3 as in torch.optim.Adam.
        betas: decay of the two moments, each in [0, 1); (0.9, 0.999) as in torch.optim.Adam.
        eps: added to the denominator; 1e-8 as in torch.optim.Adam.

    Example:
        >>> table = torch.zeros(2, 2)
        >>> RowAdam(lr=0.5).step(table, torch.tensor([1]), torch.tensor([[3.0, -4.0]]))
        >>> table.round(decimals=4)  # the first step of Adam is lr · sign(g)
        tensor([[ 0.0000,  0.0000],
                [-0.5000,  0.5000]])
    """

    def __init__(
        self,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(lr)
        good = all(0 <= beta < 1 for beta in betas)
        expect(good, "betas", "two numbers in [0, 1)", betas, "lower them")
        expect(eps >= 0, "eps", "a number of at least 0", eps, "raise it")
        self.betas = betas
        self.eps = eps

    def _start(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        return {
            "m": torch.zeros_like(rows),
            "v": torch.zeros_like(rows),
            "steps": torch.zeros(len(rows), dtype=torch.int32),
        }

    def _move(
        self, rows: Float[Tensor, "n d"], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> None:
        beta1, beta2 = self.betas
        corrected, eps = self._corrections(ids, rows.dtype)
        m = self.state["m"].index_select(0, ids).lerp_(grad, 1 - beta1)
        _put(self.state["m"], ids, m)
        v = self.state["v"].index_select(0, ids).mul_(beta2)
        v.addcmul_(grad, grad, value=1 - beta2)
        _put(self.state["v"], ids, v)
        scale = _sqrt_(v).mul_(corrected).add_(eps)
        rows.index_add_(0, ids, m.div_(scale), alpha=-self.lr)

    def _corrections(
        self, ids: Int[Tensor, " c"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "c 1"], Float[Tensor, "c 1"]]:
        """Count the step; return (1−β₁ᵗ)/√(1−β₂ᵗ) and eps·(1−β₁ᵗ) of each row.

        Both bias corrections act on the denominator, so that lr stays one number, even zero.
        """
        steps = self.state["steps"].index_select(0, ids).add_(1)
        self.state["steps"].index_copy_(0, ids, steps)
        first, second = (1 - beta ** steps.double().unsqueeze(1) for beta in self.betas)
        return (first / second.sqrt()).to(dtype), (self.eps * first).to(dtype)


def _expect_update(table: Tensor, ids: Tensor, grad: Tensor) -> None:
    kind = f"{table.dtype}{'' if table.is_contiguous() else ', not contiguous'}"
    good = table.dtype in (torch.float32, torch.float64) and table.is_contiguous()
    expect(good, "table", "contiguous float32 or float64 rows", kind, "convert it")
    expect_ids("ids", ids, len(table))
    shape = (len(ids), *table.shape[1:])
    expect(grad.shape == shape, "grad", f"one row an id, {shape}", tuple(grad.shape), "align them")
    same = grad.dtype == table.dtype
    expect(same, "grad", f"{table.dtype}, as the table", grad.dtype, "convert it with .to()")


def _distinct(ids: Tensor) -> bool:
    # the usual batch; numpy sorts without the order in a fifth of the time that coalesce needs
    ascending = np.sort(ids.numpy())
    return bool((ascending[1:] != ascending[:-1]).all())


def _pieces(ids: Tensor, grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and gradients in pieces of as many rows as stay in the cache."""
    size = max(_PIECE_BYTES // max(grad.shape[1] * grad.element_size(), 1), 16)
    return zip(ids.split(size), grad.split(size), strict=True)


def _put(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    # numpy copies a row at once, index_copy_ number by number: 2.5 × slower within the cache
    table.numpy()[ids.numpy()] = rows.numpy()


def _sqrt_(tensor: Tensor) -> Tensor:
    # torch calls MKL's root, which takes 7 × as long on zeros and 30 × on denormals; second moments
    # are full of both
    np.sqrt(tensor.numpy(), out=tensor.numpy())
    return tensor
