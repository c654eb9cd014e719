"""The rate is found, from wherever the search begins; and nothing is left of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.step.find_lr import FoundRates, find_lr


def quadratic(curvature: float = 1.0, n: int = 64) -> tuple[nn.Module, Any, list[Any]]:
    """One weight, 1 at first, of a given curvature, without noise."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return curvature * (outputs - targets).square().mean() / 2

    return model, loss, [(torch.ones(8, 1), torch.zeros(8, 1))] * (n // 8)


def classes(seed: int = 0, n: int = 256) -> tuple[nn.Module, DataLoader[Any]]:
    """A small network with all that keeps state, on separable classes."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2)
    )
    x = torch.randn(n, 4)
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    return model, DataLoader(data, batch_size=8, shuffle=True, generator=generator)


@pytest.mark.parametrize("begin", [1e-7, 0.03, 1.0, 50.0, 1e5])
@pytest.mark.parametrize("curvature", [0.01, 100.0])
def test_a_quadratic_by_its_closed_form(begin: float, curvature: float) -> None:
    """A run multiplies the weight by Π (1 − a h (1 − t/T)), wherever the search begins."""
    model, loss, loader = quadratic(curvature)
    optimizer = torch.optim.SGD(model.parameters(), lr=begin)
    found = find_lr(model, loss, loader, optimizer, steps=6)
    for trial in found.found[0].trials:
        falls = [1 - trial.lr * curvature * (1 - t / trial.steps) for t in range(trial.steps)]
        left = math.prod(falls) ** 2
        if left > 1e30:  # more than float32 holds
            continue
        assert trial.after / trial.before == pytest.approx(left, rel=2e-3, abs=1e-6)
    assert found.found[0].best.after < 1e-4 * found.found[0].best.before
    # the product is 1 at a h = 3.88, 4.33 and 4.40 for runs of 6, 12 and 24 steps, and beyond 6
    edge = found.edge[8]
    assert edge is not None and 3.88 / 1.25 < edge * curvature < 6.1
    assert 1 < found.found[0].gap <= 1.25
    assert found.known == (8, begin)


@pytest.mark.whole
def test_of_several_batch_sizes_noise_asks_for_smaller_steps_at_small_ones() -> None:
    """Least squares with noise in the features: rates grow with the batch, up to a limit."""
    torch.manual_seed(0)
    x = torch.randn(512, 32)
    data = TensorDataset(x, x @ torch.randn(32, 1))
    model = nn.Linear(32, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loader(size: int) -> DataLoader[Any]:
        return DataLoader(data, size, shuffle=True, generator=torch.Generator().manual_seed(0))

    found = find_lr(model, functional.mse_loss, loader, optimizer, [64, 2, 8], steps=12)
    assert list(found.lr) == [2, 8, 64]
    # E5 of Gaussian features: the largest rate is b/(b + 33) of the mean-square loss
    for size, edge in found.edge.items():
        assert edge is not None and size / (size + 33) < 2.5 * edge < 8 * size / (size + 33)
    assert found.lr[2] < found.lr[8] < found.lr[64]
    # some ten runs a batch size, and what they cost is told
    assert found.gradients == sum(t.steps for x in found.found for t in x.trials) < 3 * 30 * 12


def test_steps_of_several_batches_are_steps_of_a_larger_one() -> None:
    """With no state in the batches, three of 8 are one of 24."""
    x = torch.randn(192, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = []
    for size in (8, 24):
        optimizer.param_groups[0]["lr"] = 0.1 * math.sqrt(size)  # where the search for 24 begins
        loader = DataLoader(data, size)
        made.append(find_lr(model, functional.mse_loss, loader, optimizer, [24], steps=4))
    several, one = (x.found[0] for x in made)
    assert several.batches == 3 and one.batches == 1
    assert "average over up to 3" in made[0].notes[0] and not made[1].notes
    # both are judged by the same 48 samples, a quarter of what there is
    for a, b in zip(several.trials, one.trials, strict=True):
        assert a.lr == pytest.approx(b.lr) and a.after == pytest.approx(b.after, rel=1e-3)


def test_at_a_minimum_no_rate_is_said_to_train() -> None:
    """Noise that cannot be avoided: every step costs, and the result says so."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    x, noise = torch.ones(128, 1), torch.randn(128, 1)
    loader = DataLoader(TensorDataset(x, noise), batch_size=8)
    with torch.no_grad():
        model.weight.fill_(float(noise[:32].mean()))  # the minimum of the samples that judge
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = find_lr(model, functional.mse_loss, loader, optimizer, steps=8)
    assert "no rate lowered the loss" in found.explain()


def test_nothing_is_left_of_it() -> None:
    """Parameters, buffers, gradients, optimizer, schedule, modes, random states: bit for bit."""
    model, loader = classes()
    model[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for x, y in loader:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()

    def everything() -> dict[str, Any]:
        assert isinstance(loader.generator, torch.Generator)
        return {
            "model": dict(model.state_dict()),
            "gradients": [param.grad for param in model.parameters()],
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "modes": [module.training for module in model.modules()],
            "random": [torch.get_rng_state(), loader.generator.get_state()],
        }

    before, grads = copy.deepcopy(everything()), [param.grad for param in model.parameters()]
    first = find_lr(model, functional.cross_entropy, loader, optimizer, steps=4)
    assert same_tensors(before, everything())
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    again = find_lr(model, functional.cross_entropy, loader, optimizer, steps=4)
    assert again == first  # the same batches and masks in each
    assert len({trial.before for trial in first.found[0].trials}) == 1


def test_an_optimizer_that_no_law_knows_and_groups_of_their_own_rates() -> None:
    """The sign of gradients alone; the second group goes on at half the rate of the first."""

    class Sign(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})
            self.seen: list[tuple[float, ...]] = []

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            self.seen.append(tuple(group["lr"] for group in self.param_groups))
            for group in self.param_groups:
                for param in group["params"]:
                    param -= group["lr"] * param.grad.sign()

    model, loader = classes()
    first, last = model[0].parameters(), [*model[1].parameters(), *model[4].parameters()]
    optimizer = Sign([{"params": first}, {"params": last, "lr": 0.005}], lr=0.01)
    found = find_lr(model, functional.cross_entropy, loader, optimizer, steps=20)
    assert found.found[0].best.after < 0.7 * found.found[0].best.before
    assert all(b == pytest.approx(a / 2) for a, b in optimizer.seen)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]


