"""Pickles of arrays, csr matrices, lists and dictionaries, taken apart without running anything.

A pickle is a program for a machine with a stack and a memo: it may call whatever it names, and
Python's own reader believes the sizes that it names. The machine here knows the instructions that
such data need, and makes every object itself: a name is only ever an entry of :data:`_NAMES`, an
array is made of bytes that are there, and nothing has attributes to be set.
"""

from __future__ import annotations

import codecs
import math
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from shoal.core.csr import Csr
from shoal.core.errors import InputError, expect_file, fail, naming
from shoal.core.state import floats, integers


@dataclass(frozen=True, eq=False)
class _Name:
    """What a pickle names, in place of the thing."""

    what: str


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_PYTHON = ("__builtin__", "builtins")
_NAMES = {
    ("numpy", "ndarray"): _Name("array"),
    ("numpy", "dtype"): _Name("dtype"),
    ("collections", "defaultdict"): _Name("dict"),
    ("_codecs", "encode"): _Name("bytes"),
    **{(module, "_reconstructor"): _Name("make") for module in ("copy_reg", "copyreg")},
    **{(module, "object"): _Name("object") for module in _PYTHON},
    **{(module, "list"): _Name("list") for module in _PYTHON},
    **{(module, "_reconstruct"): _Name("make array") for module in _NUMPY},
    **{(f"scipy.sparse.{x}", "csr_matrix"): _Name("matrix") for x in ("csr", "_csr")},
}


@dataclass(eq=False)
class _Made:
    """An object that a pickle makes, and then fills by its state: a dtype, an array, a matrix."""

    what: str
    code: str = ""
    value: Any = None


_MARK = object()
_CODES = {code.code: code for code in pickletools.opcodes}


def unpickle(path: str | Path) -> Any:
    """What a pickle of arrays, matrices, lists and dictionaries holds; matrices come as Csr.

    Raises:
        InputError: naming the file, if it is missing, damaged, or holds anything else.
    """
    path = expect_file(path, "a pickle of arrays")
    try:
        with naming(path), path.open("rb") as file:
            return _plain(_Machine().run(file))
    except InputError:
        raise
    except Exception as error:  # what a damaged pickle raises has no end of kinds
        got = str(error).partition("\n")[0][:200] or type(error).__name__
        remedy = "download it again from a source that you trust; nothing in it was run"
        fail(str(path), "a pickle of arrays and matrices alone", got, remedy)


def taken_apart(file: BufferedIOBase) -> Any:
    """What the pickle at a place of a file holds, as :func:`unpickle` gives it.

    An object array of one matrix, as ``numpy.savez`` writes a matrix of scipy's, is that matrix.

    Raises:
        Exception: of any kind, if it is damaged or holds anything else.
    """
    found = _plain(_Machine().run(file))
    return _plain(found[0]) if isinstance(found, list) and len(found) == 1 else found


def _refuse(what: str) -> NoReturn:
    """End the reading.

    Raises:
        ValueError: always; :func:`unpickle` makes an InputError of it.
    """
    raise ValueError(what)


def _instructions(file: BufferedIOBase) -> Iterator[tuple[str, Any]]:
    """The instructions of a pickle, each with what is written behind it.

    Yields:
        its name, and a number, a text, bytes or None.
    """
    name = ""
    while name != "STOP":
        code = _CODES.get(file.read(1).decode("latin1"))
        if code is None:
            _refuse("an end, or an instruction that no pickle has")
        name = code.name
        if name == "STRING":  # bytes of Python 2 in quotes, which pickletools takes for ASCII
            yield name, codecs.escape_decode(file.readline().strip()[1:-1])[0].decode("latin1")
        else:
            yield name, None if code.arg is None else code.arg.reader(file)  # pyright: ignore[reportArgumentType]


