"""A plan: memory of each part, work of each stage, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shoal.core.columns import Columns, html_table
from shoal.plan.devices import Machine, Real, Work

Phase = Literal["always", "step", "refresh", "classifiers"]
_GIB = 2**30


@dataclass(frozen=True)
class Part:
    """What lies in memory, on one rank.

    Attributes:
        name: what it is.
        host: bytes in host memory.
        device: bytes on the device; in host memory too where there is none.
        phase: when it is there; phases but ``always`` follow one another.
    """

    name: str
    host: Real = 0.0
    device: Real = 0.0
    phase: Phase = "always"


@dataclass(frozen=True)
class Stage:
    """What a step does, and how often.

    Attributes:
        name: what it is.
        work: of one rank.
        per_epoch: once an epoch, in place of once a step.
    """

    name: str
    work: Work
    per_epoch: bool = False


@dataclass(frozen=True)
class Plan:
    """What training takes, by arithmetic: docs/how-to/plan.md has every formula.

    Attributes:
        task: labels, nodes or links.
        machine: what it runs on.
        batch_size: of the global batch.
        steps: an epoch.
        parts: what lies in memory on one rank.
        stages: what one rank does.
        largest_useful_batch: beyond which a larger batch buys no larger step; None without a
            spectrum.
        remedy: the nearest setting that fits, where this one does not.
    """

    task: str
    machine: Machine
    batch_size: int
    steps: int
    parts: tuple[Part, ...]
    stages: tuple[Stage, ...]
    largest_useful_batch: Real | None = None
    remedy: str | None = None

    @property
    def host_bytes(self) -> Real:
        """The most that one rank holds in host memory at a time."""
        whole = self.machine.on_host
        return self._peak([p.host + (p.device if whole else 0) for p in self.parts])

    @property
    def device_bytes(self) -> Real:
        """The most that one rank holds on its device at a time; 0 where the host computes."""
        return self._peak([0 if self.machine.on_host else p.device for p in self.parts])

    def _peak(self, sizes: Sequence[Real]) -> Real:
        phases: dict[Phase, Real] = {}
        for part, size in zip(self.parts, sizes, strict=True):
            phases[part.phase] = phases.get(part.phase, 0) + size
        always = phases.pop("always", 0.0)
        return always + max(phases.values(), default=0.0)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Where it does not fit: of ``host`` and ``device`` those that are too small."""
        device, sharing = self.machine.device, min(self.machine.ranks, self.machine.ranks_a_host)
        room = {"host": device.host, "device": device.memory}
        used = {"host": self.host_bytes * sharing, "device": self.device_bytes}
        return tuple(x for x, most in room.items() if most is not None and used[x] > most)

    @property
    def fits(self) -> bool:
        """Whether host and device hold it; a memory of unknown size holds anything."""
        return not self.lacking

    def seconds(self, name: str | None = None) -> Real:
        """Seconds a step of the stage of that name, or of all; of stages of an epoch the share."""
        return sum(
            self.machine.seconds(x.work) / (self.steps if x.per_epoch else 1)
            for x in self.stages
            if name in (None, x.name)
        )

    @property
    def hours(self) -> Real:
        """Of an epoch."""
        return self.steps * self.seconds() / 3600

    @property
    def money(self) -> Real | None:
        """For an epoch of all ranks, in the price's currency."""
        price = self.machine.price
        return None if price is None else price * self.hours * self.machine.ranks

    def facts(self) -> dict[str, Any]:
        """All of it as plain numbers, GiB, milliseconds and hours: what the command prints."""
        memory = Columns(
            {
                "part": part.name,
                "when": part.phase,
                "host_GiB": round(part.host / _GIB, 3),
                "device_GiB": round(part.device / _GIB, 3),
            }
            for part in self.parts
        )
        stages = Columns(
            {
                "stage": x.name,
                "ms_a_step": round(1e3 * self.seconds(x.name), 3),
                "percent": round(100 * self.seconds(x.name) / max(self.seconds(), 1e-30), 1),
            }
            for x in self.stages
        )
        more = {
            "money_an_epoch": self.money,
            "largest_useful_batch": self.largest_useful_batch,
            "too_small": " and ".join(self.lacking) or None,
            "nearest_that_fits": self.remedy,
        }
        return {
            "task": self.task,
            "device": self.machine.device.name,
            "ranks": self.machine.ranks,
            "batch_size": self.batch_size,
            "memory": memory,
            "host_GiB": round(self.host_bytes / _GIB, 3),
            "device_GiB": round(self.device_bytes / _GIB, 3),
            "fits": self.fits,
            "stages": stages,
            "ms_a_step": round(1e3 * self.seconds(), 3),
            "steps_an_epoch": self.steps,
            "hours_an_epoch": round(self.hours, 4),
            **{k: round(v, 2) if isinstance(v, Real) else v for k, v in more.items() if v},
        }

    def _repr_html_(self) -> str:
        """Two tables, memory and time, and one line of what follows."""
        facts = self.facts()
        tables = [
            html_table(list(rows[0]), [[str(x) for x in row.values()] for row in rows])
            for rows in (facts["memory"], facts["stages"])
        ]
        rest = [[k, str(v)] for k, v in facts.items() if not isinstance(v, list)]
        return "".join([*tables, html_table(["plan", ""], rest)])
