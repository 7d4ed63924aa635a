"""Some of the crashes that `make crash-points` tries all of."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapssg.files import append, lock, make_folder, remove, write_atomically
from gapssg.safe_paths import inside
from tests.crash_points import Crash, Disk, Operation, crashes, in_small, recorded, scenarios, try_crashes

COMMANDS = ["distill", "distill --overwrite", "distill --resume", "pretrain-teacher", "landscape", "table"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_crashed_anywhere_ends_as_if_it_had_not(tmp_path: Path, command: str):
    with in_small():
        all_scenarios = scenarios(tmp_path)
        assert list(all_scenarios) == COMMANDS
        outcome = try_crashes(all_scenarios[command], tmp_path, every=97 if command == "table" else 29)
    assert outcome.states >= 2
    assert outcome.failures == []


def test_a_power_failure_keeps_what_was_flushed(tmp_path: Path):
    (tmp_path / "old").write_bytes(b"old")
    operations = [
        Operation("create", "new"),
        Operation("write", "new", b"text"),
        Operation("flush", "new"),
        Operation("rename", "new", "old"),
        Operation("flush", "."),
        Operation("make folder", "folder"),
    ]
    found = [crash.files for crash in crashes(tmp_path, operations) if crash.how == "power, flushed only"]
    assert found == [{"old": b"old"}] * 5 + [{"old": b"text"}]
    found = [crash.files for crash in crashes(tmp_path, operations) if crash.how == "power, names only"]
    assert found[2] == {"old": b"old", "new": b""}
    torn = [crash for crash in crashes(tmp_path, operations) if crash.how == "torn write"]
    assert torn == [Crash(1, "torn write", operations[1], {"old": b"old", "new": b"te"})]


def test_what_is_recorded_is_what_is_done(tmp_path: Path):
    with recorded(tmp_path) as operations, lock(tmp_path / ".lock") as held:
        make_folder(held.root / "folder")
        write_atomically(held.root / "folder" / "file", b"text")
        append(held.root / "lines", b"a line")
        remove(held.root / "lines")
        write_atomically(inside(tmp_path) / "other", b"text")
    (before := tmp_path.parent / f"{tmp_path.name}-before").mkdir()
    disk = Disk(before)
    for operation in operations:
        disk.apply(operation)
    files = {
        str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")
    }
    assert disk.files() == files
