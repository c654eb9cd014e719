"""How a row optimizer takes a step: on which rows, where, and in which pieces.

A batch gives gradients for the rows that it gathered, ``(ids [s], grad [s, d])``, never for a whole
table ``[n, d]``. :class:`Rows` sums doubles, reads, changes and writes back those s rows of the
table and of the state; an optimizer itself only gives the direction in which they go, ``x ← x −
lr·u``.

Where gradients lie on a device that reaches host memory, the device does it, on rows and state that
stay in host memory.

*bfloat16* keeps 8 bits: a step below 2⁻⁹ of a number is lost when the sum is rounded to the
nearest, however often it is taken. Such tables are computed in float32 and rounded stochastically,
up with the probability that the number has come that far, so that steps survive in the mean:
E[round(x)] = x (Gupta et al., "Deep learning with limited numerical precision", ICML 2015, section
3). The low 16 bits of a float32 are how far x is between its two neighbors, so 16 random bits are
added and the low half is cut off.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Float32, Int, Int16
from torch import Tensor
from torch.nn.functional import embedding_bag

from shoal.core.errors import expect, expect_ids
from shoal.fetch.device_rows import DeviceRows
from shoal.fetch.threads import for_each

# Rows are updated in pieces of this size, so that what one pass reads is still in the cache for the
# next; measured for 12,000 × 256 rows: 512 kB best, on one thread and on two; 256 kB 1.1 × slower,
# 128 kB 1.35 × (the calls).
_PIECE_BYTES = 512 * 1024
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


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


class Rows(ABC):
    """The part that all row optimizers share: checks, doubles, pieces, state, and where it runs.

    Args:
        lr: learning rate, at least 0.
        seed: of the stochastic rounding of a bfloat16 table.
    """

    def __init__(self, lr: float, seed: int = 0) -> None:
        expect(lr >= 0, "lr", "a learning rate of at least 0", lr, "raise it")
        self.lr = lr
        self.seed = seed
        self.state: dict[str, Tensor] = {}
        self._rounded = 0  # steps whose result was rounded at random
        self._shown: dict[str, DeviceRows] = {}

    def step(
        self, table: Float[Tensor, "n ..."], ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]
    ) -> None:
        """Move rows `ids` of `table`, in place, along their gradients; doubles are summed once.

        Args:
            table: float32, float64 or bfloat16 rows, contiguous; where ids and gradients are.
            ids: each in ``[0, n)``.
            grad: one gradient per id, of the table's dtype; float32 also for a bfloat16 table.

        Raises:
            InputError: if ids are out of range, shapes do not fit, the state is another table's, or
                the table is of another kind.
        """
        _expect_update(table, ids, grad)
        rows = table.detach().view(len(table), -1)
        state = self._state_for(rows)
        ids, grad = ids.long(), grad.detach()
        if rows.dtype is torch.bfloat16:
            grad = grad.float()
        if not (ids.is_cpu and _distinct(ids)):
            ids, grad = coalesce(ids, grad)
        grad, noise = grad.reshape(-1, rows.shape[1]), None
        if rows.dtype is torch.bfloat16:
            (seed,) = np.random.SeedSequence((self.seed, self._rounded)).generate_state(1)
            noise = noise_like(grad, int(seed))
            self._rounded += 1
        if rows.is_cpu:
            for_each(partial(self._move, rows, state), _pieces(ids, grad, noise))
        else:  # by the caller's thread, whose stream it is
            self._move(rows, state, ids, grad, noise)

    def reaches(self, table: Float[Tensor, "n ..."], device: torch.device) -> bool:
        """Whether `device` can step a host table's state in place; begins the state if need be.

        Each part of it is registered beside the table, the first time that this is asked.
        """
        if table.dtype not in _DTYPES or not table.is_contiguous():
            return False
        self._begin(table.detach().view(len(table), -1))
        for name, value in self.state.items():
            if name not in self._shown:
                self._shown[name] = DeviceRows(value)
        return all(rows.view(device) is not None for rows in self._shown.values())

    def state_dict(self) -> dict[str, Any]:
        """``{"lr": …}`` and the state's tensors, not copied; no tensors before the first step."""
        self._synchronize()
        rounded = {"rounded": self._rounded} if self._rounded else {}
        return {"lr": self.lr, **rounded, **self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; its tensors are used, not copied."""
        self._synchronize()
        self.lr = float(state["lr"])
        self._rounded = int(state.get("rounded", 0))
        self.state = {name: x for name, x in state.items() if isinstance(x, Tensor)}
        self._shown = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: everything but what the devices of this process are shown."""
        self._synchronize()
        return {**self.__dict__, "_shown": {}}

    def _synchronize(self) -> None:
        for rows in self._shown.values():
            rows.synchronize(writes=True)

    def _begin(self, rows: Float[Tensor, "n d"]) -> None:
        if not self.state:
            dtype = torch.float64 if rows.dtype is torch.float64 else torch.float32
            self.state = self._start(rows.shape[0], rows.shape[1], dtype)

    def _state_for(self, rows: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """The state where the rows are."""
        self._begin(rows)
        for name, value in self.state.items():
            remedy = "load the state of this table"
            expect(len(value) == len(rows), name, f"{len(rows)} rows of state", len(value), remedy)
        if rows.is_cpu:
            self._synchronize()
            return self.state
        views = {name: shown.view(rows.device, writes=True) for name, shown in self._shown.items()}
        found = {name: view for name, view in views.items() if view is not None}
        want, remedy = "a host table, or one that its device reaches", "step on the host"
        expect(found.keys() == self.state.keys(), "table", want, rows.device, remedy)
        return found

    def _move(
        self,
        rows: Float[Tensor, "n d"],
        state: dict[str, Tensor],
        ids: Int[Tensor, " c"],
        grad: Float[Tensor, "c d"],
        noise: Int16[Tensor, "c d"] | None,
    ) -> None:
        """One step of a piece of distinct rows; several threads move different ones at once."""
        step = self._direction(state, ids, grad)
        if rows.is_cpu and noise is None:
            rows.index_add_(0, ids, step, alpha=-self.lr)
            return
        # on a device, distinct rows are copied back rather than added: no atomics on host memory
        moved = rows.index_select(0, ids).to(step.dtype).sub_(step, alpha=self.lr)
        put(rows, ids, moved if noise is None else round_stochastically(moved, noise))

    @abstractmethod
    def _start(self, n: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """State before the first step, in host memory."""

    @abstractmethod
    def _direction(
        self, state: dict[str, Tensor], ids: Int[Tensor, " c"], grad: Float[Tensor, "c d"]
    ) -> Float[Tensor, "c d"]:
        """Move the state of distinct rows and return u of ``x ← x − lr·u``."""


def put(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Write rows; equivalent to ``table[ids] = rows``."""
    if not table.is_cpu:
        table.index_copy_(0, ids, rows)
        return
    # numpy copies a row at once, index_copy_ number by number: 2.5 × slower within the cache
    if table.dtype is torch.bfloat16:  # a dtype that numpy lacks
        table, rows = table.view(torch.int16), rows.view(torch.int16)
    table.numpy()[ids.numpy()] = rows.numpy()


def sqrt_(tensor: Tensor) -> Tensor:
    """Take roots in place; equivalent to ``tensor.sqrt_()``."""
    if not tensor.is_cpu:
        return tensor.sqrt_()
    # torch calls MKL's root, which takes 7 × as long on zeros and 30 × on denormals; second moments
    # are full of both
    np.sqrt(tensor.numpy(), out=tensor.numpy())
    return tensor


def _expect_update(table: Tensor, ids: Tensor, grad: Tensor) -> None:
    kind = f"{table.dtype}{'' if table.is_contiguous() else ', not contiguous'}"
    good = table.dtype in _DTYPES and table.is_contiguous()
    want = "contiguous float32, float64 or bfloat16 rows"
    expect(good, "table", want, kind, "convert it")
    expect_ids("ids", ids, len(table))
    shape = (len(ids), *table.shape[1:])
    expect(grad.shape == shape, "grad", f"one row an id, {shape}", tuple(grad.shape), "align them")
    finer = grad.dtype is torch.float32 and table.dtype is torch.bfloat16
    same = grad.dtype == table.dtype or finer
    expect(same, "grad", f"{table.dtype}, as the table", grad.dtype, "convert it with .to()")


def _distinct(ids: Tensor) -> bool:
    # the usual batch; numpy sorts without the order in a fifth of the time that coalesce needs
    ascending = np.sort(ids.numpy())
    return bool((ascending[1:] != ascending[:-1]).all())


def _pieces(
    ids: Tensor, grad: Tensor, noise: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Ids, gradients and noise in pieces of as many rows as stay in the cache."""
    size = max(_PIECE_BYTES // max(grad.shape[1] * grad.element_size(), 1), 16)
    parts = itertools.repeat(None) if noise is None else noise.split(size)
    return zip(ids.split(size), grad.split(size), parts, strict=False)


def noise_like(x: Float32[Tensor, "c d"], seed: int) -> Int16[Tensor, "c d"]:
    """Return 16 random bits per number, a function of shape, device and seed (of 32 bits)."""
    words = -(-x.numel() // 4)  # four numbers' bits from each draw: a quarter of the time
    generator = torch.Generator(x.device).manual_seed(seed)
    bits = torch.empty(words, dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None, generator=generator)
    return bits.view(torch.int16)[: x.numel()].view(x.shape)


def round_stochastically(
    x: Float32[Tensor, "c d"], noise: Int16[Tensor, "c d"]
) -> BFloat16[Tensor, "c d"]:
    """Round each number to one of its two neighbors in bfloat16, the mean of which is the number.

    What bfloat16 holds exactly stays, and so do infinity and NaN.

    Example:
        >>> x = torch.full((1, 4096), 1.0 + 1 / 512)  # a quarter of the way from 1 to 1.0078125
        >>> rounded = round_stochastically(x, noise_like(x, seed=0))
        >>> rounded.unique().tolist(), round(float(rounded.float().mean() - 1) * 512, 1)
        ([1.0, 1.0078125], 1.0)
    """
    low = noise.int().add_(1 << 15).masked_fill_(x.isfinite().logical_not_(), 0)
    return low.add_(x.view(torch.int32)).bitwise_right_shift_(16).short().view(torch.bfloat16)
