"""Where the runs of a table are carried out, and how they are shown. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gapssg.runs.directory import Display
from gapssg.runs.events import Event, Note, RolledBack, Warned
from gapssg.table.ledger import Failure
from gapssg.table.plan import Task


@dataclass(frozen=True)
class Ending:
    """How an attempt to make a run ended."""

    top1: float | None = None
    """The accuracy of a finished run."""
    seconds: float = 0.0
    """The duration of the attempt."""
    failure: Failure | None = None
    """Why the run failed."""
    holder: str | None = None
    """The process that has resumed the run by hand."""
    stopped: int | None = None
    """The signal that stopped the run, which can be resumed."""


class Place(Protocol):
    """Where runs are carried out."""

    def has_room(self) -> bool:
        """Tell whether another run may be started now."""

    def start(self, task: Task) -> None:
        """Start or resume a run, which this process has locked.

        Raises `Stopped` if it was asked for, and the run has been made here.
        """

    def ended(self, *, wait: bool) -> Iterable[tuple[Path, Ending]]:
        """Return the runs that have ended since the last call; with `wait`, wait a moment for one if there is none."""

    def stop(self) -> None:
        """Stop all runs, each after a checkpoint, and wait for it."""


class CellDisplay:
    """Shows the progress and the warnings of a run, with its label; the table itself shows start and end."""

    def __init__(self, display: Display, label: str) -> None:
        self._display = display
        self._label = label

    def say(self, sentence: str) -> None:
        """Show a sentence about the run."""
        self._display.event(Note(message=f"{self._label}: {sentence}"))

    def event(self, event: Event) -> None:
        """Pass on warnings and rollbacks."""
        if isinstance(event, Warned | RolledBack):
            what = event.message if isinstance(event, Warned) else f"the {event.part} diverged and was rolled back"
            self.say(f"epoch {event.epoch}: {what}")

    def progress(self, task: str, done: int, total: int) -> None:
        """Pass on the progress with the label of the run."""
        self._display.progress(f"{self._label}: {task}", done, total)
