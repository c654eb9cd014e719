"""Parts of a user's own: a loss, a batch sampler, a row rule, a callback, a step rule, in fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.core.block import Batch
from shoal.core.errors import InputError
from shoal.core.optimizers import OptimizerInfo, optimizer_info
from shoal.fetch.stepping import Rows
from shoal.training.loader import Loader

N, D = 48, 4


class EvenThenOdd:
    """A batch sampler: even rows, then odd ones, so that a batch is no random sample."""

    sampling = "clustered"

    def __len__(self) -> int:
        return 2 * (N // 16)

    def __iter__(self) -> Iterator[list[int]]:
        for start in (0, 1):
            yield from (list(range(start + i, start + i + 16, 2)) for i in range(0, N, 16))


class Signed(Rows):
    """A row rule: x ← x − lr · sign(g), which describes itself as plain gradients."""

    def _start(self, n: int, d: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"steps": torch.zeros(n, dtype=torch.int32)}

    def _direction(self, state: dict[str, Tensor], ids: Tensor, grad: Tensor) -> Tensor:
        state["steps"][ids] += 1
        return grad.sign()

    def curvature_info(self, at: Tensor | None = None) -> OptimizerInfo:
        divisor = None if at is None else torch.full((len(at), 1), 4.0)
        return OptimizerInfo("sgd", lr=self.lr, divisor=divisor)


class Identity(nn.Module):
    """The rows as they are."""

    def forward(self, blocks: object, rows: Tensor) -> Tensor:
        return rows


def to_the_corner(outputs: Tensor, batch: Batch) -> Tensor:
    """A loss: the mean squared distance from the corner (1, …, 1)."""
    return (outputs - 1).square().mean()


def alone(seeds: Tensor, generator: torch.Generator) -> list[shoal.Block]:
    indptr = torch.arange(len(seeds) + 1)
    return [shoal.Block(seeds, seeds, indptr, indptr[:-1], seeds)]


def job(rule: Any, **options: Any) -> shoal.Job:
    table = shoal.unified(torch.zeros(N, D), rule)
    loader = Loader(EvenThenOdd(), alone, table, seed=0)  # pyright: ignore[reportArgumentType]
    return shoal.Job(shoal.Objective(Identity(), to_the_corner), loader, warmup=0, **options)


class Best(shoal.Callback):
    """A callback that notes the lowest loss."""

    loss = float("inf")

    def step(self, progress: Any, metrics: Mapping[str, Any]) -> None:
        self.loss = min(self.loss, metrics["loss"])


def test_own_loss_sampler_rule_and_callback_train() -> None:
    """Rows go to the corner of the loss; the callback saw how near they came."""
    mine, best = job(Signed(0.1)), Best()
    progress = shoal.fit(mine, shoal.Budget(epochs=40), callbacks=[best])
    assert progress.step == 40 * len(EvenThenOdd()) and best.loss < 0.01
    assert mine.table is not None and (mine.table[:] - 1).abs().max() < 0.1
    assert set(mine.table.optimizer.state["steps"].tolist()) == {40}


def test_a_rule_that_describes_itself_takes_the_spectral_step() -> None:
    """λ₁ of the mean loss of b rows in D = 4 is 2/(b d)/4 times the share of batches of a row."""
    mine = job(Signed(0.01))
    measured: list[dict[str, float]] = []

    class Curvature(shoal.Callback):
        def step(self, progress: Any, metrics: Mapping[str, Any]) -> None:
            measured.extend([metrics["curvature"]] if "curvature" in metrics else [])

    rule = shoal.spectral_step(mine, warmup=2, share=1.0, range_test=False)
    shoal.fit(mine, shoal.Budget(steps=40), step=rule, callbacks=[Curvature()])
    # a measurement takes eight batches of eight rows: some rows stand in one of them, some in two
    assert measured[0]["lam_max"] == pytest.approx(2 / (8 * D) / 4 * 2 / 8, rel=1e-3)
    assert rule.factor != 1.0


def test_a_rule_that_does_not_is_refused_by_name() -> None:
    """It trains, but cannot be measured for: the error says what it lacks."""

    class Silent:
        lr = 0.1

        def step(self, table: Tensor, ids: Tensor, grad: Tensor) -> None:
            table[ids] -= self.lr * grad

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    mine = job(Silent())
    assert shoal.fit(mine, shoal.Budget(epochs=1)).step == len(EvenThenOdd())
    with pytest.raises(InputError, match=r"got Silent; .* needs a method curvature_info"):
        shoal.spectral_step(mine)


def test_a_sampler_says_how_its_batches_are_drawn() -> None:
    """The spectrum's noise is then that of clustered batches."""
    mine = job(Signed(0.1))
    found = shoal.spectrum(mine.objective, loader=mine.loader, steps=3, probes=1)
    assert found.noise.sampling == "clustered" and found.sampler == "EvenThenOdd"
    assert shoal.ClusterBatchSampler(8, 4, 2, seed=0).sampling == "clustered"
    assert shoal.RandomBatchSampler(8, 4, seed=0).sampling == "independent"


def test_an_own_step_rule_multiplies_the_schedule() -> None:
    """A rule that halves the rate after the first step; its state is part of checkpoints."""

    class Halved:
        factor = 1.0

        def observe(self, batches: Any, loss: float) -> dict[str, float]:
            self.factor = 0.5
            return {"factor": self.factor}

        def set_momentum(self, optimizer: torch.optim.Optimizer) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"factor": self.factor}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.factor = state["factor"]

    moved: list[float] = []
    mine = job(shoal.RowSGD(1.0), observe=lambda *_: moved.append(mine.table.optimizer.lr))  # pyright: ignore
    shoal.fit(mine, shoal.Budget(steps=4), step=Halved())
    assert moved == [1.0, 0.5 * 0.75, 0.5 * 0.5, 0.5 * 0.25]


def test_own_torch_optimizers_describe_themselves() -> None:
    """A method is all that :func:`optimizer_info` needs, of any class."""

    class Own(torch.optim.SGD):
        def curvature_info(self, at: Tensor | None = None) -> OptimizerInfo:
            return OptimizerInfo("adam", 0.5, lr=0.3)

    assert optimizer_info(Own([nn.Parameter(torch.zeros(1))])).momentum == 0.5
