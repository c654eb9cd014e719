"""Train on mini-batches when the labels, the rows or the graph are too many for the accelerator.

The public names stand in ``__init__.pyi``, beside this file, for people and type checkers. Each is
imported from its home when it is first used, so that importing shoal costs nothing and starts
nothing.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_NAMES = re.compile(r"^from (shoal\.\S+) import (\w+) as \w+$", re.MULTILINE)
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: home for home, name in _NAMES.findall(_STUB)}

# `open` would hide the built-in one from `import *`, and `load` says little there
__all__ = sorted(set(_HOMES) - {"load", "open"})  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("shoal.core.distribution").installed_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
