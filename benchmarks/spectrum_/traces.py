"""Errors of three trace estimates over 16 seeds, on Hessians whose trace is known exactly."""

from __future__ import annotations

import json

import torch
from nets import made  # pyright: ignore[reportMissingImports]

from shoal.curvature.problem import Supervised, problem_of
from shoal.curvature.products import Products
from shoal.curvature.trace import hutchinson, hutchpp, xtrace

torch.set_num_threads(1)


def exact(products: Products) -> float:
    """The trace by all products with unit vectors, 200 at a time."""
    p, total = products.shape[0], 0.0
    for columns in torch.arange(p).split(200):
        units = torch.zeros(p, len(columns))
        units[columns, torch.arange(len(columns))] = 1.0
        total += float(((products @ units) * units).sum())
    return total


def main() -> None:
    for net in ("mlp", "cnn"):
        model, loss_fn, batches = made(net, True)
        problem = problem_of(Supervised(model, loss_fn), batches[:1], max_batches=1)
        products = Products(problem, "hessian")
        true = exact(products)
        for method in (hutchinson, hutchpp, xtrace):
            runs = [method(products, products.shape[0], 30, seed=seed) for seed in range(16)]
            gaps = torch.tensor([run.value / true - 1 for run in runs])
            told = sum(run.error for run in runs) / len(runs) / true
            row = {"net": net, "method": method.__name__, "told": round(told, 3)}
            row |= {"rms": round(float(gaps.square().mean().sqrt()), 3)}
            print(json.dumps(row | {"mean": round(float(gaps.mean()), 3)}), flush=True)


if __name__ == "__main__":
    main()
