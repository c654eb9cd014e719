"""A table in host memory that any device indexes: ``table[ids]`` arrives where `ids` are.

:class:`UnifiedTensor` is a real CPU tensor, in place over memory that someone else allocated or a
file maps, whose row reads are shoal's: on CPU ids, :func:`~shoal.fetch.gather.gather_rows` into
reused memory; on CUDA ids, the device's own read of the host rows
(:class:`~shoal.fetch.device_rows.DeviceRows`). Other operations are torch's, computed where their
operands are (:mod:`shoal.fetch.placement`), and give plain tensors. The idea is PyTorch-Direct's
(Min et al., 2021, arXiv 2101.07956).

:func:`unified` makes one of rows that exist; :meth:`UnifiedTensor.zeros` and its like make the rows
too. With a row optimizer the rows learn: ``table.update(ids, grad)``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from shoal.core.errors import expect, expect_ids, fail
from shoal.core.mapped import Origin, is_written, map_rows
from shoal.fetch import device_rows
from shoal.fetch.device_rows import DeviceRows
from shoal.fetch.dispatch import DISPATCH
from shoal.fetch.gather import LENT_BYTES, Buffers, gather_rows
from shoal.fetch.placement import carry_out
from shoal.fetch.register import madvise
from shoal.fetch.staged import Choice
from shoal.fetch.update import RowOptimizer

# Tables that were freed lend their memory to new ones of up to this size; more would be missed by
# whoever freed it.
_KEPT_BYTES = 1 << 30
_FREED = Buffers(keep=2)

Device = torch.device | str | None


def unified(
    rows: Shaped[Tensor, "n ..."] | np.ndarray | str | Path,
    optimizer: RowOptimizer | None = None,
    *,
    name: str | None = None,
    default_device: Device = None,
    propagates: bool = False,
) -> UnifiedTensor:
    """Make a table over the memory of `rows`, without a copy.

    Args:
        rows: a CPU tensor, a numpy array or memory map, or a ``.npy``, ``.npz`` or
            ``.safetensors`` file, which may be larger than memory and is read when it is touched;
            writing to it changes this process's copy. A table of a file travels to other processes,
            and is copied, as the file's path, until its rows are written to. At least 1-d. A leaf
            that requires a gradient gives a table that does, and a parameter a parameter. A unified
            tensor without new settings is returned as it is.
        optimizer: moves the rows in :meth:`UnifiedTensor.update`.
        name: which array of a file that may hold several; not needed where it holds one.
        default_device: computes where operands leave the place open (host ids, no other operand);
            the host if None. A loader's workers and forked children stay on the host.
        propagates: whether what is computed from unified operands alone is unified again.

    Raises:
        InputError: if the rows are not in host memory, have no rows, are read-only, or the file is
            missing, truncated or of another kind.

    Example:
        >>> host = torch.arange(6.0).view(3, 2)
        >>> table = unified(host)
        >>> host[0, 0] = 7.0  # the same memory
        >>> table[torch.tensor([2, 0])]
        tensor([[4., 5.],
                [7., 1.]])
    """
    device = None if default_device is None else torch.device(default_device)
    settings: dict[str, Any] = {"default_device": device, "propagates": propagates}
    if isinstance(rows, UnifiedTensor):
        if optimizer is None and device is None and not propagates:
            return rows
        kept = {"mapped": rows._mapped, "origin": rows._origin}
        return _make(rows._plain, optimizer or rows.optimizer, **kept, **settings)
    if isinstance(rows, str | Path):
        plain = map_rows(rows, name)
        return _make(plain, optimizer, mapped=True, origin=Origin.of(rows, name), **settings)
    known = isinstance(rows, Tensor | np.ndarray)
    expect(known, "rows", "a tensor, an array or a path", type(rows).__name__, "convert them")
    if isinstance(rows, np.ndarray):
        numbers = rows.dtype.kind in "biufc"
        expect(numbers, "rows", "an array of numbers", rows.dtype, "convert it")
        remedy = 'open the map with mode="c" (changes stay in memory) or copy the array'
        expect(rows.flags.writeable, "rows", "a writable array", "a read-only one", remedy)
        mapped = isinstance(rows, np.memmap)
        return _make(torch.from_numpy(rows), optimizer, mapped=mapped, **settings)
    expect(rows.is_leaf, "rows", "a leaf of autograd", "a result of others", "call .detach()")
    settings |= {
        "requires_grad": rows.requires_grad,
        "parameter": isinstance(rows, nn.Parameter),
    }
    return _make(rows.detach(), optimizer, **settings)


class UnifiedTensor(Tensor):
    """Host rows that arrive on the device of their ids. Make one by :func:`unified`.

    ``table[ids]``, ``table.index_select(0, ids)`` and ``torch.nn.functional.embedding(ids, table)``
    read rows as :meth:`gather` does, and ``table[ids] = rows``, ``index_copy_`` and ``index_add_``
    write them from any device; all other operations are torch's.

    Attributes:
        optimizer: what moves the rows in :meth:`update`, or None for a table that does not learn.
        default_device: where it computes when its operands leave that open, or None for the host.
        propagates: whether results of unified operands alone are unified.
        is_unified: true.

    Example:
        >>> table = UnifiedTensor.zeros(3, 2)
        >>> table[torch.tensor([1])] = torch.tensor([[4.0, 5.0]])
        >>> table.gather(torch.tensor([1, 0])).tolist()
        [[4.0, 5.0], [0.0, 0.0]]
    """

    is_unified = True
    optimizer: RowOptimizer | None
    default_device: torch.device | None
    propagates: bool
    _is_param: bool
    _plain: Tensor
    _mapped: bool
    _origin: Origin | None
    _row_bytes: int
    _buffers: Buffers
    _device_rows: DeviceRows
    _is_alias: bool

    @staticmethod
    def empty(*shape: int, dtype: torch.dtype = torch.float32, **settings: Any) -> UnifiedTensor:
        """Make a table whose rows hold anything, in the memory of one that was freed, if it fits.

        Args:
            shape: rows, and the axes of a row.
            dtype: of the numbers.
            settings: those of :func:`unified`.

        Raises:
            InputError: if a size is negative or there is no axis of rows.
        """
        good = all(size >= 0 for size in shape)
        expect(good, "shape", "sizes of at least 0", shape, "drop the sign")
        nbytes = math.prod(shape) * dtype.itemsize
        if LENT_BYTES <= nbytes <= _KEPT_BYTES:
            return unified(_FREED.empty(shape, dtype), **settings)
        return unified(torch.empty(shape, dtype=dtype), **settings)

    @staticmethod
    def full(*shape: int, value: float | int, **settings: Any) -> UnifiedTensor:
        """Make a table of one number; `settings` are those of :meth:`empty`."""
        table = UnifiedTensor.empty(*shape, **settings)
        table._plain.fill_(value)
        return table

    @staticmethod
    def zeros(*shape: int, **settings: Any) -> UnifiedTensor:
        """Make a table of zeros; `settings` are those of :meth:`empty`."""
        return UnifiedTensor.full(*shape, value=0, **settings)

    # -- reading and writing -----------------------------------------------------------------

    def gather(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Int[Tensor, " s"], out: Shaped[Tensor, "s ..."] | None = None
    ) -> Shaped[Tensor, "s ..."]:
        """Return ``self[ids]`` on the device of `ids`, without a gradient.

        The word is the design's; torch's own gather remains ``torch.gather(table, dim, index)``.

        Args:
            ids: int32 or int64, each in ``[0, n)``; repeats allowed.
            out: where to write, of the result's shape, dtype and device; lent memory if None,
                which is reused once no reference to the result is left.

        Raises:
            InputError: if an id is out of range or `out` does not fit. A device's id is looked at
                by the device: the next call, or the next that waits for the device, raises.
        """
        if not isinstance(ids, Tensor):
            expect_ids("ids", ids, len(self))
        if not ids.is_cpu:
            return self._device_rows.gather(ids, out)
        self._device_rows.synchronize()
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
        return self._device_rows.gather_mean(indices, offsets, weights)

    @property
    def choices(self) -> dict[torch.device, list[Choice]]:
        """By which way each device reads rows, zero-copy or staged, and the times that decided."""
        return self._device_rows.choices

    def put(
        self, ids: Int[Tensor, " s"], rows: Shaped[Tensor, "s ..."], add: bool = False
    ) -> UnifiedTensor:
        """Write rows, or add them; from a device, the device writes into host memory by itself.

        Args:
            ids: each in ``[0, n)``, on any device. With `add`, doubles add up; without, one wins.
            rows: one per id, of the table's dtype.
            add: whether to add to what is there.

        Raises:
            InputError: if an id is out of range; nothing is written then.
        """
        if rows.is_cpu or not self._device_rows.put(ids, rows, add):
            self.synchronize(writes=True)
            ids, rows = ids.cpu(), rows.cpu()
            expect_ids("ids", ids, len(self))
            want, got = (len(ids), *self.shape[1:]), (tuple(rows.shape), rows.dtype)
            same = got == (want, self.dtype)
            expect(same, "rows", f"{want} {self.dtype}", f"{got[0]} {got[1]}", "align them")
            (self._plain.index_add_ if add else self._plain.index_copy_)(0, ids, rows)
        return self

    def _lent(self, count: int) -> Tensor | None:
        if count * self._row_bytes < LENT_BYTES:
            return None  # torch's own allocator reuses what is small
        return self._buffers.empty((count, *self._plain.shape[1:]), self._plain.dtype)

    # -- learning ----------------------------------------------------------------------------

    @property
    def trainable(self) -> bool:
        """Whether a step changes the rows, so that none may be read ahead of it."""
        return self.optimizer is not None

    def update(self, ids: Int[Tensor, " s"], grad: Float[Tensor, "s ..."]) -> None:
        """Move rows `ids` along their gradients, by the table's optimizer; doubles are summed once.

        Gradients on a device are applied there, to rows and state in host memory, where the device
        reaches them and the optimizer is one of shoal's; on the host otherwise.

        Args:
            ids: rows of the gradients, as they were gathered; on any device.
            grad: one gradient per id, scaled and clipped already.

        Raises:
            InputError: if the table has no optimizer, or ids or gradients do not fit it.
        """
        if self.optimizer is None:
            fail("table", "an optimizer", None, "make it with shoal.unified(rows, RowAdam())")
        device, reaches = grad.device, getattr(self.optimizer, "reaches", None)
        if reaches is not None and not grad.is_cpu:
            rows = self._device_rows.view(device)
            if rows is not None and reaches(self._plain, device):
                self._device_rows.view(device, writes=True)
                return self.optimizer.step(rows, device_rows.to_device(ids, device), grad)
        self.synchronize(writes=True)
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
        """Read and write rows our way, do everything else torch's way on plain tensors."""
        with torch._C.DisableTorchFunctionSubclass():
            ours = DISPATCH.get(func)
            if ours is not None:
                answer = ours(*args, **(kwargs or {}))
                if answer is not None:
                    return answer
            return carry_out(func, args, kwargs or {})

    def advise(self, advice: str) -> None:
        """Tell the system how the rows will be read: see :func:`shoal.fetch.register.madvise`."""
        madvise(self._plain, advice, self._mapped)

    def synchronize(self, writes: bool = False) -> None:
        """Wait for what devices wrote and, where the host is about to write, for their reads.

        Operations do so by themselves; needed before memory is used in other ways, by numpy say.
        """
        self._device_rows.synchronize(writes)

    def share_memory_(self) -> UnifiedTensor:
        """Move the rows to memory that other processes see; devices map them again."""
        self._device_rows.forget()
        self._plain.share_memory_()
        self._origin = None
        return self

    def alias(self) -> UnifiedTensor:
        """Another tensor over the same memory, without a gradient: what detach() gives.

        It is pickled as a plain tensor, so that a module's state_dict() can be read without shoal.
        """
        other = torch.Tensor._make_subclass(UnifiedTensor, self._plain)
        vars(other).update(vars(self))
        other._is_alias, other._is_param = True, False
        return other

    def like(self, rows: Shaped[Tensor, "n ..."]) -> UnifiedTensor:
        """A table of other rows, from any device, with this one's settings."""
        return unified(rows.cpu(), default_device=self.default_device, propagates=self.propagates)

    def __deepcopy__(self, memo: dict[int, Any]) -> UnifiedTensor:
        if id(self) not in memo:
            self.synchronize()
            optimizer = copy.deepcopy(self.optimizer, memo)
            file = self._file()
            rows = self._plain.clone() if file is None else file
            memo[id(self)] = _copy(rows, optimizer, **self._settings())
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        self.synchronize()
        if self._is_alias and not self._is_param:
            return self._plain.__reduce_ex__(protocol)
        return partial(_copy, **self._settings()), (self._file() or self._plain, self.optimizer)

    def _file(self) -> Origin | None:
        """The file that holds these rows, if one does."""
        return None if self._origin is None or is_written(self._plain) else self._origin

    def _settings(self) -> dict[str, Any]:
        """What makes a table of other memory like this one."""
        kind = {"requires_grad": self.requires_grad, "parameter": self._is_param}
        return {"default_device": self.default_device, "propagates": self.propagates, **kind}


