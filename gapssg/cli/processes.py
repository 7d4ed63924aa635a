"""Several processes of one command, started by torchrun: rank 0 prints, and all end together."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from gapssg.cli.console import Invocation
from gapssg.errors import InputError

COMMANDS = ("distill", "pretrain-teacher", "eval")
"""The commands that several processes can share."""
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def are_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether torchrun has started this process as one of several."""
    return all(environment.get(name) for name in _VARIABLES) and environment["WORLD_SIZE"] != "1"


def check_command(name: str | None) -> None:
    """Raise `InputError` if there are several processes, and they cannot share this command."""
    if are_several() and name not in COMMANDS:
        raise InputError(f"gapssg {name} runs in one process; start it without torchrun ({', '.join(COMMANDS)} use it)")


@contextmanager
def joined(invocation: Invocation) -> Iterator[None]:
    """Join the other processes of torchrun, if any, or raise `RunError`; in the block only rank 0 prints."""
    if not are_several():
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch would print stack traces of lost connections
    from gapssg.core.processes import Processes

    processes = invocation.processes = Processes.join(os.environ)
    with ExitStack() as silence:
        if processes.rank:
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        with processes.sharing_failures():
            yield


def leave(invocation: Invocation, status: int) -> None:
    """Leave the other processes, so that rank 0 can finish before torchrun ends it; a signal no longer prints."""
    if invocation.processes is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: os._exit(status))
        invocation.processes.leave()
