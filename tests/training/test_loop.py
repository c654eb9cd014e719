"""fit(): stopped and resumed equals never stopped; budgets, validation, the log, bad input."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import shoal
from shoal.core import checkpoint
from shoal.core.block import Batch, Block
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.core.objectives import Objective
from shoal.fetch.unified import unified
from shoal.fetch.update import RowSGD
from shoal.sample.expand import NeighborSampler
from shoal.tasks import labels, nodes
from shoal.text.bag import BagSum
from shoal.training.callbacks import EarlyStopping
from shoal.training.gradients import Gradients
from shoal.training.job import Budget, Job
from shoal.training.loader import Loader
from shoal.training.loop import fit, interrupts
from shoal.training.run import Run
from tests.planted import planted_graph, planted_labels

EPOCH = 6  # batches of either job below


def label_job(
    n: int = 96,
    n_labels: int = 24,
    valid: int = 10,
    noise: float = 0.0,
    lr: float = 0.03,
    dim: int = 8,
    prefetch: int = 2,
    batches: Any = None,
    evaluate_every: int = 1,
    **parts: Any,
) -> Job:
    """The page of the label task on planted examples, in batches of two clusters."""
    data = planted_labels(n=n, n_labels=n_labels, noise=noise)
    ids = torch.arange(len(data.train))
    learned, held_out = data.train.subset(ids[valid:]), data.train.subset(ids[:valid])
    spec = shoal.BagEncoder(dim=dim, lr=lr)
    encoder, tokens = spec.begin(learned.texts, data.labels, seed=0, device="cpu", folder=None)
    batches = shoal.Clustered(16, 8, warm_epochs=1) if batches is None else batches
    parts = {"encoder": spec, "batches": batches, **parts}

    def evaluate() -> dict[str, float]:
        label_tokens = tokens.span(len(learned), tokens.n_rows)
        ranker = (shoal.EncoderRanker(),)
        now = shoal.Predictor(encoder, data.labels, label_tokens, ranker)
        return shoal.validate(partial(now.rank, held_out.texts), held_out)

    job = labels.build(
        labels.Parts(**parts), encoder, tokens, learned.labels, evaluate, evaluate_every
    )
    job.loader.prefetch = prefetch
    return job


def node_job(hidden: int = 8, dropout: float = 0.5, prefetch: int = 2, **options: Any) -> Job:
    """The page of the node task, GraphSAGE with dropout, on 108 planted training nodes."""
    data = planted_graph(n=180, classes=3, dim=12)
    gradients = options.pop("gradients", None)
    options = {"batch_size": 18, "fanouts": (3, 2), "valid_every": 1, "seed": 0} | options
    rows = shoal.feature_rows(data.features)
    with torch.random.fork_rng():
        torch.manual_seed(options["seed"])
        classes = len(data.class_names)
        network = shoal.Sage(rows.shape[1], hidden, classes, layers=2, dropout=dropout)
    job = nodes.build(data, network, rows, **options)
    job.loader.prefetch = prefetch
    return job if gradients is None else replace(job, gradients=gradients)


def interrupted(job: Job, step: int) -> Job:
    """The same job, which asks for an end once, during step `step`, counted from the first."""
    asked = False

    def observe(batch: Batch, outputs: Tensor) -> None:
        nonlocal asked
        at = job.loader.epoch * job.steps_per_epoch + -(
            -job.loader.position // job.gradients.accumulate
        )
        if at == step and not asked:
            asked = True
            signal.raise_signal(signal.SIGINT)
        if job.observe is not None:
            job.observe(batch, outputs)

    return replace(job, observe=observe)


def new_run(folder: Path) -> Run:
    """A run that nothing is asked of."""
    return Run.create(folder, {})


def last_of(run: Run) -> dict[str, Any]:
    """All that a checkpoint holds, but for the clock."""
    state = run.load_last()
    state["progress"].pop("seconds")
    return state


VARIANTS: dict[str, Callable[[], Job]] = {
    "labels": label_job,
    "accumulate": lambda: label_job(gradients=Gradients(accumulate=4, clip=0.1)),
    "random": lambda: label_job(
        batches=shoal.Random(16), loss=shoal.hardest_triplets, positives=1, prefetch=0
    ),
    "chunk": lambda: label_job(gradients=Gradients(chunk=5)),
    "nodes": node_job,
    "nodes, accumulate": lambda: node_job(gradients=Gradients(accumulate=2, clip=0.1), prefetch=4),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    """Wherever it was stopped, a resumed run ends in the same state, bit for bit.

    After the first step, at the exact end of an epoch, and after the refresh of the next.
    """
    make = VARIANTS[name]
    epoch = make().steps_per_epoch
    budget = Budget(steps=epoch + 3)
    whole = new_run(tmp_path / "whole")
    assert fit(make(), budget, whole).stopped == "steps"
    for step in (1, epoch, epoch + 1):
        run = new_run(tmp_path / str(step))
        progress = fit(interrupted(make(), step), budget, run)
        assert (progress.stopped, progress.step) == ("interrupt", step)
        assert not same_tensors(last_of(run), last_of(whole))
        fit(make(), budget, Run.open(run.folder), resume=True)
        assert same_tensors(last_of(run), last_of(whole))
        assert same_tensors(run.load_model(), whole.load_model())


def test_resumed_twice_equals_uninterrupted(tmp_path: Path) -> None:
    """Two stops are as harmless as one, and resuming a finished run changes nothing."""
    budget, whole, run = Budget(epochs=2), new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    fit(node_job(), budget, whole)
    fit(interrupted(node_job(), 2), budget, run)
    fit(interrupted(node_job(), 5), budget, run, resume=True)
    fit(node_job(), budget, run, resume=True)
    assert same_tensors(last_of(run), last_of(whole))
    fit(node_job(), budget, run, resume=True)
    assert same_tensors(last_of(run), last_of(whole))


@pytest.mark.parametrize("make", [label_job, node_job])
def test_prefetch_changes_nothing(make: Callable[..., Job], tmp_path: Path) -> None:
    """Batches made ahead, none, one or four, end in the same state."""
    states = []
    for prefetch in (0, 1, 4):
        run = new_run(tmp_path / str(prefetch))
        fit(make(prefetch=prefetch), Budget(steps=EPOCH + 2), run)
        states.append(last_of(run))
    assert same_tensors(states[0], states[1]) and same_tensors(states[0], states[2])


def test_seed_is_the_only_randomness(tmp_path: Path) -> None:
    """The caller's random state is neither read nor moved; another seed is another run."""
    states = []
    for caller, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        run = new_run(tmp_path / f"{caller}{seed}")
        fit(node_job(seed=seed), Budget(steps=3), run)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(last_of(run)["model"])
    assert same_tensors(states[0], states[1]) and not same_tensors(states[0], states[2])


