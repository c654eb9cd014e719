"""A recipe is a set of defaults: each option can still be given, also as it was without it."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import main as cli
from shoal.cli.recipes import RECIPES, changed, recipe
from shoal.cli.settings import Train
from shoal.core.errors import InputError
from shoal.data.formats import xc
from shoal.rank.fused import FusedLabeler
from shoal.rank.tree import TreeFusion
from shoal.tasks import labels
from shoal.tasks.common import expect_settings
from shoal.tasks.fusing import predictor_of
from shoal.training.run import Run
from tests.planted import planted_labels


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Train:
    """What the command makes of its arguments."""
    found: list[Any] = []
    monkeypatch.setattr(cli, "run", lambda verb: found.append(verb) or 0)
    monkeypatch.setattr(sys, "argv", ["shoal", "train", "wordnet", *arguments])
    assert cli._main() == 0
    return found[0]


def test_the_command_takes_what_is_not_given_from_the_recipe(monkeypatch: Any) -> None:
    """Also an option that is given as it would be without the recipe."""
    for spelled in (["--recipe", "ngame"], ["--recipe=ngame"]):
        assert parsed(monkeypatch, *spelled) == recipe("ngame", "wordnet")
    given = parsed(monkeypatch, "--loss", "softmax", "--recipe", "ngame", "--epochs", "6")
    assert given == recipe("ngame", "wordnet", loss="softmax", epochs=6)
    assert given.loss == "softmax" and given.head_loss == "triplet"
    assert parsed(monkeypatch) == Train(source="wordnet")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_settings_and_are_legal(name: str) -> None:
    """Each names options of the command only, and asks for nothing that would be refused."""
    assert set(RECIPES[name]) <= {option.name for option in fields(Train)}
    expect_settings(recipe(name, "wordnet"))
    assert changed(recipe(name, "wordnet")).keys() <= set(RECIPES[name])


@pytest.mark.parametrize(
    "given",
    [{"loss": "softmax"}, {"head": "none", "fusion": "network"}, {"batches": "random"}],
    ids=lambda given: next(iter(given)),
)
def test_what_a_recipe_sets_is_not_held_against_the_user(given: Any) -> None:
    """Options that only another one made senseless are no mistake if the recipe gave them."""
    expect_settings(recipe("ngame", "wordnet", **given))


def test_an_unknown_recipe_is_named() -> None:
    """One line."""
    with pytest.raises(InputError, match="recipe: expected one of shoal, ngame, got none"):
        recipe("none", "wordnet")


def test_ngame_runs_all_stages(tmp_path: Path) -> None:
    """Triplets on growing clusters, a head by triplets, a tree over both; the result says so."""
    data = planted_labels(n=900, n_labels=24, noise=0.4)
    xc.write(data, tmp_path / "planted")
    small: dict[str, Any] = {"batch_size": 64, "cluster_size": 8, "dim": 16, "lr": 0.02}
    small |= {"epochs": 6, "head_epochs": 4, "head_lr": 0.02, "valid": 0.5, "refresh_every": 1}
    settings = recipe("ngame", str(tmp_path / "planted"), out=tmp_path / "run", **small)
    result = labels.train(settings)
    assert result["recipe"]["loss"] == "triplet" and result["recipe"]["batch_size"] == 64
    run = Run.open(tmp_path / "run")
    sizes = [x["cluster_size"] for x in run.log() if x["event"] == "refresh"]
    assert sizes[0] == 1 and sizes == sorted(sizes) and sizes[-1] == 8
    fused = predictor_of(run)
    assert isinstance(fused, FusedLabeler) and isinstance(fused.fusion, TreeFusion)
    again = labels.judge(fused, data)
    assert {name: result["test"][name] for name in again} == again
    assert again["P@1"] > labels.judge(fused.labeler, data)["P@1"]
