"""``shoal spectrum``: the curvature of a run, or of a user's own objects, and what it allows.

A run's job is built again around its model, with the state of the last checkpoint where the run
kept one; own objects come from a Python file, by a function that returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import shoal
from shoal.cli.config import settings_of_run
from shoal.cli.parts import Spectrum as Asked
from shoal.cli.use import on_graph, source_of
from shoal.core.columns import Columns
from shoal.core.errors import InputError, expect, fail
from shoal.core.objectives import Objective
from shoal.core.optimizers import OptimizerInfo, optimizer_info
from shoal.curvature.measure import spectrum
from shoal.curvature.spectrum import Spectrum
from shoal.data import load_labels
from shoal.data.splits import validation_split
from shoal.step.job import info_of
from shoal.step.rules import Rates, rates
from shoal.step.size import StepSize, learning_rate
from shoal.step.trial_runs import TrialRuns, trial_runs
from shoal.tasks import TASKS, labels
from shoal.tasks.labels import ALL
from shoal.tasks.settings import Table, named
from shoal.training.checkpoints import restore
from shoal.training.job import Job
from shoal.training.run import Run

# What of a run of the first layout, whose options were others, decides its batches.
_OF_BATCHES = {"batch_size", "cluster_size", "batches", "positives", "valid", "seed"}

# The order in which a function may return objects without names.
_PARTS = ("model", "loss_fn", "loader", "optimizer", "forward")


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is measured: an objective or a model with its loss, a loader, and how it is trained."""

    model: nn.Module | Objective
    loss_fn: Callable[..., Tensor] | None
    loader: Any
    info: OptimizerInfo
    optimizer: torch.optim.Optimizer | None
    forward: Callable[..., Tensor] | None = None
    after_warmup: bool | None = None  # None: as far as the optimizer's state tells


def measure(asked: Asked) -> dict[str, Any]:
    """Run ``shoal spectrum``: measure, advise, draw, and perhaps try.

    Returns:
        what the command prints.

    Raises:
        InputError: if the source is neither a run nor objects, or cannot be measured.
    """
    mine = _source(asked)
    begun = mine.optimizer is not None and len(mine.optimizer.state) > 0
    inside = begun if mine.info.kind == "adam" else len(set(mine.info.rates)) > 1
    found = spectrum(
        mine.model,
        mine.loss_fn,
        mine.loader,
        curvature=asked.curvature,
        steps=asked.lanczos,
        probes=asked.probes,
        max_batches=asked.max_batches,
        mode=asked.mode,
        seed=asked.seed,
        forward=mine.forward,
        precondition=mine.optimizer if inside else None,
    )
    sizes, notes = _sizes(asked, found), []
    if mine.info.kind == "adam" and not begun:
        notes.append("Adam's metric needs its state: train the run with --keep-resume")
    plans = _plans(found, mine, asked.initial_loss, sizes, notes)
    known = _known(asked, found, mine, sizes, notes)
    tried = _tried(asked, found, mine, plans, known, notes) if asked.trial_steps else []
    home = Path(asked.source) if Path(asked.source).is_dir() else Path(asked.source).parent
    out = asked.out or home / "spectrum"
    return _written(out, found, plans, known, tried, notes)


def _source(asked: Asked) -> _Measured:
    if ":" in asked.source and asked.source.split(":")[0].endswith(".py"):
        return _own(asked)
    run = Path(asked.source)
    job, info = job_of(run, asked.device)
    # a run that ended keeps no optimizer, but was trained
    warm = None if Run.open(run).last.exists() else True
    return _Measured(job.objective, None, job.loader, info, job.optimizer, after_warmup=warm)


def job_of(run: Path, device: str = "auto") -> tuple[Job, OptimizerInfo]:
    """A run's job in the state of its last checkpoint, and its optimizer with the peak rate.

    Without a checkpoint, as in a finished run by default, the model has its final weights and the
    optimizer no state.

    Raises:
        InputError: if data or checkpoint are not those of the run, or it is an export.
    """
    opened = Run.open(run)
    expect(not opened.exported, str(run), "a run to measure", "an export", "name its run")
    model = shoal.open(run, device=device)
    source, columns = source_of(run, None, Table())
    job = model.job(source) if on_graph(model) else _label_job(model, opened, source, columns)
    info = info_of(job)  # before the schedule's last rate comes back
    # where shares were held out in turn, the encoder that was kept was trained on all examples
    whole = Run(opened.folder / ALL, {})
    opened = whole if whole.last.exists() else opened
    if opened.last.exists():
        restore(job, opened)
    return job, info


