"""The same numbers and images as in `events.jsonl` and `samples/`, for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gapssg.engine.record import read_picture
from gapssg.engine.run_directory import Display
from gapssg.errors import InputError, RunError
from gapssg.runs.events import Ended, Epoch, Event, Started, Warned, read_events

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_FOLDER = "tensorboard"
_FILES = "events.out.tfevents."
_INSTALL = 'pip install "gapssg[tensorboard]"'


def is_installed() -> bool:
    """Tell whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None


def was_written(run: Path) -> bool:
    """Tell whether an earlier process wrote a run for TensorBoard."""
    return (run / _FOLDER).is_dir()


def warn_that_it_ends(display: Display, run: Path) -> None:
    """Say that a run goes on without TensorBoard, because that is no longer installed."""
    message = f"{run / _FOLDER} is not continued, because TensorBoard is not installed: {_INSTALL}"
    display.event(Warned(epoch=0, message=message))


@contextmanager
def also_for_tensorboard(display: Display, run: Path, kind: type[Epoch]) -> Iterator[Display]:
    """Show a run and write `tensorboard/` in its directory while the block lasts.

    The folder is written anew from the run's own record after the first epoch, so that a run that was interrupted has
    each point once, whatever an earlier process left there.

    Args:
        display: Shows the run.
        run: Its directory.
        kind: What its epochs are.

    Raises:
        InputError: TensorBoard is not installed.
        RunError: The disk refused a write.
    """
    if not is_installed():
        raise InputError(f"--tensorboard needs TensorBoard: {_INSTALL}")
    both = _TensorBoardDisplay(display, run, kind)
    try:
        yield both
    finally:
        both.close()


class _TensorBoardDisplay:
    """Writes each epoch for TensorBoard, and lets another display show the run."""

    def __init__(self, display: Display, run: Path, kind: type[Epoch]) -> None:
        self._display = display
        self._run = run
        self._kind = kind
        self._file: _EventFile | None = None

    def event(self, event: Event) -> None:
        """Show an event; write that of an epoch."""
        self._display.event(event)
        try:
            if isinstance(event, Started):
                # A run that is continued goes on with what it finds there.
                (self._run / _FOLDER).mkdir(exist_ok=True)
            elif isinstance(event, Epoch | Ended):
                self._write_epochs(event)
        except OSError as error:
            raise RunError(f"cannot write to {self._run / _FOLDER}: {error.strerror or error}") from error

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how far the current task has come."""
        self._display.progress(task, done, total)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write_epochs(self, event: Epoch | Ended) -> None:
        """Write the epoch of an event; before anything else was written, all epochs so far."""
        if self._file is None:
            for file in (self._run / _FOLDER).glob(f"{_FILES}*"):
                file.unlink()
            self._file = _EventFile(self._run / _FOLDER / f"{_FILES}{time.time_ns()}")
            for epoch in read_events(self._run, self._kind).epochs:
                self._write(self._file, epoch)
        elif isinstance(event, Epoch):
            self._write(self._file, event)
        self._file.flush()

    def _write(self, file: _EventFile, epoch: Epoch) -> None:
        from torch.utils.tensorboard.summary import image, scalar

        for name, value in _scalars(epoch.model_dump(exclude={"epoch", "epochs"})):
            file.add(scalar(name, value), epoch.epoch)  # type: ignore[no-untyped-call]
        grid = self._run / "samples" / f"epoch-{epoch.epoch:04d}.png"
        if grid.exists():
            pixels = np.asarray(read_picture(grid))
            layout = "HW" if pixels.ndim == 2 else "HWC"
            file.add(image("samples", pixels, dataformats=layout), epoch.epoch)  # type: ignore[no-untyped-call]


class _EventFile:
    """A file as TensorBoard reads it.

    TensorBoard's own writer has a thread, which prints a traceback where the disk refuses a write. Here that is an
    OSError of the call.
    """

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._file: BinaryIO = path.open("xb")
        self._records = RecordWriter(self._file)
        self._event = event_pb2.Event
        self._records.write(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, summary: Summary, step: int) -> None:
        """Append a value of a step."""
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

    def flush(self) -> None:
        """Hand what was appended to the system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file; what the disk refuses then, it has refused before."""
        with suppress(OSError):
            self._file.close()


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event, those of its parts as `part/name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
