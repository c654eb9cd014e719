"""A table in host memory that any device indexes: ``table[ids]`` arrives where `ids` are.

:class:`UnifiedTensor` is a real CPU tensor, in place over memory that someone else allocated or a
file maps, whose row reads are shoal's: on CPU ids, :func:`~shoal.fetch.gather.gather_rows` into
reused memory; on CUDA ids, the device's own read of the host rows
(:class:`~shoal.fetch.register.DeviceRows`). Everything else is torch's and gives plain tensors. The
idea and the rule of placement, index on the device ⇒ rows on the device, are PyTorch-Direct's (Min
et al., 2021, arXiv 2101.07956).

With a row optimizer the rows learn: ``table.update(ids, grad)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from shoal._checks import InputError, expect, expect_file, fail
from shoal.fetch.gather import LENT_BYTES, Buffers, gather_mean, gather_rows
from shoal.fetch.register import DeviceRows
from shoal.fetch.update import RowOptimizer


class UnifiedTensor(Tensor):
    """Host rows that arrive on the device of their ids. Make one by :meth:`of` or :meth:`open`.

    ``table[ids]``, ``table.index_select(0, ids)`` and ``torch.nn.functional.embedding(ids, table)``
    read rows as :meth:`gather` does; all other operations are torch's on a CPU tensor.

    Attributes:
        optimizer: what moves the rows in :meth:`update`, or None for a table that does not learn.

    Example:
        >>> host = torch.arange(6.0).view(3, 2)
        >>> table = UnifiedTensor.of(host)
        >>> table[torch.tensor([2, 0])]
        tensor([[4., 5.],
                [0., 1.]])
        >>> host[0, 0] = 7.0  # the same memory
        >>> table.gather(torch.tensor([0])).tolist()
        [[7.0, 1.0]]
    """

    optimizer: RowOptimizer | None
    _plain: Tensor
    _mapped: bool
    _row_bytes: int
    _buffers: Buffers
    _device_rows: DeviceRows

    @staticmethod
    def of(
        rows: Shaped[Tensor, "n ..."] | np.ndarray, optimizer: RowOptimizer | None = None
    ) -> UnifiedTensor:
        """Make a table over the memory of `rows`, without a copy.

        Args:
            rows: a CPU tensor or a numpy array or memory map, at least 1-d; a unified tensor
                without a new optimizer is returned as it is.
            optimizer: moves the rows in :meth:`update`.

        Raises:
            InputError: if the rows are not in host memory, have no rows, or are read-only.
        """
        if isinstance(rows, UnifiedTensor):
            return rows if optimizer is None else _make(rows._plain, optimizer, rows._mapped)
        if isinstance(rows, np.ndarray):
            remedy = 'open the map with mode="c" (changes stay in memory) or copy the array'
            expect(rows.flags.writeable, "rows", "a writable array", "a read-only one", remedy)
            mapped = isinstance(rows, np.memmap)
            return _make(torch.from_numpy(rows), optimizer, mapped)
        return _make(rows.detach(), optimizer, mapped=False)

    @staticmethod
    def open(path: str | Path, name: str | None = None) -> UnifiedTensor:
        """Map rows that lie in a file; they are read from disk when they are touched.

        Writing to the table changes this process's copy, never the file.

        Args:
            path: a ``.npy`` or ``.safetensors`` file.
            name: which tensor of a safetensors file; not needed where it holds one.

        Raises:
            InputError: if the file is missing, truncated or of another kind.
        """
        path = expect_file(path, "rows, .npy or .safetensors")
        kind = path.suffix
        known = kind in (".npy", ".safetensors")
        expect(known, str(path), "a .npy or .safetensors file", kind, "save it as one of them")
        rows = _map_npy(path) if kind == ".npy" else _map_safetensors(path, name)
        return _make(rows, None, mapped=True)

    # -- reading -----------------------------------------------------------------------------

    def gather(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``self[ids]`` on the device of `ids`, without a gradient.

        The word is the design's; torch's own gather remains ``torch.gather(table, dim, index)``.

        Args:
            ids: int32 or int64, each in ``[0, n)``; repeats allowed.
            out: where to write, of the result's shape, dtype and device; lent memory if None, which
                is used again when nobody holds the result any more.

        Raises:
            InputError: if an id is out of range or `out` does not fit.
        """
        if ids.is_cuda:
            return self._device_rows.gather(ids, out)
        if out is None:
            out = self._lent(ids.numel())
        return gather_rows(self._plain, ids, out)

    def gather_mean(
        self,
        indices: Int[Tensor, " e"],
        offsets: Int[Tensor, " b_plus_1"],
        weights: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Return the weighted mean of each bag of rows: :func:`shoal.fetch.gather.gather_mean`.

        Raises:
            InputError: if an id is out of range, or offsets or weights do not fit.
        """
        return gather_mean(self._plain, indices, offsets, weights)

    def _lent(self, count: int) -> Tensor | None:
        if count * self._row_bytes < LENT_BYTES:
            return None  # torch's own allocator reuses what is small
        return self._buffers.empty((count, *self._plain.shape[1:]), self._plain.dtype)

    # -- learning ----------------------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether a step changes the rows, so that none may be read ahead of it."""
        return self.optimizer is not None

    def update(self, ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]) -> None:
        """Move rows `ids` along their gradients, by the table's optimizer; doubles are summed once.

        Args:
            ids: rows of the gradients, as they were gathered; on any device.
            grad: one gradient an id, scaled and clipped already.

        Raises:
            InputError: if the table has no optimizer, or ids or gradients do not fit it.
        """
        if self.optimizer is None:
            fail("table", "an optimizer", None, "make it with UnifiedTensor.of(rows, RowAdam())")
        self.optimizer.step(self._plain, ids.cpu(), grad.cpu())

    # -- being a tensor ----------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Read rows our way, do everything else torch's way on plain tensors."""
        with torch._C.DisableTorchFunctionSubclass():
            read = _READS.get(func)
            if read is not None:
                rows = read(*args, **(kwargs or {}))
                if rows is not None:
                    return rows
            return func(*args, **(kwargs or {}))

    def share_memory_(self) -> UnifiedTensor:
        """Move the rows to memory that other processes see; devices map them anew."""
        self._device_rows.forget()
        self._plain.share_memory_()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> UnifiedTensor:
        if id(self) not in memo:
            optimizer = copy.deepcopy(self.optimizer, memo)
            memo[id(self)] = _make(self._plain.clone(), optimizer, mapped=False)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return UnifiedTensor.of, (self._plain, self.optimizer)