def _label_job(model: Any, run: Run, source: str, columns: dict[str, Any]) -> Job:
    """The encoder's job of a run on labels: its batches and loss around the trained encoder."""
    task = TASKS["labels"]
    first = {name: x for name, x in run.settings.items() if name in _OF_BATCHES}
    asked = settings_of_run(task.settings, run.settings.get("command") or first)
    parts, valid = task.model_of(asked).parts, asked.fit_arguments()["valid"]
    data = load_labels(source, **columns)
    once = valid and not (run.folder / ALL).is_dir()
    kept = validation_split(data, valid, asked.seed)[0] if once else data.train
    about = {"seed": asked.seed, "device": model.device, "folder": None}
    encoder, tokens = model.encoder.begin(kept.texts, data.labels, **about)
    device = None if model.device == "cpu" else model.device
    return labels.build(parts, encoder, tokens, kept.labels, device=device)


def _own(asked: Asked) -> _Measured:
    """Objects of a user's file: ``file.py:function``, by name or in the order of `_PARTS`."""
    make = named(asked.source, "source")
    made = make() if callable(make) else make
    if isinstance(made, tuple):
        made = dict(zip(_PARTS, made, strict=False))
    elif not isinstance(made, Mapping):
        made = getattr(made, "__dict__", {})
    want = "model, loss_fn and loader, and perhaps optimizer and forward"
    for part in ("model", "loader"):
        expect(part in made, asked.source, want, f"no {part}", "return a dictionary of them")
    optimizer = made.get("optimizer")
    info = optimizer_info(optimizer if optimizer is not None else asked.optimizer)
    return _Measured(
        made["model"], made.get("loss_fn"), made["loader"], info, optimizer, made.get("forward")
    )


def _sizes(asked: Asked, found: Spectrum) -> list[int]:
    """Batch sizes as asked for, or powers of two around the loader's, up to the data."""
    if asked.batch_sizes:
        return sorted(asked.batch_sizes)
    most = found.dataset_size or 64 * found.batch_size
    around = [2**i for i in range(3, 20) if 2**i <= min(most, 64 * found.batch_size)]
    return sorted({found.batch_size, *around})


def _plans(
    found: Spectrum, mine: _Measured, initial_loss: float | None, sizes: list[int], notes: list[str]
) -> list[StepSize]:
    """Absolute advice, or a note why there is none."""
    try:
        optimizer = mine.optimizer or mine.info
        how: dict[str, Any] = {"after_warmup": mine.after_warmup, "initial_loss": initial_loss}
        return [learning_rate(found, b, optimizer, **how) for b in sizes]
    except InputError as error:
        notes.append(f"no absolute advice: {error}")
        return []


def _known(
    asked: Asked, found: Spectrum, mine: _Measured, sizes: list[int], notes: list[str]
) -> list[tuple[int, Rates]]:
    """All rules from the rate that is known at the loader's batch size, if one is."""
    lr = asked.lr or mine.info.lr
    if lr is None:
        return []
    try:
        now = found.batch_size
        return [
            (b, rates(found, lr, now, b, mine.info, initial_loss=asked.initial_loss)) for b in sizes
        ]
    except InputError as error:
        notes.append(f"no rules: {error}")
        return []


