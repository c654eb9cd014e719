"""What pyproject.toml declares is what is tested: make test-lowest pins each lower bound."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# tools of those who work on shoal, of which the newest is as good
OURS = {"rivals", "docs", "release", "dev"}


def lower_bounds() -> dict[str, Version]:
    """The least version of each package that a user or the tests may install, by name."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(x for k in extras if k not in OURS for x in extras[k])]
    found = {}
    for wanted in map(Requirement, lines):
        if wanted.name != PROJECT["name"]:
            (least,) = (x.version for x in wanted.specifier if x.operator == ">=")
            found[wanted.name.lower()] = Version(least)
    return found


def test_each_lower_bound_is_pinned() -> None:
    """constraints/lowest.txt has every package, at its bound or the first release that meets it."""
    text = (ROOT / "constraints" / "lowest.txt").read_text(encoding="utf-8")
    pins = {name.lower(): Version(pin) for name, pin in re.findall(r"^(\S+)==(\S+)", text, re.M)}
    bounds = lower_bounds()
    assert set(pins) == set(bounds) and "numpy" in bounds
    for name, least in bounds.items():
        assert pins[name] >= least
        assert pins[name].release[: len(least.release)] == least.release, name


def test_each_bound_has_its_reason() -> None:
    """A line with a lower bound says why it is there."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bounds = [line for line in lines if re.search(r'"[\w-]+(\[\w+\])?>=', line)]
    assert len(bounds) > 30
    assert [line for line in bounds if "#" not in line] == []
