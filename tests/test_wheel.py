"""What is published: a wheel that holds all it needs and works away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "copy" / "src", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy" / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    run("-c", build, cwd=folder / "copy")
    (built,) = folder.glob("*.whl")
    return built


def run(*words: str, cwd: Path, path: Path | None = None) -> str:
    """What a module of this Python prints, standing in `cwd`."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment["PYTHONPATH"] = "" if path is None else str(path)
    command = [sys.executable, "-m", *words] if words[0] == "pip" else [sys.executable, *words]
    told = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_wheel_holds_what_is_needed(wheel: Path) -> None:
    """The types' mark, the shipped data and the licenses are in it; tests and leftovers are not."""
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "py.typed",
        "__init__.pyi",
        "report/page.html",
        "data/wordnet/synsets.tsv.gz",
        "data/wordnet/NOTICE",
        "serve/page.html",
    ):
        assert f"shoal/{needed}" in names
    licenses = [name for name in names if ".dist-info/licenses/" in name]
    assert {Path(name).name for name in licenses} == {"LICENSE", "NOTICE"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"shoal", "torch_shoal"}
    assert wheel.stat().st_size < 8e6


def test_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, every module is there, --version is the wheel's, WordNet is found."""
    target = tmp_path / "site"
    run("pip", "install", str(wheel), "--no-deps", "--target", str(target), cwd=tmp_path)
    script = str(target / "bin" / "shoal")
    version = wheel.name.split("-")[1]
    assert run(script, "--version", cwd=tmp_path, path=target) == f"shoal {version}\n"
    code = (
        "import importlib, pkgutil, shoal\n"
        "found = pkgutil.walk_packages(shoal.__path__, 'shoal.')\n"
        "modules = [importlib.import_module(x.name) for x in found]\n"
        "from shoal.data import wordnet\n"
        "print(shoal.__file__, len(modules), len(wordnet.read().texts))\n"
    )
    where, modules, synsets = run("-c", code, cwd=tmp_path, path=target).split()
    assert where.startswith(str(target)) and synsets == "117659"
    assert int(modules) > 30
