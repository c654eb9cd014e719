"""What this library is installed as, and what to install where an optional package is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shoal.core.errors import fail

# `shoal` on the public index is another project.
DISTRIBUTION = "torch-shoal"


def installed_version() -> str:
    """The version that is installed; ``unknown`` where the sources run without an installation."""
    from importlib import metadata  # takes a tenth of the time of `shoal --help`

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def install(extra: str) -> str:
    """The command that installs an extra.

    Example:
        >>> install("serve")
        "pip install 'torch-shoal[serve]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def require(module: str, name: str, extra: str) -> Any:
    """Import a module of an optional package, in the function that needs it.

    Args:
        module: its name.
        name: the argument that needs it.
        extra: of this distribution, which brings it.

    Raises:
        InputError: if it cannot be imported.

    Example:
        >>> require("math", "x", "none").sqrt(9.0)
        3.0
    """
    try:
        return import_module(module)
    except ImportError as error:
        fail(name, f"the package {module.partition('.')[0]}", error, f"run {install(extra)}")
