"""A spectrum is right, changes nothing, and says what it does not hold for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import shoal
from shoal import InputError, Spectrum, spectrum
from shoal.curvature.batch_spectra import batch_factor, fit_top, mean_top
from shoal.curvature.preserve import preserve_state
from shoal.curvature.problem import Supervised, problem_of
from shoal.curvature.products import Products
from tests.curvature.dense import classes, mlp, per_sample

LOSS = nn.CrossEntropyLoss()


def loader_of(n: int = 60, batch_size: int = 5, **options: Any) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, dtype=torch.float64, generator=draw)
    return DataLoader(
        TensorDataset(x, torch.randint(3, (n,), generator=draw)), batch_size, **options
    )


@pytest.fixture(scope="module")
def measured() -> tuple[Spectrum, Tensor]:
    """A Gauss-Newton spectrum with steps and probes to spare, and the matrices of its samples."""
    loader = loader_of(shuffle=True)
    found = spectrum(mlp(), LOSS, loader, steps=20, probes=60)
    return found, per_sample(mlp(), LOSS, list(loader), "ggn")


def test_eigenvalues_and_traces_are_those_of_the_dense_matrix(measured) -> None:
    """Top Ritz values to ten digits; trace and Frobenius norm within a per cent."""
    found, each = measured
    dense = each.mean(0)
    true = torch.linalg.eigvalsh(dense).flip(0)
    torch.testing.assert_close(found.ritz[:4], true[:4], rtol=1e-9, atol=0)
    assert found.trace == pytest.approx(dense.trace().item(), rel=1e-2)
    assert found.frobenius == pytest.approx(dense.square().sum().item(), rel=1e-2)
    assert (found.parameters, found.samples, found.dataset_size, found.batch_size) == (
        43,
        60,
        60,
        5,
    )
    assert found.sampler == "RandomSampler" and found.noise.sampling == "independent"
    assert found.products == 20 + 60 + 2 and found.warnings == ()


def test_noise_is_that_of_the_dense_matrices(measured) -> None:
    """E10: batches of 5 tell the spread of single samples, s2, F2, kappa_1 and direct."""
    found, each = measured
    noise, away = found.noise, each - each.mean(0)
    values, vectors = torch.linalg.eigh(each.mean(0))
    top = vectors[:, -1]
    along = away @ top
    direct = (along @ top).square().mean().item()
    kappa = (along.square().sum(1).mean().item() - direct) / values[-1].item()
    true = away.square().sum((1, 2)).mean().item()
    # twelve batches know a variance to √(2 / 11) for each independent direction
    assert noise.frobenius == pytest.approx(true, rel=0.2)
    assert noise.s2 == pytest.approx(noise.frobenius / 43)
    assert noise.kappa == pytest.approx(kappa, rel=0.5)
    assert noise.direct == pytest.approx(direct, rel=0.6)
    assert (noise.micro_batch, noise.batches) == (5, 12)


@pytest.mark.whole
def test_noise_is_unbiased_over_shuffles() -> None:
    """F2's mean over many orders of the data is the dense F2 within 4 %: no factor is missing."""
    each = per_sample(mlp(), LOSS, list(loader_of()), "ggn")[:, 40:, 40:]
    true = (each - each.mean(0)).square().sum((1, 2)).mean().item()
    values = []
    for seed in range(12):
        order = loader_of(shuffle=True)
        found = spectrum(mlp(), LOSS, order, steps=3, probes=0, seed=seed, params="2.bias")
        values.append(found.noise.frobenius)
    assert sum(values) / len(values) == pytest.approx(true, rel=0.04)


def test_each_batch_in_the_top_directions(measured) -> None:
    """Noise.top averages, by size, to the Ritz values' diagonal."""
    found, _ = measured
    mean = (found.noise.top * found.noise.sizes[:, None, None]).sum(0) / found.noise.sizes.sum()
    torch.testing.assert_close(mean, found.ritz[:8].diag(), rtol=0, atol=1e-9)


def test_gradient_noise_scale_and_sharpness_by_hand() -> None:
    """Two batches of one sample each of ½ (w − t)²: gradients w − t, curvature 1."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 5.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    half = lambda z, t: 0.5 * (z - t).square().mean()  # noqa: E731
    noise = spectrum(model, half, [(one, one), (one, 3 * one)], curvature="hessian").noise
    # gradients 4 and 2: variance 2, squared mean 9, of which 2 / 2 is noise
    assert noise.gradient_noise_scale == pytest.approx(2 / 8)
    assert noise.batch_sharpness == pytest.approx(1.0) and noise.frobenius == 0.0


class Everything(nn.Module):
    """Batch normalization, dropout, a buffer that it writes to itself, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)
        self.first.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.fails_at = -1

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fails_at >= 0 and torch.rand(()) >= 0:
            self.fails_at -= 1
            if self.fails_at < 0:
                raise RuntimeError("half-way")
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def state_of(model: nn.Module, loader: Any) -> list[Any]:
    """All that measuring could change, by value and by identity."""
    tensors = [*model.state_dict().values(), *(x.grad for x in model.parameters())]
    return [
        [None if x is None else x.tolist() for x in tensors],
        [id(x) for x in (*model.parameters(), *model.buffers())],
        [x.requires_grad for x in model.parameters()],
        [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()],
        [torch.get_rng_state().tolist(), loader.generator.get_state().tolist()],
        [random.getstate(), str(np.random.get_state())],  # noqa: NPY002
        [torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled()],
        torch.backends.mha.get_fastpath_enabled(),
    ]


