"""The same numbers and images as in `events.jsonl` and `samples/`, for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapssg.engine.record import Epoch, read_events, read_picture
from gapssg.engine.run_directory import Display
from gapssg.errors import InputError, RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_FOLDER = "tensorboard"
_FILES = "events.out.tfevents.*"


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
    """
    if find_spec("tensorboard") is None:
        raise InputError('--tensorboard needs TensorBoard: pip install "gapssg[tensorboard]"')
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
        self._writer: SummaryWriter | None = None

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event; write that of an epoch."""
        self._display.event(event)
        if event["event"] not in ("epoch", "end"):
            return
        try:
            if self._writer is None:
                self._writer = self._begin_anew()
            elif event["event"] == "epoch":
                self._write(self._writer, self._kind.model_validate(event))
            self._writer.flush()
        except OSError as error:
            raise RunError(f"cannot write to {self._run / _FOLDER}: {error.strerror or error}") from error

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how far the current task has come."""
        self._display.progress(task, done, total)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _begin_anew(self) -> SummaryWriter:
        """Write all epochs so far, the current one among them."""
        from torch.utils.tensorboard import SummaryWriter

        for file in (self._run / _FOLDER).glob(_FILES):
            file.unlink()
        writer = SummaryWriter(str(self._run / _FOLDER))
        for epoch in read_events(self._run, self._kind).epochs:
            self._write(writer, epoch)
        return writer

    def _write(self, writer: SummaryWriter, epoch: Epoch) -> None:
        for name, value in _scalars(epoch.model_dump(exclude={"epoch", "epochs"})):
            writer.add_scalar(name, value, epoch.epoch)
        grid = self._run / "samples" / f"epoch-{epoch.epoch:04d}.png"
        if grid.exists():
            pixels = np.asarray(read_picture(grid))
            writer.add_image("samples", pixels, epoch.epoch, dataformats="HW" if pixels.ndim == 2 else "HWC")


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event, those of its parts as `part/name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value
