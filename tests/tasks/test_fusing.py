"""Fusing as a stage of the label job: what a run's folder holds, and what the commands read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.cli.settings import Train
from shoal.core.errors import InputError
from shoal.data import load
from shoal.data.formats import xc
from shoal.data.splits import validation_split
from shoal.rank.fused import FusedLabeler, fuse
from shoal.rank.predictor import Labeler
from shoal.tasks import fusing, labels
from shoal.tasks.fusing import predictor_of
from shoal.tasks.heads import classifiers_of
from shoal.training.run import Run
from tests.planted import planted_labels

DATA = planted_labels(n=900, n_labels=24, noise=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted data as the command reads it, and a run on it that fused its evidence."""
    folder = tmp_path_factory.mktemp("fusing")
    xc.write(DATA, folder / "planted")
    labels.train(asked(folder, "run"))
    return folder


def asked(folder: Path, run: str, **options: Any) -> Train:
    """A small run with enough points held out."""
    small: dict[str, Any] = {"batch_size": 60, "cluster_size": 6, "dim": 16, "lr": 0.02}
    options = small | {"valid": 0.5, "epochs": 2} | options
    return Train(source=str(folder / "planted"), out=folder / run, **options)


def events(folder: Path, run: str) -> list[dict[str, Any]]:
    return [x for x in Run.open(folder / run).log() if x["event"] == "fuse"]


def test_a_run_fuses_and_its_folder_gives_the_same_labeler(folder: Path) -> None:
    """The saved labeler has the metrics that the run printed, above those of its encoder."""
    run = Run.open(folder / "run")
    fused = predictor_of(run)
    assert isinstance(fused, FusedLabeler)
    (test,) = [x for x in run.log() if x["event"] == "test"]
    again = labels.judge(fused, DATA)
    assert {name: test[name] for name in again} == again
    assert again["P@1"] > labels.judge(labels.labeler_of(run), DATA)["P@1"]
    assert events(folder, "run")[0]["held_out"] >= 200


def test_held_out_points_are_known_in_the_end(folder: Path) -> None:
    """The memory holds every training point, those that were held out as well."""
    fused = predictor_of(Run.open(folder / "run"))
    assert isinstance(fused, FusedLabeler)
    assert len(fused.memory.points) == len(DATA.train)


@pytest.mark.parametrize("options", [{"rank": "encoder"}, {"valid": 0.1}])
def test_without_fusing_the_encoder_ranks_alone(folder: Path, options: dict[str, Any]) -> None:
    """Not asked for, or too few points held out: a plain labeler, and the record says why."""
    name = "-".join(options)
    labels.train(asked(folder, name, epochs=1, **options))
    assert isinstance(predictor_of(Run.open(folder / name)), Labeler)
    found = events(folder, name)
    assert found == [] if "rank" in options else found[0]["needed"] == 200


def test_without_words_there_is_no_lexical_side(folder: Path) -> None:
    """``--no-words`` keeps neighbors and embeddings."""
    labels.train(asked(folder, "no-words", epochs=1, words=False))
    fused = predictor_of(Run.open(folder / "no-words"))
    assert isinstance(fused, FusedLabeler) and fused.memory.words is None


def test_rare_weighs_the_losses_of_the_fusion(folder: Path) -> None:
    """``--rare 1``: the network of inverse propensities, and no other."""
    labels.train(asked(folder, "rare", rare=1.0))
    run = Run.open(folder / "rare")
    whole = load(str(folder / "planted"))
    train, held_out = validation_split(whole, 0.5, 0)
    found = predictor_of(run)
    assert isinstance(found, FusedLabeler) and found.memory.words is not None
    labeler = labels.labeler_of(run)
    known = fusing._memory(labeler, whole, train, True, classifiers_of(run))
    for rare, same in ((1.0, True), (0.0, False)):
        weight = fuse(labeler, known, held_out, rare=rare).state_dict()["layers.0.weight"]
        assert torch.equal(weight, found.fusion.state_dict()["layers.0.weight"]) == same


def test_a_damaged_fusion_names_its_file(folder: Path, tmp_path: Path) -> None:
    """Cut short: one line, and the remedy."""
    run = Run.open(folder / "run")
    damaged = tmp_path / "run"
    damaged.mkdir()
    for path in run.folder.rglob("*"):
        target = damaged / path.relative_to(run.folder)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
    whole = (damaged / "fused.safetensors").read_bytes()
    (damaged / "fused.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"fused\.safetensors: expected a whole checkpoint"):
        predictor_of(Run.open(damaged))
    assert json.loads((damaged / "settings.json").read_text())["rank"] == "fused"
