"""Batches of other sizes, where the samples of a batch are not independent.

In-batch losses, clustered seeds and sampled neighborhoods leave no factor 1 / b: there the top
eigenvalue of a batch is measured at two sizes, on the loader's own batches, and lam_1 + kappa · k_b
is put through both. A sampler's effective batch size says what its batches are worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from shoal.core.errors import expect, fail
from shoal.curvature.batch_spectra import batch_factor
from shoal.curvature.lanczos import lanczos
from shoal.curvature.products import Products
from shoal.curvature.spectrum import Noise


def mean_top(products: Products, steps: int = 20, seed: int = 0) -> float:
    """The mean over batches of the largest eigenvalue of a batch's own curvature.

    Args:
        products: of the batches.
        steps: of Lanczos for each batch, at most; it stops at a residual of a hundredth.
        seed: of the starts.

    Raises:
        InputError: if a product is not finite.
    """
    p, count = products.shape[0], len(products.subject.sizes)
    found = [
        lanczos(
            partial(products.along, index),
            p,
            steps,
            seed=seed,
            tolerance=0.01,
            dtype=products.dtype,
            device=products.device,
        )
        for index in range(count)
    ]
    return sum(each.ritz[0].item() for each in found) / count


def fit_top(tops: Mapping[int, float], dataset_size: int | None = None) -> tuple[float, float]:
    """Fit lam_1 + kappa · k_b to the top eigenvalues of batches of two or more sizes.

    What is to be done where samples of a batch are not independent (in-batch losses, clusters,
    sampled neighborhoods): their spread is no function of one sample's, but is measured.

    Args:
        tops: mean top eigenvalue of a batch, by batch size (:func:`mean_top`).
        dataset_size: samples of the whole data, or None for endless data.

    Returns:
        lam_1 and kappa, by least squares.

    Raises:
        InputError: if there are fewer than two sizes.

    Example:
        >>> lam, kappa = fit_top({8: 3.0, 16: 2.5})
        >>> round(lam, 6), round(kappa, 6)
        (2.0, 8.0)
    """
    if len(tops) < 2:
        fail("tops", "two batch sizes or more", len(tops), "measure another loader too")
    factors = [batch_factor(size, dataset_size) for size in tops]
    rows = torch.tensor([[1.0, k] for k in factors], dtype=torch.float64)
    values = torch.tensor(list(tops.values()), dtype=torch.float64)
    lam, kappa = torch.linalg.lstsq(rows, values.unsqueeze(1)).solution.flatten().tolist()
    return lam, kappa


def effective_batch_size(measured: Noise, independent: Noise) -> float:
    """How many independent samples a batch of a sampler is worth.

    A clustered batch of b samples spreads as b_eff independent ones would: b_eff = b · F2 of
    independent draws / F2 of the sampler's, each as its batches showed it.

    Args:
        measured: of the sampler's batches.
        independent: of batches of the same size at the same parameters, drawn independently.

    Raises:
        InputError: if one of them has no spread.

    Example:
        >>> effective_batch_size(Noise(frobenius=4.0, micro_batch=64), Noise(frobenius=1.0))
        16.0
    """
    for name, noise in (("measured", measured), ("independent", independent)):
        good = noise.frobenius > 0
        remedy = "measure two batches or more, with probes"
        expect(good, name, "noise with a spread", noise.frobenius, remedy)
    return measured.micro_batch * independent.frobenius / measured.frobenius
