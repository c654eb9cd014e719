"""Settings that ``shoal train nodes`` and ``shoal train links`` share, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from shoal.tasks import named, settings

LAYERS = ("sage", "gcn", "gat", "gatv2")
"""Layers that have a name."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network."""

    model: str = "sage"
    """sage (GraphSAGE), gcn, gat or gatv2 (graph attention), or module:name of a layer's class."""
    fanouts: settings.Ints = None
    """Neighbors drawn per node, one number per layer, the seeds' own first; by default all on a
    graph that is small enough, else 15 10."""
    hidden: settings.Int = None
    """Width of hidden layers, and of the embeddings that predict links: 256 by default, of nodes on
    small graphs 64."""
    heads: settings.Int = None
    """Heads per layer of gat and gatv2; 8 by default. Must divide the width."""
    dropout: settings.Float = None
    """Share of activations dropped in training; 0.5 for nodes, none for links by default."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where feature rows lie."""

    device_rows: int = 0
    """Rows kept on the device, those that batches read most."""
    host_rows: settings.Int = None
    """The next rows, kept in host memory, while all others are read from a file; all by default."""
    row_rule: settings.Text = None
    """Row optimizer of words, and of nodes without features: module:name of what makes one; Adam
    by default."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """Objects of one's own, as module:name or file.py:name."""

    loss: settings.Text = None
    """The loss: called with outputs and batch."""
    batches: settings.Text = None
    """The batch sampler: called with how many seeds there are, the batch size and the seed."""
    blocks: settings.Text = None
    """The neighbor sampler: called with the graph and the fan-outs."""


@dataclass(frozen=True, kw_only=True)
class GraphSettings(settings.Training):
    """Options of both tasks on graphs."""

    network: Network = Network()
    rows: Rows = Rows()
    own: Own = Own()

    def arguments(self) -> dict[str, Any]:
        """The arguments of a model that these settings stand for; what is None is left out.

        Raises:
            InputError: if an object of the user's is not found.
        """
        values = {x.name: getattr(y, x.name) for y in (self.network, self.rows) for x in fields(y)}
        layer = values.pop("model")
        values["layer"] = layer if layer in LAYERS else named(layer, "model")
        for option in fields(self.own):
            given = getattr(self.own, option.name)
            values[option.name] = None if given is None else named(given, option.name)
        rule = values["row_rule"]
        values["row_rule"] = None if rule is None else named(rule, "row_rule")
        values |= {name: getattr(self, name) for name in ("batch_size", "lr", "seed", "device")}
        values["step"] = step_of(self.step)
        return {name: value for name, value in values.items() if value is not None}


def step_of(name: str) -> Any:
    """What makes a job's step rule; None for the schedule alone.

    Raises:
        InputError: if it names nothing.
    """
    if name in ("schedule", "spectral"):
        import shoal

        return shoal.spectral_step if name == "spectral" else None
    return named(name, "step")


def reading(rows: Any, hops: Any, table: Any = None) -> tuple[Any, Any]:
    """How a loader reads nodes: its block sampler and its table.

    Args:
        rows: of all nodes: a tensor, a table, or :class:`shoal.WordRows`.
        hops: the sampler of neighborhoods; None where nodes are read alone.
        table: what rows are read from; `rows` by default.
    """
    import shoal

    if isinstance(rows, shoal.WordRows):
        return rows.blocks(hops), rows.table
    table = rows if table is None else table
    return hops or (lambda seeds, generator: []), table