def test_training_learns_planted_labels(tmp_path: Path) -> None:
    """Validation P@1 clearly exceeds that of the untrained bag; the best round is the best kept."""
    job = label_job(
        n=600, n_labels=64, valid=180, noise=0.3, lr=0.02, dim=32, evaluate_every=2,
        batches=shoal.Clustered(60, 10),
    )  # fmt: skip
    assert job.evaluate is not None
    untrained, run = job.evaluate()["valid_P@1"], new_run(tmp_path / "run")
    progress = fit(job, Budget(epochs=10), run)
    rounds = [x["valid_P@1"] for x in run.log() if x["event"] == "validate"]
    assert len(rounds) == 5 and progress.best == max(rounds) > untrained + 15


def test_the_log_of_a_run(tmp_path: Path) -> None:
    """Every epoch's refresh says its cluster size and seconds; steps and the end are there."""
    run = new_run(tmp_path / "run")
    fit(label_job(), Budget(epochs=4), run)
    events = run.log()
    refreshes = [event for event in events if event["event"] == "refresh"]
    assert [event["cluster_size"] for event in refreshes] == [1, 8, 8, 8]
    assert all(event["refresh_seconds"] >= 0 for event in refreshes)
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 10, 20]
    assert events[-1]["event"] == "end" and events[-1]["stopped"] == "steps"


