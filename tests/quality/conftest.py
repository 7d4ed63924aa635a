"""The number of probe images that users get."""

from __future__ import annotations

import pytest

from gapssg.quality import evidence


@pytest.fixture(autouse=True)
def as_many_probe_images_as_users_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PROBE_COUNT", 256)