@dataclass
class _Machine:
    """The stack and the memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, file: BufferedIOBase) -> Any:
        """Follow the instructions to the last, which names the result."""
        for name, given in _instructions(file):
            step = getattr(self, f"_{name.lower()}", None)
            if name in _VALUES:
                self.stack.append(given)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif step is not None:
                step(given)
            elif name not in ("PROTO", "FRAME", "STOP"):
                _refuse(f"the instruction {name}")
        return self.stack.pop()

    def _above_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                _refuse("a mark that was never set")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def _last(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            _refuse(f"something else than a {kind.__name__}")
        return self.stack[-1]

    # -- stack and memo

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._above_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    _binget = _long_binget = _get

    # -- lists, tuples and dictionaries

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._last(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._above_mark()
        self._last(list).extend(items)

    def _list(self, _: Any) -> None:
        self.stack.append(self._above_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._above_mark()))

    def _tuple_of(self, n: int) -> None:
        if len(self.stack) < n or _MARK in self.stack[-n:]:
            _refuse("a tuple of nothing")
        self.stack[-n:] = [tuple(self.stack[-n:])]

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _dict(self, _: Any) -> None:
        items = self._above_mark()
        self.stack.append({})
        self._fill(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._above_mark())

    def _fill(self, items: list[Any]) -> None:
        found = self._last(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, int | str):  # Python hashes nested tuples without an end
                _refuse(f"a key that is a {type(key).__name__}")
            found[key] = value

    # -- objects

    def _global(self, given: str) -> None:
        module, _, name = given.partition(" ")
        if (module, name) not in _NAMES:
            _refuse(f"the name {module}.{name}")
        self.stack.append(_NAMES[module, name])

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(f"{module} {name}")

    def _newobj(self, _: Any) -> None:
        given, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(_Name("make"), (kind, _NAMES["builtins", "object"], None, given)))

    def _reduce(self, _: Any) -> None:
        given, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Name) or not isinstance(given, tuple):
            _refuse("a call of something else than a name")
        self.stack.append(_called(kind, given))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        _filled(self._last(_Made), state)


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS: Mapping[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}


def _called(kind: _Name, given: tuple[Any, ...]) -> Any:
    """What the call of a name makes."""
    first = given[0] if given else None
    named = first.what if isinstance(first, _Name) else ""
    if kind.what == "make" and named == "matrix" and _is_plain(*given[1:]):
        return _Made("matrix")
    if kind.what == "make array" and named == "array" and given[1:2] == ((0,),):
        return _Made("array")
    if kind.what == "dtype" and isinstance(first, str):
        return _Made("dtype", first.lstrip("<>=|"))
    if kind.what == "dict" and named == "list":
        return {}
    if kind.what == "bytes" and isinstance(first, str) and given[1:] == ("latin1",):
        return first.encode("latin1")
    _refuse(f"a call of {kind.what} with {named or type(first).__name__}")


def _is_plain(base: Any = None, state: Any = None, *more: Any) -> bool:
    """Whether an object begins as one of Python's plain ones, without a state."""
    plain = isinstance(base, _Name) and base.what == "object"
    return plain and not state and not any(more)


def _filled(made: _Made, state: Any) -> None:
    """Fill an object by its state, which is data."""
    if made.what == "dtype" and isinstance(state, tuple) and len(state) > 1:
        if not isinstance(state[1], str) or state[1] not in "<>=|" or any(state[2:5]):
            _refuse("a dtype of parts")
        made.value = np.dtype(state[1] + made.code)
    elif made.what == "array" and isinstance(state, tuple) and len(state) == 5:
        made.value = _array(*state[1:])
    elif made.what == "matrix" and isinstance(state, dict):
        made.value = state
    else:
        _refuse(f"a state of {made.what}")


def _array(shape: Any, kind: Any, columns_first: Any, raw: Any) -> np.ndarray | list[Any]:
    """An array of the bytes that are there; a copy, since they do not change."""
    dtype = kind.value if isinstance(kind, _Made) and kind.what == "dtype" else None
    if dtype == np.dtype(object) and shape == () and isinstance(raw, list):
        return raw  # of one object, which :func:`taken_apart` takes out
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf" or not whole:
        _refuse(f"an array of {dtype}")
    if not isinstance(raw, bytes) or math.prod(shape) * dtype.itemsize != len(raw):
        _refuse(f"an array {shape} of {dtype} in other bytes")
    flat = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if columns_first else "C")


def _plain(found: Any) -> Any:
    """An array or a matrix for what stands for it."""
    if not isinstance(found, _Made):
        return found
    if found.what == "matrix":
        return _csr(found.value)
    if found.value is None:
        _refuse(f"a {found.what} without a state")
    return found.value


def _csr(state: Any) -> Csr:
    shape = state.get("_shape") if isinstance(state, dict) else None
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        _refuse("a matrix without a shape")
    arrays = {k: torch.from_numpy(_plain(state[k])) for k in ("data", "indices", "indptr")}
    indices, indptr = (integers(arrays, name, None) for name in ("indices", "indptr"))
    values = floats({"data": arrays["data"].float()}, "data", len(indices))
    parts = {"indptr": indptr, "indices": indices, "values": values}
    return Csr.of_state(parts | {"n_cols": shape[1]})
