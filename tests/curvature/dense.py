"""Curvature matrices by torch.func, entry by entry in float64: slow, short, and the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def classes(sizes: tuple[int, ...] = (6, 6, 3), dtype: torch.dtype = torch.float64) -> list[Any]:
    """Batches of (inputs, classes)."""
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 4, dtype=dtype, generator=draw), torch.randint(3, (n,), generator=draw))
        for n in sizes
    ]


def per_sample(model: nn.Module, loss_fn: Any, batches: list[Any], kind: str) -> Tensor:
    """H_i of every sample, ``[n, p, p]``."""
    params = {name: x.detach() for name, x in model.named_parameters()}
    flat = torch.cat([x.reshape(-1) for x in params.values()])

    def outputs(vector: Tensor, x: Tensor) -> Tensor:
        parts = vector.split([x.numel() for x in params.values()])
        named = {k: v.view_as(params[k]) for k, v in zip(params, parts, strict=True)}
        return functional_call(model, named, (x,))

    def matrix(x: Tensor, y: Tensor) -> Tensor:
        if kind == "hessian":
            return hessian(lambda v: loss_fn(outputs(v, x), y))(flat)
        if kind == "fisher":
            g = grad(lambda v: loss_fn(outputs(v, x), y))(flat)
            return torch.outer(g, g)
        z = outputs(flat, x).detach()
        jacobian = jacrev(lambda v: outputs(v, x))(flat).reshape(z.numel(), -1)
        middle = hessian(lambda z: loss_fn(z, y))(z).reshape(z.numel(), z.numel())
        return jacobian.T @ middle @ jacobian

    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    return torch.stack([matrix(x, y) for x, y in rows])
