"""Trainable rows: optimizers whose state lives beside a table and whose step touches only s rows.

A batch gives gradients for the rows that it gathered, ``(ids [s], grad [s, d])``, never for a whole
table ``[n, d]``. A row optimizer reads, changes and writes back those s rows of the table and of
its state; time and traffic depend on s, not on n, and rows that no batch touches stay as they are.
The law that each one keeps: *every row moves as the dense optimizer would move it, had that seen
only the steps that touch the row.*

    RowSGD      x ← x − lr·g
    RowAdagrad  s ← s + mean(g²),  x ← x − lr·g / (√s + eps)               one s a row
                s ← s + g²,        the same                  per_row=False: one s a number
    RowAdam     m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²
                x ← x − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + eps)              one t a row

Adam: Kingma and Ba (2015), Algorithm 1; Adagrad: Duchi, Hazan and Singer (2011), here with the mean
over a row in place of one entry a number, as recommender systems use it. How a step is taken, on
which device, and how a bfloat16 table keeps small steps: :mod:`shoal.fetch.stepping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.errors import expect
from shoal.core.optimizers import OptimizerInfo, floored
from shoal.fetch.stepping import Rows, put, sqrt_


@runtime_checkable
class RowOptimizer(Protocol):
    """A row rule: what a trainable table needs.

    One of your own may extend :class:`~shoal.fetch.stepping.Rows`. To be trained by a step rule
    that measures curvature it also has a method ``curvature_info``
    (:class:`~shoal.core.optimizers.DescribesItself`), as the three below have.
    """

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


class RowSGD(Rows):
    """``x ← x − lr·g``; no state.

    Args:
        lr: learning rate, at least 0.
        seed: of the stochastic rounding of a bfloat16 table.

    Example:
        >>> table = torch.ones(3, 2)
        >>> RowSGD(lr=0.5).step(table, torch.tensor([2]), torch.tensor([[1.0, 2.0]]))
        >>> table.tolist()
        [[1.0, 1.0], [1.0, 1.0], [0.5, 0.0]]
    """

    def _start(self, n: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {}

    def _direction(
        self, state: dict[str, Tensor], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> Float[Tensor, "c d"]:
        return grad

    def curvature_info(self, at: Int[Tensor, " s"] | None = None) -> OptimizerInfo:
        """Plain gradients."""
        return OptimizerInfo("sgd", lr=self.lr)


class RowAdagrad(Rows):
    """``s ← s + mean(g²), x ← x − lr·g/(√s + eps)`` with one number s a row: n numbers of state.

    A table of width 1 moves as :class:`torch.optim.Adagrad` moves it; with `per_row` false, s is a
    row of its own numbers, ``s ← s + g²``, and a table of any width does.

    Args:
        lr: learning rate, at least 0; 0.01 as in torch.optim.Adagrad.
        eps: keeps the first steps of tiny gradients finite; 1e-10 as in torch.optim.Adagrad.
        per_row: whether a row has one sum; false keeps n·d numbers.
        seed: of the stochastic rounding of a bfloat16 table.

    Example:
        >>> table = torch.zeros(2, 2)
        >>> RowAdagrad(lr=1.0, eps=0.0).step(table, torch.tensor([1]), torch.tensor([[1.0, 7.0]]))
        >>> table.tolist()  # √mean(1, 49) = 5
        [[0.0, 0.0], [-0.2..., -1.39...]]
    """

    def __init__(
        self, lr: float = 1e-2, *, eps: float = 1e-10, per_row: bool = True, seed: int = 0
    ) -> None:
        super().__init__(lr, seed)
        expect(eps >= 0, "eps", "a number of at least 0", eps, "raise it")
        self.eps = eps
        self.per_row = per_row

    def _start(self, n: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"sum": torch.zeros((n,) if self.per_row else (n, d), dtype=dtype)}

    def _direction(
        self, state: dict[str, Tensor], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> Float[Tensor, "c d"]:
        if self.per_row:
            squares = torch.linalg.vector_norm(grad, dim=1).square_().div_(grad.shape[1])
        else:
            squares = grad.square()
        total = state["sum"].index_select(0, ids).add_(squares)
        put(state["sum"], ids, total)
        root = sqrt_(total).add_(self.eps)
        return grad / (root.unsqueeze(1) if self.per_row else root)

    def curvature_info(self, at: Int[Tensor, " s"] | None = None) -> OptimizerInfo:
        """Of Adam's kind without momentum; D = √s + eps."""
        divisor = None
        if at is not None and self.state:
            divisor = floored(self.state["sum"][at.to(self.state["sum"].device)].sqrt() + self.eps)
            divisor = divisor.unsqueeze(1) if self.per_row else divisor
        return OptimizerInfo("adam", lr=self.lr, divisor=divisor)


