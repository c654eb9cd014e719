"""Spectra whose numbers are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from shoal.curvature.spectrum import Noise, Spectrum


def known_spectrum(
    lam: float = 2.0, trace: float = 4.0, c: float = 10.0, s2: float = 1.0, **changed: Any
) -> Spectrum:
    """λ₁, tr H and c = F2 / tr H as asked, on endless data unless changed."""
    noise = Noise(s2=s2, frobenius=c * trace, gradient_noise_scale=100.0, micro_batch=16, batches=8)
    noise = replace(noise, sampling=changed.pop("sampling", "independent"))
    values = torch.tensor([lam, lam / 2], dtype=torch.float64)
    spectrum = Spectrum(
        curvature="ggn",
        parameters=100,
        samples=128,
        dataset_size=None,
        batch_size=16,
        sampler="RandomSampler",
        ritz=values,
        residuals=torch.zeros(2, dtype=torch.float64),
        nodes=values,
        node_weights=torch.tensor([0.01, 0.01], dtype=torch.float64),
        trace=trace,
        trace_error=0.0,
        noise=noise,
    )
    return replace(spectrum, **changed)
