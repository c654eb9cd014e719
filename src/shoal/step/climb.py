"""Headroom measured: raise a rate step by step, in training itself, until the loss says so.

The law is a quadratic's, and nets hold one to hundreds of times its rate (docs/results/steps.md):
most where a norm makes them indifferent to the length of their weights. After the first look the
rate climbs from the law's, fourfold in forty steps, as in a range test (Smith, 1506.01186) that
begins where it is safe and whose steps train. Trouble is an average of ten losses that stands one
standard deviation of single losses above its lowest, or a loss that is no number. A quarter of the
factor at which trouble came, or with which the climb ended, is the headroom, at least 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# what a rate keeps away from trouble, the steps in which it climbs by as much, and how often it may
MARGIN, STAGE, STAGES = 4.0, 40, 5


@dataclass
class Climb:
    """A climb and what came of it.

    Attributes:
        step: how many of its steps are done.
        lowest: the lowest average of losses so far; infinite before the first.
        headroom: what it found; 1 until it has ended.
        ended: whether it has.
        trouble: whether that was why. Weights have been where they should not be, then, even if
            the loss is lower than before, and should be put back.

    Example:
        >>> climb = Climb()
        >>> while not climb.ended:  # trouble from a factor of 8 on
        ...     climb.see(1.0 if climb.factor < 8 else 3.0, deviation=0.5)
        >>> 2 <= climb.headroom < 2.1
        True
    """

    step: int = 0
    lowest: float = math.inf
    headroom: float = 1.0
    ended: bool = False
    trouble: bool = False

    @property
    def factor(self) -> float:
        """Of the law's rate, at the present step."""
        return self.headroom if self.ended else MARGIN ** (self.step / STAGE)

    @property
    def at_stage(self) -> bool:
        """Whether it has just climbed by a whole margin, so that weights are worth a copy."""
        return self.running and self.step % STAGE == 0

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.step > 0 and not self.ended

    def see(self, loss: float, deviation: float) -> None:
        """Take note of a step.

        Args:
            loss: averaged over about ten steps.
            deviation: the standard deviation of single losses.
        """
        self.lowest = min(self.lowest, loss)
        self.trouble = not loss <= self.lowest + deviation
        if self.trouble or self.step == STAGE * STAGES:
            self.headroom = max(1.0, self.factor / MARGIN)
            self.ended = True
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Numbers for a checkpoint."""
        return asdict(self)

    @staticmethod
    def of_state(state: dict[str, Any]) -> Climb:
        """What :meth:`state_dict` gave."""
        return Climb(**state)
