"""What signals ask: SIGINT, SIGTERM and SIGHUP to stop after a checkpoint, SIGUSR1 to write one and go on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gapssg.runs.requests import Requests, Stopped

_SECONDS_UNTIL_RAISED_AGAIN = 1.0

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def listening() -> Iterator[Requests]:
    """Turn the signals that this process gets into requests until the block ends.

    Where no run is there to answer, `Stopped` is raised, and again each second until the block ends or a run answers:
    what another package does with an exception, in an import or a destructor, cannot keep the program alive. At the
    second signal it leaves at once, whatever it is doing: writing to a disk that hangs, or compiling. What is durable
    stays.
    """
    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        if requests.stop is None:
            requests.stop = number
            if not requests.attended:
                insist()
        elif number != signal.SIGHUP:  # of a terminal that is closed, system and shell may both send one
            _leave(requests.stop, has_run=requests.attended)

    def insist(*_: object) -> None:
        requests.raised = True
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_UNTIL_RAISED_AGAIN)
        if requests.stop is not None and not requests.attended:
            raise Stopped(requests.stop)

    def write(*_: object) -> None:
        requests.checkpoint = requests.attended

    handlers: dict[int, Handler] = {
        signal.SIGINT: stop,
        signal.SIGTERM: stop,
        signal.SIGALRM: insist,
        signal.SIGUSR1: write,
    }
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        handlers[signal.SIGHUP] = stop
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: None if isinstance(lost.exc_value, Stopped) else report(lost)
    try:
        yield requests
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, *, has_run: bool) -> None:
    """End the program now, without a last word from anything else."""
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hid it
    hint = "; --resume continues from the last checkpoint" if has_run else ""
    try:
        os.write(2, f"{cursor}left at once{hint}\n".encode())
    finally:
        os._exit(Stopped(number).exit_status)
