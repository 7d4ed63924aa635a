"""The results of `report` and `push`."""

from __future__ import annotations

from typing import Literal

from gapssg.stored import Stored, Text


class ReportedRun(Stored):
    """The verdict of a report on a run."""

    run: Text
    verdict: Text
    evidence: Literal["real images", "probe images", "synthetic images only", "none"]
    failures: tuple[Text, ...]
    top1: float | None


class ReportResult(Stored):
    """The result of `report`."""

    command: Literal["report"] = "report"
    output: Text
    runs: tuple[ReportedRun, ...]


class PushResult(Stored):
    """The result of `push`."""

    command: Literal["push"] = "push"
    repository: Text
    revision: Text
    """The commit."""
    reference: Text
    """How commands name the model file, with this revision."""
    sha256: Text
    """SHA-256 of the model file."""
    files: tuple[Text, ...]
