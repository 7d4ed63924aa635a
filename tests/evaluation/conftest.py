from __future__ import annotations

from pathlib import Path

import pytest

from gapssg.export.formats import quiet
from gapssg.models.graphs import child
from gapssg.models.graphs import file as graph_file


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files in this process, which saves starting another."""

    def answer(_: Path, request: child.Request) -> child.Answer:
        with quiet():
            return child.answer(request)

    monkeypatch.setattr(graph_file, "_answer", answer)
