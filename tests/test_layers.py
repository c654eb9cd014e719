"""Who may import whom, read from the sources by ast; and importing shoal does nothing.

The modules are found on disk, so that a new one is held to the same rules from its first day.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal

ROOT = Path(shoal.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# One table says who may import whom; docs/concepts/flow.md shows it.
PARTS = "core data sample fetch curvature training step graph text rank".split()
MAY_IMPORT = {
    "core": [],
    "data": ["core"],
    "sample": ["core"],
    "fetch": ["core"],
    "curvature": ["core"],
    "training": ["core", "sample", "fetch"],
    "step": ["core", "curvature", "training"],
    "graph": ["core", "sample"],
    "text": ["core", "data", "fetch"],
    "rank": ["core", "data", "fetch", "sample", "training", "text"],
    "sklearn": ("core", "data", "text", "rank", "tasks", "models"),
    "integrations": PARTS,
    "plan": ["core", "sample", "curvature", "step"],
    "tasks": PARTS,
    "models": [*PARTS, "tasks"],
    "report": PARTS,
    "serve": [*PARTS, "models"],
    "cli": [*PARTS, "tasks", "models", "serve", "report", "plan"],
}
# modules that are imported only by functions that need their package
OPTIONAL = {"_triton.py": "triton", "_pyg.py": "torch_geometric"}
CORE = ("torch", "numpy", "safetensors", "tokenizers", "jaxtyping", "jinja2", "tqdm", "tyro")


def module_name(path: Path) -> str:
    """``shoal.csr`` of ``…/shoal/csr.py``; a package is named by its folder."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imported(node: ast.AST, name: str, is_package: bool) -> Iterator[str]:
    """The modules that one statement imports; ``from shoal import csr`` imports shoal.csr."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        up = name.split(".")
        here = up[: len(up) - node.level + is_package] if node.level else []
        base = ".".join([*here, *([node.module] if node.module else [])])
        inside = [f"{base}.{alias.name}" for alias in node.names]
        below = [module for module in inside if module in MODULES]
        yield from below
        if len(below) < len(inside):
            yield base


def imports(path: Path, only_top: bool = False) -> set[str]:
    """All modules that a file imports, or only those that importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = top_level(tree.body) if only_top else ast.walk(tree)
    here, is_package = module_name(path), path.name == "__init__.py"
    return {name for node in nodes for name in imported(node, here, is_package)}


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import: not those in functions, nor for the type checker only."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for field in ("body", "orelse", "finalbody", "handlers"):
            if not (checking and field == "body"):
                yield from top_level(getattr(node, field, []))


def layer(name: str) -> str:
    """``sample`` of ``shoal.sample.expand``; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "shoal" and len(parts) > 1 else ""


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch) -> None:
    """Plain, from, relative, in a function and for the type checker: all found, top level told."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "shoal")
    path = tmp_path / "shoal" / "sample" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "import shoal.step\n"
        "from shoal import core, __version__\n"
        "from . import expand\n"
        "from ..fetch import gather\n"
        "if TYPE_CHECKING:\n    import shoal.cli\n"
        "try:\n    import tyro\nexcept ImportError:\n    import tqdm\n"
        "class A:\n    import numpy\n"
        "def f():\n    import triton\n"
    )
    every = {"shoal.step", "shoal.core", "shoal", "shoal.cli", "tyro", "tqdm", "numpy", "triton"}
    found = imports(path)
    assert every <= found and found & {"shoal.sample", "shoal.sample.expand"}
    assert found & {"shoal.fetch", "shoal.fetch.gather"}
    assert every - imports(path, only_top=True) == {"shoal.cli", "triton"}


def test_the_table_names_every_room() -> None:
    """Each folder and module of the package stands in :data:`MAY_IMPORT`, no other name does."""
    rooms = {layer(name) for name in MODULES} - {"", "__main__"}  # python -m shoal is no room
    assert set(MAY_IMPORT) == rooms


def test_the_documents_show_the_table() -> None:
    """docs/concepts/flow.md has a row per room, with what it may import."""
    text = (ROOT.parents[1] / "docs" / "concepts" / "flow.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, flags=re.M))
    short = " ".join(PARTS[1:])
    want = {
        room: " ".join(names).replace(f"core {short}", "core to rank") or "nothing"
        for room, names in MAY_IMPORT.items()
    }
    assert {room: shown.get(room) for room in want} == want


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_what_the_table_allows(room: str) -> None:
    """No module imports a room that its own does not stand on."""
    allowed = {room, *MAY_IMPORT[room]}
    offences = [
        f"{module_name(path)} imports {name}"
        for path in FILES
        if layer(module_name(path)) == room
        for name in sorted(imports(path))
        if layer(name) and layer(name) not in allowed
    ]
    assert offences == []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports at top level form no circle."""
    graph = {module_name(path): imports(path, only_top=True) & MODULES for path in FILES}
    while leaves := [name for name, needs in graph.items() if not needs - {name}]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: needs - set(leaves) for name, needs in graph.items()}
    assert graph == {}


def test_only_core_dependencies_are_imported_at_top() -> None:
    """Optional packages wait for the function that needs them, or stand in a module of theirs."""
    known = {"shoal", *sys.stdlib_module_names, *CORE}
    for path in FILES:
        allowed = known | {OPTIONAL.get(path.name, "shoal")}
        foreign = {name.split(".")[0] for name in imports(path, only_top=True)} - allowed
        assert not foreign, f"{module_name(path)} imports {sorted(foreign)} at top"


PROBE = """
import json, os, sys, threading
before = dict(os.environ)
import shoal
alone = "torch" in sys.modules
import torch
state = torch.get_rng_state()
threads, count = threading.active_count(), torch.get_num_threads()
native = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
import importlib, random
import numpy
chance = random.getstate(), numpy.random.get_state()[1].tolist()
grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
now = len(os.listdir("/proc/self/task")) if native else 0
after = random.getstate(), numpy.random.get_state()[1].tolist()
print(json.dumps({
    "torch imported by shoal alone": alone,
    "environment changed": sorted(set(before.items()) ^ set(os.environ.items())),
    "python threads started": threading.active_count() - threads,
    "native threads started": now - native,
    "torch threads changed": torch.get_num_threads() != count,
    "CUDA initialized": torch.cuda.is_initialized(),
    "torch's generator used": not torch.equal(torch.get_rng_state(), state),
    "another generator used": after != chance,
    "grad mode or dtype changed": (torch.is_grad_enabled(), torch.get_default_dtype())
    != (grad, dtype),
    "triton imported": "triton" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def effects() -> dict[str, object]:
    """What importing every module without an optional package changes in a fresh process."""
    names = sorted(module_name(path) for path in FILES if path.name not in OPTIONAL)
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def test_importing_changes_nothing(effects) -> None:
    """No threads, no environment, no CUDA, no random numbers; ``import shoal`` alone: no torch."""
    assert {name: effect for name, effect in effects.items() if effect} == {}
