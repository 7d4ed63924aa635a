"""The directory of a run: its files, and the lock under which one process writes them.

Imports no torch, so that an unusable output is refused at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import platform
import re
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gapssg._version import __version__
from gapssg.data import FOLDER
from gapssg.errors import InputError, RunError, os_errors_as, shortened
from gapssg.files import (
    LARGEST_FILE,
    append,
    canonical_json,
    check_writable,
    entries_in,
    holder_of,
    is_file,
    is_folder,
    lock,
    make_folder,
    numbered_files,
    read_bounded,
    remove,
    sha256_of_file,
    sync_folder,
    user_path,
    write_atomically,
    write_json,
)
from gapssg.models.model_path import FINAL_WEIGHTS
from gapssg.runs.events import EVENTS, LARGEST_EVENTS, Event, Note, Prepared, Remaining
from gapssg.runs.results.common import RESULT, RunFacts, RunResult
from gapssg.runs.time_left import TimeLeft
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.base import Settings
from gapssg.settings.load import SETTINGS, flatten, read_toml
from gapssg.settings.parts import CHECKPOINTS
from gapssg.text import duration

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from gapssg.core.runtime import Runtime
    from gapssg.models.description import ModelCard
    from gapssg.synthesis.shards import PoolOrigin

_POOL = "pool"
_LOGITS = "logits"
_BEST = "best.safetensors"
_CHECKPOINT = "checkpoint/latest.safetensors"
_LOCK = ".lock"
LOGGERS_FILE = "loggers.json"
_FOLDERS = ("samples", "snapshots", _POOL, _LOGITS, "checkpoint", "surfaces", "figures", "tensorboard")

# All that a run writes, relative to its directory, and the temporary files of killed writes.
_OWN_FILE = re.compile(
    r"\.lock|settings\.toml|events\.jsonl|(result|evaluations|loggers)\.json|(student|model|best)\.safetensors"
    r"|samples/epoch-\d+\.png|snapshots/epoch-\d+\.safetensors|(pool/shard|logits/views)-\d+\.safetensors"
    r"|checkpoint/latest\.safetensors"
    r"|surfaces/[\w.-]+\.safetensors|figures/[\w.-]+\.(png|svg|html)"
    r"|tensorboard/events\.out\.tfevents\.[\w.-]+"
    r"|((samples|snapshots|pool|logits|checkpoint|surfaces|figures)/)?\.[\w.-]+\.tmp"
)
# A model card in the directory belongs to the user, who may have edited it: it is never removed.
CARD = "README.md"
# The temporary file of the first write of all: if nothing else is there, no run has started.
_NOT_STARTED = re.compile(rf"\.{re.escape(SETTINGS)}\.[0-9a-f]{{12}}\.tmp")
_TEMPORARY = ".tmp"
_WITHOUT_EFFECT: dict[str, object] = {"method.procedural_share": 0.0}
"""Settings that runs of earlier versions lack, with the values that do what those versions did."""
_MAY_CHANGE = {*CHECKPOINTS, "own_scale", "curvature.enabled", "curvature.spectrum"}
_ASKED_EACH_TIME = {"data.download", "eval_data.download"}
_MOST_DIFFERENCES = 10
_MOST_GRIDS = 100
_SHARD = re.compile(r"shard-([0-9]+)\.safetensors")
# What a run writes once and never changes: a checkpoint records its SHA-256.
_KEPT = re.compile(r"(samples|snapshots|pool|logits)/[\w.-]+")
_SECONDS_BETWEEN_ESTIMATES = 1.0


class Display(Protocol):
    """Shows a run to the user."""

    def event(self, event: Event) -> None:
        """Show an event."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Show the progress of the current task."""


class SilentDisplay:
    """Shows nothing."""

    def event(self, event: Event) -> None:
        """Ignore the event."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Ignore the progress."""


class Written(NamedTuple):
    """What a run has written up to a checkpoint."""

    events_length: int = 0
    """Length of `events.jsonl` in bytes."""
    events_sha256: str = hashlib.sha256().hexdigest()
    """Its SHA-256."""
    files: Mapping[str, str] = {}
    """SHA-256 of each shard, snapshot, sample grid and file of logits, by name."""
    best: bytes | None = None
    """Content of `best.safetensors`, which a later epoch may replace; None if the file does not exist."""


