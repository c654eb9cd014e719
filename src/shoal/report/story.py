"""What a run's record tells, in order and once.

A killed run that was resumed has lines that the resumed part overtook: those beyond the step that
it went on from, and earlier ones of the same event and step. They are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shoal.report.markup import Number

Event = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The lines of a record that count, by event.

    Attributes:
        settings: what the run was asked for.
        by_event: the lines of each event, in order.
    """

    settings: dict[str, Any]
    by_event: dict[str, list[Event]]

    @staticmethod
    def of(settings: dict[str, Any], record: Iterable[Event]) -> Story:
        """Sort a record, without what was overtaken.

        Example:
            >>> lost = [{"event": "step", "step": step} for step in (10, 20)]
            >>> story = Story.of({}, [*lost, {"event": "resume", "step": 10}])
            >>> story.all("step"), story.steps
            ([{'event': 'step', 'step': 10}], 10)
        """
        kept: dict[tuple[str, int], Event] = {}
        for line in record:
            event, step = line["event"], line.get("step", 0)
            if event == "resume":
                kept = {key: value for key, value in kept.items() if key[1] <= step}
            kept.pop((event, step), None)
            kept[event, step] = line
        by_event: dict[str, list[Event]] = {}
        for line in kept.values():
            by_event.setdefault(line["event"], []).append(line)
        return Story(settings, by_event)

    def all(self, event: str) -> list[Event]:
        """Every line of an event."""
        return self.by_event.get(event, [])

    def last(self, event: str) -> Event:
        """The last line of an event; empty where there is none."""
        return (self.all(event) or [{}])[-1]

    def over_steps(self, event: str, name: str) -> tuple[list[Number], list[Number]]:
        """Steps, and what an event's lines say under a name, where that is a finite number."""
        found = [(line["step"], line[name]) for line in self.all(event) if name in line]
        finite = [(step, value) for step, value in found if math.isfinite(value)]
        return [step for step, _ in finite], [value for _, value in finite]

    def names(self, event: str, prefix: str) -> list[str]:
        """Names with a prefix that an event's lines use, in their order."""
        names = dict.fromkeys(name for line in self.all(event) for name in line)
        return [name for name in names if name.startswith(prefix)]

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return max((line.get("step", 0) for line in self._lines()), default=0)

    @property
    def seconds(self) -> Number:
        """Seconds of training: steps, and what lay between them."""
        return max((line.get("seconds", 0.0) for line in self._lines()), default=0.0)

    @property
    def peak_mib(self) -> dict[str, int]:
        """The peak of memory, in MiB, on the host and, where there is one, on a device."""
        names = {"peak_mib": "Peak memory", "device_peak_mib": "Peak device memory"}
        peaks = {
            said: max((line[name] for line in self._lines() if name in line), default=0)
            for name, said in names.items()
        }
        return {said: peak for said, peak in peaks.items() if peak}

    def stages(self) -> list[tuple[str, Number, int | None]]:
        """Seconds of each stage that was timed, and the peak of memory by its end.

        Steps are what is left of training's seconds without clustering and validation. Those at the
        last step came after the clock of steps was read.
        """
        within = sum(
            line.get(key, 0.0)
            for event, key in (_STAGES["refresh"], _STAGES["validate"])
            for line in self.all(event)
            if line["step"] < self.steps
        )
        rows: list[tuple[str, Number, int | None]] = []
        for name, (event, key) in _STAGES.items():
            found = [line for line in self.all(event) if key in line]
            if name == "steps" and found:
                rows.append((name, max(self.seconds - within, 0.0), found[-1].get("peak_mib")))
            elif found:
                rows.append((name, sum(line[key] for line in found), found[-1].get("peak_mib")))
        return rows

    def _lines(self) -> Iterable[Event]:
        return (line for lines in self.by_event.values() for line in lines)


_STAGES = {
    "prepare": ("start", "prepare_seconds"),
    "steps": ("step", "seconds"),
    "refresh": ("refresh", "refresh_seconds"),
    "validate": ("validate", "validate_seconds"),
    "fuse": ("fuse", "fuse_seconds"),
    "test": ("test", "test_seconds"),
}
