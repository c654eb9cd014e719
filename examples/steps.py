"""How far to step: find a rate by trial, measure curvature, change the batch size on the way.

Read it cell by cell (``# %%``) in an editor that runs them, or run it whole: half a minute on one
core, nothing downloaded. ``shoal find-lr examples/steps.py:objects`` and ``shoal spectrum
examples/steps.py:objects`` do the same by the command.
"""

# %% A network of two layers that learns what another one says, in ten classes.
from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from shoal import BatchSizeLR, find_lr, learning_rate, rates, rescale, spectrum


def data(n: int = 4096) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 32, generator=generator)
    hidden = torch.tanh(inputs @ torch.randn(32, 16, generator=generator))
    return TensorDataset(inputs, (hidden @ torch.randn(16, 10, generator=generator)).argmax(1))


def loader(batch_size: int) -> DataLoader:
    return DataLoader(data(), batch_size, shuffle=True, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader) -> float:
    """One epoch; the mean loss."""
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def objects() -> dict[str, object]:
    """What ``shoal find-lr`` and ``shoal spectrum`` need, after an epoch of warm-up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, loader(64))
    return {
        "model": model,
        "loss_fn": cross_entropy,
        "loader": loader(64),
        "optimizer": optimizer,
    }


def main() -> None:
    # %% Which rate trains best at 64 and at 512? Short trial runs tell; nothing is left of them.
    made = objects()
    model, optimizer = made["model"], made["optimizer"]
    assert isinstance(model, nn.Module) and isinstance(optimizer, torch.optim.Optimizer)
    print(find_lr(model, cross_entropy, loader(64), optimizer, [64, 512]).explain())

    # %% Why? Curvature, by products with it alone.
    measured = spectrum(model, cross_entropy, loader(64))
    print(f"greatest eigenvalue {measured.lam_max:.3g}, trace {measured.trace:.3g}")

    # %% How far may a batch of 64 step, and where does a larger batch stop to help?
    plan = learning_rate(measured, 64, optimizer)
    print(plan.explain())

    # %% A rate that trains at 64, carried to 512 by every rule. The last is the most accurate.
    print(rates(measured, 0.1, 64, 512, optimizer))
    print(rescale(measured, 0.1, 64, 512, optimizer).explain())

    # %% The batch size grows while it trains; the rate goes along.
    schedule = BatchSizeLR(optimizer, 64, measured)
    for batch_size in (64, 256, 1024):
        schedule.set_batch_size(batch_size)
        loss = train(model, optimizer, loader(batch_size))
        print(f"batch {batch_size}: rate {schedule.get_last_lr()[0]:.3g}, loss {loss:.3f}")


if __name__ == "__main__":
    main()
