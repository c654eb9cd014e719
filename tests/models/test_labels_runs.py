"""Runs of label models: stopped and resumed, finished, gone on with; what their folders hold."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import shoal
import shoal.models.base
from shoal.core import checkpoint
from shoal.core.checkpoint import same_tensors
from shoal.core.errors import InputError
from shoal.training.run import Run
from tests.planted import planted_labels

DATA = planted_labels(n=520, n_labels=24, noise=0.4)
TEXTS = [*DATA.test.texts.titles[:5], "w1"]


def small(**parts: Any) -> shoal.LabelModel:
    """A narrow bag on small batches: four steps an epoch, then classifiers."""
    usual: dict[str, Any] = {
        "encoder": shoal.BagEncoder(dim=8, lr=0.02),
        "batches": shoal.Clustered(60, 6),
        "classifiers": shoal.Classifiers(epochs=2, lr=0.02),
        "device": "cpu",
    }
    return shoal.LabelModel(**usual | parts)


def fit(out: Path | None, model: shoal.LabelModel | None = None, **options: Any) -> shoal.Result:
    """Half of the examples held out, so that there is an ensemble."""
    usual: dict[str, Any] = {"valid": 0.5, "epochs": 2, "valid_every": 1, "keep_resume": True}
    return (model or small()).fit(DATA, out=out, **usual | options)


def expect_same(one: Path, two: Path) -> None:
    """Two folders hold the same files, with the same tensors; clocks apart."""
    names = [{x.relative_to(run) for x in run.rglob("*.safetensors")} for run in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        other = "encoder" in name.parent.name  # a folder of transformers
        read: Any = load_file if other else checkpoint.load
        states = [read(run / name) for run in (one, two)]
        for state in states:
            state.get("progress", {}).pop("seconds", None)
        assert same_tensors(*states), name


class Interrupt(shoal.Callback):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, progress: Any, metrics: dict[str, Any]) -> None:
        """Once."""
        if progress.step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, with its checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert fit(out).stopped == "steps"
    return out


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 6])
@pytest.mark.whole
def test_stopped_in_the_encoder_and_resumed(whole: Path, tmp_path: Path, step: int) -> None:
    """In the first epoch and after a refresh: the same model in the end, bit for bit."""
    out = tmp_path / "run"
    stopped = fit(out, callbacks=[Interrupt(step)])
    assert (stopped.stopped, stopped.steps, stopped.test) == ("interrupt", step, {})
    assert not (out / "model.safetensors").exists()
    again = fit(out, resume=True)
    assert again.stopped == "steps" and again.test
    expect_same(whole, out)
    assert shoal.open(out).predict(TEXTS) == shoal.open(whole).predict(TEXTS)


@pytest.mark.whole
def test_stopped_in_the_classifiers_and_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the second stage ends the fit; resumed it continues inside, bit for bit."""
    out, watchers = tmp_path / "run", shoal.models.base.Fitting.watchers

    def with_interrupt(self: Any, stage: str, first: bool = True) -> list[shoal.Callback]:
        more = [Interrupt(5)] if stage == "classifiers" else []
        return [*watchers(self, stage, first), *more]

    with monkeypatch.context() as patch:
        patch.setattr(shoal.models.base.Fitting, "watchers", with_interrupt)
        stopped = fit(out)
    assert stopped.stopped == "interrupt" and not (out / "model.safetensors").exists()
    assert Run.open(out / "classifiers").load_last()["progress"]["step"] == 5
    fit(out, resume=True)
    expect_same(whole, out)
    begun = [event["event"] for event in Run.open(out / "classifiers").log()]
    assert begun.count("resume") == 1


def test_an_interrupted_model_predicts_by_its_encoder(tmp_path: Path) -> None:
    """In memory it answers with cosines; its folder says that the run goes on."""
    model = small()
    fit(tmp_path / "run", model, callbacks=[Interrupt(5)])
    assert len(model.predict("w1 w2", k=3)) == 3 and not model.probabilities
    with pytest.raises(InputError, match=r"expected a whole model.*resume the run"):
        shoal.open(tmp_path / "run")


