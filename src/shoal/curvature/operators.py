"""Linear operators of other libraries as products: curvlinops', scipy's, or a plain matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.core.errors import expect, fail
from shoal.curvature.lanczos import Product


def product_of(operator: Any) -> tuple[Product, int, torch.dtype, torch.device]:
    """Return the product, its size, and the dtype and device of the vectors that it takes.

    Args:
        operator: square, with ``shape`` and ``@`` or ``matvec``, of torch or numpy vectors. What
            has a ``device`` takes torch's.

    Raises:
        InputError: if it is not square or has no product.

    Example:
        >>> product, p, _, _ = product_of(torch.eye(3))
        >>> p, product(torch.ones(3)).tolist()
        (3, [1.0, 1.0, 1.0])
    """
    shape = [int(size) for size in getattr(operator, "shape", ())]
    square = len(shape) == 2 and shape[0] == shape[1]
    expect(square, "operator", "a square shape", shape or "none", "pass a linear operator")
    p = shape[0]
    apply = getattr(operator, "__matmul__", None) or getattr(operator, "matvec", None)
    if apply is None:
        fail("operator", "@ or matvec", type(operator).__name__, "pass a linear operator")
    dtype: Any = getattr(operator, "dtype", torch.float64)
    if hasattr(operator, "device"):
        kind = dtype if isinstance(dtype, torch.dtype) else torch.float64
        return apply, p, kind, torch.device(operator.device)

    def through_numpy(v: Tensor) -> Tensor:
        made = apply(v.numpy().astype(np.dtype(dtype)))
        return torch.from_numpy(np.asarray(made, dtype=np.float64))

    return through_numpy, p, torch.float64, torch.device("cpu")
