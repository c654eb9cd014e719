"""What both jobs share: checked settings, the run's folder, the budget, the closing word."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from shoal.cli.recipes import RECIPES
from shoal.cli.settings import Train
from shoal.core.errors import expect, expect_positive
from shoal.data import is_graph
from shoal.step.job import spectral
from shoal.training.callbacks import Callback, EarlyStopping, RunLog, ShowProgress
from shoal.training.job import Budget, Job, Progress
from shoal.training.run import Run
from shoal.training.track import Tracker

# What a resumed run may be asked for anew: how long, where, and what changes nothing but time.
_FREE = {"steps", "epochs", "minutes", "patience", "out", "resume", "json", "prefetch", "device"}
_FREE |= {"track", "device_rows", "host_rows"}


# Options that say nothing about the other jobs; given for one of them, they would be ignored.
OPTIONS_OF = {
    "labels": {
        "recipe",
        "valid",
        "batches",
        "side",
        "cluster_size",
        "curriculum",
        "cluster_by",
        "refresh_every",
        "warm_epochs",
        "bank",
        "encoder",
        "dim",
        "pooling",
        "max_length",
        "label_encoder",
        "lora",
        "gradient_checkpointing",
        "chunk",
        "positives",
        "positives_by",
        "loss",
        "symmetric",
        "graded",
        "temperature",
        "head",
        "head_epochs",
        "head_lr",
        "head_loss",
        "head_negatives",
        "head_dropout",
        "head_texts",
        "rank",
        "fusion",
        "rare",
        "words",
        "roles",
        "from_",
    },
    "graphs": {
        "task",
        "model",
        "fanouts",
        "hidden",
        "heads",
        "dropout",
        "device_rows",
        "host_rows",
    },
    "links": {"negatives"},
}
_READ_BY = {"labels": {"labels"}, "nodes": {"graphs"}, "links": {"graphs", "links"}}
# Options that the other kind of encoder would ignore.
_OPTIONS_OF_ENCODER = {
    "bag": {"dim"},
    "a transformer": {"pooling", "max_length", "label_encoder", "lora", "gradient_checkpointing"},
}


def expect_settings(settings: Train) -> None:
    """Check the numbers that no part of a job checks, and that no option would be ignored.

    Raises:
        InputError: naming the option; one of the other job or encoder counts as given if it is not
            at its default.
    """
    for name in (
        "batch_size",
        "refresh_every",
        "dim",
        "max_length",
        "lora",
        "chunk",
        "head_epochs",
    ):
        value = getattr(settings, name)
        expect_positive(name, value) if value is not None else None
    for name in ("lr", "temperature", "head_lr"):
        value = getattr(settings, name)
        good = value is None or 0 < value < float("inf")
        expect(good, name, "a number above 0", value, "leave it out for the default")
    expect(0 <= settings.valid < 1, "valid", "a share in [0, 1)", settings.valid, "try 0.05")
    _expect_head(settings)
    _expect_fits(settings)
    heads = settings.model == "gat" or not _given(settings, "heads")
    expect(heads, "heads", "an option of --model gat", settings.model, "leave it out")
    warm = settings.warm_epochs
    expect(warm >= 0, "warm_epochs", "at least 0 epochs", warm, "raise it")
    mine = settings.task if is_graph(settings.source) else "labels"
    owner_of = {name: owner for owner, names in OPTIONS_OF.items() for name in names}
    for option in fields(settings):
        given, owner = _given(settings, option.name), owner_of.get(option.name)
        wrong = given and owner is not None and owner not in _READ_BY[mine]
        want = f"an option for {mine}, since that is what {settings.source} is read for"
        expect(not wrong, option.name, want, f"one for {owner}", "leave it out")
        encoder = "a transformer" if settings.encoder == "bag" else "bag"
        wrong = option.name in _OPTIONS_OF_ENCODER[encoder] and given
        want = f"an option of --encoder {settings.encoder}"
        expect(not wrong, option.name, want, f"one of {encoder}", "leave it out")


def _given(settings: Train, name: str) -> bool:
    """Whether an option is neither at its default nor at its recipe's."""
    value, (option,) = getattr(settings, name), [x for x in fields(settings) if x.name == name]
    return value not in (option.default, RECIPES[settings.recipe].get(name, option.default))


def _expect_head(settings: Train) -> None:
    share = settings.head_dropout
    expect(0 <= share < 1, "head_dropout", "a share in [0, 1)", share, "try 0.5")
    if settings.head == "none":
        good = settings.rank != "head"
        expect(good, "rank", "fused or encoder without a head", "head", "pass --head frozen")
    for option in fields(settings):
        late = option.name in ("head_epochs", "head_texts")
        needs = {"frozen"} if late else {"frozen", "joint"}
        given = _given(settings, option.name)
        wrong = option.name.startswith("head_") and given and settings.head not in needs
        want = "an option of " + ("--head frozen" if late else "a head")
        expect(not wrong, option.name, want, f"--head {settings.head}", "leave it out")


