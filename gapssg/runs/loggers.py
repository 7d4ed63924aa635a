"""The epochs of a run for TensorBoard and experiment trackers: a class for each, and its line in `LOGGERS`.

TensorBoard files are in the run directory. Trackers are configured by their own environment variables, and write where
these say.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gapssg.errors import InputError, RunError, did_you_mean, first_line, os_errors_as, shortened
from gapssg.files import entries_in, is_file, make_folder, read_bounded, remove, write_json
from gapssg.runs.directory import LOGGERS_FILE, Display
from gapssg.runs.events import Ended, Epoch, Event, Prepared, Started, Warned, read_events
from gapssg.runs.pictures import read_picture
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.base import Settings
from gapssg.settings.load import flatten
from gapssg.stored import Stored

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "tensorboard"
Picture = NDArray[np.uint8]
_PROJECT = "gapssg"
_MOST_BYTES = 10_000
_MOST_PARAMETERS = 100  # that MLflow takes at once
_LONGEST_PARAMETER = 500
_MOST_CHARACTERS = 600  # MLflow says at the end of 500 what to set


class Logger(ABC):
    """Writes the epochs of a run; any exception but `RunError` means that it cannot, and the run goes on without it."""

    @abstractmethod
    def start(self, run: InsidePath, settings: Mapping[str, object], known_as: str | None) -> str:
        """Start a run there, or continue the one with this identifier; return its identifier."""

    @abstractmethod
    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        """Write an epoch, with its samples (H, W) or (H, W, 3) uint8; one that the tracker has already is ignored."""

    @abstractmethod
    def end(self, is_finished: bool) -> None:
        """End the run there."""


class TensorBoard(Logger):
    """TensorBoard, by `tensorboard/` in the directory of the run.

    A resumed run rewrites it, so that it has each epoch once, whatever an earlier process left there.
    """

    _writer: SummaryWriter | None = None

    def start(self, run: InsidePath, settings: Mapping[str, object], known_as: str | None) -> str:
        """Return a constant, by which a resumed run knows that it writes TensorBoard files."""
        self._folder = run / TENSORBOARD
        self._opened = ExitStack()
        self._opened.enter_context(_threads_without_tracebacks())
        return TENSORBOARD

    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        """Write an epoch as a step; raise `RunError` if the disk refuses a write."""
        from torch.utils.tensorboard import SummaryWriter

        with os_errors_as(RunError, f"cannot write to {self._folder}"):
            if self._writer is None:
                make_folder(self._folder)
                for name in entries_in(self._folder):
                    if name.startswith("events.out.tfevents."):
                        remove(self._folder / name)
                self._writer = SummaryWriter(self._folder)
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, epoch)
            if picture is not None:
                self._writer.add_image("samples", picture, epoch, dataformats="HW" if picture.ndim == 2 else "HWC")
            self._writer.flush()

    def end(self, is_finished: bool) -> None:
        """Close the file and wait for the thread that writes it, even after a failed write."""
        with self._opened:
            if self._writer is not None:
                self._writer.file_writer.close()  # type: ignore[attr-defined]


@contextmanager
def _threads_without_tracebacks() -> Iterator[None]:
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


class WeightsAndBiases(Logger):
    """Weights & Biases, which ignores steps that it has already."""

    def start(self, run: InsidePath, settings: Mapping[str, object], known_as: str | None) -> str:
        """Start or continue a run; WANDB_MODE=offline writes it to WANDB_DIR alone."""
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True)
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=known_as,
            resume=None if known_as is None else "allow",
            config=dict(settings),
            settings=quiet,
        )
        return str(self._run.id)

    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        """Write an epoch as a step."""
        samples: dict[str, Any] = {} if picture is None else {"samples": self._image(picture)}
        self._run.log({**numbers, **samples}, step=epoch)

    def end(self, is_finished: bool) -> None:
        """Wait until everything is sent or written."""
        self._run.finish(exit_code=0 if is_finished else 1)


class MLflow(Logger):
    """MLflow."""

    _last = 0

    def start(self, run: InsidePath, settings: Mapping[str, object], known_as: str | None) -> str:
        """Start or continue a run in the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI.

        Without a URI it is a SQLite file, or a folder of files, in the current folder: MLflow decides.
        """
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._client, self._metric = MlflowClient(), Metric
        if known_as is not None:
            there = self._client.get_run(known_as)
            self._last = int(there.data.metrics.get("epoch", 0))
            self._client.update_run(known_as, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(experiment)
            where = self._client.create_experiment(experiment) if found is None else found.experiment_id
            there = self._client.create_run(where, run_name=run.name)
            values = [Param(key, shortened(value, _LONGEST_PARAMETER)) for key, value in settings.items()]
            for first in range(0, len(values), _MOST_PARAMETERS):
                self._client.log_batch(there.info.run_id, params=values[first : first + _MOST_PARAMETERS])
        self._id = str(there.info.run_id)
        return self._id

    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        """Write an epoch that is later than the last."""
        if epoch <= self._last:
            return
        now = int(1000 * time.time())
        values = {**numbers, "epoch": float(epoch)}
        self._client.log_batch(self._id, metrics=[self._metric(key, each, now, epoch) for key, each in values.items()])
        if picture is not None:
            self._client.log_image(self._id, picture, key="samples", step=epoch)
        self._last = epoch

    def end(self, is_finished: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, "FINISHED" if is_finished else "KILLED")


# By the name of the package, which is also that of the extra in `pyproject.toml`.
LOGGERS: Mapping[str, Callable[[], Logger]] = {
    TENSORBOARD: TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class _Ids(Stored):
    """The identifiers of a run in the trackers."""

    ids: Annotated[dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]], Field(max_length=20)]


def check_loggers(names: Sequence[str]) -> None:
    """Raise `InputError` unless trackers of these names are known and installed."""
    for name in names:
        if name not in LOGGERS:
            known = ", ".join(LOGGERS)
            raise InputError(f"--logger {shortened(name)} is not one of {known}{did_you_mean(name, LOGGERS)}")
        if find_spec(name) is None:
            raise InputError(_missing(name, name))


def _missing(name: str, package: str | None) -> str:
    return f'--logger {name} needs {package}, which is not installed: pip install "gapssg[{name}]"'


class LoggingDisplay:
    """Writes each epoch of a run for trackers, and passes events on to another display, until its block ends.

    A resumed run continues as the same run there, by the identifiers in its directory, and writes TensorBoard files if
    it did before. A tracker that fails during the run is left out with a warning. The block raises `InputError` if the
    identifiers are damaged, and `RunError` if a tracker does not start, when nothing has been written to the directory,
    or the disk refuses to write TensorBoard files.
    """

    def __init__(
        self, names: Sequence[str], display: Display, run: Path, settings: Settings, kind: type[Epoch]
    ) -> None:
        """Prepare for a run.

        Args:
            names: The trackers, of `LOGGERS`.
            display: Shows the run.
            run: Directory of the run.
            settings: Its settings.
            kind: Class of its epochs.

        Raises:
            InputError: `check_loggers` refuses a name.
        """
        check_loggers(names)
        self._names = list(dict.fromkeys(names))
        self._ids: dict[str, str] = {}
        self._display = display
        self._run = inside(run)
        self._settings = flatten(settings.to_dict())
        self._kind = kind
        self._loggers: dict[str, Logger] = {}
        self._has_earlier = False
        self._is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(lambda logger: logger.end(self._is_finished))

    def event(self, event: Event) -> None:
        """Show an event, and write it if it is an epoch."""
        self._display.event(event)
        if isinstance(event, Prepared):
            self._start(event.resumes)
        elif isinstance(event, Started) and self._ids:
            write_json(self._run / LOGGERS_FILE, _Ids(ids=self._ids).model_dump(mode="json"))
        elif isinstance(event, Epoch | Ended) and self._loggers:
            self._is_finished = isinstance(event, Ended)
            if not self._has_earlier:
                self._has_earlier = True
                for epoch in read_events(self._run, self._kind).epochs:
                    self._write(epoch)
            elif isinstance(event, Epoch):
                self._write(event)

    def progress(self, task: str, done: int, total: int) -> None:
        """Show the progress of the current task."""
        self._display.progress(task, done, total)

    def _start(self, resumes: bool) -> None:
        """Start the trackers before anything is written, so that one that does not start leaves nothing."""
        file = self._run / LOGGERS_FILE
        if resumes and is_file(file):
            self._ids = dict(_Ids.read(read_bounded(file, _MOST_BYTES), str(file)).ids)
        if TENSORBOARD in self._ids and TENSORBOARD not in self._names:
            try:
                check_loggers([TENSORBOARD])
                self._names.append(TENSORBOARD)
            except InputError as error:
                self._display.event(Warned(epoch=0, message=f"{self._run / TENSORBOARD} is not updated: {error}"))
        for name in self._names:
            logger = LOGGERS[name]()
            try:
                self._ids[name] = logger.start(self._run, self._settings, self._ids.get(name))
            except ModuleNotFoundError as error:
                raise RunError(_missing(name, error.name)) from error
            except Exception as error:
                raise RunError(
                    f"--logger {name} does not start: {first_line(error, _MOST_CHARACTERS)}; fix it or leave it out"
                ) from error
            self._loggers[name] = logger

    def _write(self, epoch: Epoch) -> None:
        numbers = dict(_scalars(epoch.model_dump(exclude={"epoch", "epochs"})))
        self._tell(lambda logger: logger.log(epoch.epoch, numbers, _samples(self._run, epoch.epoch)))

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except RunError:
                raise
            except Exception as error:
                del self._loggers[name]
                why = first_line(error, _MOST_CHARACTERS)
                message = f"{name} gets no more epochs: {why}; --resume with --logger {name} adds them"
                self._display.event(Warned(epoch=0, message=message))


def _samples(run: InsidePath, epoch: int) -> Picture | None:
    grid = run / "samples" / f"epoch-{epoch:04d}.png"
    return np.asarray(read_picture(grid)) if is_file(grid) else None


def _scalars(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of an epoch, nested ones as `part/name`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
