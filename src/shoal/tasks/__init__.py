"""Tasks: one page each, from data to a trained model, and the settings of its subcommand.

A page is registered by the function that turns the command's settings into a model::

    @shoal.task("nodes", NodeSettings, model="shoal.models.nodes:NodeModel")
    def model_of(settings): ...

so that ``shoal train nodes`` and :func:`shoal.open` find it. Registering imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from shoal.core.errors import expect, fail

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Task:
    """What the command and :func:`shoal.open` need of a task.

    Attributes:
        name: of the subcommand, and of the task in ``model.json``.
        settings: frozen dataclass of the subcommand's flags.
        model_of: turns settings into a model that is not fitted yet.
        model: its class, which opens folders, as ``module:name``.
    """

    name: str
    settings: type
    model_of: Callable[[Any], Any]
    model: str

    def model_class(self) -> Any:
        """The class behind :attr:`model`."""
        return named(self.model, "model")


TASKS: dict[str, Task] = {}
"""All tasks by name."""


def task(name: str, settings: type, model: str) -> Callable[[_F], _F]:
    """Register a task by its function from settings to a model, which stays as it is.

    Args:
        name: of the subcommand.
        settings: its frozen dataclass; each field's docstring is the help of a flag.
        model: the class of the models, as ``module:name``.
    """

    def register(function: _F) -> _F:
        TASKS[name] = Task(name, settings, function, model)
        return function

    return register


def named(name: str, what: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` names, such as a user's loss or layer.

    The code is run: name only code that you would run.

    Args:
        name: a module on the path or in the working folder, or a file, a colon, and a name in it,
            dots allowed.
        what: it is meant for, as errors call it.

    Raises:
        InputError: if there is no such module, file or name.

    Example:
        >>> named("math:hypot", "loss")(3, 4)
        5.0
    """
    home, _, path = name.rpartition(":")
    want = "module:name or file.py:name of something that can be imported"
    expect(bool(home and path), what, want, name, "name it like mymodule:MyLoss")
    try:
        module = _module_of(Path(home)) if home.endswith(".py") else _imported(home)
        return attrgetter(path)(module)
    except (ImportError, AttributeError) as error:
        fail(what, want, f"{name} ({error})", "check its spelling, and PYTHONPATH for its folder")


def _imported(name: str) -> Any:
    """Import a module; a command does not have the working folder on its path, as python does."""
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)
    return import_module(name)


def _module_of(path: Path) -> Any:
    """Run a file as a module.

    Raises:
        ImportError: if there is none.
    """
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no file {path}")
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module
