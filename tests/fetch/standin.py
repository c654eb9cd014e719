"""A driver and a device that are not there, so that a machine without any holds to the same laws.

:class:`Driver` keeps a journal of what is registered. :class:`Far` is a tensor of the device
``meta`` that has values: it computes, refuses to meet host tensors with axes as a device's tensor
does, and may lie over host memory as a registered view does.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from shoal.fetch import device_rows

FAR = torch.device("meta")
_IDS_MAY_BE_NEAR = ("index", "index_put_", "_index_put_impl_", "copy_", "_to_copy")


class Driver:
    """Stands in for torch.cuda: keeps a journal, and registers until `room` bytes are locked."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.room = room
        self.locked: dict[int, int] = {}
        self.journal: list[str] = []

    def cudaHostRegister(self, pointer: int, nbytes: int, flags: int) -> int:
        assert flags == 3 and nbytes > 0
        self.journal.append("register")
        for start, size in self.locked.items():
            if pointer < start + size and start < pointer + nbytes:
                return 712  # already registered
        if sum(self.locked.values()) + nbytes > self.room:
            return 2  # out of memory
        self.locked[pointer] = nbytes
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        self.journal.append("unregister")
        del self.locked[pointer]
        return 0

    def synchronize(self) -> None:
        self.journal.append("synchronize")


class Far(Tensor):
    """A tensor of a device that is not there, by way of a host tensor."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Far:
        about = {"strides": inner.stride(), "dtype": inner.dtype, "device": FAR}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, **about)  # pyright: ignore
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        for x in tree_leaves((args, kwargs)):
            near = isinstance(x, Tensor) and not isinstance(x, Far) and x.dim() > 0
            if near and name not in _IDS_MAY_BE_NEAR:
                raise RuntimeError("Expected all tensors to be on the same device")
        to_host = kwargs.get("device") == torch.device("cpu")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        bare = tree_map(lambda x: x.inner if isinstance(x, Far) else x, (args, kwargs))
        out = func(*bare[0], **bare[1])
        if name.endswith("_") or (name == "copy_" and not isinstance(args[0], Far)):
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        if to_host:
            return out.clone() if out is bare[0][0] else out
        return tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, out)


def far(tensor: Tensor) -> Tensor:
    """A copy of a host tensor, far away."""
    return Far(tensor.detach().clone())


def near(interface: device_rows._Interface, device: torch.device) -> Tensor:
    """Stands in for torch: a tensor over the memory that the interface describes, holding it."""
    about = interface.__cuda_array_interface__
    width = int(about["typestr"][2:])
    steps = [step // width for step in about["strides"]]
    last = sum((size - 1) * step for size, step in zip(about["shape"], steps, strict=True))
    memory = (ctypes.c_char * (width * (last + 1))).from_address(about["data"][0])
    memory.held = interface
    flat = torch.frombuffer(memory, dtype=device_rows._SAME_WIDTH[width])
    view = flat.as_strided(about["shape"], steps)
    return view if device.type == "cpu" else Far(view)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    return tensor.cpu() if device.type == "cpu" else far(tensor)
