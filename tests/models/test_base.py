"""Folders of models, devices and precision: what is opened is whole, and says what it lacks."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.core.errors import InputError
from shoal.models import base
from tests.planted import planted_graph


def fitted(**options: Any) -> shoal.NodeModel:
    model = shoal.NodeModel(hidden=4, fanouts=(2,), device="cpu", **options)
    model.fit(planted_graph(n=60), steps=1)
    return model


def test_the_strongest_device_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto passes over what torch names and cannot use; a name is taken at its word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    working = ["cuda", "cpu"]

    def expect_device(name: str) -> None:
        if name not in working:
            raise InputError(f"device: {name}")

    monkeypatch.setattr(base, "expect_device", expect_device)
    assert base.resolve_device("auto") == "cuda" and base.resolve_device("cpu") == "cpu"
    working.remove("cuda")
    assert base.resolve_device("auto") == "cpu"
    with pytest.raises(InputError, match="device: cuda"):
        base.resolve_device("cuda")


def test_bfloat16_where_a_cuda_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is float32 elsewhere; what is named is taken."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert base.resolve_precision("auto", "cuda:1") == "bfloat16"
    assert base.resolve_precision("auto", "cpu") == "float32"
    assert base.resolve_precision("bfloat16", "cpu") == "bfloat16"
    with pytest.raises(InputError, match="precision: expected auto, float32 or bfloat16"):
        base.resolve_precision("fp16")


def test_training_in_bfloat16_runs() -> None:
    """The same model, less exact."""
    one, two = fitted(), fitted(precision="bfloat16")
    assert one.predict([0])[0][0].score == pytest.approx(two.predict([0])[0][0].score, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.json").write_text("{"), r"model\.json: expected what a model is"),
        (lambda f: (f / "model.json").write_text("[]"), r"expected a model of format shoal\.model"),
        (lambda f: edit(f, format="other/3"), r"shoal\.model/1, got other/3; name a folder"),
        (lambda f: edit(f, task="poems"), "task: expected one of .*, got poems"),
        (lambda f: edit(f, model=[]), "expected the arguments of a model, got others"),
        (lambda f: edit(f, model={"depth": 3}), "expected the arguments of a NodeModel"),
        (lambda f: edit(f, classes=["a"]), r"expected floats \[1"),
        (lambda f: edit(f, width="x"), "expected"),
        (lambda f: (f / "model.safetensors").unlink(), "got a run without a checkpoint"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "expected a whole checkpoint"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_named(tmp_path: Path, change, message: str) -> None:
    """Damage, another library's folder, other weights: one line."""
    fitted().save(tmp_path / "m")
    change(tmp_path / "m")
    with pytest.raises(InputError, match=message):
        shoal.open(tmp_path / "m")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    """Nothing there, an empty folder, transformers' files."""
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=str(folder)):
            shoal.open(folder)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="expected the settings of a run"):
        shoal.open(tmp_path)


def test_plain_arguments_are_given_anew_when_it_is_opened(tmp_path: Path) -> None:
    """The device may differ; what a model does not have is refused."""
    fitted().save(tmp_path / "m")
    assert shoal.open(tmp_path / "m", device="cpu", precision="float32").precision == "float32"
    with pytest.raises(InputError, match=r"open: expected arguments among .*, got \['depth'\]"):
        shoal.open(tmp_path / "m", depth=3)


def test_a_resume_of_nothing_begins_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As jobs that a scheduler restarts want it."""
    model = shoal.NodeModel(hidden=4, fanouts=(2,), device="cpu")
    with caplog.at_level(logging.WARNING, "shoal"):
        result = model.fit(planted_graph(n=60), out=tmp_path / "run", steps=2, resume=True)
    assert result.steps == 2 and "training starts from the beginning" in caplog.text
    with pytest.raises(InputError, match="out: expected the folder to resume, got None"):
        model.fit(planted_graph(n=60), resume=True)


def test_patience_and_callbacks(tmp_path: Path) -> None:
    """Training stops after rounds without a better one; callbacks see each moment."""
    seen: list[str] = []

    class See(shoal.Callback):
        def begin(self, progress, job):
            seen.append("begin")

        def validate(self, progress, metrics):
            seen.append("validate")

        def test(self, progress, metrics):
            seen.append("test")

    model = shoal.NodeModel(hidden=4, fanouts=(2,), lr=1e-9, device="cpu")
    more: dict[str, Any] = {"epochs": 50, "patience": 3, "valid_every": 1, "callbacks": [See()]}
    result = model.fit(planted_graph(n=60), **more)
    assert result.stopped == "patience" and result.steps == 4 and result.folder is None
    assert seen == ["begin", *["validate"] * 4, "test"]
    assert result.valid.keys() == {"valid_accuracy", "valid_macro_F1", "valid_ROC_AUC"}
