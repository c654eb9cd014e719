"""Measure a spectrum: a few dozen products with an objective's curvature on a loader's batches.

In this order: `steps` of Lanczos for the outer eigenvalues, the quadrature and each batch's
curvature in the top directions; `probes` random vectors for what lies outside the Lanczos vectors'
span, in trace, Frobenius norm and noise; one product with the top vector and one of each batch
along its own gradient. Together about steps + probes + 2 products with the whole, each about the
cost of two to three gradients over the batches that are measured.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core.errors import expect, expect_positive
from shoal.core.objectives import Objective
from shoal.core.optimizers import optimizer_info, scales_of, unmoved
from shoal.curvature.checks import check_problem, expect_symmetric
from shoal.curvature.lanczos import Basis, Lanczos, lanczos
from shoal.curvature.noise import Complement, Recorder, complement_of, noise_of
from shoal.curvature.preserve import Mode, notes_on_modes, preserve_state
from shoal.curvature.problem import (
    Problem,
    Supervised,
    in_metric,
    problem_of,
    split_at_scores,
    unwrapped,
    with_rows,
)
from shoal.curvature.products import Products, product_of
from shoal.curvature.routes import Route
from shoal.curvature.samples import BatchSize
from shoal.curvature.spectrum import Curvature, Noise, Sampling, Spectrum
from shoal.curvature.stream import (
    dataset_size_of,
    expect_size,
    notes_on_stream,
    sampler_of,
    sampling_of,
)

CONVERGED = 0.01  # residual of the top pair as a share of it: its value is then right to about 1e-4
_HOST_BASIS = 1 << 32  # bytes of Lanczos vectors beyond which they move to host memory


def spectrum(
    model: nn.Module | Objective | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    loader: Any = None,
    *,
    curvature: Curvature = "ggn",
    steps: int = 30,
    probes: int = 8,
    max_batches: int = 32,
    seed: int = 0,
    params: str | Callable[[str], bool] | None = None,
    route: Route = "double-backward",
    mode: Mode = "eval",
    memory: int = 1 << 30,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    dataset_size: int | None = None,
    sampling: Sampling | None = None,
    batch_size: BatchSize = None,
    precondition: torch.optim.Optimizer | None = None,
    operator: Any = None,
) -> Spectrum:
    """Measure eigenvalues, trace and noise of an objective's curvature on a loader's batches.

    The model's parameters, gradients, buffers and modes, the random states and the loader's
    position are afterwards as they were before.

    Args:
        model: a module, or one of shoal's objectives; within DistributedDataParallel or
            torch.compile the module itself is measured, on this process's batches.
        loss_fn: ``(outputs, targets)`` → mean over the batch; None for an objective.
        loader: of batches ``(inputs, targets)``, of shoal's, or of whatever `forward` takes.
        curvature: ``"ggn"``, which step sizes need since it has no negative eigenvalue;
            ``"hessian"``; or ``"fisher"``, the empirical one.
        steps: of Lanczos: 20 to 30 settle the top of a trained network.
        probes: random vectors; 8 estimate the noise to about 10 %, and the trace better.
        max_batches: batches of the loader that are measured, at most.
        seed: of random vectors, of dropout's masks and of what the loader draws.
        params: which parameters: a pattern such as ``"layers.0.*"``, or a function of the name.
        route: how products are made (:mod:`~shoal.curvature.routes`).
        mode: what batch normalization and dropout do: ``"eval"`` (running statistics, no dropout)
            or ``"train"`` (the batch's statistics, one mask a batch).
        memory: bytes for graphs that are kept between products.
        forward: ``(model, batch)`` → outputs, where it is not ``model(inputs)``; then `loss_fn` is
            called with ``(outputs, batch)``.
        dataset_size: samples of the whole data, where the loader does not say.
        sampling: how a batch's samples are drawn, where the loader does not say.
        batch_size: samples of a batch, or a function of the batch. By default a DataLoader's, else
            what the parts of a batch and the model's outputs agree on.
        precondition: an optimizer whose metric to measure in, which its step sizes need: D^−½ H
            D^−½ with D = √v̂ + eps of Adam or RMSprop, over the rates of groups that have their own.
            Parameters that it has not moved are left out.
        operator: anything with ``shape`` and ``@`` or ``matvec``, such as one of curvlinops', in
            place of model, loss and loader; it has no noise.

    Returns:
        what was found, with warnings on what it does not hold for.

    Raises:
        InputError: if the input cannot be measured.

    Example:
        >>> inputs = torch.tensor([[2.0], [0.0]])
        >>> model = nn.Linear(1, 1, bias=False)
        >>> loader = [(inputs, torch.zeros(2, 1))]
        >>> measured = spectrum(model, nn.MSELoss(), loader)  # the mean of (2 w)² and 0
        >>> round(measured.lam_max, 6), round(measured.trace, 6)
        (4.0, 4.0)
    """
    began = time.perf_counter()
    expect_positive("steps", steps)
    expect(isinstance(probes, int) and probes >= 0, "probes", "at least 0", probes, "raise it")
    if operator is not None:
        measured = _of_operator(operator, curvature, steps, probes, seed)
        return replace(measured, seconds=time.perf_counter() - began)
    objective = _objective(model, loss_fn, loader, forward)
    with preserve_state(objective.model, loader, mode, seed):
        wanted = _filter(params)
        still = [] if precondition is None else unmoved(precondition, objective.model)
        problem, notes = _problem(
            objective, loader, max_batches, _without(still, wanted), seed, batch_size
        )
        checked = check_problem(problem, curvature)
        notes += notes_on_modes(objective.model, mode) + list(checked.notes)
        if still:
            notes.append(f"left out, since the optimizer has not moved them: {', '.join(still)}")
        if precondition is not None:
            problem = in_metric(problem, scales_of(precondition, objective.model))
        products = Products(problem, curvature, route, memory)
        expect_symmetric(products)
        loss = problem.mean_loss()
        size = dataset_size if dataset_size is not None else dataset_size_of(loader)
        expect_size(size, problem)
        drawn = sampling or sampling_of(loader, problem, checked.is_mean)
        measured = _measured(products, steps, probes, seed, size, drawn)
    notes += notes_on_stream(loader, problem, size, drawn)
    return replace(
        measured,
        metric="plain" if precondition is None else optimizer_info(precondition).metric,
        rates=() if precondition is None else optimizer_info(precondition).rates,
        loss=loss,
        sampler=sampler_of(loader),
        seconds=time.perf_counter() - began,
        warnings=(*notes, *measured.warnings),
    )


def _measured(
    products: Products, steps: int, probes: int, seed: int, size: int | None, sampling: Sampling
) -> Spectrum:
    p, problem = products.shape[0], products.problem
    m = min(steps, p)
    on_host = (m + 1) * p * products.dtype.itemsize > _HOST_BASIS
    basis = Basis(m + 1, p, products.dtype, torch.device("cpu") if on_host else products.device)
    near = basis if basis.rows.device == products.device else None
    recorder = Recorder(products, size, near)
    found = lanczos(
        recorder, p, m, seed=seed, dtype=products.dtype, device=products.device, basis=basis
    )
    rest = complement_of(recorder.several, found, probes, seed + 1)
    noise = noise_of(recorder, found, rest, sampling)
    return replace(
        _eigenvalues(found, rest, products.curvature),
        samples=sum(problem.sizes),
        dataset_size=size,
        batch_size=max(problem.sizes),
        noise=noise,
        products=round(products.taken),
        warnings=tuple(_notes_on_result(found, products.curvature, noise)),
    )


def _of_operator(
    operator: Any, curvature: Curvature, steps: int, probes: int, seed: int
) -> Spectrum:
    product, p, dtype, device = product_of(operator)
    found = lanczos(product, p, steps, seed=seed, dtype=dtype, device=device)

    def several(vectors: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        return [product(v.to(device, dtype)) for v in vectors], [math.nan] * len(vectors)

    measured = _eigenvalues(found, complement_of(several, found, probes, seed + 1), curvature)
    notes = _notes_on_result(found, curvature, None)
    return replace(
        measured,
        sampler=type(operator).__name__,
        products=len(found.ritz) + probes,
        warnings=("an operator tells nothing of batches: no noise was measured", *notes),
    )


def _eigenvalues(found: Lanczos, rest: Complement, curvature: Curvature) -> Spectrum:
    """What needs no batches."""
    outside, error = _average(rest.traces)
    return Spectrum(
        curvature=curvature,
        parameters=found.basis.rows.shape[1],
        samples=0,
        dataset_size=None,
        batch_size=0,
        sampler="",
        ritz=found.ritz,
        residuals=found.residuals,
        nodes=found.ritz,
        node_weights=found.weights,
        trace=float(found.projected.trace()) + outside,
        trace_error=error,
        frobenius=float(found.squares.sum()) + _average(rest.squares)[0],
    )


def _average(values: tuple[float, ...]) -> tuple[float, float]:
    """Mean and standard error; NaN where they cannot be estimated."""
    drawn = torch.tensor(values, dtype=torch.float64)
    mean = float(drawn.mean()) if len(drawn) else math.nan
    return mean, float(drawn.std()) / math.sqrt(len(drawn)) if len(drawn) > 1 else math.nan


# -- input -----------------------------------------------------------------------------------


def _objective(model: Any, loss_fn: Any, loader: Any, forward: Any) -> Supervised | Objective:
    expect(loader is not None, "loader", "batches", None, "pass the loader of the training data")
    if isinstance(model, Objective):
        got = "an objective and one"
        remedy = "leave it out: an objective has its own"
        expect(loss_fn is None and forward is None, "loss_fn", "None", got, remedy)
        return model
    model = unwrapped(model)
    kind = type(model).__name__
    expect(isinstance(model, nn.Module), "model", "a torch module", kind, "pass the module")
    expect(callable(loss_fn), "loss_fn", "a function of outputs and targets", loss_fn, "pass one")
    return Supervised(model, loss_fn, forward)


def _without(
    still: list[str], wanted: Callable[[str], bool] | None
) -> Callable[[str], bool] | None:
    if not still:
        return wanted
    return lambda name: name not in still and (wanted is None or wanted(name))


def _filter(params: str | Callable[[str], bool] | None) -> Callable[[str], bool] | None:
    if isinstance(params, str):
        return lambda name: fnmatchcase(name, params)
    return params


def _problem(
    objective: Supervised | Objective,
    loader: Any,
    max_batches: int,
    wanted: Callable[[str], bool] | None,
    seed: int,
    batch_size: BatchSize,
) -> tuple[Problem, list[str]]:
    learns = bool(getattr(getattr(loader, "table", None), "trainable", False))
    alone = learns and not any(x.requires_grad for x in objective.model.parameters())
    problem = problem_of(
        objective,
        loader,
        max_batches=max_batches,
        params=wanted,
        seed=seed,
        needs_leaves=not alone,
        batch_size=batch_size,
    )
    if isinstance(objective, Objective):
        problem = replace(problem, objective=split_at_scores(objective))
    if alone:
        return with_rows(problem), ["the parameters are the table's rows that the batches touch"]
    return problem, ["the table's rows, which learn too, were held fixed"] if learns else []


def _notes_on_result(found: Lanczos, curvature: Curvature, noise: Noise | None) -> list[str]:
    notes, top = [], found.ritz[0].item()
    share = found.residuals[0].item() / max(abs(top), 1e-300)
    if share > CONVERGED:
        notes.append(
            f"Lanczos has not converged: the top eigenvalue {top:.4g} is known to "
            f"±{100 * share:.2g} %, and is rather larger; raise steps"
        )
        warnings.warn(notes[-1], stacklevel=4)
    least = found.ritz[-1].item()
    if curvature != "hessian" and least < -1e-3 * abs(top):
        notes.append(
            f"the {curvature} matrix has the negative eigenvalue {least:.4g}: the loss is not "
            "convex in the outputs; give scores as outputs, or take curvature='fisher'"
        )
    if noise is not None and noise.batches > 1 and math.isnan(noise.gradient_noise_scale):
        notes.append("the gradient drowns in its noise: raise max_batches for the noise scale")
    return notes
