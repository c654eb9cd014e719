"""Tasks: one page each, from data to a trained model, and the settings of its subcommand.

A page is registered by the function that turns the command's settings into a model::

    @shoal.task("nodes", NodeSettings, model="shoal.models.nodes:NodeModel")
    def model_of(settings): ...

so that ``shoal train nodes`` and :func:`shoal.open` find it. Registering imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
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
    """The object that ``module:name`` names, such as a user's own loss or layer.

    The module is imported: name only code that you would run.

    Args:
        name: a module on the path, a colon, and a name in it, dots allowed.
        what: it is meant for, as errors call it.

    Raises:
        InputError: if there is no such module or name in it.

    Example:
        >>> named("math:hypot", "loss")(3, 4)
        5.0
    """
    module, colon, path = name.partition(":")
    want = "module:name of something that can be imported"
    expect(bool(module and colon and path), what, want, name, "name it like mymodule:MyLoss")
    try:
        return attrgetter(path)(import_module(module))
    except (ImportError, AttributeError) as error:
        fail(what, want, f"{name} ({error})", "check its spelling, and PYTHONPATH for its folder")
