"""The directory of one run: what is in it, and who may write there.

Importing it imports no torch, so that an output that cannot be used is refused at once.
"""

from __future__ import annotations

import hashlib
import io
import math
import platform
import re
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gapssg._version import __version__
from gapssg.errors import InputError, RunError, shortened
from gapssg.files import (
    LARGEST_FILE,
    InsidePath,
    append,
    canonical_json,
    check_writable,
    entries_in,
    inside,
    is_file,
    is_folder,
    lock,
    make_folder,
    read_bounded,
    remove,
    remove_folder,
    sha256_of_file,
    sync_folder,
    write_atomically,
    write_json,
)
from gapssg.runs.events import EVENTS, Event, Note, Remaining
from gapssg.runs.results import RESULT, RunFacts, RunResult
from gapssg.runs.time_left import TimeLeft
from gapssg.settings.base import Settings
from gapssg.settings.load import flatten, read_toml
from gapssg.text import duration

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from gapssg.core.runtime import Runtime
    from gapssg.synthesis.shards import PoolOrigin

_SETTINGS = "settings.toml"
_POOL = "pool"
_FINAL_WEIGHTS = ("student.safetensors", "model.safetensors")
_BEST = "best.safetensors"
_CHECKPOINT = "checkpoint/latest.safetensors"
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
_MOST_EVENTS = 256 * 2**20  # bytes
_SHARD = re.compile(r"shard-([0-9]+)\.safetensors")
# What a run writes once and builds upon, or leaves: a checkpoint knows its SHA-256.
_KEPT = re.compile(r"(samples|snapshots|pool)/[\w.-]+")
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


class Written(NamedTuple):
    """What a run has written by the time of a checkpoint.

    Attributes:
        events_length: Bytes of `events.jsonl`.
        events_sha256: Their SHA-256.
        files: By name the SHA-256 of each shard, snapshot and sample grid.
        best: What `best.safetensors` holds, which a later epoch replaces; None if there is none.
    """

    events_length: int = 0
    events_sha256: str = hashlib.sha256().hexdigest()
    files: Mapping[str, str] = {}
    best: bytes | None = None


class RunDirectory:
    """Writes the files of one run.

    Attributes:
        path: The directory; what is below it is written only as long as its lock is held.
        settings: What it runs with, by dotted key.
    """

    _time_left_shown = -math.inf
    _estimate_shown = False

    def __init__(self, path: Path, settings: Settings, display: Display, overwrite: bool = True) -> None:
        """Make the directory and write the settings. `check_output` must have accepted `path`.

        Raises:
            InputError: Another process writes to it, or has begun a run there that `overwrite` does not give up.
            RunError: It cannot be written to.
        """
        make_folder(path)
        check_own(path)
        self._take(path, settings, display)
        try:
            if not overwrite and is_file(self.path / _SETTINGS):
                raise InputError(f"--output {path} holds a run since a moment ago; add --overwrite to replace it")
            _remove_run(self.path)
            write_atomically(self.path / _SETTINGS, settings.to_toml().encode())
        except BaseException:
            self.close()
            raise
        if is_file(self.path / _CARD):
            self.show(Note(message=f"{path / _CARD} stays, and may speak of the run that was replaced"))

    def _take(self, path: Path, settings: Settings, display: Display) -> None:
        try:
            self._held = lock(inside(path) / _LOCK)
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror or error}") from error
        self.path = self._held.root
        self.settings = flatten(settings.to_dict())
        self._display = display
        self._events, self._events_length = hashlib.sha256(), 0

    @classmethod
    def reopen(cls, path: Path, settings: Settings, display: Display, written: Written) -> RunDirectory:
        """Continue the run in `path` from where a checkpoint knows what was `written`; what came after it is removed.

        The settings, which `check_same_settings` must have accepted, are written anew: some may have changed.

        Raises:
            InputError: Something is no longer as it was written; nothing has been changed.
            RunError: The directory cannot be written to.
        """
        run = cls.__new__(cls)
        check_own(path)
        run._take(path, settings, display)
        try:
            run._go_back_to(written)
            write_atomically(run.path / _SETTINGS, settings.to_toml().encode())
        except BaseException:
            run.close()
            raise
        return run

    def _go_back_to(self, written: Written) -> None:
        events = _check_written(self.path, written)
        # The run is not finished until it says so again.
        remove(self.path / RESULT)
        sync_folder(self.path)
        for entry in _entries(self.path):
            is_abandoned = _OWN_FILE.fullmatch(entry) and entry.endswith(_TEMPORARY)
            if is_abandoned or (_KEPT.fullmatch(entry) and entry not in written.files):
                remove(self.path / entry)
        if written.best is None:
            remove(self.path / _BEST)
        else:
            write_atomically(self.path / _BEST, written.best)
        write_atomically(self.path / EVENTS, events)
        self._events.update(events)
        self._events_length = len(events)
        self._held.written.update(written.files)

    def close(self) -> None:
        """Let another process write to the directory; the end of the process does the same."""
        self._held.close()

    def __enter__(self) -> RunDirectory:
        """Write to the directory until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the run."""
        self.close()

    def written(self) -> Written:
        """Return what a checkpoint is to know of the files so far.

        Raises:
            InputError: `best.safetensors` cannot be read.
        """
        files = {name: sha256 for name, sha256 in self._held.written.items() if _KEPT.fullmatch(name)}
        best = self.path / _BEST
        content = read_bounded(best, LARGEST_FILE) if is_file(best) else None
        return Written(self._events_length, self._events.hexdigest(), files, content)

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
        text = (event.line() + "\n").encode()
        append(self.path / EVENTS, text)
        self._events.update(text)
        self._events_length += len(text)
        self._display.event(event)

    def progress(self, task: str, done: int, total: int) -> None:
        """Show how far the current task has come."""
        self._display.progress(task, done, total)

    def folder(self, name: str) -> InsidePath:
        """Return a sub-folder of the run, made if it is not there."""
        if name not in _FOLDERS:
            raise ValueError(f"{name} is not a folder of a run directory")
        make_folder(self.path / name)
        return self.path / name

    def write_samples(
        self, epoch: int, epochs: int, images: Tensor, targets: Tensor, class_names: Sequence[str]
    ) -> None:
        """Write a PNG grid of images (N, C, H, W) in [0, 1] in rows by target class (N,), as `sample_grid` draws it.

        Of a run of many epochs some are left out, so that there are at most 101 grids.
        """
        from gapssg.core.runtime import to_uint8
        from gapssg.runs.sample_grid import sample_grid

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
    check_own(path)
    check_writable(path)
    try:
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
        check_own(path)
        began_with = flatten(read_toml(inside(path) / _SETTINGS))
    except InputError as error:
        raise InputError(f"{path} holds no run to continue: {error}") from error
    check_may_continue(path, began_with, settings, may_move)


