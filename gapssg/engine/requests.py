"""What somebody outside asks of a run while it goes on."""

from __future__ import annotations

from gapssg.errors import GapssgError


class Stopped(GapssgError):
    """The run was asked to stop, and has; its directory holds a checkpoint if it can hold one.

    Attributes:
        signal_number: The signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        """Stop by this signal; the exit status follows from it as for any program."""
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number


class Requests:
    """Requests to a run, which it answers between two steps. Whoever catches signals sets them.

    Attributes:
        attended: Whether a run is there to answer.
        stop: The signal that asked to write a checkpoint and stop.
        checkpoint: Whether to write a checkpoint and go on.
    """

    def __init__(self) -> None:
        """Ask nothing."""
        self.attended = False
        self.stop: int | None = None
        self.checkpoint = False
