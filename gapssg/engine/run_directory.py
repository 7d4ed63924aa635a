"""The directory of one run: what is in it, and who may write there.

Importing it imports no torch, so that an output that cannot be used is refused at once.
"""

from __future__ import annotations

import io
import math
import os
import platform
import re
import stat
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gapssg._version import __version__
from gapssg.engine.time_left import TimeLeft
from gapssg.errors import InputError, RunError, shortened
from gapssg.files import check_writable, lock, sync_folder, write_atomically, write_json
from gapssg.runs.events import EVENTS, Event, Note, Remaining
from gapssg.runs.results import RESULT, RunFacts, RunResult
from gapssg.settings.base import Settings
from gapssg.settings.load import flatten, read_toml
from gapssg.text import duration

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gapssg.runtime import Runtime
    from gapssg.synthesis.shards import PoolOrigin

_SETTINGS = "settings.toml"
_POOL = "pool"
_FINAL_WEIGHTS = ("student.safetensors", "model.safetensors")
_LOCK = ".lock"
_FOLDERS = ("samples", "snapshots", _POOL, "checkpoint", "surfaces", "figures", "tensorboard")

# All that a run writes, relative to its directory, and the temporary name that a write had when it was killed.
_OWN_FILE = re.compile(
    r"\.lock|settings\.toml|events\.jsonl|(result|evaluations)\.json|(student|model|best)\.safetensors"
    r"|samples/epoch-\d+\.png|snapshots/epoch-\d+\.safetensors|pool/shard-\d+\.safetensors"
    r"|checkpoint/latest\.safetensors"
    r"|surfaces/[\w.-]+\.safetensors|figures/[\w.-]+\.(png|svg|html)"
    r"|tensorboard/events\.out\.tfevents\.[\w.-]+"
    r"|((samples|snapshots|pool|checkpoint|surfaces|figures)/)?\.[\w.-]+\.tmp"
)
# A model card that stands beside a run belongs to the user, who may have written in it: it is never removed.
_CARD = "README.md"
# What a kill leaves of the first write of all: no run has begun there.
_UNBEGUN = re.compile(rf"\.{re.escape(_SETTINGS)}\.[0-9a-f]{{12}}\.tmp")
_TEMPORARY = ".tmp"
_MAY_CHANGE = {"checkpoint_every", "checkpoint_minutes", "max_rollbacks", "own_scale", "curvature.enabled"}
_IS_ASKED_ANEW = {"data.download", "eval_data.download"}
_MOST_DIFFERENCES = 10
_MOST_GRIDS = 100
_SECONDS_BETWEEN_TIMES = 1.0


class Display(Protocol):
    """Whoever shows a run to a person."""

    def event(self, event: Event) -> None:
        """Show an event."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how far the current task has come."""


class SilentDisplay:
    """Shows nothing."""

    def event(self, event: Event) -> None:
        """Ignore the event."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Ignore the progress."""


