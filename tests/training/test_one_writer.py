"""Only the process that holds the lock of a directory writes there, whatever becomes of the lock or the directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gapssg import DistillSettings, RunError, distill
from gapssg.errors import InputError, Taken
from gapssg.files import lock, write_json
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Prepared
from tests.run_fixtures import TINY
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with tiny_model():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> DistillSettings:
    teacher = write_tiny_teacher(tmp_path / "tiny.safetensors")
    return DistillSettings.model_validate({**TINY, **TINY_NOISE, "teacher": teacher, "snapshot_every": 1, "epochs": 3})


class Meddling(SilentDisplay):
    """Does something to the run when it shows its n-th event or step."""

    def __init__(self, moment: int, meddle: Callable[[], None]) -> None:
        self.left = moment
        self.meddle = meddle

    def event(self, event: Any) -> None:
        if not isinstance(event, Prepared):  # before which there is no run
            self.progress("", 0, 0)

    def progress(self, task: str, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.meddle()


def state_of(folder: Path) -> dict[str, bytes]:
    """Return the files but the temporary ones: a checkpoint may be under way, in a thread of its own."""
    paths = [path for path in folder.rglob("*") if path.suffix != ".tmp" and path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 2, 3, 6, 11])
@pytest.mark.parametrize("how", ["lock gone", "lock taken", "moved", "removed"])
def test_a_run_whose_lock_or_directory_was_replaced_stops_writing(
    settings: DistillSettings, tmp_path: Path, how: str, moment: int
):
    run, kept = tmp_path / "run", []

    def meddle() -> None:
        if how == "moved":
            run.rename(tmp_path / "old")
        elif how == "removed":
            shutil.rmtree(run)
        else:
            (run / ".lock").unlink()
        if how == "lock taken":
            lock(run / ".lock").close()
        elif how != "lock gone":
            distill(settings.model_copy(update={"seed": 5, "snapshot_every": 2}), run)
        kept.append(state_of(run))

    with pytest.raises(
        RunError, match=r"is no longer the directory that this process locked.* stopped without writing more$"
    ):
        distill(settings, run, display=Meddling(moment, meddle))
    assert state_of(run) == kept[0]
    assert not list(run.rglob("*.tmp"))


def test_after_a_lock_file_was_replaced_only_the_new_holder_writes(tmp_path: Path):
    first = lock(tmp_path / ".lock")
    with pytest.raises(Taken, match="is being written by process"):
        lock(tmp_path / ".lock")
    (tmp_path / ".lock").rename(tmp_path / "elsewhere")
    second = lock(tmp_path / ".lock")
    write_json(second.root / "file", 2)
    with pytest.raises(RunError, match="no longer the directory"):
        write_json(first.root / "file", 1)
    assert (tmp_path / "file").read_text() == "2\n"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("kind", ["link", "hard link", "text", "pipe"])
def test_locking_a_foreign_file_leaves_it_unchanged(tmp_path: Path, kind: str):
    victim, file = tmp_path / "victim", tmp_path / "table" / ".lock"
    victim.write_text("precious\n")
    file.parent.mkdir()
    if kind == "link":
        file.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, file)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_text("precious\n")
    with pytest.raises(InputError, match=r"table/\.lock (is|has)"):
        lock(file)
    assert victim.read_text() == "precious\n"
    assert kind != "text" or file.read_text() == "precious\n"


@pytest.mark.parametrize("left", [b"", b"proc", b"process 7 on no", b"process 7 on node\n", b"\0" * 20])
def test_a_lock_left_by_a_kill_or_power_failure_is_taken(tmp_path: Path, left: bytes):
    (tmp_path / ".lock").write_bytes(left)
    with lock(tmp_path / ".lock"), pytest.raises(Taken, match=r"process \d+ on"):
        lock(tmp_path / ".lock")
