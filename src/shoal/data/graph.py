"""The registry of graph formats, and what a reader of one gives: a :class:`GraphData`.

A file in ``data/graphs/`` defines a format by one function; nothing else names it, so that adding a
format is adding a file. One of a user's own is registered when its module is imported::

    @graph_format("pairs", lambda source: str(source).endswith(".pairs"))
    def read(source) -> GraphData: ...

What is made of a graph, nodes to classify or links to predict, is decided by the tasks' own nouns
(:mod:`shoal.data.nodes`, :mod:`shoal.data.links`), in the same way for all formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from shoal.core.csr import Csr

Pairs = Int[Tensor, "2 _"]
"""Links, sources above targets."""


@dataclass(frozen=True, eq=False)
class GraphData:
    """What a source holds, before a task looks at it.

    Attributes:
        name: what reports call it.
        graph: ``[n, n]``; row v lists the nodes that v reads.
        features: ``[n, f]``, sparse or dense; None where there are none.
        y: classes as they are stored; None where there are none
            (:func:`shoal.data.nodes.target_of` reads them).
        parts: the source's own split of its nodes into train, valid and test, as bool masks or as
            ids; empty where it has none.
        links: the source's own links to learn, to choose by and to test; None where it has none.
        class_names: one per class; None numbers them.
    """

    name: str
    graph: Csr
    features: Csr | Float[Tensor, "n f"] | None = None
    y: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    links: tuple[Pairs, Pairs, Pairs] | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GraphFormat:
    """A graph format, as :func:`graph_format` describes it.

    Attributes:
        name: of the format.
        holds: whether a source is in it, by its name and its folder's files alone.
        read: the reader.
        distinct: whether nothing but a graph looks like that; a ``.csv`` may be a table of texts.
    """

    name: str
    holds: Callable[[Any], bool]
    read: Callable[[Any], GraphData]
    distinct: bool = True


FORMATS: dict[str, GraphFormat] = {}


def graph_format(
    name: str, holds: Callable[[Any], bool], *, distinct: bool = True
) -> Callable[[Callable[[Any], GraphData]], Callable[[Any], GraphData]]:
    """Register a format by its reader, which stays as it is: a decorator.

    Args:
        name: of the format, for messages.
        holds: as in :class:`GraphFormat`, and so is `distinct`. A source is a path, a name, or an
            object in memory.
        distinct: as above.
    """

    def register(read: Callable[[Any], GraphData]) -> Callable[[Any], GraphData]:
        FORMATS[name] = GraphFormat(name, holds, read, distinct)
        return read

    return register
