"""How batches differ: statistics of the very products that the spectrum is made from.

With batches of n_i samples that were drawn independently, x_i the batch's product and x̄ their mean
over all N samples, the analysis of variance

    S² = Σ_i n_i ‖x_i − x̄‖² / (batches − 1) = E‖dH_i v‖²

is unbiased for one sample's spread, whatever the n_i; among the samples of a finite data set its
mean square is (1 − 1/N_data) S². Because Σ_j E‖dH_i q_j‖² over an orthonormal basis is
F2 = E‖dH_i‖_F², the Lanczos vectors account for their own span exactly, and a few random vectors
for the rest: the same holds for tr H and ‖H‖_F² (the idea of Hutch++, Meyer, Musco, Musco and
Woodruff, SOSA 2021, with a Krylov space for the sketch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.curvature.lanczos import Basis, Lanczos
from shoal.curvature.products import Products
from shoal.curvature.spectrum import Noise, Sampling


@dataclass(frozen=True)
class Complement:
    """What random vectors say of the matrix outside the Lanczos vectors' span, one entry a vector.

    Attributes:
        traces: z'Hz.
        squares: ‖Hz‖².
        spreads: E‖dH_i z‖².
    """

    traces: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()
    spreads: tuple[float, ...] = ()


Several = Callable[[list[Tensor]], tuple[list[Tensor], list[float]]]


class Recorder:
    """The product with H, remembering how the batches' own products spread around it.

    Args:
        products: of each batch.
        dataset_size: samples of the whole data, or None for endless data.
        basis: rows that each batch's product is compared with, the Lanczos vectors so far; None
            leaves that out.
    """

    def __init__(
        self, products: Products, dataset_size: int | None = None, basis: Basis | None = None
    ) -> None:
        self.products, self.dataset_size, self.basis = products, dataset_size, basis
        self.spreads: list[float] = []
        self._columns: list[list[Tensor]] = []

    def __call__(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v; notes its spread and its inner products with the basis."""
        (mean,), (spread,) = self.several([v], self._columns)
        self.spreads.append(spread)
        return mean

    def several(
        self, vectors: list[Tensor], columns: list[list[Tensor]] | None = None
    ) -> tuple[list[Tensor], list[float]]:
        """Means and spreads of the products with each vector; inner products go to `columns`."""
        sizes, dots = self.products.problem.sizes, []
        sums = [Moments(sizes, len(v), self.products.device) for v in vectors]
        for found in self.products.each_of(vectors):
            for total, product in zip(sums, found, strict=True):
                total.add(product)
            if self.basis is not None and columns is not None:
                dots.append((self.basis.rows @ found[0].to(self.basis.rows)).double().cpu())
        if columns is not None:
            columns.append(dots)
        return [x.mean for x in sums], [x.spread(self.dataset_size) for x in sums]

    def projected(self, coordinates: Float[Tensor, "m k"]) -> Float[Tensor, "batches k k"]:
        """Each batch's curvature in vectors of the basis' span, given by their coordinates."""
        m = len(coordinates)
        if self.basis is None:
            return torch.zeros(0, 0, 0, dtype=torch.float64)
        made = torch.zeros(len(self._columns[0]), m, m, dtype=torch.float64)
        for j, column in enumerate(self._columns):
            for i, dots in enumerate(column):
                made[i, : j + 1, j] = dots[: j + 1]  # below the diagonal: the same, by symmetry
        return coordinates.T.cpu() @ (made.triu() + made.triu(1).mT) @ coordinates.cpu()


class Moments:
    """Mean and spread of vectors of batches, which come one by one, weighted by their samples.

    Args:
        sizes: samples of each batch.
        p: length of a vector.
        device: of the vectors.
    """

    def __init__(self, sizes: Sequence[int], p: int, device: torch.device) -> None:
        self.sizes, self._total, self._next = sizes, sum(sizes), iter(sizes)
        self.mean = torch.zeros(p, dtype=torch.float64, device=device)
        self.squares = 0.0

    def add(self, vector: Float[Tensor, " p"]) -> float:
        """Add the next batch's vector and return its squared length."""
        size, square = next(self._next), _square(vector)
        self.mean.add_(vector, alpha=size / self._total)
        self.squares += size * square
        return square

    def spread(self, dataset_size: int | None) -> float:
        """One sample's mean square deviation: :func:`anova`."""
        return anova(self.sizes, self.squares, _square(self.mean), dataset_size)


