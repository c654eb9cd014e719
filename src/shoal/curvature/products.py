"""Products with an objective's curvature over a stream of batches.

H is the mean over all samples, so H v is the mean of the batches' products, weighted by their sizes
and summed in float64. By double-backward, the graphs of as many batches as `memory` admits are kept
between products; the others are made again each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, fail
from shoal.curvature.lanczos import Product
from shoal.curvature.problem import Problem
from shoal.curvature.routes import (
    ROUTES,
    LinearizationPoint,
    LinearOperator,
    Route,
    batch_operator,
    central_difference,
)
from shoal.curvature.spectrum import Curvature


class Products:
    """The curvature matrix ``[p, p]`` of a problem, by its products: ``products @ v``.

    Args:
        problem: what is measured, within :func:`~shoal.curvature.preserve.preserve_state`.
        curvature: ``"hessian"``, ``"ggn"`` (Gauss-Newton) or ``"fisher"`` (empirical Fisher).
        route: how (:mod:`~shoal.curvature.routes`).
        memory: bytes that graphs which are kept between products may take together, as far as the
            tensors that they save show; 0 keeps none.

    Raises:
        InputError: if the curvature or the route is unknown.
    """

    def __init__(
        self,
        problem: Problem,
        curvature: Curvature = "ggn",
        route: Route = "double-backward",
        memory: int = 1 << 30,
    ) -> None:
        kinds = ("hessian", "ggn", "fisher")
        expect(curvature in kinds, "curvature", f"one of {kinds}", curvature, "choose one")
        expect(route in ROUTES, "route", f"one of {ROUTES}", route, "choose one")
        self.problem = problem
        self.curvature: Curvature = curvature
        self.route: Route = route
        self.taken = 0.0
        self._leaves = list(problem.leaves.values())
        self._kept: dict[int, LinearOperator] = {}
        self._room = memory if route == "double-backward" else 0
        self._most = 0.0  # the longest product of a unit vector
        self._each = 0  # bytes that the graph of the first batch saves

    @property
    def shape(self) -> tuple[int, int]:
        """``(p, p)``."""
        return (self.problem.parameters, self.problem.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors that it takes."""
        return self._leaves[0].dtype

    @property
    def device(self) -> torch.device:
        """Where it takes them."""
        return self._leaves[0].device

    @property
    def kept(self) -> int:
        """Batches whose graphs are kept."""
        return len(self._kept)

    @property
    def weights(self) -> list[float]:
        """Share of the samples in each batch."""
        total = sum(self.problem.sizes)
        return [size / total for size in self.problem.sizes]

    def __matmul__(self, v: Float[Tensor, "p ..."]) -> Float[Tensor, "p ..."]:
        """H v, in float64; of a matrix each column, for which a graph is made once."""
        columns = [v] if v.dim() == 1 else list(v.T)
        total = torch.zeros(len(columns), len(v), dtype=torch.float64, device=self.device)
        for weight, found in zip(self.weights, self.each_of(columns), strict=True):
            for sums, product in zip(total, found, strict=True):
                sums.add_(product, alpha=weight)
        return total[0] if v.dim() == 1 else total.T

    def each(self, v: Float[Tensor, " p"]) -> Iterator[Float[Tensor, " p"]]:
        """The product with each batch's curvature.

        Yields:
            one after the other, in the leaves' precision.
        """
        for (product,) in self.each_of([v]):
            yield product

    def each_of(self, vectors: Sequence[Tensor]) -> Iterator[list[Float[Tensor, " p"]]]:
        """The products of each batch's curvature with several vectors.

        A graph that is not kept is made once for all of them.

        Yields:
            one list per batch.
        """
        split = [self._split(v) for v in vectors]
        for index in range(len(self.problem.batches)):
            product = self._operator(index, several=len(split) > 1)
            yield [self._smooth(index, v, _flat(product(v))) for v in split]
        self.taken += len(split)

    def along(self, index: int, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The product of one batch's curvature with `v`."""
        self.taken += self.weights[index]
        parts = self._split(v)
        return self._smooth(index, parts, _flat(self._operator(index, several=False)(parts)))

    def gradients(self) -> Iterator[Float[Tensor, " p"]]:
        """The gradient of each batch's loss.

        Yields:
            one after the other.
        """
        for index in range(len(self.problem.batches)):
            at = LinearizationPoint(self.problem, index)
            yield _flat(at.gradient(at.leaves))

    def _split(self, v: Tensor) -> list[Tensor]:
        parts = v.to(self.device, self.dtype).split([leaf.numel() for leaf in self._leaves])
        return [part.view_as(leaf) for part, leaf in zip(parts, self._leaves, strict=True)]

    def _smooth(self, index: int, v: list[Tensor], found: Tensor) -> Tensor:
        """What was found; by central differences of a Hessian only if twice their length agrees.

        An activation that changes sides between the two points, at a kink, adds a jump over their
        distance, so that an error is as large as it likes.

        Raises:
            InputError: if it does not, by a twentieth of what the matrix has done to any vector.
        """
        if self.route != "central-difference" or self.curvature != "hessian":
            return found
        at = LinearizationPoint(self.problem, index)
        apart = _flat(central_difference(at.gradient, at.leaves, v, reach=2.0)) - found
        length = max(float(_flat(v).norm()), 1e-30)
        self._most = max(self._most, float(found.norm()) / length)
        remedy = "measure the Gauss-Newton matrix, curvature='ggn', or take route='double-backward'"
        want = "a gradient that is smooth, for central differences"
        got = "products that change with the length of the difference, as at the kinks of a ReLU"
        expect(float(apart.norm()) <= 0.05 * self._most * length, "route", want, got, remedy)
        return found

    def _operator(self, index: int, several: bool) -> LinearOperator:
        if index in self._kept:
            return self._kept[index]
        keep = self._has_room(index)
        made = batch_operator(
            LinearizationPoint(self.problem, index), self.curvature, self.route, keep or several
        )
        if keep:
            self._kept[index] = made
        return made

    def _has_room(self, index: int) -> bool:
        """Whether one graph more may be kept; sizes follow from what the first one saves."""
        if self._room <= 0:
            return False
        if not self._each:
            self._each = saved_bytes(LinearizationPoint(self.problem, 0), self.curvature)
        sizes = self.problem.sizes
        kept = sum(sizes[i] for i in self._kept) + sizes[index]
        return kept * self._each <= self._room * sizes[0]


def saved_bytes(at: LinearizationPoint, curvature: Curvature) -> int:
    """Bytes of the tensors that a batch's graph by double-backward holds, parameters left out."""
    mine = {leaf.untyped_storage().data_ptr() for leaf in at.leaves}
    mine |= {x.untyped_storage().data_ptr() for x in at.problem.frozen.values()}
    found: dict[int, int] = {}

    # detached: a node that holds a hook that holds its own output would never be freed
    def count(tensor: Tensor) -> tuple[Tensor, bool]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach(), tensor.requires_grad

    def give(saved: tuple[Tensor, bool]) -> Tensor:
        return saved[0].detach().requires_grad_(saved[1])  # so that backward makes a graph as well

    with torch.autograd.graph.saved_tensors_hooks(count, give):
        made: Any = batch_operator(at, curvature, "double-backward", True)
    del made
    return max(sum(found.values()), 1)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts]).detach()


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
