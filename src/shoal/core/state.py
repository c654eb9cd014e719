"""What is taken out of a saved state: looked at before it is used, since anybody may have saved it.

A checksum says that a file is as it was written, not who wrote it. So each noun that comes back
from a state says here what its parts must be: tensors of which numbers and what shape, ids below
what, counts. The kernels of torch and scipy believe what they are given, and would read beyond it.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shoal.core.errors import expect, expect_finite, fail, naming

Shape = int | None
"""How many along an axis; None for any number."""

_Made = TypeVar("_Made")
_REMEDY = "restore the file or train again"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def part(state: Any, name: str) -> Mapping[str, Any]:
    """A part of a state that is a state itself.

    Raises:
        InputError: if there is none.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(found, Mapping):
        fail(name, "a part of the state", _told(found), _REMEDY)
    return found


def floats(
    state: Any, name: str, *shape: Shape, keep: Sequence[torch.dtype] = (torch.float32,)
) -> Float[Tensor, ...]:
    """A tensor of finite numbers, as float32.

    Args:
        state: that holds it.
        name: under which.
        shape: along each axis.
        keep: types that are left as they are.

    Raises:
        InputError: if it is missing or another.

    Example:
        >>> floats({"rows": torch.ones(2, 3)}, "rows", None, 3).shape
        torch.Size([2, 3])
        >>> floats({"rows": torch.ones(2, 3)}, "rows", None, 4)
        Traceback (most recent call last):
            ...
        shoal.core.errors.InputError: rows: expected floats [any, 4], got torch.float32 [2, 3]; ...
    """
    found = _tensor(state, name, "floats", _FLOATS, shape)
    expect_finite(name, found.reshape(1) if found.dim() == 0 else found)
    return found if found.dtype in keep else found.float()


def numbers(state: Any, name: str, *shape: Shape) -> Shaped[Tensor, ...]:
    """A tensor of finite numbers of any type, as it is.

    Raises:
        InputError: if it is missing or another.
    """
    found = _tensor(state, name, "numbers", (*_FLOATS, *_INTEGERS, torch.bool), shape)
    expect_finite(name, found)
    return found


def integers(
    state: Any,
    name: str,
    *shape: Shape,
    low: int = 0,
    below: int | None = None,
    keep: Sequence[torch.dtype] = (torch.int64,),
) -> Int[Tensor, ...]:
    """A tensor of whole numbers in ``[low, below)``, as int64.

    Args:
        state: that holds it.
        name: under which.
        shape: along each axis.
        low: the least that one may be.
        below: what none may reach; None for no bound.
        keep: types that are left as they are.

    Raises:
        InputError: if it is missing or another, or a number is out of range.
    """
    found = _tensor(state, name, "whole numbers", _INTEGERS, shape)
    if found.numel():
        least, most = (int(x) for x in found.aminmax())
        want = f"whole numbers from {low}" + ("" if below is None else f" and below {below}")
        bad = least if least < low else most
        expect(least >= low and (below is None or most < below), name, want, bad, _REMEDY)
    return found if found.dtype in keep else found.long()


def expect_weights(make: Callable[[], nn.Module], saved: Mapping[str, Any]) -> None:
    """Raise unless a state is that of a module, before memory is taken for the module.

    Args:
        make: the module, under any default device: it is made on ``meta``, which has no memory.
        saved: the state.

    Raises:
        InputError: naming the first weight that is missing, of another shape or not finite.

    Example:
        >>> expect_weights(lambda: nn.Linear(10**9, 1), nn.Linear(2, 1).state_dict())
        Traceback (most recent call last):
            ...
        shoal.core.errors.InputError: weight: expected floats [1, 1000000000], got torch.float32 ...
    """
    with torch.device("meta"):
        own = make().state_dict()
    others = ", ".join(sorted(map(str, own.keys() ^ saved.keys())))[:80]
    expect(not others, "model", "the weights of this network", f"others: {others}", _REMEDY)
    for name, value in own.items():
        floats(saved, name, *value.shape)


def count(state: Any, name: str, low: int = 0, below: int = 2**31) -> int:
    """A whole number in ``[low, below)``.

    Raises:
        InputError: if it is missing or another.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found < below:
        fail(name, f"a whole number from {low} and below {below}", _told(found), _REMEDY)
    return found


def number(
    state: Any, name: str, low: int | float = -math.inf, high: int | float = math.inf
) -> float:
    """A finite number in ``[low, high]``.

    Raises:
        InputError: if it is missing or another.
    """
    found = state.get(name) if isinstance(state, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        fail(name, "a finite number", _told(found), _REMEDY)
    if not (abs(found) <= sys.float_info.max and low <= found <= high):
        fail(name, f"a finite number in [{low}, {high}]", _told(found), _REMEDY)
    return float(found)


def made(kind: Callable[..., _Made], given: Mapping[str, Any], where: str) -> _Made:
    """An object of a class whose arguments come from a file, each of the type that it declares.

    Args:
        kind: a dataclass.
        given: arguments by name, lists where tuples are meant.
        where: the file, for messages.

    Raises:
        InputError: if an argument is unknown, missing or of another type.

    Example:
        >>> from dataclasses import make_dataclass
        >>> Box = make_dataclass("Box", [("width", int), ("sides", tuple[int, ...])])
        >>> made(Box, {"width": 3, "sides": [1, 2]}, "a.json")
        Box(width=3, sides=(1, 2))
        >>> made(Box, {"width": "3", "sides": []}, "a.json")
        Traceback (most recent call last):
            ...
        shoal.core.errors.InputError: a.json: expected width of type int, got '3'; ...
    """
    hints = get_type_hints(kind)
    values = {k: tuple(x) if isinstance(x, list) else x for k, x in given.items()}
    want, unknown = f"the arguments of a {getattr(kind, '__name__', kind)}", values.keys() - hints
    expect(not unknown, where, want, f"also {', '.join(sorted(unknown))}"[:80], _REMEDY)
    for name, value in values.items():
        hint = hints[name]
        told = getattr(hint, "__name__", str(hint))
        expect(_fits(value, hint), where, f"{name} of type {told}", _told(value), _REMEDY)
    try:
        with naming(where):
            return kind(**values)
    except TypeError as error:  # a name too few
        fail(where, want, error, _REMEDY)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON holds is of the type that an annotation names."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if isinstance(value, tuple):
        items = [one for one in inner if one is not Ellipsis] or [Any]
        return origin in (tuple, Sequence) and all(_fits(x, items[0]) for x in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, type(None) if hint is None else hint)
    # else an object of the caller's own: a file holds none
    return not isinstance(value, bool | int | float | str | dict)


def _tensor(
    state: Any, name: str, want: str, kinds: Sequence[torch.dtype], shape: Sequence[Shape]
) -> Tensor:
    found = state.get(name) if isinstance(state, Mapping) else None
    wide = ", ".join("any" if size is None else str(size) for size in shape)
    if not isinstance(found, Tensor):
        fail(name, f"{want} [{wide}]", _told(found), _REMEDY)
    pairs = zip(found.shape, shape, strict=False)
    good = found.dtype in kinds and found.dim() == len(shape)
    good = good and all(want is None or size == want for size, want in pairs)
    got = f"{found.dtype} {list(found.shape)}"
    expect(good, name, f"{want} [{wide}]", got, _REMEDY)
    return found


def _told(value: Any) -> str:
    """A value as an error names it, cut short."""
    text = "nothing" if value is None else repr(value)
    return " ".join(text.split())[:80]
