"""A run's history: the lines of its log in order, each once.

A killed run that was resumed has lines that the resumed part overtook: those beyond the step that
it continued from, and earlier ones of the same event and step. They are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]
Number = int | float

# Stages that are timed: their event, and the metric that holds the seconds.
_STAGES = {
    "Prepare": ("start", "prepare_seconds"),
    "Steps": ("step", "seconds"),
    "Refresh": ("refresh", "refresh_seconds"),
    "Validate": ("validate", "validate_seconds"),
    "Ensemble": ("ensemble", "ensemble_seconds"),
    "Test": ("test", "test_seconds"),
}
# what logs of the first layout call an event or a metric, and the name of today
_RENAMED = {"fuse": "ensemble", "fuse_seconds": "ensemble_seconds", "anew": "refreshed"}


@dataclass(frozen=True)
class History:
    """The lines of a log that count, by event.

    Attributes:
        settings: of the run.
        by_event: the lines of each event, in order.
    """

    settings: dict[str, Any]
    by_event: dict[str, list[Event]]

    @staticmethod
    def of(settings: dict[str, Any], log: Iterable[Event]) -> History:
        """Sort a log, without what was overtaken.

        Example:
            >>> lost = [{"event": "step", "step": step} for step in (10, 20)]
            >>> history = History.of({}, [*lost, {"event": "resume", "step": 10}])
            >>> history.all("step"), history.steps
            ([{'event': 'step', 'step': 10}], 10)
        """
        kept: dict[tuple[str, int], Event] = {}
        for line in log:
            line = {_RENAMED.get(name, name): value for name, value in line.items()}
            event = str(_RENAMED.get(line["event"], line["event"]))
            line["event"], step = event, int(line.get("step") or 0)
            if event == "resume":
                kept = {key: value for key, value in kept.items() if key[1] <= step}
            kept.pop((event, step), None)
            kept[event, step] = line
        by_event: dict[str, list[Event]] = {}
        for line in kept.values():
            by_event.setdefault(line["event"], []).append(line)
        return History(settings, by_event)

    def all(self, event: str) -> list[Event]:
        """Every line of an event."""
        return self.by_event.get(event, [])

    def last(self, event: str) -> Event:
        """The last line of an event; empty where there is none."""
        return (self.all(event) or [{}])[-1]

    def over_steps(self, event: str, name: str) -> tuple[list[Number], list[Number]]:
        """Steps, and an event's metric at each, where that is a finite number."""
        found = [(line["step"], line[name]) for line in self.all(event) if name in line]
        finite = [(step, value) for step, value in found if math.isfinite(value)]
        return [step for step, _ in finite], [value for _, value in finite]

    def names(self, event: str, prefix: str = "") -> list[str]:
        """Names of an event's metrics that have a prefix, in their order."""
        names = dict.fromkeys(name for line in self.all(event) for name in line)
        return [name for name in names if name.startswith(prefix)]

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return int(self.most("step"))

    @property
    def seconds(self) -> Number:
        """Seconds of training: steps, and what lay between them."""
        # those of the test include further stages of training, which have a log of their own
        events = (lines for event, lines in self.by_event.items() if event != "test")
        return max((line.get("seconds", 0) for lines in events for line in lines), default=0)

    def most(self, name: str) -> Number:
        """The greatest value of a metric in any line; 0 where there is none."""
        every = (line for lines in self.by_event.values() for line in lines)
        return max((line[name] for line in every if name in line), default=0)

    @property
    def total(self) -> Number:
        """Seconds of training and of the ensemble, which some logs do not count as training."""
        spent = sum(line.get("ensemble_seconds", 0) for line in self.all("ensemble"))
        return self.seconds + spent

    def stages(self) -> list[tuple[str, Number, int | None]]:
        """Seconds of each stage that was timed, and the peak of memory by its end.

        Steps are what is left of training's seconds without clustering and validation. Those at the
        last step came after the clock of steps was read.
        """
        within = sum(
            line.get(key, 0.0)
            for event, key in (_STAGES["Refresh"], _STAGES["Validate"])
            for line in self.all(event)
            if line["step"] < self.steps
        )
        rows: list[tuple[str, Number, int | None]] = []
        for name, (event, key) in _STAGES.items():
            found = [line for line in self.all(event) if key in line]
            whole = max(self.seconds - within, 0.0)
            seconds = whole if name == "Steps" else sum(line[key] for line in found)
            if found:
                rows.append((name, seconds, found[-1].get("peak_mib")))
        return rows