def _expect_fits(settings: Train) -> None:
    """Refuse pairs of options of which one would be ignored, or mean nothing."""
    tree = settings.fusion == "tree" and settings.rank == "fused"
    good = not tree or settings.head != "none"
    expect(good, "fusion", "network without a head", "tree", "pass --head frozen")
    good = 0 <= settings.rare < math.inf
    expect(good, "rare", "a power of at least 0", settings.rare, "try 1")
    good = settings.rare == 0 or (settings.rank == "fused" and not tree)
    want = "0 unless a network fuses"
    expect(good, "rare", want, settings.rare, "leave out --rank or --fusion")
    if settings.head_loss == "triplet" and settings.head != "none":
        good = settings.head == "frozen" and settings.head_negatives != "all"
        want = "decoupled, softmax or binary, unless shortlists train a frozen head"
        expect(good, "head_loss", want, "triplet", "leave it out")
    graded = not (settings.graded and settings.loss != "softmax")
    expect(graded, "graded", "--loss softmax", settings.loss, "leave one out")
    if settings.side == "label":
        for name, want in (("positives_by", "chance"), ("label_encoder", "shared")):
            got = getattr(settings, name)
            expect(got == want, name, f"{want}, with --side label", got, "leave it out")
        good = settings.head != "joint"
        expect(good, "head", "none or frozen, with --side label", settings.head, "leave it out")
    if settings.batches == "random":
        for name in ("curriculum", "cluster_by"):
            expect(
                not _given(settings, name),
                name,
                "--batches ngame",
                "random batches",
                "leave it out",
            )


def open_run(settings: Train) -> Run:
    """Open the run to resume, or make the folder of a new one.

    Raises:
        InputError: if a setting is bad, there is a run where a new one should be, none where one
            should be resumed, or one with other settings.
    """
    expect_settings(settings)
    out = settings.out or Path("runs") / Path(settings.source).stem
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    asked["fanouts"] = list(settings.fanouts)
    run = Run.open(out) if settings.resume else Run.create(out, asked)
    if settings.resume:
        expect(not run.exported, str(out), "a run to continue", "an export", "continue its run")
        run.expect_settings(asked, _FREE)
    return run


def settings_of(run: Run) -> Train:
    """The settings that a run was trained with, each of the kind that :class:`Train` says.

    Raises:
        InputError: naming the first that is not.
    """
    kinds = get_type_hints(Train)
    given = {name: value for name, value in run.settings.items() if name in kinds}
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        given[name] = Path(value) if name in ("out", "from_") and isinstance(value, str) else value
        good = _is_a(given[name], kinds[name])
        where = f"{run.folder / 'settings.json'}: {name}"
        expect(good, where, str(kinds[name]), repr(value), "restore it or train again")
    expect("source" in given, str(run.folder), "the settings of a run", "no source", "restore it")
    return Train(**given)


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is what an annotation says: a class, a choice, a union, a tuple."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts and not isinstance(value, bool)
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(x, parts[0]) for x in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def budget_of(settings: Train, epochs: int) -> Budget:
    """The limits that were asked for, or `epochs` where there is none.

    Raises:
        InputError: if a limit is not positive.
    """
    open_ended = settings.steps is None and settings.epochs is None and settings.minutes is None
    return Budget(
        steps=settings.steps,
        epochs=epochs if open_ended else settings.epochs,
        minutes=settings.minutes,
    )


def callbacks_of(settings: Train, run: Run) -> list[Callback]:
    """What was asked for around training: progress, early stopping, a tracker.

    Raises:
        InputError: if the tracker is not installed, or a number is out of range.
    """
    stopping = [] if settings.patience is None else [EarlyStopping(settings.patience)]
    trackers = [] if settings.track is None else [Tracker(settings.track, run.folder)]
    return [ShowProgress("train"), *stopping, *trackers]


def step_rule_of(settings: Train, job: Job) -> Any:
    """The rule that sets the learning rate beside the schedule; None for the schedule alone."""
    return spectral(job) if settings.step == "spectral" else None


def finish(
    run: Run,
    settings: Train,
    progress: Progress,
    judge: Callable[[], dict[str, float]],
    callbacks: list[Callback],
) -> dict[str, Any]:
    """Judge the run unless it was interrupted, and say what came of it."""
    result: dict[str, Any] = {
        "run": str(run.folder),
        "data": settings.source,
        "stopped": progress.stopped,
        "steps": progress.step,
        "train_seconds": round(progress.seconds, 1),
        "loss": round(progress.loss, 4),
    }
    if progress.stopped == "interrupt":
        return result
    begin = time.monotonic()
    test = judge()
    seconds = round(time.monotonic() - begin, 1)
    for callback in (RunLog(run), *callbacks):
        callback.test(progress, {"test_seconds": seconds, **test})
    return result | {"test": test, "test_seconds": seconds}


def autocast_pays(choice: str, device: str) -> bool:
    """Whether to compute in bfloat16: as asked, or for ``auto`` by timing one product both ways.

    Only processors with matrix units for it gain; 1.3 is the least gain that is worth the digits.
    """
    if choice != "auto":
        return choice == "on"
    x = torch.randn(1024, 1024, device=device, generator=torch.Generator(device).manual_seed(0))
    seconds = {dtype: _seconds(x.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] > 1.3 * seconds[torch.bfloat16]


def _seconds(x: torch.Tensor) -> float:
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        (x @ x).sum().item()
        times.append(time.perf_counter() - begin)
    return min(times)
