"""Where an operation on a unified tensor computes, and where its result lies.

A unified tensor lies in host memory and can be read from everywhere, so it goes to where the other
operands are. :data:`RULES` says it in full; docs/concepts/placement.md prints it and the tests are
made of it. The rules are those of PyTorch-Direct (Min et al., 2021, arXiv 2101.07956) and its
public fork's, but for one: operands that leave the place open compute on the host, unless the table
was given a default device, since shoal must work without a device.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from shoal.core.batches import map_tensors
from shoal.core.errors import fail
from shoal.fetch import device_rows


class Kind(StrEnum):
    """What an operand is to the rules."""

    UNIFIED = "unified"
    HOST = "host"
    DEVICE = "device"
    NUMBER = "0-d"


class Place(StrEnum):
    """Where an operation computes, or its result lies."""

    HOST = "host"
    DEVICE = "device"
    DEFAULT = "default"
    REFUSED = "refused"


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        beside: kinds that must all stand beside the unified operands; 0-d ones of the host may
            always stand there too, and a line is reached only if none before it fits.
        place: where it computes, and its result lies.
    """

    beside: frozenset[Kind]
    place: Place


RULES = (
    Rule(frozenset({Kind.DEVICE, Kind.HOST}), Place.REFUSED),
    Rule(frozenset({Kind.DEVICE}), Place.DEVICE),
    Rule(frozenset({Kind.HOST}), Place.HOST),
    Rule(frozenset(), Place.DEFAULT),
)
# By name, so that every spelling (torch.add, x.add, x + y, y + x) is one entry.
COMPUTES = frozenset(
    "add sub subtract mul multiply div divide true_divide truediv floor_divide floordiv remainder"
    " mod pow neg abs exp log sqrt rsqrt square tanh sigmoid relu clamp maximum minimum eq ne lt le"
    " gt ge where lerp addcmul addcdiv matmul mm bmm mv dot addmm linear sum mean".split()
)
_IN_PLACE = re.compile(r"[a-z0-9_]*[a-z0-9]_|__setitem__|__i[a-z]+__")
_NOT_IN_PLACE = ("__index__", "__int__", "__invert__", "__iter__", "requires_grad_")


@functools.cache
def place(kinds: frozenset[Kind]) -> Place:
    """Return where operands of these kinds meet, at least one of them unified.

    Example:
        >>> str(place(frozenset({Kind.UNIFIED, Kind.DEVICE, Kind.NUMBER})))
        'device'
    """
    return next(rule.place for rule in RULES if rule.beside <= kinds)


def kind_of(tensor: Tensor) -> Kind:
    """What a tensor is to the rules; on a device, one without axes is like any other."""
    if is_unified(tensor):
        return Kind.UNIFIED
    if not tensor.is_cpu:
        return Kind.DEVICE
    return Kind.HOST if tensor.dim() else Kind.NUMBER


def is_unified(x: object) -> bool:
    """Whether `x` is a unified tensor."""
    return x.__class__ is not Tensor and getattr(x, "is_unified", False)


def carry_out(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of torch where its operands meet; the hook of all operations but row reads.

    Raises:
        InputError: if a device operand and a host operand with axes stand beside a unified one.
    """
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return func(*args, **kwargs)
    operands = list(_tensors((args, tuple(kwargs.values()))))
    tables: list[Any] = [x for x in operands if is_unified(x)]
    at = place(frozenset(map(kind_of, operands)))
    target = _target(name, args, kwargs)
    device = _device(name, at, operands, tables)
    if device is not None:
        result = _on_device(func, args, kwargs, device, target)
    else:
        for table in tables:
            table.synchronize(writes=table is target)
        result = func(*args, **kwargs)
    free = at is Place.DEFAULT and target is None and _computes(name) and isinstance(result, Tensor)
    lead = next((x for x in tables if x.propagates), None) if free else None
    if lead is None or result.dim() == 0 or result.requires_grad:  # a graph is no table
        return result
    return lead.like(result)


def _device(name: str, at: Place, operands: list[Tensor], tables: list[Any]) -> torch.device | None:
    """The device that computes, or None for the host."""
    if at is Place.DEFAULT:
        default_device = next(
            (x.default_device for x in tables if x.default_device is not None), None
        )
        return (
            default_device
            if default_device is not None and _computes(name) and reachable(default_device)
            else None
        )
    if at is Place.HOST:
        return None
    if at is Place.REFUSED and name not in ("__getitem__", "__setitem__"):  # whose ids follow
        want, got = "operands that share a device", "one on a device and one with axes on the host"
        fail(name, want, got, "move one of them with .to()")
    return next(x.device for x in operands if kind_of(x) is Kind.DEVICE)


@functools.cache
def _computes(name: str) -> bool:
    bare = name.strip("_")
    return bare in COMPUTES or (name.startswith("__") and bare[1:] in COMPUTES)  # __radd__


def reachable(device: torch.device) -> bool:
    """Whether this process may use `device`: a loader's worker and a forked child may not."""
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        return False
    return torch.utils.data.get_worker_info() is None


def _on_device(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    target: Any,
) -> Any:
    writes = is_unified(target)
    host_only = writes and target._device_rows.view(device) is None
    if host_only or (writes and target.requires_grad):
        # the host computes: what a device cannot write to, and what autograd must see (and refuse)
        target.synchronize(writes=True)
        to_host = functools.partial(map_tensors, change=lambda x: x if is_unified(x) else x.cpu())
        return func(*to_host(args), **to_host(kwargs))

    def seen(x: Tensor) -> Tensor:
        return _seen(x, device, writes=x is target) if is_unified(x) else x

    result = func(*map_tensors(args, seen), **map_tensors(kwargs, seen))
    return target if writes else result


class _Crossing(Function):
    """The whole table on a device; its gradient comes back to the host."""

    @staticmethod
    def forward(ctx: Any, table: Any, device: torch.device) -> Tensor:
        return _seen(table.alias(), device).view(table.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].cpu(), None


def _seen(table: Any, device: torch.device, writes: bool = False) -> Tensor:
    """The rows as a plain tensor of `device`: in place where it reaches them, else a copy."""
    if table.requires_grad and torch.is_grad_enabled():
        return _Crossing.apply(table, device)  # pyright: ignore[reportReturnType]
    view = table._device_rows.view(device, writes)
    return device_rows.to_device(table._plain, device) if view is None else view


def _target(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operation writes to, or None."""
    out = kwargs.get("out")
    if out is not None:
        return out
    return args[0] if _is_in_place(name) and args else None


@functools.cache
def _is_in_place(name: str) -> bool:
    return name not in _NOT_IN_PLACE and _IN_PLACE.fullmatch(name) is not None


def _tensors(tree: Any) -> Iterator[Tensor]:
    for x in tree:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple | list):
            yield from _tensors(x)
