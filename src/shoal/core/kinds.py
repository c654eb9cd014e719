"""Registries of classes by the name that a saved model records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def register_kind(kinds: dict[str, Any], name: str) -> Callable[[Kind], Kind]:
    """A decorator that enters a class in `kinds`, and gives it `name` as its ``kind``.

    Example:
        >>> kinds = {}
        >>> @register_kind(kinds, "constant")
        ... class Constant: ...
        >>> Constant.kind, kinds["constant"] is Constant
        ('constant', True)
    """

    def register(kind: Kind) -> Kind:
        kind.kind = name  # pyright: ignore[reportAttributeAccessIssue]
        kinds[name] = kind
        return kind

    return register
