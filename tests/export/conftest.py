from __future__ import annotations

import pytest

from gapssg.export import quantize


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "_SECONDS_OF_TIMING", 0.01)
