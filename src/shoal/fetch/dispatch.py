"""Dispatch table: torch's functions that read or write rows, and how a unified tensor does it.

Each answer is a tensor, or None, which leaves the call to torch by the rules of
:mod:`shoal.fetch.placement`. Rows are read where ids are; host ids leave the place open, so those
of a table with a default device are moved there. Rows are written from where they are, and ids
follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from shoal.core.errors import InputError
from shoal.fetch import device_rows
from shoal.fetch.placement import is_unified, reachable


class _Read(Function):
    """``table[ids]`` on a device, with the gradient that torch's embedding gives the host."""

    @staticmethod
    def forward(ctx: Any, table: Any, ids: Tensor, rule: tuple[int, bool, bool]) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.rule = table.shape, rule
        return table.gather(ids)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        rows = grads[0].reshape(len(ids), -1).cpu()
        padding, scale, sparse = ctx.rule
        grad = torch.ops.aten.embedding_backward(
            rows, ids.cpu(), ctx.shape[0], padding, scale, sparse
        )
        return grad if sparse else grad.view(ctx.shape), None, None


_NO_RULE = (-1, False, False)  # padding_idx, scale_grad_by_freq, sparse


def _rows(
    table: Any, ids: Tensor, negative: bool = False, rule: tuple[int, bool, bool] = _NO_RULE
) -> Tensor | None:
    """Rows of ids of any shape; with `negative`, ids below zero count from the end."""
    dims = ids.dim()
    if ids.dtype not in (torch.int32, torch.int64) or dims == 0 or not is_unified(table):
        return None
    on_host = ids.is_cpu
    if on_host and table.default_device is not None and reachable(table.default_device):
        ids, on_host = device_rows.to_device(ids, table.default_device), False
    grad = table.requires_grad and torch.is_grad_enabled()
    if on_host and grad:
        return None
    flat = ids if dims == 1 else ids.reshape(-1)
    if on_host:
        try:
            rows = table.gather(flat)
        except InputError:
            return None  # negative ids count from the end, and torch words its own errors
    else:
        flat = torch.where(flat < 0, flat + len(table), flat) if negative else flat
        rows = _Read.apply(table, flat, rule) if grad else table.gather(flat)
    return rows if flat is ids else rows.view(*ids.shape, *table.shape[1:])


def _getitem(table: Any, index: Any) -> Tensor | None:
    if isinstance(index, list) and table.default_device is not None:
        index = torch.as_tensor(index)
    return _rows(table, index, negative=True) if isinstance(index, Tensor) else None


def _index_select(
    input: Any, dim: Any, index: Tensor, *, out: Tensor | None = None
) -> Tensor | None:
    return _rows(input, index) if dim == 0 and out is None and index.dim() == 1 else None


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    if max_norm is not None or weight.dim() != 2:
        return None
    if padding_idx is None:
        return _rows(weight, input, rule=(-1, scale_grad_by_freq, sparse))
    if not -len(weight) <= padding_idx < len(weight):
        return None
    return _rows(weight, input, rule=(padding_idx % len(weight), scale_grad_by_freq, sparse))


def _setitem(table: Any, index: Any, value: Any) -> Tensor | None:
    is_ids = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64)
    if not is_ids or index.dim() == 0 or not is_unified(table):
        return None
    if not isinstance(value, Tensor) or (value.dim() == 0 and value.is_cpu):
        value = torch.as_tensor(value, dtype=table.dtype)  # a number is written from where ids are
        value = device_rows.to_device(value, index.device)
    if _torch_writes(table, index, value):
        return None
    ids = device_rows.to_device(index.reshape(-1), value.device)
    shape = table.shape[1:]
    rows = value.to(table.dtype).expand(*index.shape, *shape).reshape(-1, *shape)
    return table.put(torch.where(ids < 0, ids + len(table), ids), rows)


def _index_copy_(self: Any, dim: Any, index: Tensor, source: Tensor) -> Tensor | None:
    return None if dim != 0 or _torch_writes(self, index, source) else self.put(index, source)


def _index_add_(
    self: Any, dim: Any, index: Tensor, source: Tensor, *, alpha: float | int = 1
) -> Tensor | None:
    if dim != 0 or _torch_writes(self, index, source):
        return None
    return self.put(index, source if alpha == 1 else source * alpha, add=True)


def _torch_writes(table: Any, ids: Tensor, rows: Tensor) -> bool:
    """Whether nothing but the host is concerned, or autograd must see (and refuse) the write."""
    on_host = ids.is_cpu and rows.is_cpu
    return on_host or not is_unified(table) or (table.requires_grad and torch.is_grad_enabled())


def _detach(table: Any) -> Tensor | None:
    return table.alias() if is_unified(table) else None


DISPATCH: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    Tensor.__getitem__: _getitem,
    Tensor.index_select: _index_select,
    torch.index_select: _index_select,
    functional.embedding: _embedding,
    Tensor.__setitem__: _setitem,
    Tensor.index_copy_: _index_copy_,
    Tensor.index_add_: _index_add_,
    Tensor.detach: _detach,
}