def _copy(rows: Tensor | Origin, optimizer: RowOptimizer | None, **settings: Any) -> UnifiedTensor:
    """A table of rows that travelled, or of the file that they lie in."""
    if isinstance(rows, Tensor):
        return _make(rows, optimizer, **settings)
    rows.expect_same()
    plain = map_rows(rows.path, rows.name)
    return _make(plain, optimizer, mapped=True, origin=rows, **settings)


def _make(
    rows: Tensor,
    optimizer: RowOptimizer | None,
    *,
    default_device: torch.device | None,
    propagates: bool,
    mapped: bool = False,
    origin: Origin | None = None,
    requires_grad: bool = False,
    parameter: bool = False,
) -> UnifiedTensor:
    expect(rows.is_cpu, "rows", "host memory", rows.device, "move them with .cpu()")
    strided = rows.layout == torch.strided
    expect(strided, "rows", "a dense tensor", rows.layout, "call .to_dense()")
    expect(rows.dim() >= 1, "rows", "at least one axis", "a number", "stack the rows")
    table = torch.Tensor._make_subclass(UnifiedTensor, rows)
    table.optimizer, table.default_device, table.propagates = optimizer, default_device, propagates
    table._plain, table._is_alias = rows, False
    table._mapped, table._origin = mapped, origin
    table._is_param = parameter  # torch takes a tensor with this mark for a parameter
    table._row_bytes = math.prod(rows.shape[1:]) * rows.element_size()
    table._buffers = Buffers()
    table._device_rows = DeviceRows(rows, mapped)
    table.requires_grad_(requires_grad)
    return table
