"""Nested state in one file: tensors by safetensors, everything else as JSON beside them.

A state is a tree of dictionaries and lists whose keys are strings or integers (torch's optimizers
number their parameters) and whose leaves are tensors, numbers, strings, booleans or None; tuples
come back as lists. It is written to the side and takes the old one's place when the disk has it
(:mod:`shoal.core.files`), so a killed process or a full disk leaves the earlier checkpoint whole. A
checksum over everything reveals damage. No pickle: reading a foreign file runs nothing.

A tensor is named by its place in the tree, ``/model/layer.weight``; keys are escaped so that names
are distinct: an integer is ``#3``, and ``~ / #`` in a string are ``~0 ~1 ~2`` (after RFC 6901).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core.errors import expect, expect_file, fail
from shoal.core.files import file_aside

_FORMAT = "shoal.checkpoint/1"
_TENSOR = "/"  # no escaped key: stands for a tensor and its name
_ESCAPES = (("~", "~0"), ("/", "~1"), ("#", "~2"))


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, all of it or nothing.

    Raises:
        InputError: if the state holds something else, the folder cannot be written to or the disk
            is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save(Path(folder, "c"), {"step": 3, "moments": {0: [torch.ones(2), None]}})
        ...     load(Path(folder, "c"))
        {'step': 3, 'moments': {0: [tensor([1., 1.]), None]}}
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, "", tensors))
    tensors = _unshared(tensors)
    about = {"format": _FORMAT, "state": tree, "checksum": _checksum(tree, tensors)}
    try:
        with file_aside(path) as new:
            save_file(tensors, new, metadata=about)
    except (OSError, SafetensorError) as error:
        fail(str(path), "a place to write a checkpoint", error, "free space or name another --out")


def load(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Args:
        path: of the file.
        mapped: leave the tensors in the file: then it must stay as it is while they are used. Who
            writes over it changes them, and who cuts it kills the process.

    Raises:
        InputError: if the file is missing, damaged, or no checkpoint of this format.
    """
    from safetensors import SafetensorError, safe_open

    path = expect_file(path, "a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            got = about.get("format")
            expect(
                got == _FORMAT, str(path), f"a checkpoint of format {_FORMAT}", got, "train again"
            )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            if not mapped:  # tensor by tensor: pages that were read can leave memory again
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    except (OSError, SafetensorError, UnicodeError, AttributeError, TypeError) as error:
        # the last two: numbers of a kind that this torch lacks
        fail(str(path), "a whole checkpoint", error, "use an earlier one or train again")
    tree = about.get("state", "")
    whole = _checksum(tree, tensors) == about.get("checksum")
    expect(whole, str(path), "a whole checkpoint", "other bytes than were written", "train again")
    try:
        state = _rebuild(json.loads(tree), tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        fail(str(path), "the tree of its tensors", repr(error)[:80], "train again")
    if not isinstance(state, dict):
        fail(str(path), "a tree of names", type(state).__name__, "train again")
    return state


def _flatten(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON tree of `node`, with its tensors moved to `tensors` under their paths."""
    if isinstance(node, Tensor):
        tensors[name] = node.detach().cpu()
        return {_TENSOR: name}
    if isinstance(node, dict):
        items = {_escape(key): value for key, value in node.items()}
        return {key: _flatten(value, f"{name}/{key}", tensors) for key, value in items.items()}
    if isinstance(node, (list, tuple)):
        return [_flatten(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    plain = node is None or isinstance(node, (bool, int, float, str))
    want = "tensors, numbers, strings, booleans or None"
    expect(plain, f"state{name}", want, type(node).__name__, "convert it in state_dict()")
    return node


def _rebuild(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        return {_unescape(key): _rebuild(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_rebuild(value, tensors) for value in node]
    return node


def _escape(key: object) -> str:
    if isinstance(key, int) and not isinstance(key, bool):
        return f"#{key}"
    if not isinstance(key, str):
        fail("state", "keys that are strings or integers", repr(key), "name it by a string")
    for plain, escaped in _ESCAPES:
        key = key.replace(plain, escaped)
    return key


def _unescape(key: str) -> str | int:
    if key[:1] == "#":
        return int(key[1:])
    for plain, escaped in reversed(_ESCAPES):
        key = key.replace(escaped, plain)
    return key


def _checksum(tree: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of the tree and of every tensor's name, kind and bytes."""
    crc = zlib.crc32(tree.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(_bytes(tensor).numpy().data, crc)
    return f"{crc:08x}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain contiguous tensors, a copy of each that shares memory with one before it."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.as_subclass(Tensor).contiguous()
        where = plain.untyped_storage().data_ptr()
        partial = plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
        result[name] = plain.clone() if partial or (where in seen and where) else plain
        seen.add(where)
    return result


def same_tensors(one: Any, two: Any) -> bool:
    """Whether two states are equal, tensors and numbers bit for bit, NaN and all.

    Example:
        >>> same_tensors({"a": [torch.ones(2), 1]}, {"a": [torch.ones(2), 1]})
        True
        >>> same_tensors({"a": torch.ones(2)}, {"a": torch.zeros(2)})
        False
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        alike = one.dtype == two.dtype and one.shape == two.shape
        return alike and torch.equal(_bytes(one), _bytes(two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same_tensors(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same_tensors, one, two))
    return type(one) is type(two) and repr(one) == repr(two)
