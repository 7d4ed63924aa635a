"""Every point at which a process can be killed or the power fail, between two operations on files.

A command runs once, and its operations on files are recorded. From them the directory is made as each crash would have
left it, and continued as a person would: with `--resume`, or with `--overwrite` where nothing can be continued.
`benchmarks/crash_points.py` tries all points.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from gapssg import DistillSettings, InputError, PretrainSettings, distill, measure_landscape, pretrain_teacher
from gapssg.files import write_atomically
from gapssg.landscape.settings import LandscapeSettings
from gapssg.models import MODELS, ModelEntry
from gapssg.table.plan import plan_tasks
from gapssg.table.run import run_table
from gapssg.table.settings import TableSettings
from tests.conftest import write_images
from tests.run_fixtures import TINY, files_of, without_timing
from tests.tiny import TINY_NOISE, write_tiny_teacher


class Operation(NamedTuple):
    """A change of the disk: what, of which file, and with which bytes, length or new name."""

    kind: str
    path: str
    value: Any = None


@dataclass
class _File:
    content: bytes = b""
    durable: bytes = b""


@dataclass
class _Folder:
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)


class Disk:
    """The content of a disk, and what a power failure leaves of it: the flushed files and folders."""

    def __init__(self, folder: Path) -> None:
        """Start with the content of a folder, all flushed."""
        self.root = self._read(folder)

    def _read(self, folder: Path) -> _Folder:
        entries: dict[str, _File | _Folder] = {}
        for path in folder.iterdir():
            entries[path.name] = self._read(path) if path.is_dir() else _File(*[path.read_bytes()] * 2)
        return _Folder(entries, dict(entries))

    def _at(self, path: str) -> Any:
        node: Any = self.root
        for name in Path(path).parts:
            node = node.entries[name]
        return node

    def apply(self, operation: Operation) -> None:
        """Carry out an operation."""
        kind, path, value = operation
        parent, name = self._at(str(Path(path).parent)), Path(path).name
        if kind == "create":
            parent.entries[name] = _File()
        elif kind == "write":
            self._at(path).content += value
        elif kind == "truncate":
            self._at(path).content = self._at(path).content[:value]
        elif kind == "flush":
            node = self._at(path)
            node.durable = node.content if isinstance(node, _File) else dict(node.entries)
        elif kind == "rename":
            self._at(str(Path(value).parent)).entries[Path(value).name] = parent.entries.pop(name)
        elif kind == "make folder":
            parent.entries[name] = _Folder()
        else:  # remove, remove folder
            del parent.entries[name]

    def files(self, names: str = "entries", contents: str = "content") -> dict[str, bytes | None]:
        """Return the files by path, None for a folder; of the names or contents all, or the `durable` ones."""
        found: dict[str, bytes | None] = {}

        def walk(folder: _Folder, prefix: str) -> None:
            for name, node in getattr(folder, names).items():
                found[prefix + name] = getattr(node, contents) if isinstance(node, _File) else None
                if isinstance(node, _Folder):
                    walk(node, f"{prefix}{name}/")

        walk(self.root, "")
        return found


class Crash(NamedTuple):
    """The state after a crash.

    Attributes:
        point: The number of the operation before which, or within which, it comes.
        how: Kill, torn write, or a power failure that keeps only what was flushed, or all names without the contents.
        operation: The operation.
        files: What is on the disk, None for a folder.
    """

    point: int
    how: str
    operation: Operation
    files: dict[str, bytes | None]


def crashes(before: Path, operations: Sequence[Operation]) -> Iterator[Crash]:
    """Yield what each crash leaves of a folder that was as `before`."""
    disk = Disk(before)
    for point, operation in enumerate(operations):
        yield Crash(point, "kill", operation, disk.files())
        yield Crash(point, "power, flushed only", operation, disk.files("durable", "durable"))
        yield Crash(point, "power, names only", operation, disk.files("entries", "durable"))
        if operation.kind == "write" and len(operation.value) > 1:
            half = operation.value[: len(operation.value) // 2]
            disk.apply(operation._replace(value=half))
            yield Crash(point, "torn write", operation, disk.files())
            disk.apply(operation._replace(value=operation.value[len(half) :]))
        else:
            disk.apply(operation)


@contextmanager
def recorded(root: Path) -> Iterator[list[Operation]]:
    """Record the operations on files below a folder until the block ends."""
    operations: list[Operation] = []
    paths: dict[int, str] = {}
    one_at_a_time = threading.RLock()
    names = ("open", "dup", "write", "pwrite", "ftruncate", "fsync", "replace", "unlink", "mkdir", "rmdir")
    real = {name: getattr(os, name) for name in names}

    def place(path: Any, folder: int | None) -> str | None:
        whole = os.path.join(paths[folder], path) if folder in paths else os.path.abspath(path)
        return whole if whole == str(root) or whole.startswith(f"{root}/") else None

    def note(kind: str, path: str | None, value: Any = None) -> None:
        if path is not None:
            operations.append(Operation(kind, os.path.relpath(path, root), value))

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with one_at_a_time:
            where = place(path, dir_fd)
            is_new = flags & os.O_CREAT and where is not None and not os.path.lexists(where)
            handle: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            paths.pop(handle, None)
            if where is not None:
                paths[handle] = where
                if is_new:
                    note("create", where)
            return handle

    def dup(handle: int) -> int:
        with one_at_a_time:
            copy: int = real["dup"](handle)
            paths.pop(copy, None)
            if handle in paths:
                paths[copy] = paths[handle]
            return copy

    def of_handle(name: str, kind: str) -> Callable[..., Any]:
        def call(handle: int, *values: Any) -> Any:
            with one_at_a_time:
                done = real[name](handle, *values)
                value = bytes(values[0])[:done] if kind == "write" else values[0] if values else None
                note(kind, paths.get(handle), value)
                return done

        return call

    def of_path(name: str, kind: str) -> Callable[..., Any]:
        def call(path: Any, *values: Any, dir_fd: int | None = None) -> None:
            with one_at_a_time:
                where = place(path, dir_fd)
                real[name](path, *values, dir_fd=dir_fd)
                note(kind, where)

        return call

    def replace(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        with one_at_a_time:
            source, target = place(old, src_dir_fd), place(new, dst_dir_fd)
            real["replace"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            note("rename", source, target and os.path.relpath(target, root))
            for handle, path in paths.items():
                if path == source and target is not None:
                    paths[handle] = target

    watched = {"open": open_, "dup": dup, "write": of_handle("write", "write"), "pwrite": of_handle("pwrite", "write"),
               "ftruncate": of_handle("ftruncate", "truncate"), "fsync": of_handle("fsync", "flush"),
               "replace": replace, "unlink": of_path("unlink", "remove"), "mkdir": of_path("mkdir", "make folder"),
               "rmdir": of_path("rmdir", "remove folder")}  # fmt: skip
    with ExitStack() as stack:
        for name, call in watched.items():
            stack.enter_context(mock.patch.object(os, name, call))
        yield operations


class Scenario(NamedTuple):
    """A command that may be interrupted.

    Attributes:
        start: Runs it in a folder; with `resume` or `overwrite` as the command has them.
        whole: What the folder holds in the end, without what may differ between equal runs.
        prepare: Makes what is there before it begins.
        can_resume: Whether a folder holds something that `resume` must continue.
    """

    start: Callable[..., object]
    whole: Callable[[Path], dict[str, Any]]
    prepare: Callable[[Path], object] = Path.mkdir
    can_resume: Callable[[Path], bool] = lambda folder: (folder / "run" / "checkpoint" / "latest.safetensors").exists()


class Outcome(NamedTuple):
    """The outcome of a scenario.

    Attributes:
        points: Crashes, those of one point counted each.
        states: Different states of the disk that they leave.
        failures: What did not hold, a line each.
    """

    points: int
    states: int
    failures: list[str]


def try_crashes(scenario: Scenario, folder: Path, every: int = 1) -> Outcome:
    """Record a scenario, continue it after each n-th crash, and look whether it ends as if nothing had been."""
    scenario.prepare(folder / "before")
    run = folder / "run"
    shutil.copytree(folder / "before", run)
    with recorded(run) as operations:
        scenario.start(run, overwrite=True)
    expected, points, failures = scenario.whole(run), 0, []
    earlier = scenario.whole(folder / "before")
    seen: set[str] = set()
    for number, crash in enumerate(crashes(folder / "before", operations)):
        if number % every:
            continue
        points += 1
        key = hashlib.sha256(repr(sorted(crash.files.items())).encode()).hexdigest()
        if key in seen:
            continue
        seen.add(key)
        shutil.rmtree(run)
        _write(run, crash.files)
        try:
            problem = _continue(scenario, run, expected, earlier)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures.append(f"{crash.how} at {crash.point}, {crash.operation.kind} {crash.operation.path}: {problem}")
    return Outcome(points, len(seen), failures)


def _write(folder: Path, files: dict[str, bytes | None]) -> None:
    folder.mkdir()
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _continue(scenario: Scenario, run: Path, expected: dict[str, Any], earlier: dict[str, Any]) -> str | None:
    """Resume after a crash; return what is wrong."""
    if (run / "run" / "result.json").exists() and scenario.whole(run) not in (expected, earlier):
        return "it looks finished, and is not whole"
    can_resume = scenario.can_resume(run)
    try:
        scenario.start(run, resume=True)
    except InputError as error:
        if can_resume:
            return f"not continued: {error}"
        if len(str(error).splitlines()) != 1:
            return f"not one sentence: {error}"
        scenario.start(run, overwrite=True)
    found = scenario.whole(run)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"other files: {', '.join(differing)}" if differing else None


def scenarios(folder: Path) -> dict[str, Scenario]:
    """Return the commands in small; what they read is made in the folder."""
    teacher, images = write_tiny_teacher(folder / "tiny.safetensors"), write_images(folder / "images")
    method = {**TINY_NOISE["method"], "labelled_views": 1}
    values = {**TINY, **TINY_NOISE, "method": method, "teacher": teacher, "snapshot_every": 1, "epochs": 2}
    student = DistillSettings.model_validate(values)
    training = {"data": {"name": f"folder:{images}"}, "model": {"name": "tiny"}, "epochs": 2, "batch_size": 16}
    pretraining = PretrainSettings.model_validate({**training, "runtime": TINY_NOISE["runtime"]})
    distill(student, folder / "student")
    around = {"models": [folder / "student"], "data": {"name": "pool"}, "grid": 5, "curvature": {"enabled": False}}
    landscape = LandscapeSettings.model_validate({**around, "teacher": teacher, "runtime": TINY_NOISE["runtime"]})
    table = TableSettings.model_validate(
        {
            **{"rows": ["digits"], "methods": ["noise"], "seeds": 1, "budget": "smoke", "scratch": False},
            **{"changes": ["epochs=1"], "pretrain_changes": ["epochs=1"], "runtime": TINY_NOISE["runtime"]},
        }
    )

    def in_run(call: Callable[..., object], settings: object) -> Callable[..., object]:
        return lambda folder, **options: call(settings, folder / "run", **options)

    def after(call: Callable[..., object], settings: object) -> Callable[[Path], object]:
        def prepare(folder: Path) -> None:
            folder.mkdir()
            call(settings, folder / "run")

        return prepare

    def make_table(folder: Path, **_: object) -> None:
        run_table(plan_tasks(table, folder / "table"), folder / "table")

    def whole(folder: Path) -> dict[str, Any]:
        return files_of(folder / "run")

    def interrupted(folder: Path) -> None:
        after(distill, student)(folder)
        (folder / "run" / "result.json").unlink()

    def is_measured(folder: Path) -> bool:
        return (folder / "run" / "surfaces").is_dir() and any((folder / "run" / "surfaces").glob("*.safetensors"))

    other = student.model_copy(update={"seed": 7})
    return {
        "distill": Scenario(in_run(distill, student), whole),
        "distill --overwrite": Scenario(
            in_run(distill, student), whole, after(distill, other), lambda folder: False
        ),
        "distill --resume": Scenario(
            lambda folder, **_: distill(student, folder / "run", resume=True), whole, interrupted, lambda folder: True
        ),
        "pretrain-teacher": Scenario(in_run(pretrain_teacher, pretraining), whole),
        "landscape": Scenario(in_run(measure_landscape, landscape), whole, can_resume=is_measured),
        "table": Scenario(make_table, table_files, can_resume=lambda folder: True),
    }  # fmt: skip


def table_files(folder: Path) -> dict[str, Any]:
    """Return everything that a table leaves by name, without what may differ between equal tables."""
    found: dict[str, Any] = {}
    root = folder / "table"
    for settings in root.rglob("settings.toml"):
        run = settings.parent.relative_to(root)
        found |= {f"{run}/{name}": content for name, content in files_of(settings.parent).items()}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        is_known = name in found or path.is_dir() or path.name.endswith(".lock") or "checkpoint" in path.parts
        if path.suffix == ".json" and not is_known:
            found[name] = _without_times(json.loads(path.read_text()))
        elif not is_known:
            found[name] = None
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in ("seconds", "created", "asked")}
        return {key: _without_times(each) for key, each in without_timing(kept).items()}
    return value


@contextmanager
def in_small() -> Iterator[None]:
    """Let every model be one convolution, save surfaces all the time, and draw nothing."""

    def draw(surfaces: dict[str, Any], folder: Path, **_: object) -> list[Path]:
        for name in surfaces:
            write_atomically(folder / f"{name}-contour.png", b"a figure")
        return [folder / f"{name}-contour.png" for name in surfaces]

    entry = ModelEntry("tests.tiny:tiny", "for tests")
    with (
        mock.patch("gapssg.models.names.MODELS", {**dict.fromkeys(MODELS, entry), "tiny": entry}),
        mock.patch("gapssg.landscape.measure._Job.checkpoints_every", (1, 0.0)),
        mock.patch("gapssg.landscape.measure.draw", draw),
        mock.patch("os.fsync", lambda _: None),
    ):
        yield
