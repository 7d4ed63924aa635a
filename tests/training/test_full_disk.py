"""A disk that refuses a write stops the run with one sentence, and what was durable before still is."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gapssg import DistillSettings, RunError, distill
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import DistillationEpoch, Epoch, Event
from gapssg.runs.loggers import LoggingDisplay
from tests.run_fixtures import TINY, files_of
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher


@pytest.fixture
def teacher_file(tmp_path: Path) -> Iterator[Path]:
    with tiny_model():
        yield write_tiny_teacher(tmp_path / "teacher.safetensors")


def settings(teacher_file: Path, **changes: Any) -> DistillSettings:
    method = {**TINY_NOISE["method"], "labelled_views": 2}
    values = {**TINY, **TINY_NOISE, "method": method, "teacher": teacher_file, "epochs": 3}
    return DistillSettings.model_validate({**values, **changes})


def failing(call: Callable[..., Any], count: int, number: int) -> Callable[..., Any]:
    """Return `call`, but with the error `number` from the `count`-th time on."""
    left, is_open = count, call is os.open

    def refuse(*arguments, **options):
        nonlocal left
        if is_open and not arguments[1] & os.O_CREAT:
            return call(*arguments, **options)  # what is there can be read
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return refuse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "number", "sentence"),
    [
        (os, "fsync", errno.ENOSPC, "No space left on device"),
        (os, "replace", errno.EDQUOT, "Disk quota exceeded"),
        (os, "open", errno.EROFS, "Read-only file system"),
    ],
)
def test_a_run_can_resume_after_any_refused_write(
    teacher_file: Path, tmp_path: Path, monkeypatch, module, name, number, sentence
):
    distill(settings(teacher_file), tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    continued = 0
    for count in range(2, 60, 7):
        run = tmp_path / f"{count}"
        monkeypatch.setattr(module, name, failing(getattr(module, name), count, number))
        try:
            distill(settings(teacher_file), run)
        except RunError as error:
            assert str(error).startswith("cannot write")
            assert sentence in str(error)
            assert len(str(error).splitlines()) == 1
        else:
            assert continued
            break
        finally:
            monkeypatch.undo()
        assert not list(run.rglob("*.tmp"))
        if (run / "checkpoint" / "latest.safetensors").exists():
            continued += 1
            distill(settings(teacher_file), run, resume=True)
            assert files_of(run) == expected
    else:
        pytest.fail("every run was refused a write")


class Vanishing(SilentDisplay):
    """Removes the run's directory at its n-th step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.left = step

    def progress(self, task: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            shutil.rmtree(self.path)


def test_a_removed_directory_stops_the_run_with_one_sentence(teacher_file: Path, tmp_path: Path):
    with pytest.raises(RunError, match=r"^cannot write .*No such file or directory$"):
        unlabelled = settings(teacher_file, method=TINY_NOISE["method"])
        distill(unlabelled, tmp_path / "run", display=Vanishing(tmp_path / "run", 8))
    assert not (tmp_path / "run").exists()


class Limiting(SilentDisplay):
    """Lets no file grow beyond some bytes when an epoch ends, after the run itself has recorded it."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def event(self, event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def restored_limits() -> Iterator[None]:
    """Restore the limit before pytest writes again, since its output may be a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_full_disk_for_tensorboard_stops_the_run_with_one_sentence(
    teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
):
    pytest.importorskip("tensorboard")
    threads: list[object] = []
    monkeypatch.setattr(threading, "excepthook", threads.append)
    run, values = tmp_path / "run", settings(teacher_file, checkpoint_every=1)
    with (
        pytest.raises(RunError, match=r"^cannot write to .*/tensorboard: File too large$"),
        restored_limits(),
        LoggingDisplay(["tensorboard"], Limiting(epoch), run, values, DistillationEpoch) as display,
    ):
        distill(values, run, display=display)
    assert threads == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(teacher_file: Path, small_disk: Path):
    # 0.2 MB each checkpoint, 0.1 MB each snapshot
    many = settings(teacher_file, student={"name": "wrn10_half"}, epochs=10, snapshot_every=1)
    with pytest.raises(RunError, match="No space left on device"):
        distill(many, small_disk / "run")
    assert not list((small_disk / "run").rglob("*.tmp"))
    # The last checkpoint is complete: the run resumes from it until the disk is full again.
    with pytest.raises(RunError, match="No space left on device"):
        distill(many, small_disk / "run", resume=True)