def test_batches_of_other_kinds() -> None:
    """Dictionaries, with a forward of one's own."""
    model, loader = classes()
    dicts = [{"x": x, "y": y} for x, y in loader]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = find_lr(
        model,
        lambda outputs, batch: functional.cross_entropy(outputs, batch["y"]),
        dicts,
        optimizer,
        [16],
        forward=lambda model, batch: model(batch["x"]),
        steps=5,
    )
    assert found.found[0].batches == 2 and "batch size 16: learning rate" in found.explain()


def test_the_picture(tmp_path: Any) -> None:
    """A notebook shows it, and its points are those of the result."""
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    model, loss, loader = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = find_lr(model, loss, loader, optimizer, [8, 16], steps=2)
    image = found._repr_png_()
    assert isinstance(found, FoundRates) and image is not None and image[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, r"steps: expected a whole number of at least 1"),
        ({"batch_sizes": [0]}, r"batch_sizes: expected a whole number of at least 1"),
        ({"batch_sizes": [12]}, r"loader: expected batches of 12 or a divisor of it"),
        ({"loader": []}, r"loader: expected at least one batch, got none"),
        ({"loader": lambda size: []}, r"batch_sizes: expected at least one, got none"),
        ({"optimizer": "sgd"}, r"optimizer: expected a torch optimizer, got str"),
        ({"optimizer": torch.optim.LBFGS}, r"optimizer: expected one whose step needs no closure"),
        ({"lr": 0.0}, r"lr: expected a learning rate above 0, got 0.0"),
        ({"frozen": True}, r"optimizer: expected parameters that want a gradient, got none"),
        ({"scale": float("nan")}, r"loss: expected a finite number before any step, got nan"),
        ({"scale": 0.0}, r"loss: expected one that training changes, got 0 always"),
        ({"detached": True}, r"loss: expected one that the parameters enter, got a constant"),
        ({"device": "meta"}, r"model: expected parameters with values, got the meta device"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], said: str, unchecked: None) -> None:
    """One line each, and nothing is left of it either."""
    model, loss, loader = quadratic()
    model = model.to(change.get("device", "cpu"))
    make = change.get("optimizer", torch.optim.SGD)
    optimizer = make if make == "sgd" else make(model.parameters(), lr=change.get("lr", 0.1))
    model.weight.requires_grad_(not change.get("frozen", False))

    def changed(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.detach() if change.get("detached") else outputs
        return change.get("scale", 1.0) * loss(outputs, targets)

    sizes, steps = change.get("batch_sizes", []), change.get("steps", 3)
    with pytest.raises(InputError, match=f"^{said}"):
        find_lr(model, changed, change.get("loader", loader), optimizer, sizes, steps=steps)
    assert model.weight.device.type == "meta" or model.weight.detach().item() == 1.0
