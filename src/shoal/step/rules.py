"""From a rate that trains at one batch size to the rate for another: six rules side by side.

    constant   a                             what is done without a rule
    linear     a b'/b                        Goyal et al. (1706.02677)
    sqrt       a √(b'/b)                     Krizhevsky (1404.5997); Adam: Malladi (2205.10287)
    noise      a (1 + B/b)/(1 + B/b')        McCandlish et al. (1812.06162), B gradient noise scale
    additive   by 2(1 + B)/(λ₁ + k_b s2/λ₁)  Granziol, Zohren and Roberts (JMLR 2022)
    spectral   by E6 and by the floor of the gradients' noise, whichever allows less

The spectral rule carries a known rate along the laws, so that whatever their constants miss is in
the rate already: of all advice here it is the most accurate (docs/results/steps.md). A rate that
trains is within both limits of its batch size, stability and floor; the same shares of both limits
at another batch size are what it vouches for, and the lesser of the two is taken. Towards smaller
batches that is the floor, towards larger ones stability. For Adam, whose square root the floor
comes nearest to, it is E7 with the floor in the optimizer's metric; a spectrum in the plain one
gives the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.core.errors import expect
from shoal.core.optimizers import Optimizer, OptimizerInfo, optimizer_info
from shoal.curvature.spectrum import Spectrum
from shoal.step.size import EDGE, StepSize, law_of, notes_of


@dataclass(frozen=True)
class Rates:
    """The learning rate at another batch size by every rule; NaN where nothing is known.

    Attributes:
        constant: as it was.
        linear: in proportion to the batch size.
        sqrt: in proportion to its root.
        noise: by the gradient noise scale.
        additive: by the additive model of the paper.
        spectral: by the law, the one that :func:`rescale` takes.
    """

    constant: float
    linear: float
    sqrt: float
    noise: float
    additive: float
    spectral: float


def rescale(
    spectrum: Spectrum,
    lr: float,
    batch_size: int,
    to: int,
    optimizer: Optimizer,
    *,
    after_warmup: bool | None = None,
    initial_loss: float | None = None,
) -> StepSize:
    """Carry a learning rate that trains at one batch size to another.

    Args:
        spectrum: measured after some fifty steps of training, in the optimizer's metric or, for
            Adam, in the plain one.
        lr: the known rate.
        batch_size: where it is known.
        to: where one is asked for.
        optimizer: a torch optimizer, or a name.
        after_warmup: whether training came before the measurement, where nothing shows it.
        initial_loss: the loss before training, if it is known
            (:func:`~shoal.step.size.learning_rate`).

    Raises:
        InputError: as :func:`~shoal.step.size.learning_rate`, or if `lr` is not above zero.

    Example:
        With noise alone the law is linear: see :func:`rates`.
    """
    safe = rates(spectrum, lr, batch_size, to, optimizer, initial_loss=initial_loss).spectral
    info = optimizer_info(optimizer)
    law = law_of(spectrum, info, None, after_warmup, initial_loss)
    return StepSize(
        to,
        safe,
        EDGE * safe,
        "noise" if to < law.critical_batch else "curvature",
        law.critical_batch,
        info.momentum,
        calibrated=True,
        trusted=law.trusted,
        notes=(*law.notes, *notes_of(spectrum, to, "measured"), *_beyond(spectrum, info, to)),
    )


def rates(
    spectrum: Spectrum,
    lr: float,
    batch_size: int,
    to: int,
    optimizer: Optimizer,
    *,
    initial_loss: float | None = None,
) -> Rates:
    """The rate at batch size `to` by every rule, from `lr` at `batch_size`.

    Raises:
        InputError: as :func:`rescale`.

    Example:
        >>> import torch
        >>> from shoal.curvature.spectrum import Noise
        >>> s = Spectrum(
        ...     "ggn", 2, 100, None, 10, "RandomSampler", ritz=torch.tensor([1.0]),
        ...     residuals=torch.zeros(1), nodes=torch.zeros(1), node_weights=torch.ones(1),
        ...     trace=1.0, trace_error=0.0, noise=Noise(s2=0.0, frobenius=64.0),
        ... )
        >>> rates(s, 0.1, 16, 64, "sgd")  # c = 64: 1/a goes from 1 + 4 to 1 + 1
        Rates(constant=0.1, linear=0.4, sqrt=0.2, noise=nan, additive=0.1, spectral=0.25)
    """
    expect(0 < lr < math.inf, "lr", "a learning rate above 0", lr, "pass the rate that trains")
    info = optimizer_info(optimizer)
    law = law_of(spectrum, info, metric=None, initial_loss=initial_loss)
    k_from, k_to = (law.noise_factor(b) for b in (batch_size, to))
    ratio, scale = to / batch_size, spectrum.noise.gradient_noise_scale
    paper = spectral = math.sqrt(ratio)

    def carried(c: float) -> float:
        return law.stable_rate(c, k_to) / law.stable_rate(c, k_from)

    if info.kind != "adam":
        spectral = min(carried(law.c), carried(law.level))
        paper = law.additive_rate(k_to) / law.additive_rate(k_from)
    elif spectrum.metric == "adam":
        spectral = carried(law.level)
    return Rates(
        constant=lr,
        linear=lr * ratio,
        sqrt=lr * math.sqrt(ratio),
        noise=lr * (1 + scale / batch_size) / (1 + scale / to),
        additive=lr * paper,
        spectral=lr * spectral,
    )


def _beyond(spectrum: Spectrum, info: OptimizerInfo, to: int) -> tuple[str, ...]:
    """What happens to Adam's square root where √v is no longer the noise's."""
    scale = spectrum.noise.gradient_noise_scale
    if info.kind != "adam" or not to > scale:
        return ()
    return (
        f"beyond the gradient noise scale of {scale:.3g} Adam's best rate may stop growing, "
        "or fall (Li et al., 2405.14578)",
    )