def _make(rows: Tensor, optimizer: RowOptimizer | None, mapped: bool) -> UnifiedTensor:
    expect(rows.device.type == "cpu", "rows", "host memory", rows.device, "move them with .cpu()")
    expect(rows.dim() >= 1, "rows", "at least one axis", "a number", "stack the rows")
    table = torch.Tensor._make_subclass(UnifiedTensor, rows)
    table.optimizer = optimizer
    table._plain = rows
    table._mapped = mapped
    table._row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
    table._buffers = Buffers()
    table._device_rows = DeviceRows(rows, mapped)
    return table


def _map_npy(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, TypeError) as error:
        fail(str(path), "a whole .npy file of numbers", error, "save it again")


def _map_safetensors(path: Path, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            one = name in names or (name is None and len(names) == 1)
            expect(one, str(path), f"name, one of {names}", name, "pass the name of the rows")
            return file.get_tensor(names[0] if name is None else name)
    except (OSError, SafetensorError) as error:
        fail(str(path), "a whole .safetensors file", error, "save it again")


# -- torch's spellings of a row read; None leaves it to torch ----------------------------------


def _getitem(table: Any, index: Any) -> Tensor | None:
    is_ids = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64)
    if not is_ids or not isinstance(table, UnifiedTensor) or table.requires_grad:
        return None
    try:
        if index.dim() == 1:
            return table.gather(index)
        return table.gather(index.reshape(-1)).view(*index.shape, *table._plain.shape[1:])
    except InputError:
        return None  # negative ids count from the end, and torch words its own errors


def _index_select(
    input: Any, dim: Any, index: Tensor, *, out: Tensor | None = None
) -> Tensor | None:
    if dim != 0 or out is not None or index.dim() != 1:
        return None
    return _getitem(input, index)


def _embedding(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> Tensor | None:
    return _getitem(weight, input) if max_norm is None else None


_READS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    Tensor.__getitem__: _getitem,
    Tensor.index_select: _index_select,
    torch.index_select: _index_select,
    functional.embedding: _embedding,
}
