"""Rows of bytes: a quarter of the memory, and of what crosses the bus, of float32.

A row x of width d is kept as d codes q in 0 … 255 and two float32 numbers behind them:

    x ≈ q·scale + bias,   bias = min x,   scale = (max x − min x) / 255

so that no number is off by more than half a scale. This is the layout of torch's own quantized
``embedding_bag`` (FBGEMM's "fused 8-bit rowwise"), whose kernel therefore reads it: the weighted
mean of bags comes straight from the bytes, without float rows in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shoal.core.errors import expect, expect_finite
from shoal.fetch.device_rows import DeviceRows
from shoal.fetch.gather import TAIL, as_floats, float_width, gather_rows
from shoal.fetch.threads import for_each

_BLOCK_BYTES = 256 << 10  # float rows of a block stay in a core's own cache until they are written


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """A table of rows of bytes that is read as float32; it does not learn.

    Attributes:
        packed: ``[n, d + 8]``, codes and then the bytes of scale and bias.

    Example:
        >>> table = QuantizedRows.of(torch.tensor([[0.0, 0.5, 1.0], [7.0, 7.0, 7.0]]))
        >>> table.gather(torch.tensor([1, 0])).round(decimals=2).tolist()
        [[7.0, 7.0, 7.0], [0.0, 0.5, 1.0]]
        >>> table.packed.nbytes, table.shape
        (22, (2, 3))
    """

    packed: UInt8[Tensor, "n d_plus_8"]
    _device_rows: DeviceRows = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the layout.

        Raises:
            InputError: if the rows are not bytes with room for scale and bias.
        """
        packed = self.packed
        good = packed.dim() == 2 and packed.dtype == torch.uint8 and packed.shape[1] >= TAIL
        got = f"{tuple(packed.shape)} {packed.dtype}"
        expect(good, "packed", "uint8 [n, d + 8]", got, "make it with QuantizedRows.of(rows)")
        object.__setattr__(self, "_device_rows", DeviceRows(packed))

    @staticmethod
    def of(rows: Float[Tensor, "n d"]) -> QuantizedRows:
        """Quantize rows, each by its own least and greatest number.

        Raises:
            InputError: if a row holds NaN or infinity.
        """
        expect_finite("rows", rows)
        return QuantizedRows(torch.ops.quantized.embedding_bag_byte_prepack(rows.float()))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and their width, without scale and bias."""
        return len(self.packed), float_width(self.packed)

    def gather(
        self, ids: Int[Tensor, " s"], out: Float[Tensor, "s d"] | None = None
    ) -> Float[Tensor, "s d"]:
        """Return rows `ids` as float32, on the device of `ids`.

        Args:
            ids: int32 or int64, each in ``[0, n)``; repeats allowed.
            out: float32, where to write on a CPU; a fresh tensor if None.

        Raises:
            InputError: if an id is out of range.
        """
        if ids.is_cuda:
            return self._device_rows.gather_floats(ids)
        if out is None:
            out = torch.empty(len(ids), self.shape[1])
        block = max(_BLOCK_BYTES // (4 * max(self.shape[1], 1)), 1)

        def read(ids: Tensor, out: Tensor) -> None:
            as_floats(gather_rows(self.packed, ids), out)

        for_each(read, zip(ids.split(block), out.split(block), strict=True))
        return out

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
