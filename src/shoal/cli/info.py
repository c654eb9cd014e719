"""``shoal info`` and ``shoal completion``: what is installed here, and the shell's help."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, Literal

import tyro

from shoal.cli import config
from shoal.core.distribution import DISTRIBUTION, install, installed_version
from shoal.tasks.settings import Common


@dataclass(frozen=True, kw_only=True)
class Info(Common):
    """Show versions, devices, and which extras are installed."""


@dataclass(frozen=True, kw_only=True)
class Completion(Common):
    """Print a script that completes the command in a shell.

    bash: shoal completion bash > ~/.local/share/bash-completion/completions/shoal;
    zsh: shoal completion zsh > ~/.zfunc/_shoal, with that folder in fpath.
    """

    shell: Annotated[Literal["bash", "zsh", "tcsh"], tyro.conf.Positional]
    """The shell."""


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def info(asked: Info) -> dict[str, Any]:
    """Run ``shoal info``."""
    import torch

    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(count)}
    devices |= {"mps": platform.processor()} if torch.backends.mps.is_available() else {}
    return {
        "shoal": installed_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "devices": devices,
        "extras": {extra: _presence(extra, needs) for extra, needs in extras().items()},
    }


def extras() -> dict[str, list[str]]:
    """The distributions that each extra needs besides, by name of the extra."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from its sources
        return {}
    found: dict[str, list[str]] = {name: [] for name in about.get_all("Provides-Extra") or ()}
    for line in about.get_all("Requires-Dist") or ():
        extra, name = re.search(r"extra == ['\"]([\w-]+)", line), re.match(r"[\w.-]+", line)
        if extra and name and name[0] != DISTRIBUTION:
            found[extra[1]].append(name[0])
    return {extra: needs for extra, needs in found.items() if needs}


def _presence(extra: str, needs: list[str]) -> str:
    """The versions of what an extra needs, or how to install it."""
    versions = {name: version_of(name) for name in needs}
    if None in versions.values():
        return f"missing: {install(extra)}"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def completion(asked: Completion) -> dict[str, Any]:
    """Run ``shoal completion``: print tyro's script for the whole command.

    Raises:
        SystemExit: when it is printed.
    """
    from shoal.cli.main import every_command

    # tyro prints the script and exits
    config.parsed(every_command(), "shoal", ["--tyro-print-completion", asked.shell])
    raise SystemExit(0)
