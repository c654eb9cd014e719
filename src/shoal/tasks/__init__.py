"""Tasks: one page each, from data to a trained model, and the settings of its subcommand.

A page is registered by the function that turns the command's settings into a model::

    @shoal.task("nodes", NodeSettings, model="shoal.models.nodes:NodeModel")
    def model_of(settings): ...

so that ``shoal train nodes`` and :func:`shoal.open` find it. Registering imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from shoal.tasks import settings
from shoal.tasks.settings import named as named

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
        return settings.named(self.model, "model")


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
