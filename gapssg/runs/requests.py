"""What somebody outside asks of a run while it goes on."""

from __future__ import annotations


class Stopped(BaseException):
    """The run was asked to stop, and has; its directory holds a checkpoint if it can hold one.

    It is no `Exception`, so that code which handles whatever goes wrong in it lets it pass.

    Attributes:
        signal_number: The signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        """Stop by this signal."""
        super().__init__(signal_number)
        self.signal_number = signal_number

    def __str__(self) -> str:
        """Say which signal it was."""
        return f"stopped by signal {self.signal_number}"

    @property
    def exit_status(self) -> int:
        """Exit status of the program, which follows from the signal as for any program."""
        return 128 + self.signal_number


class Requests:
    """Requests to a run, which it answers between two steps. Whoever catches signals sets them.

    Attributes:
        attended: Whether a run is there to answer.
        stop: The signal that asked to write a checkpoint and stop.
        raised: Whether `Stopped` was raised for it, because no run was there.
        checkpoint: Whether to write a checkpoint and go on.
    """

    def __init__(self) -> None:
        """Ask nothing."""
        self.attended = False
        self.stop: int | None = None
        self.raised = False
        self.checkpoint = False
