"""``shoal spectrum``: the curvature of a run, or of a user's own objects, and what it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoal.cli.objects import Objects, objects_of
from shoal.cli.parts import Spectrum as Asked
from shoal.core.columns import Columns
from shoal.core.errors import InputError, fail
from shoal.curvature.measure import spectrum
from shoal.curvature.spectrum import Spectrum
from shoal.step.rules import Rates, rates
from shoal.step.size import StepSize, learning_rate


def measure(asked: Asked) -> dict[str, Any]:
    """Run ``shoal spectrum``: measure, advise and draw.

    Returns:
        what the command prints.

    Raises:
        InputError: if the source is neither a run nor objects, or cannot be measured.
    """
    mine = objects_of(asked.source, asked.device, asked.optimizer)
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
    home = Path(asked.source) if Path(asked.source).is_dir() else Path(asked.source).parent
    out = asked.out or home / "spectrum"
    return _written(out, found, plans, known, notes)


def _sizes(asked: Asked, found: Spectrum) -> list[int]:
    """Batch sizes as asked for, or powers of two around the loader's, up to the data."""
    if asked.batch_sizes:
        return sorted(asked.batch_sizes)
    most = found.dataset_size or 64 * found.batch_size
    around = [2**i for i in range(3, 20) if 2**i <= min(most, 64 * found.batch_size)]
    return sorted({found.batch_size, *around})


def _plans(
    found: Spectrum, mine: Objects, initial_loss: float | None, sizes: list[int], notes: list[str]
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
    asked: Asked, found: Spectrum, mine: Objects, sizes: list[int], notes: list[str]
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


def _recommended(plans: list[StepSize], known: list[tuple[int, Rates]]) -> dict[int, float]:
    """One rate a batch size: carried from the one that is known, else the advice."""
    carried = {b: rule.spectral for b, rule in known}
    return {plan.batch_size: plan.safe for plan in plans} | carried


def _written(
    out: Path,
    found: Spectrum,
    plans: list[StepSize],
    known: list[tuple[int, Rates]],
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
        "rates": _table(plans, known),
        "notes": [*dict.fromkeys([*found.warnings, *(plans[0].notes if plans else ()), *notes])],
        "spectrum": str(out / "spectrum.json"),
    }
    try:
        result["picture"] = str(picture(out / "spectrum.png", found, plans, known))
    except InputError as error:
        result["notes"].append(f"no picture: {error}")
    return {key: value for key, value in result.items() if value not in (None, [])}


def _table(plans: list[StepSize], known: list[tuple[int, Rates]]) -> Columns:
    """One row a batch size: the rate to take, absolute advice, every rule from the known rate."""
    take = _recommended(plans, known)
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
