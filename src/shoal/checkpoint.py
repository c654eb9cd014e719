"""Nested state in one file: tensors by safetensors, everything else as JSON beside them.

A state is a tree of dictionaries and lists whose keys are strings or integers (torch's optimizers
number their parameters) and whose leaves are tensors, numbers, strings, booleans or None. It is
written to a temporary file that then takes the old one's place, so a killed process or a full disk
leaves the earlier checkpoint whole. No pickle: reading a foreign file runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal._checks import expect, expect_file, fail

_FORMAT = "shoal.checkpoint/1"
_TENSOR = "$tensor"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`, all of it or nothing.

    Raises:
        InputError: if the folder cannot be written to or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, "", tensors))
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_unshared(tensors), new, metadata={"format": _FORMAT, "state": tree})
        new.replace(path)
    except (OSError, SafetensorError) as error:
        new.unlink(missing_ok=True) if path.parent.is_dir() else None
        fail(str(path), "a place to write a checkpoint", error, "free space or name another --out")


def load(path: str | Path) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Raises:
        InputError: if the file is missing, damaged, or no checkpoint of this format.
    """
    from safetensors import SafetensorError, safe_open

    path = expect_file(path, "a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        fail(str(path), "a whole checkpoint", error, "use an earlier one or train again")
    got = about.get("format")
    expect(got == _FORMAT, str(path), f"a checkpoint of format {_FORMAT}", got, "train again")
    return _rebuild(json.loads(about["state"]), tensors)


def _flatten(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON tree of `node`, with its tensors moved to `tensors` under their paths."""
    if isinstance(node, Tensor):
        tensors[name] = node.detach().cpu()
        return {_TENSOR: name}
    if isinstance(node, dict):
        items = {f"#{k}" if isinstance(k, int) else k: value for k, value in node.items()}
        return {key: _flatten(value, f"{name}/{key}", tensors) for key, value in items.items()}
    if isinstance(node, (list, tuple)):
        return [_flatten(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    return node


def _rebuild(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        items = {int(k[1:]) if k[:1] == "#" else k: value for k, value in node.items()}
        return {key: _rebuild(value, tensors) for key, value in items.items()}
    if isinstance(node, list):
        return [_rebuild(value, tensors) for value in node]
    return node


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
    """Whether two states are equal, tensors bit for bit.

    Example:
        >>> same_tensors({"a": [torch.ones(2), 1]}, {"a": [torch.ones(2), 1]})
        True
        >>> same_tensors({"a": torch.ones(2)}, {"a": torch.zeros(2)})
        False
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same_tensors(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same_tensors, one, two))
    return bool(one == two)
