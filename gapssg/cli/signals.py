"""What signals ask of a run: SIGINT and SIGTERM to stop after a checkpoint, SIGUSR1 to write one and go on."""

from __future__ import annotations

import signal
from types import FrameType

from gapssg.engine.requests import Requests, Stopped


def listen() -> Requests:
    """Turn the signals that this process gets into requests.

    Where no run is there to answer, and at the second signal, the program leaves at once.
    """
    requests = Requests()

    def stop(number: int, _: FrameType | None) -> None:
        if requests.stop is not None or not requests.attended:
            raise Stopped(number)
        requests.stop = number

    def write(*_: object) -> None:
        requests.checkpoint = requests.attended

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, write)
    return requests