@pytest.mark.usefixtures("unchecked")  # the check itself draws Python's random numbers
@pytest.mark.parametrize("fails_at", [-1, 0, 9])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_measuring_changes_nothing(mode: Any, fails_at: int) -> None:
    """Weights, gradients, buffers, modes, random states, the stream; an exception included."""
    torch.manual_seed(0)
    model = Everything().double().train()
    model.drop.eval()  # modes are kept module by module
    loader = loader_of(40, 10, shuffle=True, generator=torch.Generator().manual_seed(5))
    LOSS(model(torch.randn(8, 4, dtype=torch.float64)), torch.zeros(8).long()).backward()
    model.fails_at = fails_at
    before = state_of(model, loader)
    with torch.no_grad():
        expected = [torch.is_grad_enabled()]
        if fails_at >= 0:
            with pytest.raises(RuntimeError, match="half-way"):
                spectrum(model, LOSS, loader, steps=4, probes=2, mode=mode, memory=0)
            model.fails_at = fails_at
        else:
            with pytest.warns(UserWarning, match="not converged"):
                found = spectrum(model, LOSS, loader, steps=4, probes=2, mode=mode, memory=0)
            assert any("batch normalization" in note for note in found.warnings)
            assert any("dropout" in note for note in found.warnings)
        assert expected == [torch.is_grad_enabled()]
    assert state_of(model, loader) == before


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_modes_are_what_they_say(mode: Any) -> None:
    """Kept and fresh graphs, all routes: one matrix a mode, and the two modes differ."""
    torch.manual_seed(0)
    model = Everything().double()
    loader = loader_of(40, 10, shuffle=True)
    options = {"steps": 3, "probes": 0, "curvature": "hessian"}
    with pytest.warns(UserWarning, match="not converged"):
        tops = [
            spectrum(model, LOSS, loader, mode=mode, **options, **more).lam_max
            for more in (
                {},
                {"memory": 0},
                {"route": "forward-over-reverse"},
                {"route": "central-difference"},
            )
        ]
        other = spectrum(model, LOSS, loader, mode=({"eval", "train"} - {mode}).pop(), **options)
    assert tops == pytest.approx([tops[0]] * 4, rel=1e-6)
    assert abs(other.lam_max - tops[0]) > 1e-3 * tops[0]


def test_the_same_seed_measures_the_same() -> None:
    """Whatever the random state: a measurement is a function of model, data and seed."""
    found = [spectrum(mlp(), LOSS, loader_of(shuffle=True), steps=9).to_json()]
    torch.manual_seed(99)
    found.append(spectrum(mlp(), LOSS, loader_of(shuffle=True), steps=9).to_json())
    texts = [text.split('"seconds"')[0] for text in found]
    assert texts[0] == texts[1]
    other = spectrum(mlp(), LOSS, loader_of(shuffle=True), steps=9, seed=1).to_json()
    assert other.split('"seconds"')[0] != texts[0]


def test_dictionaries_through_a_callable() -> None:
    """Batches as Hugging Face's: forward and loss read them by name, and the top is the same."""
    batches = [{"x": x, "labels": y} for x, y in classes()]
    found = spectrum(
        mlp(),
        lambda outputs, batch: LOSS(outputs, batch["labels"]),
        batches,
        forward=lambda model, batch: model(batch["x"]),
    )
    assert found.lam_max == pytest.approx(spectrum(mlp(), LOSS, classes()).lam_max)
    assert found.samples == 15 and found.dataset_size is None


def test_an_operator_serves_as_input() -> None:
    """A matrix, and what has nothing but matvec on numpy vectors."""
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))

    class Numpy:
        shape, dtype = (3, 3), np.dtype("float64")

        def matvec(self, v: np.ndarray) -> np.ndarray:
            return matrix.numpy() @ v

    for operator in (matrix, Numpy()):
        found = spectrum(operator=operator, curvature="hessian")
        torch.testing.assert_close(found.ritz, matrix.diagonal())
        assert found.trace == pytest.approx(7.0) and found.frobenius == pytest.approx(21.0)
        assert np.isnan(found.noise.s2) and "operator" in found.warnings[0]


def test_parameters_by_name() -> None:
    """A pattern measures one layer."""
    found = spectrum(mlp(), LOSS, classes(), params="2.*")
    dense = per_sample(mlp(), LOSS, classes(), "ggn").mean(0)[25:, 25:]
    assert found.parameters == 18
    assert found.lam_max == pytest.approx(torch.linalg.eigvalsh(dense)[-1].item())


