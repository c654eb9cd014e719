"""Curvature while training, cheaply: λ₁ and the noise of a few of the loader's own batches.

λ₁ comes from a few steps of Lanczos that begin where the last measurement ended; the noise from the
batches' products with random vectors,

    k_b c = M/(M − 1) · mean_b ‖(G_b − G) z‖² / zᵀGz,      z of random signs, M batches,

the noise that the laws of :mod:`shoal.curvature.stability` need at this batch size: nothing is
assumed of how batches are drawn, as it would be by going from samples to batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.core.batches import size_of
from shoal.core.errors import expect
from shoal.core.objectives import Objective
from shoal.core.optimizers import optimizer_info, scales_of, unmoved
from shoal.curvature.checks import expect_halves
from shoal.curvature.lanczos import lanczos
from shoal.curvature.preserve import preserve_state
from shoal.curvature.problem import (
    ROWS,
    Problem,
    Supervised,
    in_metric,
    problem_of,
    split_at_scores,
    with_rows,
)
from shoal.curvature.products import Products
from shoal.training.gradients import trained

# a product with the Gauss-Newton matrix in gradients: 9.6 ms to 4.2 ms for an MLP on one core
PRODUCT = 2.3


@dataclass(frozen=True)
class Measurement:
    """Curvature and noise at one moment of training.

    Attributes:
        lam: λ₁ of the mean over the batches, a lower bound.
        noise: k_b c at the batches' own size.
        spread: k_b tr Σ of their gradients.
        least: the smallest Ritz value above zero, as a stand-in for Polyak's λ_P.
        cost: of the measurement, in gradients of one batch.
    """

    lam: float
    noise: float
    spread: float
    least: float
    cost: float


class CurvatureEstimator:
    """Measures curvature, each time from where the last measurement ended.

    Args:
        objective: whose model's parameters are differentiated.
        table: whose gathered rows are differentiated too; None where rows are fixed.
        optimizer: of the parameters, in whose metric (and in that of the table's own optimizer) to
            measure; None for the plain one.
        steps: of Lanczos. Four find λ₁ to a fifth and, begun where the last measurement ended,
            nearer at each; more would make measurements rarer, since they cost a share of all
            gradients (docs/LOG.md).
        probes: random vectors.
        seed: of them.
    """

    def __init__(
        self,
        objective: Supervised | Objective,
        table: Any | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        steps: int = 4,
        probes: int = 1,
        seed: int = 0,
    ) -> None:
        self.objective, self.table, self.optimizer = objective, table, optimizer
        self.steps, self.probes, self.seed = steps, probes, seed
        self.count = 0
        self.start: Tensor | None = None

    def __call__(self, batches: Sequence[Any]) -> Measurement:
        """Measure the mean over some batches.

        Args:
            batches: at least two, of one size.

        Raises:
            InputError: if there are fewer, or their curvature is not a finite number above zero.
        """
        expect(len(batches) > 1, "batches", "at least two", len(batches), "pass more")
        with preserve_state(self.objective.model, None, "eval", self.seed + self.count):
            problem, ids = self._problem(batches)
            if self.count == 0:
                expect_halves(problem)
            scales = self.scales(ids)
            problem = in_metric(problem, scales) if scales else problem
            found = self._measured(Products(problem))
        self.count += 1
        good = 0 < found.lam < float("inf")
        remedy = "lower the learning rate: training has diverged"
        expect(good, "curvature", "a finite number above 0", found.lam, remedy)
        return found

    def scales(self, ids: Tensor | None) -> dict[str, Tensor]:
        """S = D^−½ by name: of parameters, and of rows `ids`.

        Rows before their optimizer's first step have no divisor yet and keep the plain metric.
        """
        dense = {} if self.optimizer is None else scales_of(self.optimizer, self.objective.model)
        if ids is None or self.table is None:
            return dense
        info = optimizer_info(self.table.optimizer, ids)
        if info.divisor is None or info.lr is None:
            return dense
        lr = 0.0 if self.optimizer is None else self.optimizer.param_groups[0]["lr"]
        share = info.lr / lr if lr > 0 else 1.0
        return {**dense, ROWS: (share / info.divisor).sqrt()}

    def _problem(self, batches: Sequence[Any]) -> tuple[Problem, Tensor | None]:
        model = self.objective.model
        alone = self.table is not None and not trained(model)
        still = set() if self.optimizer is None else set(unmoved(self.optimizer, model))
        problem = problem_of(
            self.objective,
            batches,
            max_batches=len(batches),
            params=lambda name: name not in still,
            seed=self.seed,
            needs_leaves=not alone,
            batch_size=lambda batch: max(size_of(batch), 1),  # only weighs batches of one size
        )
        if isinstance(self.objective, Objective):
            problem = replace(problem, objective=split_at_scores(self.objective))
        if self.table is None:
            return problem, None
        # trainable rows have moved since the batch was made
        fresh = [replace(x, src=self.table.gather(x.blocks[0].src)) for x in problem.batches]
        ids = torch.cat([batch.blocks[0].src for batch in fresh]).unique()
        return with_rows(replace(problem, batches=fresh)), ids

    def _measured(self, products: Products) -> Measurement:
        p, dtype, device = products.shape[0], products.dtype, products.device
        # rows of other batches are other leaves: only dense parameters begin where they were
        same = self.table is None and self.start is not None and len(self.start) == p
        start = self.start if same else None
        seed = self.seed + self.count
        found = lanczos(
            products.__matmul__, p, self.steps, seed=seed, dtype=dtype, device=device, start=start
        )
        self.start = found.vector(0)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.tensor(products.weights, dtype=torch.float64, device=device)
        traces, spreads = [], []
        for _ in range(self.probes):
            z = torch.randint(0, 2, (p,), generator=generator).to(device, dtype) * 2 - 1
            each = torch.stack(list(products.each(z))).double()
            traces.append(float(z.double() @ (weights @ each)))
            spreads.append(_spread(each, weights))
        positive = found.ritz[found.ritz > 1e-6 * found.ritz[0]]
        cost = (self.steps + self.probes) * PRODUCT + 1
        return Measurement(
            float(found.ritz[0]),
            sum(spreads) / max(sum(traces), 1e-30),
            _spread(torch.stack(list(products.gradients())).double(), weights),
            float(positive[-1]) if len(positive) else float("nan"),
            cost * len(products.weights),
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the next measurement begins."""
        return {"count": self.count, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.count, self.start = state["count"], state["start"]


def _spread(each: Float[Tensor, "m p"], weights: Float[Tensor, " m"]) -> float:
    """M/(M − 1) · mean_b ‖x_b − x̄‖²."""
    apart = (each - weights @ each).square().sum(1)
    return float(weights @ apart) * len(each) / (len(each) - 1)
