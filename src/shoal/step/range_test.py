"""A learning-rate range test inside training: raise the rate step by step until the loss objects.

The law is a quadratic's, and nets stay stable up to hundreds of times its rate
(docs/results/steps.md): most where a norm makes them indifferent to the length of their weights.
After the first measurement the rate rises from the law's, fourfold in forty steps, as in the range
test of Smith (1506.01186), but from a safe start and with steps that train. It ends when the
average of ten losses is further above its lowest than chance takes it, or a loss is not finite. A
quarter of the factor at its end is the multiplier of the law's rate, at least 1.

By chance alone the average x ← x + 0.1 (loss − x) has √(0.1/1.9) = 0.23 of the standard deviation
of single losses. Over the two hundred steps of a test it comes to lie 1.5 of the latter above its
lowest in one test of three hundred; above one of them it would in four of ten (docs/LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# the distance that a rate keeps from trouble; the steps in which it rises by as much; how often
MARGIN, STAGE, STAGES = 4.0, 40, 5
# how far above its lowest chance may take the average, in standard deviations of single losses
WANDER = 1.5


@dataclass
class RangeTest:
    """A range test and its result; its fields are all that a checkpoint needs.

    Attributes:
        step: how many of its steps are done.
        lowest: the lowest average of losses so far; infinite before the first.
        multiplier: the result, in units of the law's rate; 1 until the test has ended.
        ended: whether it has.
        trouble: whether the loss ended it. Then weights have been where they should not be, even if
            the loss is lower than before, and should be put back.

    Example:
        >>> test = RangeTest()
        >>> while not test.ended:  # trouble from a factor of 8 on
        ...     test.observe(1.0 if test.factor < 8 else 3.0, deviation=0.5)
        >>> 2 <= test.multiplier < 2.1
        True
    """

    step: int = 0
    lowest: float = math.inf
    multiplier: float = 1.0
    ended: bool = False
    trouble: bool = False

    @property
    def factor(self) -> float:
        """The rate at the present step, in units of the law's."""
        return self.multiplier if self.ended else MARGIN ** (self.step / STAGE)

    @property
    def running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.step > 0 and not self.ended

    @property
    def snapshot_due(self) -> bool:
        """Whether a stage has just ended, so that weights are worth a copy."""
        return self.running and self.step % STAGE == 0

    def observe(self, loss: float, deviation: float) -> None:
        """Take note of a step.

        Args:
            loss: averaged over about ten steps.
            deviation: the standard deviation of single losses.
        """
        self.lowest = min(self.lowest, loss)
        self.trouble = not loss <= self.lowest + WANDER * deviation
        if self.trouble or self.step == STAGE * STAGES:
            self.multiplier = max(1.0, self.factor / MARGIN)
            self.ended = True
        self.step += 1