def anova(
    sizes: Sequence[int], weighted_squares: float, mean_square: float, dataset_size: int | None
) -> float:
    """One sample's mean square deviation, from batches' means.

    Args:
        sizes: samples of each batch.
        weighted_squares: Σ_i n_i ‖x_i‖².
        mean_square: ‖x̄‖².
        dataset_size: as the module says; None for endless data.

    Returns:
        NaN for a single batch.

    Example:
        Two batches of 3, whose means are 1 and 3 around 2:

        >>> anova([3, 3], 3 * 1.0 + 3 * 9.0, 4.0, None)
        6.0
    """
    if len(sizes) < 2:
        return math.nan
    spread = max(weighted_squares - sum(sizes) * mean_square, 0.0) / (len(sizes) - 1)
    return spread if dataset_size is None else spread * (1 - 1 / dataset_size)


def complement_of(several: Several, found: Lanczos, probes: int, seed: int) -> Complement:
    """Multiply random vectors outside the Lanczos vectors' span.

    Args:
        several: products and spreads of some vectors, such as :meth:`Recorder.several`.
        found: whose span is left out.
        probes: vectors, each of the length that a standard normal one has on average.
        seed: of them.
    """
    rows = found.basis.rows
    room = rows.shape[1] - len(rows)
    if room <= 0:  # the span is everything: what is left is zero for certain
        return Complement(*[(0.0, 0.0)] * 3)
    generator = torch.Generator().manual_seed(seed)
    vectors = [found.basis.fresh(generator) * math.sqrt(room) for _ in range(probes)]
    means, spreads = several(vectors)
    traces = tuple(float(v @ mean.to(v)) for v, mean in zip(vectors, means, strict=True))
    return Complement(traces, tuple(_square(mean) for mean in means), tuple(spreads))


def noise_of(
    recorder: Recorder, found: Lanczos, rest: Complement, sampling: Sampling, keep: int = 8
) -> Noise:
    """Assemble the noise from the products of Lanczos, of random vectors and of each gradient.

    Takes two products more: with the top Ritz vector, and each batch's along its own gradient.

    Args:
        recorder: as it was used for `found`.
        found: the Lanczos vectors.
        rest: what lies outside them.
        sampling: how batches were drawn.
        keep: Ritz vectors in ``Noise.top``.
    """
    products, sizes = recorder.products, recorder.products.problem.sizes
    if len(sizes) < 2:
        return Noise(sampling=sampling, micro_batch=max(sizes), batches=len(sizes))
    spread, direct = _at_top(recorder, found)
    inside = sum(recorder.spreads)
    outside = sum(rest.spreads) / len(rest.spreads) if rest.spreads else math.nan
    n = recorder.dataset_size if sampling == "independent" else None
    covariance, scale, sharpness = _along_gradients(products, n)
    return Noise(
        s2=(inside + outside) / products.shape[0],
        frobenius=inside + outside,
        kappa=max(spread - direct, 0.0) / abs(found.ritz[0].item()),
        direct=direct,
        gradient_noise_scale=scale,
        batch_sharpness=sharpness,
        micro_batch=max(sizes),
        batches=len(sizes),
        sampling=sampling,
        top=recorder.projected(found.coordinates[:, :keep]),
        sizes=torch.tensor(sizes, dtype=torch.float64),
        gradient_covariance=covariance,
    )


def _at_top(recorder: Recorder, found: Lanczos) -> tuple[float, float]:
    """E‖dH_i v1‖² and E(v1'dH_i v1)²."""
    products, total = recorder.products, recorder.dataset_size
    sizes, top, dots = products.problem.sizes, found.vector(0).to(products.device), []
    moments = Moments(sizes, len(top), products.device)
    for product in products.each(top):
        moments.add(product)
        dots.append(float(product.double() @ top.double()))
    along = sum(n * x for n, x in zip(sizes, dots, strict=True)) / sum(sizes)
    direct = sum(n * x * x for n, x in zip(sizes, dots, strict=True))
    return moments.spread(total), anova(sizes, direct, along**2, total)


def _along_gradients(products: Products, dataset_size: int | None) -> tuple[float, float, float]:
    """Covariance of gradients, noise scale (NaN where noise hides the gradient), sharpness."""
    gradients = Moments(products.problem.sizes, products.shape[0], products.device)
    sharp = []
    for index, gradient in enumerate(products.gradients()):
        square = gradients.add(gradient)
        if square > 0:
            curved = products.along(index, gradient)
            sharp.append(float(curved.double() @ gradient.double()) / square)
    covariance, endless = gradients.spread(dataset_size), gradients.spread(None)
    # the mean's own square holds the noise of a mean over n of the data's N samples
    n = sum(products.problem.sizes)
    left = 1 / n - (0.0 if dataset_size is None else 1 / dataset_size)
    signal = _square(gradients.mean) - endless * left
    scale = covariance / signal if signal > 0 else math.nan
    return covariance, scale, sum(sharp) / len(sharp) if sharp else math.nan


def _square(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2