class RunDirectory:
    """Writes the files of one run."""

    _time_left_shown = -math.inf
    _estimate_shown = False

    def __init__(self, path: Path, settings: Settings, display: Display, overwrite: bool = True) -> None:
        """Make the directory and write the settings. `check_output` must have accepted `path`.

        Raises:
            InputError: Another process writes to it, or has begun a run there that `overwrite` does not give up.
            RunError: It cannot be written to.
        """
        self.path = path
        self._display = display
        try:
            path.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)
            _check_own(path)
            self._lock = lock(path / _LOCK)
            if not overwrite and (path / _SETTINGS).exists():
                raise InputError(f"--output {path} holds a run since a moment ago; add --overwrite to replace it")
            _remove_run(path)
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror or error}") from error
        write_atomically(path / _SETTINGS, settings.to_toml().encode())
        if (path / _CARD).exists():
            self.show(Note(message=f"{path / _CARD} stays, and may speak of the run that was replaced"))

    @classmethod
    def reopen(cls, path: Path, settings: Settings, display: Display, events_length: int) -> RunDirectory:
        """Continue the run in `path`; events after the first `events_length` bytes are cut off.

        The settings, which `check_same_settings` must have accepted, are written anew: some may have changed.

        Raises:
            RunError: The directory cannot be written to, or its events are shorter than that.
        """
        run = cls.__new__(cls)
        run.path = path
        run._display = display
        try:
            _check_own(path)
            run._lock = lock(path / _LOCK)
            if run.events_length() < events_length:
                raise RunError(f"{path / EVENTS} has lost lines since the checkpoint; start the run anew")
            os.truncate(path / EVENTS, events_length)
            # The run is not finished until it says so again; what a kill left of a write is of no use.
            (path / RESULT).unlink(missing_ok=True)
            for entry in _entries(path):
                if _OWN_FILE.fullmatch(entry) and entry.endswith(_TEMPORARY):
                    (path / entry).unlink()
            write_atomically(path / _SETTINGS, settings.to_toml().encode())
        except OSError as error:
            raise RunError(f"cannot write {path / EVENTS}: {error.strerror or error}") from error
        return run

    def close(self) -> None:
        """Let another process write to the directory; the end of the process does the same."""
        self._lock.close()

    def __enter__(self) -> RunDirectory:
        """Write to the directory until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the run."""
        self.close()

    def events_length(self) -> int:
        """Return the bytes of `events.jsonl`.

        Raises:
            RunError: It is gone.
        """
        try:
            return (self.path / EVENTS).stat().st_size
        except OSError as error:
            raise RunError(f"cannot write {self.path / EVENTS}: {error.strerror or error}") from error

    def show(self, event: Event) -> None:
        """Show an event that is no part of the run's record."""
        self._display.event(event)

    def show_time_left(self, time_left: TimeLeft, epochs_done: int, epochs: int) -> None:
        """Show how long the run will still take, at most once a second; once, how long it takes in all."""
        total = time_left.total
        if not self._estimate_shown and time_left.seconds and total is not None and time_left.is_settled:
            self._estimate_shown = True
            self.show(Note(message=f"estimated time: {duration(total)} (measured on the first steps)"))
        now = time.monotonic()
        if now - self._time_left_shown >= _SECONDS_BETWEEN_TIMES:
            self._time_left_shown = now
            self.show(Remaining(epochs_done=epochs_done, epochs=epochs, seconds=time_left.seconds))

    def record(self, event: Event) -> None:
        """Append an event to `events.jsonl` and show it. What may differ between equal runs is `timing`."""
        try:
            with (self.path / EVENTS).open("a", encoding="utf-8") as file:
                file.write(event.line() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path / EVENTS}: {error.strerror or error}") from error
        self._display.event(event)

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how far the current task has come."""
        self._display.progress(task, done, total)

    def folder(self, name: str) -> Path:
        """Return a sub-folder of the run, made if it is not there."""
        if name not in _FOLDERS:
            raise ValueError(f"{name} is not a folder of a run directory")
        folder = self.path / name
        try:
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                sync_folder(self.path)
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
        return folder

    def write_samples(
        self, epoch: int, epochs: int, images: Tensor, targets: Tensor, class_names: Sequence[str]
    ) -> None:
        """Write a PNG grid of images (N, C, H, W) in [0, 1] in rows by target class (N,), as `sample_grid` draws it.

        Of a run of many epochs some are left out, so that there are at most 101 grids.
        """
        from gapssg.engine.sample_grid import sample_grid
        from gapssg.runtime import to_uint8

        every = -(-epochs // _MOST_GRIDS)
        if epoch % every and epoch != epochs:
            return
        picture = sample_grid(to_uint8(images).cpu(), targets.cpu(), class_names)
        write_atomically(self.folder("samples") / f"epoch-{epoch:04d}.png", encode_png(picture))

    def write_pool_shard(self, epoch: int, images: Tensor, targets: Tensor, origin: PoolOrigin) -> None:
        """Write the images (N, C, H, W) uint8 and targets (N,) int64 of one synthesis."""
        from gapssg.synthesis.shards import write_shard

        write_shard(self.folder(_POOL) / shard_name(epoch), images, targets, origin)

    def write_result(self, result: RunResult) -> None:
        """Write `result.json`."""
        write_json(self.path / RESULT, result.model_dump(mode="json"))


def check_output(path: Path, overwrite: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Check that a run may be written to `path`, changing nothing.

    Args:
        path: The directory of the run to be.
        overwrite: Whether an earlier run may be replaced.
        inputs: Files and folders that the run reads; they may not lie in what it replaces.

    Raises:
        InputError: It holds a run and `overwrite` is not set, holds something else or an input, or cannot
            be written to.
    """
    check_writable(path)
    try:
        _check_own(path)
        entries = {entry for entry in _entries(path) - {_LOCK} if not _UNBEGUN.fullmatch(entry)}
        inside = [each for each in inputs if each is not None and each.resolve().is_relative_to(path.resolve())]
    except OSError as error:
        raise InputError(
            f"--output {path} cannot be read: {error.strerror or error}; name another directory"
        ) from error
    if inside:
        raise InputError(f"--output {path} holds {inside[0]}, which the run reads; name another directory")
    strange = sorted(entry for entry in entries - {_CARD} if not _OWN_FILE.fullmatch(entry))
    if not strange and entries and _SETTINGS not in entries:
        strange = sorted(entries)
    if strange:
        names = ", ".join(shortened(name) for name in strange[:3])
        raise InputError(f"--output {path} holds files that are not a run's ({names}); name another directory")
    if entries and not overwrite:
        raise InputError(f"--output {path} already holds a run; add --overwrite to replace it")


