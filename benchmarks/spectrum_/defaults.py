"""The top eigenvalue of a small net as each library gives it to who takes the defaults.

One job on standard input, one answer; the dense Hessian by torch.func is the truth.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, hessian

torch.set_num_threads(1)


def made() -> tuple[nn.Module, Any, list[Any]]:
    """A 64-32-10 net of 2,410 parameters after 300 steps, in two batches of planted data."""
    torch.manual_seed(0)
    centers, y = torch.randn(10, 64), torch.randint(10, (512,))
    x = torch.randn(512, 64) + 0.7 * centers[y]
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model, loss_fn, list(zip(x.split(256), y.split(256), strict=True))


def truth(model: nn.Module, loss_fn: Any, batches: list[Any]) -> float:
    """The largest eigenvalue of the dense Hessian."""
    params = {name: x.detach() for name, x in model.named_parameters()}
    sizes = [x.numel() for x in params.values()]
    flat = torch.cat([x.reshape(-1) for x in params.values()])
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = zip(params, vector.split(sizes), strict=True)
        named = {name: part.view_as(params[name]) for name, part in parts}
        return loss_fn(functional_call(model, named, (inputs,)), targets)

    return float(torch.linalg.eigvalsh(hessian(loss)(flat))[-1])


def ours() -> dict[str, Any]:
    """Ours, with steps to spare and with too few."""
    from shoal import spectrum

    model, loss_fn, batches = made()
    found: dict[str, Any] = {"truth (dense)": round(truth(model, loss_fn, batches), 5)}
    for steps in (30, 2, 6, 60):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            measured = spectrum(model, loss_fn, batches, curvature="hessian", steps=steps, probes=0)
        copies = int((measured.ritz > measured.lam_max * (1 - 1e-6)).sum())
        told = "warned" if caught else "no warning"
        name = f"shoal, steps={steps}" + (" (the default)" if steps == 30 else "")
        found[name] = f"{measured.lam_max:.5f}, found {copies} ×, {told}"
    return found


def theirs() -> dict[str, Any]:
    """hessian-eigenthings by its defaults and beyond 50 steps; PyHessian's density."""
    from hessian_eigenthings.loss_fns import supervised_loss  # pyright: ignore
    from hessian_eigenthings.operators import HessianOperator  # pyright: ignore
    from pyhessian import hessian as pyhessian  # pyright: ignore

    model, loss_fn, batches = made()
    operator = HessianOperator(model, batches, supervised_loss(loss_fn))

    lanczos = sys.modules["hessian_eigenthings.algorithms.lanczos"].lanczos
    found: dict[str, Any] = {}
    for options in ({"k": 1}, {"k": 3}, {"k": 3, "max_iter": 60}, {"k": 1, "max_iter": 20}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer = lanczos(operator, seed=0, **options)
        top = answer.eigenvalues[0]
        copies = int((answer.eigenvalues > top * (1 - 1e-4)).sum())
        told = "warned" if caught else "no warning"
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        flags = [bool(x) for x in answer.converged]
        found[f"hessian-eigenthings, lanczos({words})"] = (
            f"{float(top):.5f}, found {copies} ×, {told}, converged={flags}"
        )
    loss_fn(model(batches[0][0]), batches[0][1]).backward()
    try:
        pyhessian(model, loss_fn, dataloader=batches, cuda=False).density(iter=5)
        found["PyHessian, density()"] = "ran"
    except Exception as error:
        found["PyHessian, density()"] = f"{type(error).__name__}: {str(error)[:60]}"
    return found


def main() -> None:
    job = json.loads(sys.stdin.readline())
    with contextlib.redirect_stdout(sys.stderr):
        found = ours() if job["which"] == "shoal" else theirs()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
