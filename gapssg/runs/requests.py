"""Requests to a running run: to stop, or to write a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


class Stopped(BaseException):
    """The run has stopped on request, after writing a checkpoint if it can resume from one.

    It is not an `Exception`, so that `except Exception` does not catch it.

    Attributes:
        signal_number: The signal that requested the stop.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number

    def __str__(self) -> str:
        return f"stopped by signal {self.signal_number}"

    @property
    def exit_status(self) -> int:
        """Exit status of the program, by the usual convention for signals."""
        return 128 + self.signal_number


@dataclass
class Requests:
    """Requests that a run answers between two steps, for example set by a signal handler."""

    attended: bool = False
    """Whether a run is answering requests."""
    stop: int | None = None
    """The signal that requests a checkpoint and a stop."""
    raised: bool = False
    """Whether `Stopped` was raised for it, because no run was answering."""
    checkpoint: bool = False
    """Whether to write a checkpoint and proceed."""
