"""Kills and long runs, in small; `make soak` does the same with many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import Look, commands, growth, long_run, survive_kills

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("label", ["distill, a checkpoint at each step", "pretrain-teacher"])
def test_a_process_that_is_killed_at_random_moments_ends_with_the_same_files(teacher_file: Path, tmp_path: Path, label):
    is_distill = label.startswith("distill")
    small = ["--student", "wrn10_half", "--epochs", "2", "--set", "method.passes=3"]
    shorter = small if is_distill else ["--model", "wrn10_half"]
    found = survive_kills([*commands(teacher_file)[label], *shorter], tmp_path, kills=2, seed=1)
    assert found.resumed >= 1
    assert found.differing == 0


def test_a_long_run_holds_no_more_memory_files_or_threads_than_a_short_one(tmp_path: Path):
    looks = long_run(tmp_path, epochs=90, every=10)
    assert [look.epoch for look in looks] == list(range(10, 100, 10))
    assert growth(looks) == []


@pytest.mark.parametrize(
    ("last", "name"),
    [
        (Look(200, 200_000_000, 9, 3, 9), "memory"),
        (Look(200, 100_000_000, 10, 3, 9), "open files"),
        (Look(200, 100_000_000, 9, 4, 9), "threads"),
        (Look(200, 100_000_000, 9, 3, 300), "files"),
    ],
)
def test_growth_is_noticed(last, name):
    assert growth([Look(100, 100_000_000, 9, 3, 9), last]) == [name]
