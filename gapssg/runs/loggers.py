"""The epochs of a run for experiment trackers: a class for each tracker, and its line in `LOGGERS`.

Trackers are configured by their own environment variables and write where these say, not into the run directory.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gapssg.errors import InputError, RunError, did_you_mean, first_line, shortened
from gapssg.files import is_file, read_bounded, write_json
from gapssg.runs.directory import LOGGERS_FILE, Display
from gapssg.runs.events import Ended, Epoch, Event, Prepared, Started, Warned, read_events
from gapssg.runs.pictures import read_picture
from gapssg.runs.tensorboard import scalars
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.base import Settings
from gapssg.settings.load import flatten
from gapssg.stored import Stored

Picture = NDArray[np.uint8]
_PROJECT = "gapssg"
_MOST_BYTES = 10_000
_MOST_PARAMETERS = 100  # that MLflow takes at once
_LONGEST_PARAMETER = 500
_MOST_CHARACTERS = 300


class Logger(ABC):
    """Writes the epochs of a run for a tracker; any exception means that it cannot."""

    @abstractmethod
    def start(self, name: str, settings: Mapping[str, Any], known_as: str | None) -> str:
        """Start a run there, or continue the one with this identifier; return its identifier."""

    @abstractmethod
    def log(self, epoch: int, numbers: Mapping[str, float], picture: Picture | None) -> None:
        """Write an epoch, with its samples (H, W) or (H, W, 3) uint8; one that the tracker has already is ignored."""

    @abstractmethod
    def end(self, is_finished: bool) -> None:
        """End the run there."""


class WeightsAndBiases(Logger):
    """Weights & Biases, which ignores steps that it has already."""

    def start(self, name: str, settings: Mapping[str, Any], known_as: str | None) -> str:
        """Start or continue a run; WANDB_MODE=offline writes it to WANDB_DIR alone."""
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True)
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=name,
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

    def start(self, name: str, settings: Mapping[str, Any], known_as: str | None) -> str:
        """Start or continue a run in the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI."""
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._client, self._metric = MlflowClient(), Metric
        if known_as is not None:
            run = self._client.get_run(known_as)
            self._last = int(run.data.metrics.get("epoch", 0))
            self._client.update_run(known_as, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(experiment)
            where = self._client.create_experiment(experiment) if found is None else found.experiment_id
            run = self._client.create_run(where, run_name=name)
            values = [Param(key, shortened(value, _LONGEST_PARAMETER)) for key, value in settings.items()]
            for first in range(0, len(values), _MOST_PARAMETERS):
                self._client.log_batch(run.info.run_id, params=values[first : first + _MOST_PARAMETERS])
        self._id = str(run.info.run_id)
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
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class _Ids(Stored):
    """The identifiers of a run in the trackers."""

    ids: Annotated[dict[str, Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]], Field(max_length=20)]


def check_loggers(names: Sequence[str]) -> None:
    """Check that trackers of these names are known and installed.

    Raises:
        InputError: One is not.
    """
    for name in names:
        if name not in LOGGERS:
            known = ", ".join(LOGGERS)
            raise InputError(f"--logger {shortened(name)} is not one of {known}{did_you_mean(name, LOGGERS)}")
        if find_spec(name) is None:
            raise InputError(f'--logger {name} needs {name}, which is not installed: pip install "gapssg[{name}]"')


@contextmanager
def also_logging(
    names: Sequence[str], display: Display, run: Path, settings: Settings, kind: type[Epoch]
) -> Iterator[Display]:
    """Write the epochs of a run for trackers, besides showing the run, until the block ends.

    A resumed run continues as the same run there, by the identifiers in its directory. A tracker that fails during the
    run is left out with a warning.

    Args:
        names: The trackers, of `LOGGERS`.
        display: Shows the run.
        run: Directory of the run.
        settings: Its settings.
        kind: Class of its epochs.

    Raises:
        InputError: `check_loggers` refuses a name, or the identifiers are damaged.
        RunError: A tracker does not start; nothing has been written to the directory.
    """
    check_loggers(names)
    if not names:
        yield display
        return
    both = _LoggingDisplay(names, display, run, settings, kind)
    try:
        yield both
    finally:
        both.close()


class _LoggingDisplay:
    """Writes each epoch for trackers, and passes events on to another display."""

    def __init__(
        self, names: Sequence[str], display: Display, run: Path, settings: Settings, kind: type[Epoch]
    ) -> None:
        self._names = list(dict.fromkeys(names))
        self._ids: dict[str, str] = {}
        self._display = display
        self._run = inside(run)
        self._settings = flatten(settings.to_dict())
        self._kind = kind
        self._loggers: dict[str, Logger] = {}
        self._has_earlier = False
        self._is_finished = False

    def event(self, event: Event) -> None:
        """Show an event, and write it if it is an epoch."""
        self._display.event(event)
        if isinstance(event, Prepared):
            self._start(event.resumes)
        elif isinstance(event, Started):
            write_json(self._run / LOGGERS_FILE, _Ids(ids=self._ids).model_dump(mode="json"))
        elif isinstance(event, Epoch | Ended):
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

    def close(self) -> None:
        """End the runs of the trackers."""
        self._tell(lambda logger: logger.end(self._is_finished))

    def _start(self, resumes: bool) -> None:
        """Start the trackers before anything is written, so that one that does not start leaves nothing."""
        file = self._run / LOGGERS_FILE
        if resumes and is_file(file):
            self._ids = dict(_Ids.read(read_bounded(file, _MOST_BYTES), str(file)).ids)
        for name in self._names:
            logger = LOGGERS[name]()
            try:
                self._ids[name] = logger.start(self._run.name, self._settings, self._ids.get(name))
            except Exception as error:
                raise RunError(
                    f"--logger {name} does not start: {first_line(error, _MOST_CHARACTERS)}; mend it or leave it out"
                ) from error
            self._loggers[name] = logger

    def _write(self, epoch: Epoch) -> None:
        numbers = dict(scalars(epoch.model_dump(exclude={"epoch", "epochs"})))
        self._tell(lambda logger: logger.log(epoch.epoch, numbers, _samples(self._run, epoch.epoch)))

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self._loggers[name]
                why = first_line(error, _MOST_CHARACTERS)
                message = f"{name} gets no more epochs: {why}; --resume with --logger {name} adds them"
                self._display.event(Warned(epoch=0, message=message))


def _samples(run: InsidePath, epoch: int) -> Picture | None:
    grid = run / "samples" / f"epoch-{epoch:04d}.png"
    return np.asarray(read_picture(grid)) if is_file(grid) else None