def test_resuming_what_has_no_checkpoint_yet_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run killed before its first checkpoint is trained from the start, with a warning."""
    whole, run = new_run(tmp_path / "whole"), new_run(tmp_path / "run")
    fit(node_job(), Budget(steps=3), whole)
    fit(node_job(), Budget(steps=3), run, resume=True)
    assert "no checkpoint in" in caplog.text and "starts anew" in caplog.text
    assert same_tensors(last_of(run), last_of(whole))
    assert "resume" not in [x["event"] for x in run.log()]


def scripted(scores: list[float]) -> Job:
    """A job whose rounds of validation end in `scores`."""
    rounds = iter(scores)
    return replace(node_job(), evaluate=lambda: {"score": next(rounds)})


def test_best_checkpoint_is_kept(tmp_path: Path) -> None:
    """Later, worse rounds do not replace the best model; ties keep the first."""
    run = new_run(tmp_path / "run")
    progress = fit(scripted([1.0, 3.0, 2.0, 3.0]), Budget(epochs=4), run)
    assert progress.best == 3.0 and progress.rounds == 2
    assert (
        run.load_model()["step"] == 2 * EPOCH and run.load_last()["progress"]["step"] == 4 * EPOCH
    )


def test_patience_stops() -> None:
    """So many rounds without a better one end the run; a better one starts the count anew."""
    job = scripted([2.0, 1.0, 3.0, 1.0, 3.0, 9.0])
    progress = fit(job, Budget(epochs=9), callbacks=[EarlyStopping(2)])
    assert (progress.stopped, progress.step) == ("patience", 5 * EPOCH)


def test_evaluation_follows_its_rhythm_and_the_end() -> None:
    """Every `evaluate_every` epochs and once at the end of the budget, in mid-epoch too."""
    at: list[int] = []
    job = node_job(valid_every=2)
    fit(replace(job, evaluate=lambda: {"x": float(at.append(0) or 0)}), Budget(steps=4 * EPOCH + 1))
    assert len(at) == 3


def test_minutes_stop_by_the_clock() -> None:
    """The budget of time ends the run after the step that exceeds it, whatever else is left."""
    begin = time.monotonic()
    progress = fit(node_job(), Budget(minutes=0.3 / 60))
    assert progress.stopped == "minutes" and 0.3 <= progress.seconds < 2
    assert time.monotonic() - begin < 5 and progress.step > 1


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    """Rows of gradient one move by lr·min(1, (t+1)/warmup)·(1 - t/T) in step t of T."""
    table = unified(torch.zeros(1, 1), RowSGD(lr=8.0))
    loader = Loader([torch.zeros(1, dtype=torch.int64)] * 4, _alone, table, seed=0)  # pyright: ignore[reportArgumentType]
    seen: list[float] = []
    objective = Objective(_Rows(), lambda outputs, batch: outputs.sum())
    job = Job(objective, loader, warmup=2, observe=lambda *_: seen.append(table[0].item()))
    fit(job, Budget(epochs=1))
    moved = torch.tensor([0.0, *seen]).diff().neg()
    expected = [8 * min(1, (t + 1) / 2) * (1 - t / 4) for t in range(4)]
    torch.testing.assert_close(moved, torch.tensor(expected))


class _Rows(torch.nn.Module):
    def forward(self, blocks: object, rows: Tensor) -> Tensor:
        return rows


def _alone(seeds: Tensor, generator: torch.Generator) -> list:
    indptr = torch.arange(len(seeds) + 1)
    return [Block(seeds, seeds, indptr, indptr[:-1], seeds)]


def test_an_interrupted_main_thread_ends_a_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, where no signal comes, a run ends once Ctrl-C has ended the main one."""
    monkeypatch.setattr("shoal.training.loop.main_interrupted", lambda: True)
    with ThreadPoolExecutor(1) as other:
        progress = other.submit(fit, node_job(), Budget(steps=9)).result()
    assert (progress.stopped, progress.step) == ("interrupt", 1)


def test_second_interrupt_acts_as_before() -> None:
    """The first Ctrl-C sets the event; the second one is Python's own; afterwards all is reset."""
    # a suite that a shell began in the background ignores interrupts
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts() as event:
            signal.raise_signal(signal.SIGINT)
            assert event.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


