"""What a run needs to resume: one file, replaced atomically when a checkpoint is due.

The sample pool is on disk as shards, so that a checkpoint is as large as the weights and momenta, however long the run.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter, ValidationError
from safetensors.torch import save
from torch import Tensor

from gapssg.errors import InputError, RunError, shortened
from gapssg.files import canonical_json, is_file, write_atomically
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.directory import RunDirectory, Written, check_may_resume
from gapssg.runs.events import CheckpointWritten
from gapssg.runs.requests import Requests, Stopped
from gapssg.safe_paths import inside
from gapssg.settings.base import Settings

FOLDER, _FILE, _KEY = "checkpoint", "latest.safetensors", "facts"
_FILES, _BEST = "written.files", "written.best"
_SECONDS_BETWEEN_AGREEMENTS, _MOST_STEPS_BETWEEN_AGREEMENTS = 0.1, 100  # of several processes
NOT_OF_THIS_RUN = (
    "the checkpoint does not belong to this run, or is of another version of gapssg; restart with --overwrite"
)


class State(NamedTuple):
    """The state of a component in a checkpoint."""

    facts: Mapping[str, object]
    """Counters, rates and scores; JSON types."""
    tensors: dict[str, Tensor]
    """On any device."""

    def prefixed(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors with a prefix before their names."""
        return {f"{prefix}{name}": tensor for name, tensor in self.tensors.items()}

    def component(self, name: str) -> State:
        """Return the state of the component whose facts and tensors have this name; raise `InputError` if damaged."""
        prefix = f"{name}."
        tensors = {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}
        facts = self.facts.get(name, {})
        if not isinstance(facts, dict):
            raise InputError(NOT_OF_THIS_RUN)
        return State(facts, tensors)


class Facts(BaseModel):
    """Base class of the facts that components keep in a checkpoint, which may be untrusted when it is read."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, facts: object) -> Self:
        """Validate facts of a checkpoint; raise `InputError` if they are not those of this component."""
        try:
            found = cls.model_validate_json(canonical_json(facts))
            if found.model_fields_set != cls.model_fields.keys():
                raise ValueError("facts are missing")
            return found
        except (ValidationError, ValueError, TypeError) as error:
            raise InputError(NOT_OF_THIS_RUN) from error


class _Header(Facts):
    events_length: NonNegativeInt
    events_sha256: str
    settings: dict[str, object]
    identity: dict[str, str]
    facts: dict[str, object]


@dataclass
class Checkpoints:
    """Writes checkpoints when they are due or requested, and stops the run on request.

    The state is copied at once and written by another thread while the run proceeds. From a GPU it is copied into
    pinned memory asynchronously.
    """

    run: RunDirectory
    """The run."""
    identity: dict[str, str]
    """What must be the same on resume, such as the SHA-256 of the teacher."""
    state: Callable[[], State | None]
    """Returns the current state; None if no checkpoint can be written now."""
    requests: Requests
    """Requests to the run from outside."""
    every_epochs: int
    """Epochs between checkpoints."""
    every_minutes: float
    """Minutes after which a checkpoint is written between two steps."""
    highest: Callable[..., list[int]] | None = None
    """Returns the highest of each number over the processes of the run, which call it after the same steps; None if
    there is one process."""
    _steps_left: int = field(default=1, init=False)
    _interval: int = field(default=1, init=False)
    _agreed: float = field(default_factory=time.monotonic, init=False)
    _written: float = field(default_factory=time.monotonic, init=False)
    _writer: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "checkpoint"), init=False)
    _pending: Future[None] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Accept requests until the block ends."""
        self.requests.attended = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the checkpoint that is being written."""
        self.requests.attended = False
        self._writer.shutdown(wait=True)
        if error is None:
            self.finish()

    def after_step(self) -> None:
        """Answer requests, and write a checkpoint if one is due; otherwise this costs nothing.

        Several processes answer after the same step: a request to one of them is one to all. Raises `RunError` if the
        last checkpoint could not be written (the previous one is untouched), and `Stopped` if a stop was requested and
        the checkpoint is written.
        """
        if self._pending is not None and self._pending.done():
            self.finish()
        stop, asks = self._requested() if self.highest is None else self._agreed_requests(self.highest)
        if stop or asks:
            self.requests.checkpoint = False
            self.write()
        if stop:
            self.finish()
            raise Stopped(stop)

    def _requested(self) -> tuple[int, bool]:
        """Return the signal that requests a stop, or 0, and whether a checkpoint is requested or due."""
        is_due = time.monotonic() - self._written > 60 * self.every_minutes
        return self.requests.stop or 0, self.requests.checkpoint or is_due

    def _agreed_requests(self, highest: Callable[..., list[int]]) -> tuple[int, bool]:
        """Return what any process requests, every few steps, and else nothing.

        The processes also agree on the number of steps until the next time, from the duration of the last ones.
        """
        self._steps_left -= 1
        if self._steps_left > 0:
            return 0, False
        seconds = max(time.monotonic() - self._agreed, 1e-6)
        steps = min(int(self._interval * _SECONDS_BETWEEN_AGREEMENTS / seconds), _MOST_STEPS_BETWEEN_AGREEMENTS)
        stop, asks, fewest = highest(*self._requested(), -max(steps, 1))
        self._interval = self._steps_left = -fewest
        self._agreed = time.monotonic()
        return stop, bool(asks)

    def after_epoch(self, epochs_done: int, is_last: bool) -> None:
        """Write a checkpoint if one is due after this epoch, and answer requests.

        Raises `RunError` as `after_step`, and `Stopped` as `after_step`, if it is not the last epoch.
        """
        if is_last or epochs_done % self.every_epochs == 0:
            self.write()
        if not is_last:
            self.after_step()

    def write(self) -> None:
        """Copy the state and start writing it; raise `RunError` if the previous checkpoint could not be written."""
        self.finish()
        self._written = time.monotonic()
        state = self.state()
        if state is None:
            return
        written = self.run.written()
        header = {
            "events_length": written.events_length,
            "events_sha256": written.events_sha256,
            "settings": self.run.settings,
            "identity": self.identity,
            "facts": state.facts,
        }
        metadata = {_KEY: canonical_json(header)}
        file = self.run.folder(FOLDER) / _FILE
        copies, wait = _start_copying(state.tensors)
        # Not in the header, whose length is limited: a long run has many files.
        copies[_FILES] = _as_tensor(canonical_json(written.files).encode())
        if written.best is not None:
            copies[_BEST] = _as_tensor(written.best)

        def finish_writing() -> None:
            try:
                wait()
            except RuntimeError as error:  # of CUDA
                raise RunError(f"the state could not be copied from the GPU: {str(error).splitlines()[0]}") from error
            write_atomically(file, save(copies, metadata=metadata))

        self._pending = self._writer.submit(finish_writing)

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk; raise `RunError` if not: the previous one is untouched."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            self.run.show(CheckpointWritten(directory=self.run.path))


def _start_copying(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Start copying tensors to the processor; return the copies and a function that waits for them."""
    copies = {}
    device = None
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            device = tensor.device
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        copies[name].copy_(tensor.detach(), non_blocking=True)
    if device is None:
        return copies, lambda: None
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(device))
    return copies, copied.synchronize


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.view(torch.uint8).numpy())


