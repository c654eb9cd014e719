"""A spectrum is written and read back whole, and what is something else is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from shoal import InputError
from shoal.curvature.spectrum import Noise, Spectrum


def made() -> Spectrum:
    values = torch.tensor([2.0, 1 / 3, -1.0], dtype=torch.float64)
    noise = Noise(0.1, 0.3, 0.2, 0.4, 8.0, 1.5, 4, 2, "clustered", torch.rand(2, 3, 3), values[:2])
    return Spectrum(
        "hessian", 3, 8, None, 4, "RandomSampler", values, values.abs() / 9, values, values / 4,
        4 / 3, 0.01, noise, 0.5, 12, ("one", "two"),
    )  # fmt: skip


def test_a_file_brings_back_every_number(tmp_path) -> None:
    """Bit for bit, tensors in their shapes, NaN and None as they were."""
    spectrum = made()
    spectrum.save(tmp_path / "s.json")
    back = Spectrum.load(tmp_path / "s.json")
    assert back.to_json() == spectrum.to_json()
    assert torch.equal(back.ritz, spectrum.ritz) and back.noise.top.shape == (2, 3, 3)
    assert math.isnan(back.frobenius) and back.dataset_size is None
    assert back.warnings == ("one", "two") and back.lam_max == 2.0
    assert replace(back, trace=0.0).to_json() != spectrum.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "shoal spectrum 1"}', "1", "\0"])
def test_what_is_no_spectrum_is_refused(tmp_path, text: str) -> None:
    """A foreign or damaged file: one line that names it."""
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=r"s\.json: expected JSON"):
        Spectrum.load(tmp_path / "s.json")
