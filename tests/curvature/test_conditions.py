"""What products and statistics hold for: checked, and refused or said where it does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from shoal import learning_rate, spectrum
from shoal.core.errors import InputError
from shoal.curvature.routes import Route

QUICK: dict[str, Any] = {"steps": 8, "probes": 1, "curvature": "hessian"}


class Net(nn.Module):
    """Two layers with an activation between, perhaps checkpointed."""

    def __init__(
        self, activation: nn.Module, kept: bool = True, reentrant: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(6, 16)
        self.inner = nn.Sequential(activation, nn.Linear(16, 16), activation)
        self.out, self.kept, self.reentrant = nn.Linear(16, 3), kept, reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.kept:
            return self.out(self.inner(self.first(x)))
        return self.out(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


def loader(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=draw).to(dtype)
    return [(part, torch.arange(len(part)) % 3) for part in x.split(16)]


@pytest.mark.filterwarnings("ignore:Lanczos has not converged")
def test_central_differences_are_refused_at_kinks_and_checkpoints() -> None:
    """A smooth network's Hessian is that of double-backward; with kinks it is none."""
    whole = spectrum(Net(nn.Tanh()).double(), cross_entropy, loader(torch.float64), **QUICK)
    route: dict[str, Any] = {"route": "central-difference"}
    found = spectrum(
        Net(nn.Tanh()).double(), cross_entropy, loader(torch.float64), **QUICK, **route
    )
    assert found.trace == pytest.approx(whole.trace, rel=1e-4)
    for seed, dtype in enumerate((torch.float32, torch.float32, torch.float64)):
        net, data = Net(nn.ReLU(), seed=seed).to(dtype), loader(dtype)
        true = spectrum(net, cross_entropy, data, **QUICK)
        try:  # in float64 two points may lie so near that no activation changes sides between them
            assert spectrum(net, cross_entropy, data, **QUICK, **route).trace == pytest.approx(
                true.trace, rel=0.05
            )
        except InputError as error:
            assert "kinks of a ReLU; measure the Gauss" in str(error)
            continue
        assert dtype == torch.float64
    for dtype in (torch.float32, torch.float64):
        saving = Net(nn.Tanh(), kept=False).to(dtype)
        with pytest.raises(InputError, match=r"^route: .* not symmetric, .*checkpoint;"):
            spectrum(saving, cross_entropy, loader(dtype), **QUICK, **route)


@pytest.mark.filterwarnings("ignore:Lanczos has not converged", "ignore:None of the inputs")
def test_checkpointed_segments_by_other_routes() -> None:
    """Double-backward passes them; what torch refuses is one line whose remedy works."""
    plain, saving = (
        spectrum(Net(nn.Tanh(), kept).double(), cross_entropy, loader(torch.float64), **QUICK)
        for kept in (True, False)
    )
    assert saving.trace == pytest.approx(plain.trace)
    reentrant = Net(nn.Tanh(), kept=False, reentrant=True)
    with pytest.raises(InputError, match="checkpoint with use_reentrant=False"):
        spectrum(reentrant, cross_entropy, loader(), **QUICK)
    forward: Route = "forward-over-reverse"
    with pytest.raises(InputError, match='take route="double-backward"'):
        spectrum(Net(nn.Tanh(), False), cross_entropy, loader(), curvature="ggn", route=forward)


@pytest.mark.filterwarnings("ignore:Lanczos has not converged")
def test_the_noise_scale_of_finite_data() -> None:
    """Every sample measured, so the mean gradient has no noise: the exact scale, not 1.8 times."""
    torch.manual_seed(0)
    x, y = torch.randn(128, 8).double(), torch.randint(0, 3, (128,))
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def gradient(i: int) -> Tensor:
        loss = cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    rows = torch.stack([gradient(i) for i in range(128)])
    mean = rows.mean(0)
    exact = float((rows - mean).square().sum(1).mean() / mean.square().sum())
    data = DataLoader(TensorDataset(x, y), 2, shuffle=True)
    found = spectrum(net, cross_entropy, data, max_batches=64, steps=4, probes=1)
    assert found.noise.gradient_noise_scale == pytest.approx(exact, rel=0.2)


class Idle(nn.Module):
    """A head that is used and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.pooler = nn.Linear(6, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def warmed(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 60) -> None:
    for step in range(steps):
        x, y = loader()[step % 4]
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()


def test_a_module_that_gets_no_gradient_is_left_out() -> None:
    """In Adam's metric as without it: the same spectrum, and a note that names it."""
    model, alone = Idle(), Idle()
    alone.pooler.requires_grad_(False)
    found = []
    for net in (model, alone):
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2)
        warmed(net, optimizer)
        found.append(spectrum(net, cross_entropy, loader(), steps=15, precondition=optimizer))
    assert found[0].lam_max == pytest.approx(found[1].lam_max)
    assert found[0].parameters == found[1].parameters == 21
    assert any("left out" in x and "pooler.weight" in x for x in found[0].warnings)


def test_groups_with_rates_of_their_own_need_them_measured() -> None:
    """From the plain metric advice is not trusted; with the ratios it is, and is another."""
    model = Net(nn.Tanh())
    groups = [
        {"params": [*model.first.parameters(), *model.inner.parameters()]},
        {"params": model.out.parameters(), "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    warmed(model, optimizer)
    plain, inside = (
        spectrum(copy.deepcopy(model) if x is None else model, cross_entropy, loader(), steps=40,
                 precondition=x)
        for x in (None, optimizer)
    )  # fmt: skip
    asked = learning_rate(plain, 16, optimizer, after_warmup=True)
    assert not asked.trusted and "1, 100 times the first" in asked.explain()
    held = learning_rate(inside, 16, optimizer, after_warmup=True)
    assert held.trusted and held.safe < asked.safe / 5


def test_an_indefinite_matrix_is_not_trusted() -> None:
    """A contrastive loss in embeddings: not safe, with a remedy that works."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))

    def contrast(z: Tensor, _: Tensor) -> Tensor:
        z = nn.functional.normalize(z, dim=1)
        scores = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        return cross_entropy(scores, torch.arange(len(z)).view(-1, 2).flip(1).flatten())

    x = torch.randn(64, 8)
    batches = [(part, torch.zeros(16)) for part in x.split(16)]
    found = spectrum(net, contrast, batches, steps=30, probes=4)
    plan = learning_rate(found, 32, "sgd", after_warmup=True)
    assert not plan.trusted and "curvature='fisher'" in plan.explain()
    assert "in-batch batches" in plan.explain()
    fisher = spectrum(net, contrast, batches, curvature="fisher", steps=30)
    assert learning_rate(fisher, 32, "sgd", after_warmup=True).trusted