def has_checkpoint(path: Path) -> bool:
    """Tell whether the run in `path` has written a checkpoint, damaged or not."""
    return is_file(inside(path) / FOLDER / _FILE)


def read_checkpoint(
    path: Path, identity: dict[str, str], settings: Settings, may_move: Container[str] = ()
) -> tuple[Written, State]:
    """Read the checkpoint of the run in `path`: the files that the run had written by then, and its state.

    Raises `InputError` if it is missing, damaged, or of a run with another `identity` or other settings than those to
    resume with, except as `check_same_settings` permits.
    """
    file = inside(path) / FOLDER / _FILE
    if not has_checkpoint(path):
        raise InputError(
            f"{path} holds no checkpoint to resume from (none was written yet, or it keeps no pool); "
            f"restart with --output {shlex.quote(str(path))} --overwrite"
        )
    content = read_safetensors(file)
    try:
        header = _Header.read(json.loads(content.metadata[_KEY]))
        written = _read_written(header, content.tensors)
    except (InputError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a checkpoint of a run") from error
    differing = [
        f"{name} was {shortened(header.identity.get(name, 'unknown'), 12)} and is {shortened(value, 12)}"
        for name, value in identity.items()
        if header.identity.get(name) != value
    ]
    if differing:
        raise InputError(f"{path} cannot resume: {'; '.join(differing)}; restore it, or restart with --overwrite")
    check_may_resume(path, header.settings, settings, may_move)
    return written, State(header.facts, content.tensors)


def _read_written(header: _Header, tensors: dict[str, Tensor]) -> Written:
    """Remove the entries that describe the run's files from the tensors and return them."""
    files = TypeAdapter(dict[str, str]).validate_json(_as_bytes(tensors.pop(_FILES)))
    best = _as_bytes(tensors.pop(_BEST)) if _BEST in tensors else None
    return Written(header.events_length, header.events_sha256, files, best)
