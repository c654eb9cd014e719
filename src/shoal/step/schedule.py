"""A torch scheduler for batch sizes that change while it trains.

The learning rate follows :func:`~shoal.step.rules.rates` at the moment the batch size changes; at
all other times it is left as it is, so that it chains with torch's multiplicative schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from shoal.core.errors import expect, expect_positive
from shoal.core.optimizers import optimizer_info
from shoal.curvature.spectrum import Spectrum
from shoal.step.rules import Rates, rates

Rule = Literal["constant", "linear", "sqrt", "noise", "additive", "spectral"]


def effective_batch(batch_size: int, accumulate: int = 1, ranks: int | None = None) -> int:
    """Samples that one optimizer step averages over: batch × accumulation × ranks.

    Args:
        batch_size: of one process' batch.
        accumulate: batches a step.
        ranks: processes; None asks torch.distributed, where it runs.

    Raises:
        InputError: if one is not positive.

    Example:
        >>> effective_batch(32, accumulate=4, ranks=2)
        256
    """
    if ranks is None:
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if running else 1
    named = {"batch_size": batch_size, "accumulate": accumulate, "ranks": ranks}
    for name, value in named.items():
        expect_positive(name, value)
    return batch_size * accumulate * ranks


class BatchSizeLR(LRScheduler):
    """Keep the learning rate right while the batch size changes.

    Call :meth:`set_batch_size` when it does; the rate changes at once. ``step()`` does nothing to
    it, so any multiplicative scheduler may run beside (ExponentialLR, CosineAnnealingLR, LinearLR;
    one that sets rates from its start, as LambdaLR does, would undo the change).

    Args:
        optimizer: whose learning rates are those for `batch_size` now.
        batch_size: of one process.
        spectrum: of the model after warm-up; None for rules that need none.
        rule: of :class:`~shoal.step.rules.Rates`; spectral by default, sqrt without a spectrum.
        accumulate: batches a step.
        ranks: processes; None asks torch.distributed.
        scale_betas: for Adam, with a batch κ times as large: 1 − β times κ, eps over √κ (Malladi et
            al., 2205.10287, definition 4).

    Raises:
        InputError: if the rule is unknown or needs a spectrum, or a number is not positive.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.Adam([weight], lr=0.1)
        >>> schedule = BatchSizeLR(optimizer, 64)
        >>> schedule.set_batch_size(256)
        >>> schedule.get_last_lr()
        [0.2]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        spectrum: Spectrum | None = None,
        *,
        rule: Rule | None = None,
        accumulate: int = 1,
        ranks: int | None = None,
        scale_betas: bool = False,
    ) -> None:
        rule = ("sqrt" if spectrum is None else "spectral") if rule is None else rule
        known = [x.name for x in fields(Rates)]
        expect(rule in known, "rule", f"one of {', '.join(known)}", rule, "choose one of them")
        alone = rule in ("constant", "linear", "sqrt") or spectrum is not None
        expect(alone, "spectrum", f"one for the rule {rule}", None, "measure one after warm-up")
        adam = optimizer_info(optimizer).kind == "adam" and "betas" in optimizer.param_groups[0]
        want = "False where no betas are"
        expect(adam or not scale_betas, "scale_betas", want, True, "leave it out")
        self.spectrum, self.rule, self.scale_betas = spectrum, rule, scale_betas
        self.accumulate, self.ranks = accumulate, ranks
        self.batch_size = self.known_at = effective_batch(batch_size, accumulate, ranks)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def set_batch_size(self, batch_size: int, accumulate: int | None = None) -> None:
        """From the next step on, batches have another size.

        Args:
            batch_size: of one process.
            accumulate: batches a step from now on; as before by default.

        Raises:
            InputError: if it is not positive, larger than the data, or so large that betas would
                leave [0, 1).
        """
        accumulate = self.accumulate if accumulate is None else accumulate
        to = effective_batch(batch_size, accumulate, self.ranks)
        groups = self.optimizer.param_groups
        ratio = self._ratio(to)
        if self.scale_betas:
            scaled = [_scaled_betas(group, to / self.batch_size) for group in groups]
            for group, new in zip(groups, scaled, strict=True):
                group.update(new)
        for group in groups:
            group["lr"] = group["lr"] * ratio
        self.batch_size, self.accumulate = to, accumulate
        self._last_lr = self.get_lr()

    def _ratio(self, to: int) -> float:
        if self.rule in ("constant", "linear", "sqrt"):
            power = {"constant": 0.0, "linear": 1.0, "sqrt": 0.5}[self.rule]
            return (to / self.batch_size) ** power
        assert self.spectrum is not None
        # from where the rate is known, so that there and back is the same rate
        sizes = (self.batch_size, to)
        made = [rates(self.spectrum, 1.0, self.known_at, b, self.optimizer) for b in sizes]
        now, then = (getattr(x, self.rule) for x in made)
        return then / now

    def state_dict(self) -> dict[str, Any]:
        """The batch size and torch's counters; the spectrum, which does not change, is left out."""
        state = super().state_dict()
        return {key: value for key, value in state.items() if key != "spectrum"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the optimizer's rates come with its own state."""
        super().load_state_dict(dict(state_dict))


def _scaled_betas(group: dict[str, Any], ratio: float) -> dict[str, Any]:
    """β and eps of Adam at a batch `ratio` times as large.

    Raises:
        InputError: if a β would fall below zero.
    """
    betas = tuple(1 - ratio * (1 - beta) for beta in group["betas"])
    want = "a batch size at which betas stay in [0, 1)"
    expect(min(betas) >= 0, "batch_size", want, f"betas {betas}", "leave scale_betas out")
    return {"betas": betas, "eps": group["eps"] / ratio**0.5}