class RunDirectory(AbstractContextManager["RunDirectory"]):
    """Writes the files of one run.

    Attributes:
        path: The directory; each write below it checks that its lock is still held.
        settings: Settings of the run, by dotted key.
    """

    _estimate_shown_at = -math.inf
    _total_shown = False

    def __init__(
        self,
        path: Path,
        settings: Settings,
        display: Display,
        overwrite: bool = True,
        resume_from: Written | None = None,
    ) -> None:
        """Start a run in a directory that `check_output` has accepted, or resume one from a checkpoint.

        A new run may `overwrite` one that another process has started since the check. A resumed run, whose settings
        have passed `check_same_settings`, keeps what it had written at its checkpoint; everything later is removed.
        Raises `InputError`, before anything is changed, if another process writes to the directory or has started a run
        there, or a file that the checkpoint lists has changed; and `RunError` if the directory cannot be written to.
        """
        is_new = resume_from is None and not path.exists()
        if is_new:
            make_folder(path)
        check_own(path)
        self._held = lock(inside(path) / _LOCK)
        self.path = self._held.root
        self.settings = flatten(settings.to_dict())
        self._display = display
        self._events, self._events_length = hashlib.sha256(), 0
        try:
            if resume_from is None and not overwrite and is_file(self.path / SETTINGS):
                raise InputError(f"--output {path}: another run has just started there; add --overwrite to replace it")
            display.event(Prepared(resumes=resume_from is not None))
            if resume_from is None:
                _remove_run(self.path)
            else:
                self._roll_back_to(resume_from)
            write_atomically(self.path / SETTINGS, settings.to_toml().encode())
        except BaseException:
            if is_new:
                self._remove_new(path)
            self.close()
            raise
        if resume_from is None and is_file(self.path / CARD):
            self.show(Note(message=f"{path / CARD} is kept; it may describe the run that was replaced"))

    def _remove_new(self, path: Path) -> None:
        """Remove the directory that this run has created, unless there is more in it than the lock."""
        with contextlib.suppress(RunError):
            remove(self.path / _LOCK)
            remove(path, empty_folder=True)

    def _roll_back_to(self, written: Written) -> None:
        events = _check_written(self.path, written)
        # Without a result the run counts as unfinished until it writes one again.
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
        """Release the lock; the end of the process does the same."""
        self._held.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def written(self) -> Written:
        """Return what a checkpoint records of the files so far; raise `InputError` if one cannot be read."""
        files = {name: sha256 for name, sha256 in self._held.written.items() if _KEPT.fullmatch(name)}
        best = self.path / _BEST
        content = read_bounded(best, LARGEST_FILE) if is_file(best) else None
        return Written(self._events_length, self._events.hexdigest(), files, content)

    def show(self, event: Event) -> None:
        """Show an event without recording it."""
        self._display.event(event)

    def show_time_left(self, time_left: TimeLeft, epochs_done: int, epochs: int) -> None:
        """Show the remaining time, at most once a second, and the total time once."""
        total = time_left.total
        if not self._total_shown and time_left.seconds and total is not None and time_left.is_settled:
            self._total_shown = True
            self.show(Note(message=f"estimated time: {duration(total)} (measured on the first steps)"))
        now = time.monotonic()
        if now - self._estimate_shown_at >= _SECONDS_BETWEEN_ESTIMATES:
            self._estimate_shown_at = now
            self.show(Remaining(epochs_done=epochs_done, epochs=epochs, seconds=time_left.seconds))

    def record(self, event: Event) -> None:
        """Append an event to `events.jsonl` and show it; only `timing` may differ between equal runs."""
        text = (event.line() + "\n").encode()
        append(self.path / EVENTS, text)
        self._events.update(text)
        self._events_length += len(text)
        self._display.event(event)

    def progress(self, task: str, done: int, total: int) -> None:
        """Show the progress of the current task."""
        self._display.progress(task, done, total)

    def folder(self, name: str) -> InsidePath:
        """Return a subfolder of the run, created if it does not exist."""
        if name not in _FOLDERS:
            raise ValueError(f"{name} is not a folder of a run directory")
        make_folder(self.path / name)
        return self.path / name

    def write_samples(
        self, epoch: int, epochs: int, images: Tensor, targets: Tensor, class_names: Sequence[str]
    ) -> None:
        """Write images (N, C, H, W) in [0, 1] with targets (N,) as the PNG that `sample_grid` draws.

        Long runs skip epochs, so that there are at most 101 grids.
        """
        from gapssg.core.runtime import to_uint8
        from gapssg.runs.sample_grid import sample_grid

        every = -(-epochs // _MOST_GRIDS)
        if epoch % every and epoch != epochs:
            return
        picture = sample_grid(to_uint8(images).cpu(), targets.cpu(), class_names)
        write_atomically(self.folder("samples") / f"epoch-{epoch:04d}.png", encode_png(picture))

    def write_pool_shard(self, epoch: int, images: Tensor, targets: Tensor, origin: PoolOrigin) -> None:
        """Write the images (N, C, H, W) uint8 and targets (N,) int64 of one synthesis phase."""
        from gapssg.synthesis.shards import write_shard

        write_shard(self.folder(_POOL) / shard_name(epoch), images, targets, origin)

    def write_logits(self, start: int, logits: Tensor) -> None:
        """Write the teacher's logits (N, V, K) of the labelled views of the images from `start` on."""
        from safetensors.torch import save

        write_atomically(self.folder(_LOGITS) / _logits_name(start), save({_LOGITS: logits.cpu().contiguous()}))

    def write_model(self, name: str, module: nn.Module, card: ModelCard) -> Path:
        """Write a network as a model file of this name, or of this name in a subfolder; return its path."""
        from gapssg.models.model_file import save_verified_model

        folder, _, file = name.rpartition("/")
        path = (self.folder(folder) if folder else self.path) / file
        save_verified_model(path, module, card)
        return path

    def sha256_of(self, name: str) -> str | None:
        """Return the SHA-256 of a file that was written; None if the other process writes it."""
        return self._held.written[name]

    def write_result(self, result: RunResult) -> None:
        """Write `result.json`."""
        write_json(self.path / RESULT, result.model_dump(mode="json"))


class UnwrittenRun(RunDirectory):
    """The directory of a run for a process that neither writes it nor shows the run, because another one does."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = inside(path)
        self.settings = flatten(settings.to_dict())

    def written(self) -> Written:
        """Return that nothing is written."""
        return Written()

    def write_model(self, name: str, module: nn.Module, card: ModelCard) -> Path:
        """Return the path at which the other process writes the file."""
        return self.path / name

    def sha256_of(self, name: str) -> str | None:
        """Return None, because the other process writes the file."""
        return None

    def _do_nothing(self, *_: object, **__: object) -> None:
        pass

    close = show = show_time_left = record = progress = _do_nothing
    write_samples = write_pool_shard = write_logits = write_result = _do_nothing


def check_output(path: Path, overwrite: bool, inputs: Iterable[Path | None] = ()) -> None:
    """Check that a run may be written to `path`, changing nothing.

    Raises `InputError` if it contains a run and `overwrite` is not set, contains other files or one of the `inputs`,
    which the run reads, or cannot be written to.
    """
    check_own(path)
    check_writable(path)
    with os_errors_as(InputError, f"--output {path} cannot be read", "name another directory"):
        entries = {entry for entry in _entries(path) - {_LOCK} if not _NOT_STARTED.fullmatch(entry)}
        contained = [each for each in inputs if each is not None and each.resolve().is_relative_to(path.resolve())]
    if contained:
        raise InputError(f"--output {path} holds {contained[0]}, which the run reads; name another directory")
    strange = sorted(entry for entry in entries - {CARD} if not _OWN_FILE.fullmatch(entry))
    if not strange and entries and SETTINGS not in entries:
        strange = sorted(entries)
    if strange:
        names = ", ".join(shortened(name) for name in strange[:3])
        raise InputError(f"--output {path} holds files that are not a run's ({names}); name another directory")
    if entries and not overwrite:
        raise InputError(f"--output {path} already holds a run; add --overwrite to replace it")


def check_same_settings(path: Path, settings: Settings, may_move: Container[str] = ()) -> None:
    """Check that the run in `path` may resume with these settings.

    Epochs may increase; the checkpoint interval and the number of allowed rollbacks may change. A run may lack a newer
    setting if the new value has no effect. Files and folders with the dotted keys `may_move` may have moved, because
    the caller compares their contents; a data set may change its name only from one folder to another. Raises
    `InputError` if it is not a run, or names each other difference.
    """
    try:
        check_own(path)
        earlier = flatten(read_toml(inside(path) / SETTINGS))
    except InputError as error:
        raise InputError(f"{path} holds no run to resume: {error}") from error
    check_may_resume(path, earlier, settings, may_move)


def check_may_resume(
    path: Path, earlier: Mapping[str, object], settings: Settings, may_move: Container[str] = ()
) -> None:
    """Raise `InputError`, as `check_same_settings`, unless a run with the `earlier` settings may resume."""
    earlier, now = {**_WITHOUT_EFFECT, **earlier}, {**_WITHOUT_EFFECT, **flatten(settings.to_dict())}
    differences = [
        f"{shortened(key)} was {shortened(repr(earlier.get(key)))} and is {shortened(repr(now.get(key)))}"
        for key in sorted(earlier.keys() | now.keys())
        if earlier.get(key) != now.get(key) and not _may_differ(key, earlier.get(key), now.get(key), may_move)
    ]
    if differences:
        allowed = f"epochs may increase, and {', '.join(sorted(_MAY_CHANGE & now.keys()))} may change"
        shown = "; ".join(differences[:_MOST_DIFFERENCES])
        raise InputError(f"{path} cannot resume with other settings: {shown} ({allowed})")


def _may_differ(key: str, earlier: object, now: object, may_move: Container[str]) -> bool:
    if key == "epochs":
        return isinstance(earlier, int) and isinstance(now, int) and now >= earlier
    if key in may_move and None not in (earlier, now):
        return not key.endswith(".name") or all(str(name).startswith(FOLDER) for name in (earlier, now))
    return key in _MAY_CHANGE | _ASKED_EACH_TIME


def sha256_of_fixed_settings(settings: Settings) -> str:
    """Return the SHA-256 of the settings that a resumed run must share, in hexadecimal."""
    values = flatten(settings.to_dict())
    fixed = {key: value for key, value in values.items() if key not in _MAY_CHANGE | _ASKED_EACH_TIME}
    return hashlib.sha256(canonical_json(fixed).encode()).hexdigest()


def take_from(path: Path, process: str) -> None:
    """Remove the lock of a run if this process, which is dead or cut off, took it; alive, it stops at its next write.

    Processes are named as they sign locks. Raises `RunError` if the lock cannot be removed.
    """
    if holder_of(inside(path) / _LOCK) == process:
        remove(inside(path) / _LOCK)


def has_pool(path: Path) -> bool:
    """Tell whether a run directory has a sample pool."""
    return is_folder(inside(path) / _POOL)


def pool_shards(path: Path) -> list[Path]:
    """Return the shard files, oldest first, of the pool from which a run learned, or of that `pool` folder.

    It is its own or that of an earlier run; if it has grown that one, both. Raises `InputError` if there is none, or a
    shard before the last one is missing.
    """
    root, runs = inside(path), list[InsidePath]()
    if is_file(root):
        raise InputError(f"{path} is a file; name the directory of a `distill` run that kept its pool")
    while root not in runs:
        runs.append(root)
        earlier = _earlier_pool(root)
        if earlier is None:
            break
        root = inside(earlier)
    else:
        raise InputError(f"{path} holds no sample pool: its pool is said to be that of {root}, and the reverse")
    *grown, first = [_own_shards(each) for each in runs]
    if not first:
        user = runs[-2] if len(runs) > 1 else None
        if user is not None and not is_folder(root):
            raise InputError(f"{user} used the pool of {root}, which is not there (from {Path.cwd()}); put it back")
        whose = f"{path} holds no sample pool" if user is None else f"{user} used the pool of {root}, which holds none"
        raise InputError(f"{whose}; name the directory of a `distill` run that kept its own")
    return [shard for shards in (first, *reversed(grown)) for shard in shards]


def _earlier_pool(root: InsidePath) -> Path | None:
    """Return the pool that a possibly untrusted run started with, besides or instead of its own."""
    pool = read_toml(root / SETTINGS).get("pool") if is_file(root / SETTINGS) else None
    return user_path(pool) if isinstance(pool, str) else None


def _own_shards(root: InsidePath) -> list[InsidePath]:
    folder = root / _POOL if is_folder(root / _POOL) else root
    shards = numbered_files(folder, _SHARD)
    for epoch in range(1, max(shards, default=0)):
        if epoch not in shards:
            raise InputError(f"{folder} lacks {shard_name(epoch)}; put it back, or renumber the others")
    return list(shards.values())


def first_pool_shards(path: Path, count: int) -> list[Path]:
    """Return the shards of the first `count` syntheses of a run, oldest first; raise `InputError` if one is missing."""
    return [_own_file(path, f"{_POOL}/{shard_name(epoch)}") for epoch in range(1, count + 1)]


def read_logits(path: Path, start: int, written: Written) -> Tensor | None:
    """Return what `write_logits` wrote for the images from `start` on; None if it is lost or has changed since."""
    from gapssg.models.safetensors_file import read_safetensors

    name = f"{_LOGITS}/{_logits_name(start)}"
    try:
        file = read_safetensors(inside(path) / name)
    except InputError:
        return None
    return file.tensors.get(_LOGITS) if file.sha256 == written.files.get(name) else None


def _own_file(path: Path, name: str) -> Path:
    file = inside(path) / name
    if not is_file(file):
        raise InputError(f"{path} has lost {name} since the checkpoint; restart with --overwrite")
    return file


def _logits_name(start: int) -> str:
    return f"views-{start:07d}.safetensors"


def shard_name(epoch: int) -> str:
    """Return the file name of an epoch's shard."""
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
    """Return the facts of the computation that every result records."""
    return RunFacts(
        device=str(runtime.device),
        precision=runtime.precision,
        compiled=runtime.compiled,
        seed=runtime.seed,
        versions=versions(),
        settings_sha256=settings.sha256(),
    )


def check_own(path: Path) -> None:
    """Raise `InputError` if a possibly untrusted run has a link, a device, or a folder for a file or the reverse."""
    root = inside(path)
    for name in (_LOCK, SETTINGS, EVENTS, RESULT, _BEST, *FINAL_WEIGHTS):
        if is_folder(root / name):
            raise InputError(f"{root / name} is a folder where a file of the run is expected; remove it")
    for name in _FOLDERS:
        if is_file(root / name):
            raise InputError(f"{root / name} is a file where a folder of the run is expected; remove it")


def _check_written(path: InsidePath, written: Written) -> bytes:
    """Check that the files that a checkpoint lists are unchanged, and return the events up to it."""
    restart = f"restart with --output {path} --overwrite"
    events = read_bounded(path / EVENTS, LARGEST_EVENTS)[: written.events_length] if written.events_length else b""
    if hashlib.sha256(events).hexdigest() != written.events_sha256:
        raise InputError(f"{path / EVENTS} does not start with the events that the checkpoint lists; {restart}")
    for name, sha256 in written.files.items():
        file = path / name
        exists = is_file(file)  # a link is refused
        if file.parent.name == _LOGITS:
            continue  # `read_logits` checks them: the teacher computes them again
        if not exists:
            if file.parent.name == "samples":
                continue  # they are only for users, who may remove them
            raise InputError(f"{file} has been removed since the checkpoint; {restart}")
        if sha256_of_file(file, LARGEST_FILE) != sha256:
            raise InputError(f"{file} is not the file that this run wrote (its SHA-256 differs); {restart}")
    return events


def _entries(path: Path) -> set[str]:
    """Return every file and link in `path` and its folders, relative to it; subfolders of these end in a slash."""
    found, root = set(), inside(path)
    for name, is_a_folder in entries_in(root).items():
        if is_a_folder:
            found |= {f"{name}/{below}{'/' * is_one}" for below, is_one in entries_in(root / name).items()}
        else:
            found.add(name)
    return found


def _remove_run(path: InsidePath) -> None:
    """Remove the files of an earlier run, and nothing else.

    Result and checkpoint are removed first, since without the other files they would make the run look finished or
    resumable; the settings last, so that what a kill leaves in between is still recognised as a run.
    """
    for name in (RESULT, _CHECKPOINT):
        remove(path / name)
        sync_folder((path / name).parent)
    for entry in sorted(_entries(path), key=lambda entry: entry == SETTINGS):
        if _OWN_FILE.fullmatch(entry) and entry != _LOCK:
            remove(path / entry)
    for name in _FOLDERS:
        remove(path / name, empty_folder=True)
