"""Stochastic rounding to bfloat16: up or down at random, so that the mean is the number itself.

bfloat16 keeps 8 bits. A step below 2⁻⁹ of a number is lost when the sum is rounded to the nearest,
however often it is taken; rounded up with the probability that the number has come that far, it
survives in the mean: E[round(x)] = x (Gupta et al., "Deep learning with limited numerical
precision", ICML 2015, section 3). The low 16 bits of a float32 are how far x is between its two
neighbors, so 16 random bits are added and the low half is cut off.
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float32, Int16
from torch import Tensor


def noise_like(x: Float32[Tensor, "c d"], seed: int) -> Int16[Tensor, "c d"]:
    """Return 16 random bits a number, a function of shape, device and seed (of 32 bits)."""
    words = -(-x.numel() // 4)  # four numbers' bits from each draw: a quarter of the time
    generator = torch.Generator(x.device).manual_seed(seed)
    bits = torch.empty(words, dtype=torch.int64, device=x.device)
    bits.random_(-(1 << 63), None, generator=generator)
    return bits.view(torch.int16)[: x.numel()].view(x.shape)


def round_stochastically(
    x: Float32[Tensor, "c d"], noise: Int16[Tensor, "c d"]
) -> BFloat16[Tensor, "c d"]:
    """Round each number to one of its two neighbors in bfloat16, the mean of which is the number.

    What bfloat16 holds exactly stays, and so do infinity and NaN.

    Example:
        >>> x = torch.full((1, 4096), 1.0 + 1 / 512)  # a quarter of the way from 1 to 1.0078125
        >>> rounded = round_stochastically(x, noise_like(x, seed=0))
        >>> rounded.unique().tolist(), round(float(rounded.float().mean() - 1) * 512, 1)
        ([1.0, 1.0078125], 1.0)
    """
    low = noise.int().add_(1 << 15).masked_fill_(x.isfinite().logical_not_(), 0)
    return low.add_(x.view(torch.int32)).bitwise_right_shift_(16).short().view(torch.bfloat16)
