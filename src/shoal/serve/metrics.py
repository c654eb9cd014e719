"""What the service counts, in the text format that Prometheus reads.

Labels of a metric come from the service's own lists, never from a client: else a client could make
as many series as it likes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # Prometheus' own


class Metrics:
    """Counts of one service; changed in its event loop's thread alone.

    Example:
        >>> metrics = Metrics(["/predict"])
        >>> metrics.answered("/predict", 200, seconds=0.02)
        >>> print(metrics.text({"ready": 1})[:56])
        # HELP shoal_requests_total Requests answered, by path a
    """

    def __init__(self, paths: list[str]) -> None:
        self._paths = set(paths)
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds = [0] * (len(_BOUNDS) + 1)  # predictions that took so long, by bucket
        self._sum = 0.0
        self.texts = 0
        self.loads = 0
        self.failed_loads = 0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; its time where it was a prediction."""
        self._requests[path if path in self._paths else "other", status] += 1
        if path == "/predict" and status == 200:
            self._seconds[bisect_left(_BOUNDS, seconds)] += 1
            self._sum += seconds

    def refused(self, status: int) -> None:
        """Count a connection that was closed before there was a request."""
        self._requests["none", status] += 1

    def text(self, gauges: Mapping[str, int]) -> str:
        """All of it.

        Args:
            gauges: what is measured now, by name: ready, waiting_texts, connections.
        """
        lines = _head("requests_total", "counter", "Requests answered, by path and status.")
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'shoal_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += _head("predict_seconds", "histogram", "Time of requests with predictions.")
        below = 0
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self._seconds, strict=True):
            below += count
            lines.append(f'shoal_predict_seconds_bucket{{le="{bound}"}} {below}')
        lines += [f"shoal_predict_seconds_sum {self._sum}", f"shoal_predict_seconds_count {below}"]
        for name, about in (
            ("texts", "Texts predicted."),
            ("loads", "Models loaded after the first."),
            ("failed_loads", "Models that could not be loaded after the first."),
        ):
            lines += _head(f"{name}_total", "counter", about)
            lines.append(f"shoal_{name}_total {getattr(self, name)}")
        for name, value in gauges.items():
            lines += _head(name, "gauge", _GAUGES[name])
            lines.append(f"shoal_{name} {value}")
        return "\n".join(lines) + "\n"


_GAUGES = {
    "ready": "1 where a text would be answered, else 0.",
    "labels": "Labels of the model.",
    "waiting_texts": "Texts that wait for their labels.",
}


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP shoal_{name} {about}", f"# TYPE shoal_{name} {kind}"]