def test_divergence_is_refused_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    """A loss that is no number ends the run in one line; what was saved before stays."""
    run = new_run(tmp_path / "run")
    fit(interrupted(node_job(), 2), Budget(steps=9), run)
    saved = last_of(run)
    job = node_job()
    broken = Objective(job.objective.model, lambda outputs, batch: outputs.sum() * float("nan"))
    with pytest.raises(InputError, match="loss at step 3: expected a finite number, got nan"):
        fit(replace(job, objective=broken), Budget(steps=9), run, resume=True)
    assert same_tensors(last_of(run), saved)


def test_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    """Other shapes, another seed, another kind of job, no run: one line that names the file."""
    run = new_run(tmp_path / "run")
    fit(node_job(), Budget(steps=1), run)
    table = unified(torch.zeros(180, 12), RowSGD(lr=0.0))
    learning = Loader([], NeighborSampler(planted_graph(18).graph, (1,)), table, seed=0)
    cases: list[tuple[Job, str]] = [
        (node_job(hidden=4), "expected a checkpoint of this job, got size mismatch"),
        (node_job(seed=1), "seed: expected the saved run's, 0, got 1"),
        (replace(node_job(), loader=learning), "got nothing named 'rows'"),
        (label_job(), "expected a checkpoint of this job, got Unexpected key"),
    ]
    for job, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            fit(job, Budget(steps=2), run, resume=True)
        assert "\n" not in str(caught.value)
    rows = new_run(tmp_path / "rows")
    fit(label_job(), Budget(steps=1), rows)
    with pytest.raises(InputError, match="checkpoint: expected rows of shape"):
        fit(label_job(dim=4), Budget(steps=2), rows, resume=True)
    with pytest.raises(InputError, match="expected a checkpoint of this job"):
        fit(node_job(), Budget(steps=2), rows, resume=True)
    state = rows.load_last()
    checkpoint.save(rows.last, state | {"progress": {"step": 1, "era": 2}})
    with pytest.raises(InputError, match="seconds: expected a finite number, got nothing"):
        fit(label_job(), Budget(steps=2), rows, resume=True)
    with pytest.raises(InputError, match="run: expected a run folder to resume from, got None"):
        fit(node_job(), Budget(steps=2), resume=True)


def test_jobs_that_cannot_train_are_refused() -> None:
    """Numbers out of range, a model without optimizer, nothing that learns: InputError names it."""
    job = node_job()
    frozen = Objective(BagSum(), job.objective.criterion)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"warmup": -1}, "warmup"),
        ({"optimizer": None}, "optimizer: expected one for the model's parameters, got None"),
        ({"objective": frozen}, "optimizer: expected None, since nothing dense is trained"),
        (
            {"objective": frozen, "optimizer": None},
            "objective: expected trainable parameters or rows",
        ),
    ]
    for change, message in bad:
        with pytest.raises(InputError, match=message):
            replace(job, **change)


@pytest.mark.usefixtures("unchecked")
def test_bad_budgets_are_refused() -> None:
    """No limit, limits that are not positive, NaN minutes, early stopping without validation."""
    with pytest.raises(InputError, match="budget: expected a limit, got none"):
        Budget()
    for name, value in (("steps", 0), ("epochs", -1), ("minutes", float("nan"))):
        with pytest.raises(InputError, match=f"{name}: expected"):
            Budget(**{"steps": 5, name: value})
    with pytest.raises(InputError, match="patience: expected"):
        EarlyStopping(0)
    with pytest.raises(InputError, match="patience: expected a job with validation, got none"):
        fit(replace(node_job(), evaluate=None), Budget(steps=5), callbacks=[EarlyStopping(1)])


@pytest.mark.parametrize(
    "bad", [{"accumulate": 0}, {"clip": float("nan")}, {"chunk": 0}, {"precision": "float16"}]
)
@pytest.mark.usefixtures("unchecked")
def test_bad_gradients_are_refused(bad: dict[str, Any]) -> None:
    """Numbers out of range and another precision: InputError names it."""
    with pytest.raises(InputError, match=f"^{next(iter(bad))}: expected"):
        Gradients(**bad)
