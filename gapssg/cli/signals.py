"""What signals ask of a run: SIGINT and SIGTERM to stop after a checkpoint, SIGUSR1 to write one and go on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from gapssg.engine.requests import Requests, Stopped


def listen() -> Requests:
    """Turn the signals that this process gets into requests.

    Where no run is there to answer, the program ends. At the second signal it leaves at once, whatever it is doing:
    writing to a disk that hangs, or compiling. What is durable stays.
    """
    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        if requests.stop is not None:
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the progress bar hid it
            os.write(2, f"{cursor}left at once; --resume continues from the last checkpoint\n".encode())
            os._exit(Stopped(number).exit_status)
        if not requests.attended:
            raise Stopped(number)
        requests.stop = number

    def write(*_: object) -> None:
        requests.checkpoint = requests.attended

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, write)
    return requests
