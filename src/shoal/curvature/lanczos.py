"""Lanczos: the outer eigenvalues of a symmetric matrix that is known by its products alone.

Band Lanczos (Ruhe, "Implementation aspects of band Lanczos algorithms", Math. Comp. 33, 1979) with
full reorthogonalization. From `block` random orthonormal vectors, product after product,

    w = H q_j,   T[:, j] = Q'w,   q_{j + block} = (w − Q Q'w) / ‖w − Q Q'w‖,

so T = Q'HQ is a band matrix whose eigenvalues θ are the Ritz values; block = 1 is Lanczos's own
algorithm. One vector finds one copy of each eigenvalue; a block finds as many copies as it has
vectors. With T u = θ u the residual of the pair (θ, Q u) is the part of T below row m, times u: an
eigenvalue of H lies within it. Where w lies in the span already (a breakdown), the span is
invariant, and a fresh random vector takes its place.

*Quadrature.* From one random unit vector the weights w_j = (first component of Q u_j)² make
Σ_j w_j f(θ_j) = v'f(H)v, exactly for polynomials f below degree 2m; its mean over v is tr f(H) / p,
so the pairs (θ_j, w_j) stand for the density of eigenvalues (stochastic Lanczos quadrature; error
bounds: Chen, Trogdon and Ubaru, ICML 2021, arXiv 2105.06595).

Without reorthogonalization converged eigenvalues come again as ghosts; with it, and up to the few
hundred steps for which it is cheap, they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.errors import expect, expect_positive

Product = Callable[[Tensor], Tensor]
"""``[p] → [p]``, linear and symmetric."""

_CHUNK = 1 << 14  # numbers that are summed in the rows' own precision; their sums, in float64


class Basis:
    """Orthonormal rows ``[m, p]``.

    Args:
        capacity: rows that there is room for.
        p: their length.
        dtype: that they are kept in, the products' own: what a product reads is then exactly what
            others are made orthogonal to.
        device: where they are kept; host memory where they would not fit on the products' device.
    """

    def __init__(self, capacity: int, p: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty(capacity, p, dtype=dtype, device=device)
        self._count = 0

    def __len__(self) -> int:
        """Rows that are there."""
        return self._count

    @property
    def rows(self) -> Float[Tensor, "m p"]:
        """All rows, not a copy."""
        return self._rows[: self._count]

    def without(self, w: Float[Tensor, " p"], first: int = 0) -> tuple[Tensor, Tensor]:
        """Split `w` into what is orthogonal to all rows, in float64, and its coefficients on them.

        Twice: what the rows' precision leaves the first time, it removes the second time.

        Args:
            w: the vector.
            first: the first time, leave out so many rows, on which `w` has rounding alone.
        """
        rest = w.to(self._rows.device, torch.float64, copy=True)
        coefficients = torch.zeros(len(self), dtype=torch.float64, device=rest.device)
        for begin in (first, 0):
            found = torch.zeros_like(coefficients[begin:])
            for rows, part in self._chunks(rest, begin):
                found += rows @ part.to(rows)
            for rows, part in self._chunks(rest, begin):
                part -= rows.T @ found.to(rows)
            coefficients[begin:] += found
        return rest, coefficients

    def combine(self, coefficients: Float[Tensor, "m ..."]) -> Float[Tensor, " ..."]:
        """Σ_j coefficients[j] · rows[j], in the dtype of the rows; ``[m, k]`` gives ``[p, k]``."""
        return self.rows.T @ coefficients.to(self._rows)

    def append(self, w: Float[Tensor, " p"]) -> None:
        """Add a row."""
        self._rows[self._count] = w
        self._count += 1

    def fresh(self, generator: torch.Generator) -> Float[Tensor, " p"]:
        """A random unit vector orthogonal to all rows, in float64; zero if they span everything."""
        p = self._rows.shape[1]
        if len(self) >= p:
            return torch.zeros(p, dtype=torch.float64, device=self._rows.device)
        drawn = torch.randn(p, generator=generator, dtype=torch.float64)
        rest, _ = self.without(drawn.to(self._rows.device))
        return rest / torch.linalg.vector_norm(rest)

    def keep(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        self._count = count

    def _chunks(self, w: Tensor, begin: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.rows[begin:].split(_CHUNK, dim=1), w.split(_CHUNK), strict=True))


@dataclass(frozen=True, eq=False)
class Lanczos:
    """What m steps found.

    Attributes:
        ritz: Ritz values, falling, ``[m]``.
        residuals: ‖H u − θ u‖ of each pair, ``[m]``.
        coordinates: Ritz vectors in the basis, one per column, ``[m, m]``.
        projected: T = Q'HQ, ``[m, m]``.
        squares: ‖H q_j‖² of each Lanczos vector, ``[m]``.
        basis: Q, whose rows are the Lanczos vectors.
    """

    ritz: Float[Tensor, " m"]
    residuals: Float[Tensor, " m"]
    coordinates: Float[Tensor, "m m"]
    projected: Float[Tensor, "m m"]
    squares: Float[Tensor, " m"]
    basis: Basis

    @property
    def weights(self) -> Float[Tensor, " m"]:
        """Squared first components: the weights of Gauss quadrature from the start vector."""
        return self.coordinates[0].square()

    def vector(self, index: int) -> Float[Tensor, " p"]:
        """The Ritz vector of ``ritz[index]``, of unit length."""
        made = self.basis.combine(self.coordinates[:, index])
        return made / torch.linalg.vector_norm(made)


def lanczos(
    product: Product,
    p: int,
    steps: int,
    *,
    seed: int = 0,
    block: int = 1,
    tolerance: float = 0.0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    basis: Basis | None = None,
    start: Tensor | None = None,
) -> Lanczos:
    """Find the outer eigenvalues of a symmetric matrix from products with it.

    Args:
        product: ``[p] → [p]``; it is called `steps` times at most.
        p: rows of the matrix.
        steps: products, at most p; 20 to 30 settle the few largest of a network's curvature.
        seed: of the random start.
        block: vectors in the start: eigenvalues of up to this multiplicity are found whole.
        tolerance: stop when the residual of the largest Ritz value falls to this share of it; 0
            takes all steps.
        dtype: of the vectors that `product` is given.
        device: where they live.
        basis: an empty one with room for ``steps + block`` rows, kept elsewhere; None makes one.
        start: the first vector, such as the top one of a matrix alike; random by default.

    Raises:
        InputError: if a number is out of range or a product is not finite.

    Example:
        >>> diagonal = torch.tensor([5.0, 2.0, 2.0, 1.0], dtype=torch.float64)
        >>> found = lanczos(lambda v: diagonal * v, 4, 4)
        >>> [round(x, 6) for x in found.ritz.tolist()]
        [5.0, 2.0, 2.0, 1.0]
    """
    expect_positive("steps", steps)
    expect_positive("block", block)
    steps, block, device = min(steps, p), min(block, p), torch.device(device)
    # an empty basis is false
    basis = Basis(steps + block, p, dtype, device) if basis is None else basis
    generator = torch.Generator().manual_seed(seed)
    if start is not None:
        basis.append(start / torch.linalg.vector_norm(start))
    for _ in range(block - len(basis)):
        basis.append(basis.fresh(generator))
    band = torch.zeros(steps + block, steps, dtype=torch.float64)
    for j in range(steps):
        # by symmetry, a product has parts in the band alone: the last 2·block + 1 rows
        band_begins = max(j - block, 0)
        rest, coefficients = basis.without(product(basis.rows[j].to(device)), band_begins)
        length = float(torch.linalg.vector_norm(rest))
        _expect_finite(length, j)
        band[: len(basis), j] = coefficients.cpu()
        # what rounding leaves of a product in the span: H's size times the precision of the rows
        broken = length <= 8 * torch.finfo(dtype).eps * float(band.abs().max())
        band[len(basis), j] = 0.0 if broken else length
        basis.append(basis.fresh(generator) if broken else rest / length)
        if tolerance and _converged(_decomposed(band, j + 1, basis), tolerance):
            steps = j + 1
            break
    basis.keep(steps)
    return _decomposed(band, steps, basis)


def _decomposed(band: Tensor, m: int, basis: Basis) -> Lanczos:
    """Ritz pairs of the first m columns."""
    upper = band[:m, :m].triu()  # computed from every row; below, rounding differs
    projected = upper + upper.triu(1).T
    values, vectors = torch.linalg.eigh(projected)
    values, vectors = values.flip(0), vectors.flip(1)
    residuals = torch.linalg.vector_norm(band[m:, :m] @ vectors, dim=0)
    return Lanczos(values, residuals, vectors, projected, band[:, :m].square().sum(0), basis)


def _converged(found: Lanczos, tolerance: float) -> bool:
    return bool(found.residuals[0] <= tolerance * found.ritz[0].abs())


def _expect_finite(length: float, step: int) -> None:
    good = length < float("inf")  # NaN compares false
    remedy = "check the loss for overflow, or measure in float64"
    expect(good, "product", "finite numbers", f"NaN or infinity at step {step + 1}", remedy)


def quadrature(
    product: Product,
    p: int,
    steps: int,
    vectors: int = 1,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return nodes and weights that stand for the eigenvalues of a symmetric matrix.

    Args:
        product: ``[p] → [p]``, linear and symmetric.
        p: rows of the matrix.
        steps: of Lanczos from each vector.
        vectors: random starts. At a million parameters one is as good as many.
        seed: of the first start; the next ones follow.
        dtype: of the vectors that `product` is given.
        device: where they live.

    Returns:
        nodes and weights, together 1, of all starts.

    Raises:
        InputError: if there are no vectors.

    Example:
        >>> diagonal = torch.tensor([3.0, 1.0], dtype=torch.float64)
        >>> nodes, weights = quadrature(lambda v: diagonal * v, 2, 2)
        >>> [round(x, 6) for x in nodes.tolist()], round(float(weights.sum()), 6)
        ([3.0, 1.0], 1.0)
    """
    expect_positive("vectors", vectors)
    runs = [
        lanczos(product, p, steps, seed=seed + k, dtype=dtype, device=device)
        for k in range(vectors)
    ]
    weights = torch.cat([run.weights for run in runs]) / vectors
    return torch.cat([run.ritz for run in runs]), weights
