"""A device that is not there, for every test of reading and writing rows."""

from __future__ import annotations

import pytest

from shoal.fetch import device_rows, register
from tests.fetch import standin
from tests.fetch.standin import Driver


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A stand-in driver; ``meta`` is a device that host memory can be shown to, as is the CPU."""
    driver = Driver()
    monkeypatch.setattr(device_rows, "_REACHED", ("cuda", "meta", "cpu"))
    monkeypatch.setattr(device_rows, "_as_device_tensor", standin.near)
    monkeypatch.setattr(device_rows, "to_device", standin.to_device)
    monkeypatch.setattr(register, "_cudart", lambda: driver)
    monkeypatch.setattr(register, "synchronize", driver.synchronize)
    return driver