@pytest.mark.whole
def test_resuming_nothing_begins(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a checkpoint training starts from the beginning, and says so."""
    fit(tmp_path / "run", resume=True)
    assert "nothing to resume" in caplog.text
    expect_same(whole, tmp_path / "run")
    # begun, and killed before the first checkpoint
    (tmp_path / "begun").mkdir()
    shutil.copy(whole / "settings.json", tmp_path / "begun")
    fit(tmp_path / "begun", resume=True)
    expect_same(whole, tmp_path / "begun")


@pytest.mark.whole
def test_a_finished_run_goes_on(whole: Path, tmp_path: Path) -> None:
    """More epochs: the encoder learns on, the classifiers begin anew from its embeddings."""
    shutil.copytree(whole, tmp_path / "run")
    result = fit(tmp_path / "run", resume=True, epochs=3)
    stage = Run.open(tmp_path / "run" / "classifiers")
    assert stage.settings == {"encoder_steps": result.steps}
    assert [x["event"] for x in stage.log()].count("resume") == 0
    assert result.steps > Run.open(whole).load_last()["progress"]["step"]
    assert shoal.open(tmp_path / "run").predict(TEXTS)


@pytest.mark.whole
def test_a_finished_run_holds_what_predicting_needs(whole: Path, tmp_path: Path) -> None:
    """Nothing else, unless it is asked for; the result says how large it is."""
    result = fit(tmp_path / "run", keep_resume=False)
    names = {x.relative_to(tmp_path / "run").as_posix() for x in (tmp_path / "run").rglob("*")}
    model = {"model.json", "model.safetensors", "bag.safetensors"}
    model |= {"labels.json.gz", "examples.json.gz"}
    logs = {"settings.json", "log.jsonl"}
    stages = ["classifiers"]
    stages += [f"{fold}{inner}" for fold in ("fold-2", "all") for inner in ("", "/classifiers")]
    stage = {f"{folder}/{name}" for folder in stages for name in logs}
    assert names == model | logs | stage | set(stages)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert result.size == sum(path.stat().st_size for path in files)
    kept = {path.relative_to(whole).as_posix() for path in whole.rglob("*")}
    assert names | {"last.safetensors", "best.safetensors"} <= kept
    assert shoal.open(whole).predict(TEXTS) == shoal.open(tmp_path / "run").predict(TEXTS)
    with pytest.raises(InputError, match=r"expected a run with checkpoints.*keep_resume=True"):
        fit(tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="expected a folder without a model, got a model"):
        fit(tmp_path / "run")


def test_the_log_tells_what_happened(whole: Path) -> None:
    """Start, refreshes, validations and the test of the encoder; a log of the classifiers' own."""
    log = Run.open(whole).log()
    names = [event["event"] for event in log]
    assert names[0] == "start" and names.count("refresh") == names.count("validate") == 2
    test = log[names.index("test")]
    model = json.loads((whole / "model.json").read_text())
    assert {"P@1", "nDCG@5", "PSP@3"} <= set(test) and test["P@1"] == model["test"]["P@1"]
    assert {"examples", "deciles"} <= set(names)
    stage = [event["event"] for event in Run.open(whole / "classifiers").log()]
    assert stage.count("validate") == 2


def test_other_settings_do_not_continue_a_run(whole: Path) -> None:
    """The first that differs is named."""
    for model, name in ((small(seed=1), "seed"), (small(positives=1), "positives")):
        with pytest.raises(InputError, match=f"{name}: expected .*, as the run in"):
            fit(whole, model, resume=True)


def test_changed_data_cannot_spoil_a_run(whole: Path, tmp_path: Path) -> None:
    """Resuming on data that changed is refused, and the finished run still answers."""
    shutil.copytree(whole, tmp_path / "run")
    before = shoal.open(whole).predict(TEXTS)
    other = planted_labels(n=300, n_labels=20, seed=1)
    with pytest.raises(InputError, match="expected"):
        small().fit(other, out=tmp_path / "run", valid=0.5, epochs=5, resume=True)
    assert shoal.open(tmp_path / "run").predict(TEXTS) == before


@pytest.mark.parametrize(
    ("parts", "options", "trained"),
    [
        ({}, {}, True),
        ({"combiner": None, "rankers": [shoal.ClassifierRanker()]}, {"valid": 0.0}, True),
        ({"classifiers": None}, {}, False),
        ({}, {"valid": 0.005}, False),
    ],
    ids=["ensemble", "alone", "none", "too few held out"],
)
def test_classifiers_are_trained_where_they_rank(
    parts: Any, options: Any, trained: bool, tmp_path: Path
) -> None:
    """No time goes to classifiers that no ranking reads."""
    model = small(**parts)
    fit(tmp_path / "run", model, epochs=1, **options)
    assert (tmp_path / "run" / "classifiers").is_dir() == trained
    kinds = [ranker.kind for ranker in model.predictor.rankers]
    assert ("classifiers" in kinds) == trained


@pytest.mark.whole
def test_patience_and_callbacks_end_training() -> None:
    """Both stop the encoder; what stopped it is in the result, and the model is whole."""

    class AtStep(shoal.Callback):
        def step(self, progress: Any, metrics: dict[str, Any]) -> None:
            if progress.step == 3:
                progress.stopped = "enough"

    assert fit(None, valid=DATA.test, callbacks=[AtStep()]).steps == 3
    model = small(encoder=shoal.BagEncoder(dim=8, lr=1e-9))
    result = fit(None, model, epochs=50, patience=2)
    assert result.stopped == "patience" and result.steps < 30
    assert model.probabilities and result.test


@pytest.mark.whole
def test_rare_weighs_the_losses_of_the_combiner(tmp_path: Path) -> None:
    """Another network, and another answer, with all else the same."""
    one = small()
    two = small(combiner=shoal.NetworkCombiner(rare=1.0))
    for model in (one, two):
        fit(None, model, epochs=1, valid=DATA.test)
    assert torch.equal(one.encode(TEXTS), two.encode(TEXTS))
    assert one.predict(TEXTS) != two.predict(TEXTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", b"{}", "expected a model of format shoal.model/1, got None"),
        ("model.json", b"[", "expected what a model is, as JSON"),
        ("model.safetensors", b"", "a whole checkpoint"),
        ("bag.safetensors", b"", "a whole checkpoint"),
        ("labels.json.gz", b"", r"label_tokens: indptr: expected whole numbers \[1\]"),
        ("bag.safetensors", None, "bag.safetensors"),
    ],
)
def test_damage_is_one_line(
    whole: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """Every part is checked when it is read."""
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        shoal.open(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_nothing_is_said_where_all_is_known(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Opening and asking says nothing where all is known."""
    with caplog.at_level(logging.WARNING, "shoal"):
        shoal.open(whole).predict(TEXTS)
    assert caplog.text == ""
