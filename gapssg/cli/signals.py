"""Signals: SIGINT, SIGTERM and SIGHUP stop after a checkpoint, SIGUSR1 writes one and continues."""

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
    """Turn the signals of this process into requests until the block ends.

    If no run attends to requests, `Stopped` is raised, and again each second until the block ends or a run attends: so
    another package that swallows the exception, in an import or a destructor, cannot keep the program alive. The second
    signal exits immediately, even from a compilation or a write to a disk that hangs.
    """
    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        if requests.stop is None:
            requests.stop = number
            if not requests.attended:
                insist()
        elif number != signal.SIGHUP:  # when a terminal closes, system and shell may both send one
            _exit_now(requests.stop, has_run=requests.attended)

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
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # set by nohup
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


def _exit_now(number: int, *, has_run: bool) -> None:
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hid it
    hint = "; --resume continues from the last checkpoint" if has_run else ""
    try:
        os.write(2, f"{cursor}exited at once{hint}\n".encode())
    finally:
        os._exit(Stopped(number).exit_status)