def test_what_limits_the_numbers_is_said() -> None:
    """One batch, unused parameters, unconverged Lanczos, an order that is not random."""
    model = mlp()
    model.register_parameter("idle", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    with pytest.warns(UserWarning, match="not converged"):
        found = spectrum(model, LOSS, loader_of(60, 60), steps=2)
    text = " ".join(found.warnings)
    for part in ("flat: idle", "one batch", "SequentialSampler", "raise steps"):
        assert part in text
    assert np.isnan(found.noise.s2)


class Coin(nn.Module):
    """Not a function of its batch: it keeps a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4, 3, dtype=torch.float64))
        self.own = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight * torch.rand((), generator=self.own)


def _half() -> nn.Module:
    return mlp(torch.bfloat16)


def _frozen() -> nn.Module:
    return mlp().requires_grad_(False)


def _exploded() -> nn.Module:
    model = mlp()
    nn.init.constant_(model[2].weight, float("inf"))
    return model


BAD: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
    (mlp, nn.CrossEntropyLoss(reduction="sum"), classes(), {}, "loss_fn: .* a mean over the batch"),
    (mlp, nn.CrossEntropyLoss(reduction="none"), classes(), {}, "loss_fn: expected a scalar"),
    (mlp, lambda z, y: z.sum().detach() * 0, classes(), {}, "model: .* depends on parameters"),
    (Coin, LOSS, classes(), {}, "model: expected the same loss twice"),
    (_exploded, LOSS, classes(), {}, "loss_fn: expected a finite loss, got nan on batch 0"),
    (_half, LOSS, classes(), {}, "expected float32 or float64, got bfloat16"),
    (_frozen, LOSS, classes(), {}, "model: expected parameters that want a gradient"),
    (mlp, LOSS, classes(), {"params": "9.*"}, "params: expected a filter that some name passes"),
    (mlp, LOSS, [], {}, "loader: expected at least one batch"),
    (mlp, LOSS, iter(classes()), {}, "loader: expected something to iterate afresh"),
    (mlp, LOSS, None, {}, "loader: expected batches"),
    (mlp, None, classes(), {}, "loss_fn: expected a function"),
    (lambda: 3, LOSS, classes(), {}, "model: expected a torch module, got int"),
    (mlp, LOSS, classes(), {"steps": 0}, "steps: expected a whole number"),
    (mlp, LOSS, classes(), {"probes": -1}, "probes: expected at least 0"),
    (mlp, LOSS, classes(), {"max_batches": 0}, "max_batches: expected"),
    (mlp, LOSS, classes(), {"mode": "test"}, 'mode: expected "eval" or "train"'),
    (mlp, LOSS, classes(), {"dataset_size": 3}, "dataset_size: expected at least the 15"),
    (mlp, LOSS, classes(), {"operator": 3}, "operator: expected a square shape"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD, ids=lambda case: case[-1][:30])
def test_bad_input_is_named_with_its_remedy(case: Any) -> None:
    """One line: expected, got, remedy."""
    model, loss_fn, loader, options, message = case
    with pytest.raises(InputError, match=message):
        spectrum(model(), loss_fn, loader, **options)


def test_two_sizes() -> None:
    """The law's two constants come back from what it predicts, finite data included."""
    tops = {b: 2.0 + 3.0 * batch_factor(b, 100) for b in (10, 25, 50)}
    assert fit_top(tops, 100) == pytest.approx((2.0, 3.0))
    assert batch_factor(100, 100) == 0
    with pytest.raises(InputError, match="tops: expected two batch sizes"):
        fit_top({8: 1.0})


def test_the_mean_top_is_that_of_dense_batches() -> None:
    """Each batch's own matrix, its largest eigenvalue, the mean of both; above that of the mean."""
    batches = classes((6, 9))
    each = per_sample(mlp(), LOSS, batches, "ggn")
    dense = [torch.linalg.eigvalsh(part.mean(0))[-1].item() for part in each.split([6, 9])]
    with preserve_state(mlp(), batches, "eval", 0):
        found = problem_of(Supervised(mlp(), LOSS), batches, max_batches=2)
        top = mean_top(Products(found, "ggn"))
    assert top == pytest.approx(sum(dense) / 2, rel=1e-3)
    assert top > torch.linalg.eigvalsh(each.mean(0))[-1]


def test_a_clustered_sampler_is_worth_fewer_samples() -> None:
    """Batches of four copies of one sample are worth about one sample, not four."""
    x, y = next(iter(loader_of(96, 96)))
    copies = [(x[i].repeat(4, 1), y[i].repeat(4)) for i in range(96)]
    fair = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 96, 4)]
    options: dict[str, Any] = {"steps": 3, "max_batches": 96, "params": "2.bias"}
    clustered, independent = (
        spectrum(mlp(), LOSS, each, **options).noise for each in (copies, fair)
    )
    # a clustered batch of b spreads as b_eff independent samples would
    effective = clustered.micro_batch * independent.frobenius / clustered.frobenius
    assert 0.6 < effective < 1.7


def test_public_names() -> None:
    """The entry and the noun are shoal's own."""
    assert shoal.spectrum is spectrum and shoal.Spectrum is Spectrum
