"""The numbers of `events.jsonl` and the images of `samples/`, written for TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapssg.errors import InputError, RunError, os_errors_as
from gapssg.files import entries_in, is_file, is_folder, make_folder, remove
from gapssg.runs.directory import Display
from gapssg.runs.events import Ended, Epoch, Event, Started, Warned, read_events
from gapssg.runs.pictures import read_picture
from gapssg.safe_paths import inside

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_FOLDER = "tensorboard"
_INSTALL = 'pip install "gapssg[tensorboard]"'


def is_installed() -> bool:
    """Tell whether TensorBoard is installed."""
    return find_spec("tensorboard") is not None


def was_written(run: Path) -> bool:
    """Tell whether an earlier process wrote TensorBoard files for a run."""
    return is_folder(inside(run) / _FOLDER)


def warn_that_it_ends(display: Display, run: Path) -> None:
    """Warn that a run proceeds without TensorBoard, because it is no longer installed."""
    message = f"{run / _FOLDER} is not updated, because TensorBoard is not installed: {_INSTALL}"
    display.event(Warned(epoch=0, message=message))


@contextmanager
def also_for_tensorboard(display: Display, run: Path, kind: type[Epoch]) -> Iterator[Display]:
    """Write `tensorboard/` in the directory of a run, besides showing the run, until the block ends.

    After the first epoch the folder is rewritten from `events.jsonl`, so that a resumed run has each point once,
    whatever an earlier process left there. Raises `InputError` if TensorBoard is not installed, and `RunError` if the
    disk refuses a write.
    """
    if not is_installed():
        raise InputError(f"--tensorboard needs TensorBoard: {_INSTALL}")
    both = _TensorBoardDisplay(display, run, kind)
    with _thread_without_traceback():
        try:
            yield both
        finally:
            both.close()


class _TensorBoardDisplay:
    """Writes each epoch for TensorBoard, and passes events on to another display."""

    def __init__(self, display: Display, run: Path, kind: type[Epoch]) -> None:
        self._display = display
        self._run = inside(run)
        self._kind = kind
        self._writer: SummaryWriter | None = None

    def event(self, event: Event) -> None:
        self._display.event(event)
        with os_errors_as(RunError, f"cannot write to {self._run / _FOLDER}"):
            if isinstance(event, Started):
                # A resumed run writes TensorBoard files if it finds the folder.
                make_folder(self._run / _FOLDER)
            elif isinstance(event, Epoch | Ended):
                self._write_epochs(event)

    def progress(self, task: str, done: int, total: int) -> None:
        self._display.progress(task, done, total)

    def close(self) -> None:
        """Close the file and wait for the thread that writes it, even after a failed write."""
        if self._writer is not None:
            self._writer.file_writer.close()  # type: ignore[attr-defined]

    def _write_epochs(self, event: Epoch | Ended) -> None:
        """Write the epoch of an event; the first time, all epochs so far."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            folder = self._run / _FOLDER
            for name in entries_in(folder):
                if name.startswith("events.out.tfevents."):
                    remove(folder / name)
            self._writer = SummaryWriter(folder)
            for epoch in read_events(self._run, self._kind).epochs:
                self._write(self._writer, epoch)
        elif isinstance(event, Epoch):
            self._write(self._writer, event)
        self._writer.flush()

    def _write(self, writer: SummaryWriter, epoch: Epoch) -> None:
        for name, value in scalars(epoch.model_dump(exclude={"epoch", "epochs"})):
            writer.add_scalar(name, value, epoch.epoch)
        grid = self._run / "samples" / f"epoch-{epoch.epoch:04d}.png"
        if is_file(grid):
            pixels = np.asarray(read_picture(grid))
            layout = "HW" if pixels.ndim == 2 else "HWC"
            writer.add_image("samples", pixels, epoch.epoch, dataformats=layout)


@contextmanager
def _thread_without_traceback() -> Iterator[None]:
    """Suppress tracebacks of the writer's thread: the next call of the writer raises the error."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            shown(args)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = shown


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an epoch, nested ones as `part/name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
