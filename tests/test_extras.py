"""The extra `all`: it names every optional package, and where it is asked for they are there."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# for people who work on shoal, not with it
TOOLS = {"all", "test", "dev", "rivals", "browser", "docs", "release"}


def names(requirement: str) -> tuple[str, list[str]]:
    """A requirement's distribution, and its extras."""
    found = re.match(r"([\w.-]+)(?:\[([^]]*)\])?", requirement)
    assert found is not None
    return found[1], [extra.strip() for extra in (found[2] or "").split(",") if extra]


def test_all_is_every_extra() -> None:
    """What a user may install one by one, `all` installs together."""
    listed = [extra for line in EXTRAS["all"] for extra in names(line)[1]]
    assert sorted(listed) == sorted(set(EXTRAS) - TOOLS)


@pytest.mark.extras
@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - TOOLS))
def test_it_is_installed(extra: str) -> None:
    """So that no test of `make test-extras` is skipped for want of a package."""
    for requirement in EXTRAS[extra]:
        name, _ = names(requirement)
        if name != PROJECT["name"]:
            assert version(name)
