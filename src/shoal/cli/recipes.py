"""Recipes: sets of settings under a name, each of which can be given otherwise.

``shoal train SOURCE --recipe ngame`` is the published pipeline: an encoder trained with triplets on
clusters that grow, classifiers on the frozen encoder, a decision tree over both. In Python it is
``recipe("ngame", "wordnet", epochs=6)``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from shoal.cli.settings import Train
from shoal.core.errors import expect

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "shoal": MappingProxyType({}),
        # The one configuration that NGAME's authors published (LF-AmazonTitles-131K), where
        # docs/papers.md does not say what differs. Rates and warm-up are the encoder's own: a
        # transformer has theirs.
        "ngame": MappingProxyType(
            {
                # 1,600 there, of which clusters of 512 are cut apart; here they stay whole
                "batch_size": 1536,
                "cluster_size": 512,
                "curriculum": True,
                "warm_epochs": 0,  # the curriculum begins with clusters of one
                "refresh_every": 5,
                "bank": True,
                "epochs": 300,
                "roles": False,  # one encoder for texts and labels alike
                "positives": 1,
                "loss": "triplet",
                "head": "frozen",
                "head_epochs": 100,
                "head_lr": 0.001,
                "head_loss": "triplet",
                "head_dropout": 0.5,
                "head_texts": False,
                "fusion": "tree",
                "words": False,
            }
        ),
    }
)


def recipe(name: str, source: str, **given: Any) -> Train:
    """The settings of a recipe, but for those that are given.

    Args:
        name: shoal or ngame.
        source: the data.
        given: further settings of :class:`~shoal.cli.settings.Train`.

    Raises:
        InputError: if there is no such recipe.

    Example:
        >>> settings = recipe("ngame", "wordnet", epochs=6)
        >>> settings.loss, settings.epochs, settings.head
        ('triplet', 6, 'frozen')
    """
    known = name in RECIPES
    expect(known, "recipe", f"one of {', '.join(RECIPES)}", name, "choose one")
    return Train(**{"source": source, "recipe": name, **RECIPES[name], **given})


def changed(settings: Train) -> dict[str, Any]:
    """The settings that are not shoal's own, by name; data, folder and the like left out.

    Example:
        >>> changed(Train(source="wordnet", loss="triplet", resume=True))
        {'loss': 'triplet'}
    """
    about = {"source", "out", "resume", "json", "device", "recipe"}
    return {
        option.name: getattr(settings, option.name)
        for option in fields(settings)
        if option.name not in about and getattr(settings, option.name) != option.default
    }
