"""Displays that interrupt a run, or send it a request, at a given step."""

from __future__ import annotations

from gapssg.runs.directory import SilentDisplay
from gapssg.runs.requests import Requests


class Interruption(Exception):
    """Stands for whatever ends a process."""


class InterruptingDisplay(SilentDisplay):
    """Ends the run at its n-th step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def progress(self, task: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interruption


class Both(SilentDisplay):
    """Tells two displays."""

    def __init__(self, first: SilentDisplay, second: SilentDisplay) -> None:
        self.displays = (first, second)

    def progress(self, task: str, done: int, total: int) -> None:
        for display in self.displays:
            display.progress(task, done, total)


class AskingDisplay(SilentDisplay):
    """Asks the run at its n-th step to stop, or to write a checkpoint."""

    def __init__(self, step: int, requests: Requests, what: str) -> None:
        self.left = step
        self.requests = requests
        self.what = what

    def progress(self, task: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            setattr(self.requests, self.what, 15 if self.what == "stop" else True)
