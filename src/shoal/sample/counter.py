"""Random numbers by position (counter-based): number i is a function of (key, i) alone.

Who draws number i, on which device, in which order and beside how many others does not matter, so a
CPU and a device that sample from the same key give the same blocks, bit by bit. The function is
SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
figure 13), whose i-th state is the key plus i + 1 times the golden gamma:

    z = key + (i + 1)·γ,   z ← (z ⊕ z≫30)·c₁,   z ← (z ⊕ z≫27)·c₂,   z ⊕ z≫31

Only operations that IEEE 754 and two's complement fix are used, here and in what is made of the
numbers: +, ×, ÷ of 64-bit floats, wrapping integers. torch's logarithm is not one of them, so
:meth:`CounterRandom.exponential` has its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor


def signed(x: int) -> int:
    """The 64-bit pattern of `x` as torch's int64 reads it.

    Example:
        >>> signed(2**64 - 1)
        -1
    """
    return (x + 2**63) % 2**64 - 2**63


GAMMA = signed(0x9E3779B97F4A7C15)
MIX_1 = signed(0xBF58476D1CE4E5B9)
MIX_2 = signed(0x94D049BB133111EB)
_TERMS = 11  # of the series for the logarithm: the first one left out is below 2^-55


@dataclass(frozen=True)
class CounterRandom:
    """An endless sequence of random numbers that are read at any position.

    Attributes:
        key: which sequence; any 64-bit integer.

    Example:
        The first output of SplitMix64 from state 0, as published.

        >>> hex(int(CounterRandom(0).bits(torch.tensor([0]))) % 2**64)
        '0xe220a8397b1dcdaf'
    """

    key: int

    @staticmethod
    def of(generator: Generator) -> CounterRandom:
        """The next sequence of a generator, on whatever device that is."""
        key = torch.empty((), dtype=torch.int64, device=generator.device)
        return CounterRandom(int(key.random_(-(2**63), None, generator=generator)))

    def bits(self, at: Int[Tensor, "*shape"], count: int = 64) -> Int[Tensor, "*shape"]:
        """The top `count` of 64 random bits for each position."""
        mix = _on_host if at.device.type == "cpu" else in_torch
        return mix(at.to(torch.int64), signed(self.key + GAMMA), 64 - count)

    def uniform(self, at: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Uniform in ``[0, 1)``: multiples of 2^-53, each equally likely."""
        return self.bits(at, 53).double().mul_(2.0**-53)

    def below(self, at: Int[Tensor, "*shape"], bound: Int[Tensor, ...]) -> Int[Tensor, "*shape"]:
        """Uniform in ``[0, bound)``, which 53 bits never round up to; the bias is bound / 2^53."""
        return self.uniform(at).mul_(bound).long()

    def exponential(self, at: Int[Tensor, " e"]) -> Float[Tensor, " e"]:
        """Standard exponential, ``-log(1 - u)``, by operations that round alike everywhere."""
        # 1 - u is exact and at least 2^-53; its mantissa is taken from [√½, √2)
        mantissa, exponent = torch.frexp(1 - self.uniform(at))
        small = mantissa < math.sqrt(0.5)
        mantissa = torch.where(small, mantissa * 2, mantissa)
        exponent = (exponent - small.int()).double()
        f = (mantissa - 1) / (mantissa + 1)  # log m = 2·artanh f, and |f| < 0.172
        square, series = f * f, torch.full_like(f, 1 / (2 * _TERMS - 1))
        for i in range(_TERMS - 2, -1, -1):
            series.mul_(square).add_(1 / (2 * i + 1))
        return exponent.mul_(-math.log(2)).sub_(series.mul_(f).mul_(2))


def in_torch(at: Int[Tensor, "*shape"], first: int, drop: int) -> Int[Tensor, "*shape"]:
    """Mix ``at·γ + first`` and shift `drop` bits away, on any device."""
    z = at.mul(GAMMA).add_(first)
    z.bitwise_xor_(_right(z, 30)).mul_(MIX_1)
    z.bitwise_xor_(_right(z, 27)).mul_(MIX_2)
    z.bitwise_xor_(_right(z, 31))
    return _right(z, drop) if drop else z


def _right(z: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """Shift right and fill with zeros; torch fills with the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _on_host(at: Int[Tensor, "*shape"], first: int, drop: int) -> Int[Tensor, "*shape"]:
    """The same in half the time: numpy has unsigned numbers, whose shifts fill with zeros."""
    z = at.numpy().view(np.uint64) * np.uint64(GAMMA % 2**64)
    z += np.uint64(first % 2**64)
    shifted = np.empty_like(z)
    for by, factor in ((30, MIX_1), (27, MIX_2)):
        z ^= np.right_shift(z, np.uint64(by), out=shifted)
        z *= np.uint64(factor % 2**64)
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    z >>= np.uint64(drop)
    return torch.from_numpy(z.view(np.int64))