def _tried(
    asked: Asked,
    found: Spectrum,
    mine: _Measured,
    plans: list[StepSize],
    known: list[tuple[int, Rates]],
    notes: list[str],
) -> list[TrialRuns]:
    """Trial runs around the recommended rate, at the batch sizes that were asked for.

    Without any at the loader's own; a step of a larger size averages over several of its batches.
    """
    remedy = "leave --trial-steps out"
    optimizer = mine.optimizer
    if optimizer is None:
        fail("trial_steps", "an optimizer of dense parameters", "none", remedy)
    model, loss_fn, forward = mine.model, mine.loss_fn, mine.forward
    if isinstance(model, Objective):
        learns = getattr(mine.loader.table, "trainable", False)
        expect(not learns, "trial_steps", "a run with frozen rows", "trainable rows", remedy)
        loss_fn, model = model.criterion, model.model
        forward = _called
    assert loss_fn is not None
    advised = {plan.batch_size: plan for plan in plans}
    made, take = [], _recommended(plans, known)
    for size in asked.batch_sizes or (found.batch_size,):
        if size % found.batch_size or size not in advised:
            notes.append(
                f"no trial runs at batch size {size}: the loader's batches of {found.batch_size} "
                "do not make it up"
            )
            continue
        plan = replace(advised[size], safe=take[size], calibrated=bool(known))
        made.append(
            trial_runs(
                model,
                loss_fn,
                mine.loader,
                optimizer,
                plan,
                steps=asked.trial_steps,
                forward=forward,
                batch_size=found.batch_size,
                seed=asked.seed,
            )
        )
    return made


def _recommended(plans: list[StepSize], known: list[tuple[int, Rates]]) -> dict[int, float]:
    """One rate a batch size: carried from the one that is known, else the advice."""
    carried = {b: rule.spectral for b, rule in known}
    return {plan.batch_size: plan.safe for plan in plans} | carried


def _called(model: nn.Module, batch: Any) -> Tensor:
    return model(batch.blocks, batch.src)


def _written(
    out: Path,
    found: Spectrum,
    plans: list[StepSize],
    known: list[tuple[int, Rates]],
    tried: list[TrialRuns],
    notes: list[str],
) -> dict[str, Any]:
    """Files, and the facts about them."""
    from shoal.report.spectrum import picture

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(str(out), "a folder to write to", error.strerror, "name another --out")
    found.save(out / "spectrum.json")
    noise = found.noise
    result = {
        "curvature": found.curvature,
        "metric": found.metric,
        "parameters": found.parameters,
        "samples": found.samples,
        "batch_size": found.batch_size,
        "sampling": noise.sampling,
        "loss": round_(found.loss),
        "lam_max": round_(found.lam_max),
        "residual": round_(float(found.residuals[0])),
        "trace": round_(found.trace),
        "noise_over_trace": round_(noise.frobenius / found.trace),
        "kappa": round_(noise.kappa),
        "gradient_noise_scale": round_(noise.gradient_noise_scale),
        "batch_sharpness": round_(noise.batch_sharpness),
        "critical_batch": round_(plans[0].critical_batch) if plans else None,
        "trusted": plans[0].trusted if plans else False,
        "seconds": round(found.seconds, 2),
        "rates": _table(plans, known, tried),
        "trial_runs": [line for runs in tried for line in runs.explain().splitlines()],
        "notes": [*dict.fromkeys([*found.warnings, *(plans[0].notes if plans else ()), *notes])],
        "spectrum": str(out / "spectrum.json"),
    }
    try:
        result["picture"] = str(
            picture(out / "spectrum.png", found, plans, known, next(iter(tried), None))
        )
    except InputError as error:
        result["notes"].append(f"no picture: {error}")
    return {key: value for key, value in result.items() if value not in (None, [])}


def _table(
    plans: list[StepSize], known: list[tuple[int, Rates]], tried: list[TrialRuns]
) -> Columns:
    """One row a batch size: the rate to take, absolute advice, every rule from the known rate.

    The rate to take is the best one that was tried, or else the recommended one.
    """
    best = {runs.plan.batch_size: runs.best for runs in tried if runs.best}
    take = _recommended(plans, known) | best
    rows: dict[int, dict[str, float | None]] = {
        b: {"batch": b, "take": round_(rate)} for b, rate in take.items()
    }
    for plan in plans:
        rows[plan.batch_size] |= {"safe": round_(plan.safe), "edge": round_(plan.edge)}
    for b, rule in known:
        rows[b] |= {name: round_(value) for name, value in vars(rule).items()}
    return Columns(rows.values())


def round_(value: float) -> float | None:
    """Four digits that count; None for what is no number, since JSON has none for it."""
    return float(f"{value:.4g}") if abs(value) < float("inf") else None