def check_may_continue(
    path: Path, began_with: Mapping[str, Any], settings: Settings, may_move: Container[str] = ()
) -> None:
    """Check that a run which began with other settings, by dotted key, may continue with these.

    Raises:
        InputError: As `check_same_settings`.
    """
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


def sha256_of_what_stays(settings: Settings) -> str:
    """Return the SHA-256 of the settings that a continued run must share, in hexadecimal."""
    stays = {
        key: value for key, value in flatten(settings.to_dict()).items() if key not in _MAY_CHANGE | _IS_ASKED_ANEW
    }
    return hashlib.sha256(canonical_json(stays).encode()).hexdigest()


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
        if is_file(inside(path) / name):
            return inside(path) / name
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
    root = inside(path)
    folder = root / _POOL if is_folder(root / _POOL) else root
    shards = {int(match[1]): folder / name for name in entries_in(folder) if (match := _SHARD.fullmatch(name))}
    if not shards:
        raise InputError(f"{path} holds no sample pool; name the directory of a `distill` run that kept its own")
    return [shards[number] for number in sorted(shards)]


def first_pool_shards(path: Path, count: int) -> list[Path]:
    """Return the shard files of the first `count` syntheses of a run, oldest first.

    Raises:
        InputError: One is not there.
    """
    shards: list[Path] = [inside(path) / _POOL / shard_name(epoch) for epoch in range(1, count + 1)]
    missing = [shard.name for shard in shards if not is_file(shard)]
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


def check_own(path: Path) -> None:
    """Check that the files of a run and its folders are what they seem: a run writes through no link.

    Raises:
        InputError: One is a symbolic link or a device, as a stranger's run directory may have it.
    """
    root = inside(path)
    for name in (_LOCK, _SETTINGS, EVENTS, RESULT, _BEST, *_FINAL_WEIGHTS):
        if is_folder(root / name):
            raise InputError(f"{root / name} is a folder where a run has its own file; remove it")
    for name in _FOLDERS:
        if is_file(root / name):
            raise InputError(f"{root / name} is a file where a run has its own folder; remove it")


def _check_written(path: InsidePath, written: Written) -> bytes:
    """Check that what a checkpoint builds upon is still there, and return the events up to it.

    Raises:
        InputError: It is not, or is another; the message names the file.
    """
    restart = f"restart with --output {path} --overwrite"
    events = read_bounded(path / EVENTS, _MOST_EVENTS)[: written.events_length] if written.events_length else b""
    if hashlib.sha256(events).hexdigest() != written.events_sha256:
        raise InputError(f"{path / EVENTS} does not begin with the events that the checkpoint knows; {restart}")
    for name, sha256 in written.files.items():
        file = path / name
        if not is_file(file):
            if file.parent.name == "samples":
                continue  # only people look at them, and may have removed them
            raise InputError(f"{file} is gone since the checkpoint; {restart}")
        if sha256_of_file(file, LARGEST_FILE) != sha256:
            raise InputError(f"{file} is not the file that this run wrote (its SHA-256 is another); {restart}")
    return events


def _entries(path: Path) -> set[str]:
    """Return every file and link in `path` and its folders, relative to it; folders in those end in a slash."""
    found, root = set(), inside(path)
    for name, is_a_folder in entries_in(root).items():
        if is_a_folder:
            found |= {f"{name}/{below}{'/' * is_one}" for below, is_one in entries_in(root / name).items()}
        else:
            found.add(name)
    return found


def _remove_run(path: InsidePath) -> None:
    """Remove the files of an earlier run, and nothing else.

    Result and checkpoint go first: without the other files they would make a run look finished, or seem to continue.
    The settings go last: what a kill leaves in between is still known as a run.
    """
    for name in (RESULT, _CHECKPOINT):
        remove(path / name)
        sync_folder((path / name).parent)
    for entry in sorted(_entries(path), key=lambda entry: entry == _SETTINGS):
        if _OWN_FILE.fullmatch(entry) and entry != _LOCK:
            remove(path / entry)
    for name in _FOLDERS:
        remove_folder(path / name)
