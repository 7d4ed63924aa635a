"""Runs the program in this process, because importing torch in a new one takes seconds."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from gapssg.__main__ import main


class Finished(NamedTuple):
    """The outcome of a run of the program."""

    status: int
    stdout: str
    stderr: str


def gapssg(*arguments: object, status: int | tuple[int, ...] = 0) -> Finished:
    """Run a command line; check its exit status, which may be one of several."""
    stdout, stderr = io.StringIO(), io.StringIO()
    left: object = None
    try:
        with (
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            mock.patch("sys.argv", ["gapssg", *map(str, arguments)]),
        ):
            main()
    except SystemExit as end:
        left = end.code
    assert isinstance(left, int) and left in (status if isinstance(status, tuple) else (status,)), stderr.getvalue()
    return Finished(left, stdout.getvalue(), stderr.getvalue())


def refusal(*arguments: object) -> str:
    """Run bad input; return the sentence, after checking that it is one and stands alone."""
    finished = gapssg(*arguments, status=2)
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert "Traceback" not in finished.stderr
    return finished.stderr.removeprefix("error: ").strip()