def check_same_settings(path: Path, settings: Settings, may_move: Container[str] = ()) -> None:
    """Check that the run in `path` may continue with these settings.

    Epochs may become more, and when a checkpoint is written and how often training is taken back may change.

    Args:
        path: The run directory.
        settings: What it is to continue with.
        may_move: Dotted keys of files and folders that may lie elsewhere now, because the caller compares what is in
            them; a data set may become another only if both are folders.

    Raises:
        InputError: It is no run, or other settings differ; each is named.
    """
    try:
        _check_own(path)
        began_with = flatten(read_toml(path / _SETTINGS))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path} holds no run to continue: {error}") from error
    now = flatten(settings.to_dict())
    differences = [
        f"{shortened(key)} was {shortened(repr(began_with.get(key)))} and is {shortened(repr(now.get(key)))}"
        for key in sorted(began_with.keys() | now.keys())
        if began_with.get(key) != now.get(key)
        and not _may_change(key, began_with.get(key), now.get(key))
        and not (key in may_move and _is_a_move(key, began_with.get(key), now.get(key)))
    ]
    if differences:
        allowed = f"epochs may grow, and {', '.join(sorted(_MAY_CHANGE & now.keys()))} may change"
        shown = "; ".join(differences[:_MOST_DIFFERENCES])
        raise InputError(f"{path} cannot be continued with other settings: {shown} ({allowed})")


def _may_change(key: str, began_with: Any, now: Any) -> bool:
    if key == "epochs":
        return isinstance(began_with, int) and isinstance(now, int) and now >= began_with
    return key in _MAY_CHANGE | _IS_ASKED_ANEW


def _is_a_move(key: str, began_with: Any, now: Any) -> bool:
    return not key.endswith(".name") or all(str(name).startswith("folder:") for name in (began_with, now))


def final_weights(path: Path) -> Path:
    """Return the model file of a run's last weights.

    Raises:
        InputError: It holds none.
    """
    for name in _FINAL_WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise InputError(
        f"{path} holds no checkpoint: neither {' nor '.join(_FINAL_WEIGHTS)} is in it; name a finished run"
    )


def pool_shards(path: Path) -> list[Path]:
    """Return the shard files of a run's sample pool, oldest first.

    Args:
        path: A run directory, or the `pool` folder in it.

    Raises:
        InputError: There is no pool.
    """
    try:
        folder = path / _POOL if (path / _POOL).is_dir() else path
        shards = [path for path in folder.glob("shard-*.safetensors") if path.stem.removeprefix("shard-").isdecimal()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not shards:
        raise InputError(f"{path} holds no sample pool; name the directory of a `distill` run that kept its own")
    return sorted(shards, key=lambda shard: int(shard.stem.removeprefix("shard-")))


def first_pool_shards(path: Path, count: int) -> list[Path]:
    """Return the shard files of the first `count` syntheses of a run, oldest first.

    Raises:
        InputError: One is not there.
    """
    shards = [path / _POOL / shard_name(epoch) for epoch in range(1, count + 1)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise InputError(f"{path} has lost images of its pool since the checkpoint ({missing[0]}); start the run anew")
    return shards


def shard_name(epoch: int) -> str:
    """Name the file of an epoch's images."""
    return f"shard-{epoch:04d}.safetensors"


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import torch

    return {"gapssg": __version__, "torch": torch.__version__, "python": platform.python_version()}


def run_facts(runtime: Runtime, settings: Settings) -> RunFacts:
    """Return what every result says of how it was computed."""
    return RunFacts(
        device=str(runtime.device),
        precision=runtime.precision,
        compiled=runtime.compiled,
        seed=runtime.seed,
        versions=versions(),
        settings_sha256=settings.sha256(),
    )


def _check_own(path: Path) -> None:
    """Check that what a run writes in place, and its folders, are what they seem: a run writes through no link.

    Raises:
        InputError: One is a symbolic link or a device, as a stranger's run directory may have it.
        OSError: `path` cannot be read.
    """
    for name in (_LOCK, _SETTINGS, EVENTS, RESULT, *_FOLDERS):
        try:
            mode = (path / name).lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        kind, is_right = ("folder", stat.S_ISDIR(mode)) if name in _FOLDERS else ("file", stat.S_ISREG(mode))
        if not is_right:
            is_link = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
            raise InputError(f"{path / name} is {is_link} where a run has its own {kind}; remove it")


def _entries(path: Path) -> set[str]:
    """Return every file and link in `path` and its folders, relative to it; folders in those end in a slash."""
    found = set()
    for entry in os.scandir(path) if path.exists() else ():
        if entry.is_dir(follow_symlinks=False):
            for below in os.scandir(entry):
                is_folder = below.is_dir(follow_symlinks=False)
                found.add(f"{entry.name}/{below.name}{'/' if is_folder else ''}")
        else:
            found.add(entry.name)
    return found


def _remove_run(path: Path) -> None:
    """Remove the files of an earlier run, and nothing else.

    The settings go last: what a kill leaves in between is still known as a run.
    """
    for entry in sorted(_entries(path), key=lambda entry: entry == _SETTINGS):
        if _OWN_FILE.fullmatch(entry) and entry != _LOCK:
            (path / entry).unlink()
    for name in _FOLDERS:
        if (path / name).is_dir():
            (path / name).rmdir()