class RowAdam(Rows):
    """Adam with one step count a row: 2·n·d numbers of state, and n counts.

    Every row moves as :class:`torch.optim.Adam` moves a tensor of its own that is stepped only when
    the row is touched. torch.optim.SparseAdam has one count for the whole table: the two are equal
    (but for where eps enters) on rows touched at every step, while a row first touched late moves
    there by up to (1−β₁)/√(1−β₂) ≈ 3.2 × lr and here by lr.

    Args:
        lr: learning rate, at least 0; 1e-3 as in torch.optim.Adam.
        betas: decay of the two moments, each in [0, 1); (0.9, 0.999) as in torch.optim.Adam.
        eps: added to the denominator; 1e-8 as in torch.optim.Adam.
        seed: of the stochastic rounding of a bfloat16 table.

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
        seed: int = 0,
    ) -> None:
        super().__init__(lr, seed)
        good = all(0 <= beta < 1 for beta in betas)
        expect(good, "betas", "two numbers in [0, 1)", betas, "lower them")
        expect(eps >= 0, "eps", "a number of at least 0", eps, "raise it")
        self.betas = betas
        self.eps = eps

    def _start(self, n: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            "m": torch.zeros(n, d, dtype=dtype),
            "v": torch.zeros(n, d, dtype=dtype),
            "steps": torch.zeros(n, dtype=torch.int32),
        }

    def _direction(
        self, state: dict[str, Tensor], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> Float[Tensor, "c d"]:
        beta1, beta2 = self.betas
        steps = state["steps"].index_select(0, ids).add_(1)
        state["steps"].index_copy_(0, ids, steps)
        m = state["m"].index_select(0, ids).lerp_(grad, 1 - beta1)
        put(state["m"], ids, m)
        v = state["v"].index_select(0, ids).mul_(beta2)
        v.addcmul_(grad, grad, value=1 - beta2)
        put(state["v"], ids, v)
        # both bias corrections act on the denominator, so that lr stays one number, even zero:
        # √v · (1−β₁ᵗ)/√(1−β₂ᵗ) + eps·(1−β₁ᵗ)
        first, second = (1 - beta ** steps.double().unsqueeze(1) for beta in self.betas)
        scale = (
            sqrt_(v).mul_((first / second.sqrt()).to(v.dtype)).add_((self.eps * first).to(v.dtype))
        )
        return m.div_(scale)

    def curvature_info(self, at: Int[Tensor, " s"] | None = None) -> OptimizerInfo:
        """Of Adam's kind; D = √v̂ + eps, each row corrected by its own count of steps."""
        divisor = None
        if at is not None and self.state:
            at = at.to(self.state["v"].device)
            steps = self.state["steps"][at].clamp(min=1).double()
            corrected = self.state["v"][at] / (1 - self.betas[1] ** steps).unsqueeze(1)
            divisor = floored(corrected.sqrt().to(self.state["v"]) + self.eps)
        return OptimizerInfo("adam", self.betas[0], lr=self.lr, divisor=divisor)
