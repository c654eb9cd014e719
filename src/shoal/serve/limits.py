"""What one request may ask of a service, and all of them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.core.errors import expect, expect_positive


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that keep a service answering whatever it is sent."""

    max_body: int = 2**20
    """Bytes per request."""
    max_texts: int = 256
    """Texts per request."""
    max_characters: int = 10_000
    """Characters per text."""
    max_k: int = 100
    """Labels per text."""
    max_batch: int = 64
    """Texts predicted together."""
    max_wait_ms: float = 2.0
    """Milliseconds that a text waits for others to be predicted with."""
    max_waiting: int = 1024
    """Texts that may wait at a time; further requests are refused with status 503."""
    max_connections: int = 512
    """Connections at a time; further ones are refused with status 503."""
    max_rate: float = math.inf
    """Requests a second of one client; faster ones are refused with status 429."""
    timeout: float = 30.0
    """Seconds within which a request must have come and be answered."""


def expect_limits(limits: Limits) -> None:
    """Check the limits of a service.

    Raises:
        InputError: naming the one that makes no sense.
    """
    counts = ("body", "texts", "characters", "k", "batch", "waiting", "connections")
    for name in (f"max_{count}" for count in counts):
        expect_positive(name, getattr(limits, name))
    wait, room, texts = limits.max_wait_ms, limits.max_waiting, limits.max_texts
    expect(0 <= wait < 60_000, "max_wait_ms", "milliseconds in [0, 60000)", wait, "try 2")
    rate = limits.max_rate
    expect(rate > 0, "max_rate", "requests a second above 0", rate, "leave it out for no limit")
    good = 0 < limits.timeout <= 3600
    expect(good, "timeout", "seconds in (0, 3600]", limits.timeout, "try 30")
    remedy = "raise it or lower max_texts"
    expect(room >= texts, "max_waiting", f"at least max_texts, {texts}", room, remedy)
