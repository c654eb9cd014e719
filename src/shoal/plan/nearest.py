"""What plans of all tasks share: the nearest setting that fits, and the largest useful batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from shoal.core.optimizers import Optimizer
from shoal.curvature.spectrum import Spectrum
from shoal.plan.devices import Real
from shoal.plan.noun import Plan
from shoal.step.size import learning_rate

FLIGHT = 3  # batches at a time: one in use and two prefetched, by the loader


def halves(size: int) -> Iterator[int]:
    """Half of a size, half of that, and so on down to one.

    Yields:
        sizes, the greatest first.

    Example:
        >>> list(halves(9))
        [4, 2, 1]
    """
    while (size := size // 2) > 0:
        yield size


def with_remedy(plan: Plan, nearer: Callable[[], Iterator[tuple[str, Plan]]]) -> Plan:
    """The plan, with the first of some settings that fits, if it does not fit itself.

    Args:
        plan: as it was asked for.
        nearer: settings by name and their plans, the nearest first.
    """
    if plan.fits:
        return plan
    for name, other in nearer():
        if other.fits:
            return replace(plan, remedy=name)
    where = plan.lacking[0]
    # what lies there always, whatever the batch
    size, name = max((getattr(x, where) or x.device, x.name) for x in plan.parts)
    return replace(plan, remedy=f"none: {name} take {size / 2**30:.1f} GiB of the {where}")


def useful_batch(spectrum: Spectrum | None, batch_size: int, optimizer: Optimizer) -> Real | None:
    """Samples beyond which noise limits the step no longer; None without a spectrum.

    Raises:
        InputError: if the spectrum gives no advice for this optimizer.
    """
    if spectrum is None:
        return None
    return learning_rate(spectrum, batch_size, optimizer).critical_batch
